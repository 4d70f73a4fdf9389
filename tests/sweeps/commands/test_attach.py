"""`lorasweep attach`: the view of a sweep that another process runs, on a folder whose driver is played here."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from analysis.folder import MetricsRow, State, Status, SweepFolder, append_line
from sweeps.cli import main
from sweeps.compose.compose import compose
from sweeps.process.installation import package_root
from sweeps.store.control import Heartbeat, driver
from sweeps.store.manifest import make_manifest, write_manifest

OVERRIDES = ["model=local", "model.path={0}", "data=csv", "data.train={0}/a.csv", "data.validation={0}/b.csv"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    """A sweep of two trials, one of which has completed."""
    root = tmp_path_factory.mktemp("attach")
    composed = compose([*(line.format(root) for line in OVERRIDES), "search.trials=2", "train.max_steps=16"])
    made = SweepFolder(root / "runs" / "mine")
    write_manifest(made, make_manifest(composed, {"fingerprint": "0" * 64, "labels": ["a", "b"], "rows": {}}, []))
    for number, ended in enumerate((True, False)):
        files = made.trial(f"t{number:04d}")
        files.write_status(Status(State.COMPLETED if ended else State.RUNNING, "", 16 if ended else 8, "here"))
        metrics = {"accuracy": 0.75, "macro_f1": 0.75, "log_loss": 0.5}
        files.append_metrics(MetricsRow(files.trial_id, 16 if ended else 8, 100, 1.0, ended, 12, metrics))
        line = {"trial_id": files.trial_id, "number": number, "values": {"lora.rank": 8}, "time": time.time()}
        append_line(made.asks_file, {"event": "ask", **line})
        if ended:
            append_line(made.asks_file, {"event": "tell", **line, "step": 16, "state": "completed", "objective": 0.7})
    return made


@contextmanager
def driven(folder: SweepFolder) -> Iterator[Heartbeat]:
    with (folder.root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Heartbeat(folder, 1)


@contextmanager
def attached(folder: SweepFolder) -> Iterator["subprocess.Popen[str]"]:
    """In a pipe, once it shows the sweep."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sweeps.cli", "attach", str(folder.root)],
        env={**os.environ, "PYTHONPATH": package_root()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert "running" in process.stdout.readline(), process.communicate()
    yield process
    process.kill()
    process.wait()


def test_ctrl_c_leaves_the_view_and_not_the_sweep_which_is_said(folder: SweepFolder) -> None:
    with driven(folder), attached(folder) as process:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert out == ""
        assert err.strip().startswith("The sweep goes on. Stop it: ")
        assert err.strip().endswith(f"stop {folder.root}")
        assert driver(folder).alive


@pytest.mark.parametrize(
    ("how", "recorded", "status", "said"),
    [
        ("finished", None, 0, "finished"),
        ("Stopping on SIGTERM.", 130, 130, "stopped: Stopping on SIGTERM."),
        ("No disk.", 5, 5, "stopped: No disk."),
    ],
)
def test_at_the_sweeps_end_its_leaderboard_is_printed_and_its_status_is_ours(
    how: str, recorded: int | None, status: int, said: str, folder: SweepFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    with driven(folder) as heartbeat, attached(folder) as process:
        heartbeat.end(how, recorded)
        folder_lock = folder.root / ".lock"
        folder_lock.unlink()  # let go of, without ending this block
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (status, ""), out
    assert "Results: " in out
    assert ("resume" in out.split("Next:")[1]) == (how != "finished")
    assert main(["attach", str(folder.root)]) == status, "the same where it does not run any more"
    assert said in capsys.readouterr().out


def test_what_cannot_be_watched_is_told(folder: SweepFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attach", str(folder.root.parent)]) == 5
    assert "no sweep here" in capsys.readouterr().err
    assert main(["attach", "s3://bucket/sweeps/x"]) == 5
    assert " status s3://bucket/sweeps/x" in capsys.readouterr().err
    assert main(["attach", str(folder.root), "--view", "line", "--quiet"]) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--detach", "--view", "table"], "needs a terminal"),
        (["resume", "runs/x", "--detach", "--view", "line"], "needs a terminal"),
        (["run", "--detach", "--cfg", "job"], "nothing to --detach"),
    ],
)
def test_what_does_not_go_with_detach_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert said in capsys.readouterr().err
