"""Answers that ``data.max_length`` cuts are told by each command that reads the rows, with the number that would do."""

import json
from pathlib import Path

import pytest

from analysis.folder import SweepFolder
from sweeps import cli
from sweeps.store.manifest import read_manifest

LENGTH = 24
NOTE = f"data.max_length={LENGTH} cuts the end of what is to be learned in 6 of 12 training rows (50%)"


@pytest.fixture
def rows(tmp_path: Path) -> list[str]:
    """Completions of 2 and of about 50 tokens, by turns."""
    for name, n in (("train", 12), ("validation", 4)):
        lines = [
            {"prompt": f"the {'apple ' * (i + 1)}", "completion": "pear " * (50 if i % 2 else 1)} for i in range(n)
        ]
        if name == "validation":
            lines = [{"prompt": "the crow " * (i + 1), "completion": "owl"} for i in range(n)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = [f"data.{name}={tmp_path}/{name}.jsonl" for name in ("train", "validation")]
    return ["data=jsonl", *files, "objective=single", "baselines=[]", "data.max_length=24"]


def flowed(text: str) -> str:
    return " ".join(text.split())


def test_data_check_and_trial_tell_answers_that_are_cut(tiny, rows, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = 1 + 1 + 12 + 50 + 1  # <s> the apple … pear … </s>
    for command in (["data", "--rows", "0"], ["check"], ["trial"]):
        cli.main([*command, *tiny("llama", *rows)])
        said = flowed(capsys.readouterr().out)
        assert NOTE in said, command
        assert f"data.max_length={whole} would keep all of it" in said
    enough = [*rows[:-1], f"data.max_length={whole}", "sweep.name=enough"]
    for command in (["data", "--rows", "0"], ["check"], ["trial"]):
        cli.main([*command, *tiny("llama", *enough)])
        assert "cuts the end of" not in flowed(capsys.readouterr().out), command


@pytest.mark.heavy
def test_a_sweep_tells_answers_that_are_cut_and_the_length_that_the_data_give_and_keeps_both(
    tiny, lorasweep, rows, tmp_path
) -> None:
    command = lorasweep(tmp_path)
    done = command("run", *tiny("llama", *rows, "search.trials=1", "sweep.name=cut"))
    assert NOTE in flowed(done.stdout), done.stdout + done.stderr
    assert read_manifest(SweepFolder(tmp_path / "runs" / "cut"))["data"]["lost"].startswith(NOTE)
    done = command("run", *tiny("llama", *rows[:-1], "data.max_length=0", "search.trials=1", "sweep.name=open"))
    assert "At most 72 tokens a row (data.max_length), from the lengths of the rows." in flowed(done.stdout)
    assert "cuts the end of" not in done.stdout
    manifest = read_manifest(SweepFolder(tmp_path / "runs" / "open"))
    assert manifest["config"]["data"]["max_length"] == manifest["unresolved"]["data"]["max_length"] == 72
