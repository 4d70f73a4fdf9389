"""A command that goes on without a terminal: what the process says that was started, and what the other one does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sweeps.process.installation import package_root

COMMAND = """
import os, pathlib, signal, sys, time
from sweeps import cli
from sweeps.process import detached
def work():
    started = detached.detach()
    if started is not None:
        where = started.wait()
        print("it is", where, flush=True)
        return where if isinstance(where, int) else 0
    {work}
cli._dispatch = lambda *given: work()
sys.exit(cli.main([]))
"""


def start(work: str, folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(work=work.replace("\n", "\n    "))],
        env={**os.environ, "PYTHONPATH": package_root()},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(file: Path) -> str:
    gives_up = time.monotonic() + 60
    while not file.exists() or not file.read_text():
        assert time.monotonic() < gives_up
        time.sleep(0.05)
    return file.read_text()


def test_it_goes_on_in_a_session_of_its_own_and_prints_into_the_file_from_its_first_line_on(tmp_path: Path) -> None:
    work = """print("starting")
print("a warning", file=sys.stderr)
detached.begun(pathlib.Path("output.log"), "runs/x")
os.kill(os.getpid(), signal.SIGHUP)
print("goes on", os.getsid(0) == os.getpid(), os.getppid() == 1 or "child", sys.stdout.isatty(), sys.stdin.read())
print("to standard error", file=sys.stderr)
while not pathlib.Path("go").exists():
    time.sleep(0.05)
pathlib.Path("end").write_text("reached")"""
    out, err = (process := start(work, tmp_path)).communicate(timeout=60)
    assert (out, err, process.returncode) == ("starting\nit is runs/x\n", "a warning\n", 0)  # the pipes are closed
    (tmp_path / "go").touch()
    until(tmp_path / "end")
    said = (tmp_path / "output.log").read_text().splitlines()
    assert said[:2] == ["starting", "a warning"]
    assert said[2].startswith("goes on True ")
    assert said[2].endswith(" False ")
    assert said[3] == "to standard error"


def test_one_that_fails_before_it_has_begun_tells_its_error_and_exit_status(tmp_path: Path) -> None:
    work = 'from analysis.errors import DataError\nprint("starting")\nraise DataError("no such column")'
    out, err = (process := start(work, tmp_path)).communicate(timeout=60)
    assert (out, err, process.returncode) == ("starting\nit is 3\n", "lorasweep: no such column\n", 3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_while_it_starts_a_signal_stops_it_but_a_closed_terminal_does_not(
    number: signal.Signals, tmp_path: Path
) -> None:
    work = """pathlib.Path("pid").write_text(str(os.getpid()))
time.sleep(2)
detached.begun(pathlib.Path("output.log"), "runs/x")"""
    process = start(work, tmp_path)
    pid = int(until(tmp_path / "pid"))
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    if number == signal.SIGHUP:
        assert (out, err, process.returncode) == ("it is runs/x\n", "", 0)
        return
    assert (out, err, process.returncode) == ("", "Stopped.\n", 130)
    assert not psutil.pid_exists(pid)
    assert not (tmp_path / "output.log").exists()
