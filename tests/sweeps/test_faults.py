"""A disk that fills, a worker that hangs, a trial that makes room: a simulated sweep ends like an undisturbed one."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from analysis.folder import State, SweepFolder, read_lines
from sweeps.process.installation import package_root

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "simulated.py"
SETTINGS = ("scheduler=fifo", "sampler=random", "search.trials=6", "resources.slots=2")


class Simulated:
    """A simulated sweep in a folder of its own."""

    def __init__(self, root: Path):
        root.mkdir(exist_ok=True)
        self.root, self.folder = root, SweepFolder(root / "runs" / "simulated")

    def start(self, command: str, *overrides: str, seconds: float = 0.0) -> "subprocess.Popen[str]":
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), command, str(self.root), "--seconds", str(seconds), *overrides],
            env={**os.environ, "PYTHONPATH": package_root()}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        return self.process

    def until(self, what: Callable[[], bool]) -> None:
        gives_up = time.monotonic() + 120
        while not what():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < gives_up
            time.sleep(0.02)

    def ends(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=180)
        return self.process.returncode, out, err

    def rungs(self) -> int:
        return sum(line["event"] == "rung" for line in read_lines(self.folder.asks_file))


def result(folder: SweepFolder) -> dict[str, Any]:
    """What a sweep of independent trials leaves, without its times."""
    found = {}
    for files in folder.trials():
        rows = [(row.step, row.final, row.metrics) for row in files.read_metrics()]
        found[files.trial_id] = (files.read_status().state, rows, files.checkpoints_dir.exists())
    told = [line["trial_id"] for line in read_lines(folder.asks_file) if line["event"] == "tell"]
    assert sorted(told) == sorted(found)
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    sweep = Simulated(tmp_path_factory.mktemp("undisturbed"))
    sweep.start("run", *SETTINGS)
    code, out, err = sweep.ends()
    assert code == 0, out + err
    found = result(sweep.folder)
    assert [state for state, *_ in found.values()] == [State.COMPLETED] * 6
    return found


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "lorasweep-test", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk takes root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            return


@pytest.mark.heavy
def test_a_full_disk_stops_the_sweep_which_goes_on_once_there_is_room(disk: Path, undisturbed: dict[str, Any]) -> None:
    sweep = Simulated(disk)
    sweep.start("run", *SETTINGS, seconds=0.2)
    sweep.until(lambda: sweep.rungs() >= 3)
    fill(disk)
    code, out, err = sweep.ends()
    assert code == 5, out + err
    assert "Everything recorded so far is kept" in err
    assert "lorasweep resume" in err
    assert "Traceback" not in out + err
    (disk / "filler").unlink()
    states = {files.read_status().state for files in sweep.folder.trials()}
    assert states <= {State.COMPLETED, State.RUNNING}, "no trial is to blame for the disk"
    sweep.start("resume")
    code, out, err = sweep.ends()
    assert code == 0, out + err
    assert result(sweep.folder) == undisturbed


@pytest.mark.heavy
@pytest.mark.parametrize(("fault", "told"), [("hang", "hung for 4 s"), ("evict", "")])
def test_trials_of_a_worker_that_hangs_or_has_no_memory_left_go_on(
    fault: str, told: str, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    sweep = Simulated(tmp_path)
    sweep.start("run", *SETTINGS, "resources.rung_timeout=4", seconds=0.2)
    sweep.until(lambda: sweep.rungs() >= 1)
    (sweep.folder.root / "trials" / fault).write_text("t0001")
    code, out, err = sweep.ends()
    assert code == 0, out + err
    assert not (sweep.folder.root / "trials" / fault).exists(), "nothing went wrong"
    assert result(sweep.folder) == undisturbed
    admitted = [line["from"] for line in read_lines(sweep.folder.root / "admissions.jsonl")
                if line["trial_id"] == "t0001"]  # fmt: skip
    assert len(admitted) == 2
    assert told in " ".join(sweep.folder.trial("t0001").read_status().notes)
