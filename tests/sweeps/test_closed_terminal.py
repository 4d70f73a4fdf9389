"""Whole sweeps and their terminal: it is closed under one, and another one does without it."""

import os
import pty
import signal
import sys
import time
from pathlib import Path

import pytest

from analysis.folder import SweepFolder
from sweeps.process.installation import package_root
from sweeps.store.control import driver

SETTINGS = ("search.trials=2", "train.max_steps=4000", "train.rungs=[20,4000]", "tracking=none", "sweep.name=mine")


def on_terminal(command, *arguments: str) -> tuple[int, int]:
    """A command on a terminal of its own, as its foreground process. Returns its id, and the terminal's other end."""
    pid, master = pty.fork()
    if pid == 0:
        os.chdir(command.cwd)
        os.environ.update(PYTHONPATH=package_root(), LORASWEEP_TEST=command.mark, LORASWEEP_TESTS=str(os.getppid()))
        os.execv(sys.executable, [sys.executable, "-m", "sweeps.cli", *arguments])
    return pid, master


def read_until(master: int, what) -> None:
    gives_up = time.monotonic() + 240
    seen = b""
    while not what():
        assert time.monotonic() < gives_up, seen[-3000:].decode(errors="replace")
        seen += os.read(master, 65536)


def gone(command) -> bool:
    deadline = time.monotonic() + 30
    while command.processes() and time.monotonic() < deadline:
        time.sleep(0.2)
    return command.processes() == []


@pytest.mark.heavy
def test_a_closed_terminal_stops_a_sweep_and_one_that_is_detached_is_watched_and_stopped(
    lorasweep, tiny, tmp_path: Path
) -> None:
    command = lorasweep(tmp_path)
    folder = SweepFolder(tmp_path / "runs" / "mine")
    first = folder.trial("t0000")
    pid, master = on_terminal(command, "run", *tiny("llama", *SETTINGS))
    read_until(master, lambda: first.read_metrics())
    os.close(master)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    assert gone(command), command.processes()
    assert "the terminal was closed (SIGHUP)" in driver(folder).ended
    assert folder.leaderboard_file.exists()
    assert "Traceback" not in (folder.log_file.read_text() if folder.log_file.exists() else "")

    started = command("resume", "--detach", "runs/mine")
    assert (started.returncode, started.stderr) == (0, "")
    assert "attach runs/mine" in started.stdout
    assert driver(folder).alive
    view = command.start("attach", "runs/mine")
    assert "mine: 0/2 done" in view.stdout.readline()
    assert command("stop", "runs/mine").returncode == 0
    out, err = view.communicate(timeout=120)
    assert (view.returncode, err) == (130, "")
    assert "as `lorasweep stop` asks" in out
    assert gone(command), command.processes()
    assert "starting Ray" in folder.output_file.read_text()
    assert "Results: " in folder.output_file.read_text()


@pytest.mark.heavy
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_ray_starts_leaves_one_line_and_nothing_else(number, lorasweep, tiny, tmp_path: Path) -> None:
    command = lorasweep(tmp_path)
    process = command.start("run", *tiny("llama", *SETTINGS))
    assert "starting Ray" in process.stdout.readline()
    time.sleep(1)
    process.send_signal(number)
    err = process.communicate(timeout=60)[1]
    assert (process.returncode, err) == (130, "Stopped.\n")
    assert gone(command), command.processes()
    assert not (tmp_path / "runs").exists()
