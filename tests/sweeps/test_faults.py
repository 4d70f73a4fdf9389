"""A disk that fills, a worker that hangs, a trial that makes room: a simulated sweep ends like an undisturbed one."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from analysis.folder import State
from tests.sweeps.simulated_sweep import Simulated, result

SETTINGS = ("scheduler=fifo", "sampler=random", "search.trials=6", "resources.slots=2")


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
    assert [line["trial_id"] for line in sweep.lines("admissions")].count("t0001") == 2
    assert told in " ".join(sweep.folder.trial("t0001").read_status().notes)


@pytest.mark.heavy
def test_where_a_gpu_fails_all_its_trials_go_on_in_a_new_process_from_their_last_checkpoints(
    undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    sweep = Simulated(tmp_path)
    sweep.start("run", *SETTINGS, seconds=0.6, options=["--plain"])
    sweep.until(lambda: sweep.rungs() >= 2)
    (sweep.folder.root / "trials" / "gpu").write_text("t0001")
    code, out, err = sweep.ends()
    assert code == 0, out + err
    assert not (sweep.folder.root / "trials" / "gpu").exists(), "nothing went wrong"
    assert result(sweep.folder) == undisturbed
    admitted = sweep.lines("admissions")
    assert len({line["pid"] for line in admitted}) == 2
    first = {line["trial_id"]: line for line in reversed(admitted)}
    again = [line for line in admitted if line is not first[line["trial_id"]]]
    assert {line["trial_id"] for line in again} == {"t0000", "t0001"}
    assert all(line["from"] >= 4 for line in again), "from checkpoints"
    for line in again:
        said = " ".join(sweep.folder.trial(line["trial_id"]).read_status().notes)
        assert "failed: CUDA error: an illegal memory access was encountered. Went on" in said
    assert "ended itself, because its GPU failed: CUDA error: an illegal memory" in out


@pytest.mark.heavy
def test_a_trial_under_which_a_gpu_fails_for_ever_fails_alone_and_says_what_the_gpu_said(
    undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    sweep = Simulated(tmp_path)
    sweep.start("run", *SETTINGS, seconds=0.2)
    sweep.until(lambda: sweep.rungs() >= 1)
    (sweep.folder.root / "trials" / "gpu_always").write_text("t0001")
    code, out, err = sweep.ends()
    assert code == 0, out + err
    found = result(sweep.folder)
    status = sweep.folder.trial("t0001").read_status()
    assert status.state is State.FAILED
    assert status.reason == (
        "its GPU failed 2 times before the next rung, with no other trial on it: CUDA error: device-side assert"
        " triggered"
    )
    assert {name: it for name, it in found.items() if name != "t0001"} == {
        name: it for name, it in undisturbed.items() if name != "t0001"
    }
    assert [line["trial_id"] for line in sweep.lines("admissions")].count("t0001") <= 5
