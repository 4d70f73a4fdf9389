"""The command line of ``lorasweep cluster``; tests/sweeps/driver/test_node_checks.py runs it on clusters."""

import pytest

from sweeps import cli

CONFIG, MODEL, HARDWARE = 2, 4, 7  # exit statuses


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ([], CONFIG, "lorasweep cluster check"),
        (["chekc"], CONFIG, "'cluster chekc' is not a command"),
        (["check", "auto", "ray.address=auto"], CONFIG, "give one of them"),
        (["check", "ray.address=null"], CONFIG, "no cluster to check"),
        (["check", "127.0.0.1:1"], HARDWARE, "ray.address=127.0.0.1:1: cannot connect"),
        (["check", "ray.address=127.0.0.1:1"], HARDWARE, "ray.address=127.0.0.1:1: cannot connect"),
        (["check", "model=local", "model.path=nowhere"], MODEL, "nowhere: no such folder"),
        (
            ["join", "s3://bucket/runs/a"],
            CONFIG,
            "s3://bucket/runs/a: workers find the head by a file in the sweep folder",
        ),
        (["announce", "a:1", "run", "sweep.dir=s3://bucket/runs"], CONFIG, "sweep.dir=s3://bucket/runs: workers find"),
        (["announce", "a:1", "resume", "s3://bucket/runs/a"], CONFIG, "s3://bucket/runs/a: workers find"),
        (["check", "sweep.dir=s3://key:secret@bucket/runs"], CONFIG, "s3://***@bucket/runs"),
    ],
)
def test_what_cannot_be_checked_is_told(words, status, said, capsys):
    assert cli.main(["cluster", *words]) == status
    assert said in capsys.readouterr().err


def test_the_config_can_be_shown(capsys):
    assert cli.main(["cluster", "check", "head:6379", "lora.rank=4", "--cfg", "job"]) == 0
    assert "address: head:6379" in capsys.readouterr().out
