"""What a signal does to a command, in processes of their own: it stops once, cleans up, and says one line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sweeps.process.installation import package_root

# A command whose work is `work`; it prints when it is ready, and what it does then.
COMMAND = """
import signal, subprocess, sys, time
from sweeps import cli
from sweeps.process import signals
def say(text): print(text, flush=True)
{work}
cli._dispatch = lambda *given: work()
sys.exit(cli.main([]))
"""
WAITS = """
def work():
    try:
        say("ready")
        time.sleep(60)
    finally:
        say("cleaning")
        time.sleep(0.5)
        say("cleaned")
"""
STOPPING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def start(work: str, ignored: tuple[signal.Signals, ...] = ()) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(work=work)],
        env={**os.environ, "PYTHONPATH": package_root()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: [signal.signal(number, signal.SIG_IGN) for number in ignored] and None,
    )
    until(process, "ready")
    return process


def until(process: "subprocess.Popen[str]", word: str) -> None:
    assert process.stdout is not None
    assert any(word in line for line in process.stdout), process.communicate()[1]


@pytest.mark.parametrize("number", STOPPING)
def test_each_of_them_stops_a_command_which_says_so_in_a_line(number: signal.Signals) -> None:
    process = start(WAITS)
    process.send_signal(number)
    assert (*process.communicate(timeout=60), process.returncode) == ("cleaning\ncleaned\n", "Stopped.\n", 130)


def test_those_that_follow_do_not_break_the_clean_up_and_a_second_ctrl_c_leaves_at_once() -> None:
    process = start(WAITS)
    process.send_signal(signal.SIGHUP)
    until(process, "cleaning")
    for number in (signal.SIGHUP, signal.SIGTERM):  # as systemd and a shell send them
        process.send_signal(number)
    assert (*process.communicate(timeout=60), process.returncode) == ("cleaned\n", "Stopped.\n", 130)
    process = start(WAITS)
    process.send_signal(signal.SIGTERM)
    until(process, "cleaning")
    process.send_signal(signal.SIGINT)
    assert (*process.communicate(timeout=60), process.returncode) == ("", "Stopped.\n", 130)


@pytest.mark.parametrize("number", STOPPING)
def test_one_that_was_ignored_from_the_start_stays_so(number: signal.Signals) -> None:
    process = start("def work():\n    say('ready')\n    time.sleep(1)\n    return 0", (number,))
    process.send_signal(number)
    assert (*process.communicate(timeout=60), process.returncode) == ("", "", 0)


def test_a_part_of_a_command_takes_the_signal_and_one_that_is_held_comes_at_its_end() -> None:
    process = start("""
def work():
    with signals.handled_by(None):
        say("ready")
        time.sleep(0.5)
        say("held")
        with signals.handled_by(lambda number: say(number.name)):
            say("taken")
    say("unreachable" if signals.came() is None else "goes on")
    return 130
""")
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60) == ("held\nSIGTERM\ntaken\ngoes on\n", "")
    process = start("""
def work():
    with signals.handled_by(None):
        say("ready")
        time.sleep(0.5)
        say("held")
    say("goes on")
""")
    process.send_signal(signal.SIGTERM)
    assert (*process.communicate(timeout=60), process.returncode) == ("held\n", "Stopped.\n", 130)


@pytest.mark.parametrize(
    "lost",
    [
        "class Lost:\n    def __del__(self): say('ready'); time.sleep(0.5)\ndef swallow(): Lost()",
        "def swallow():\n    try: say('ready'); time.sleep(1)\n    except KeyboardInterrupt: raise OSError('broken')",
        "def swallow():\n    from analysis.errors import ConfigError\n"
        "    try: say('ready'); time.sleep(0.5)\n    except KeyboardInterrupt: raise ConfigError('does not compose')",
    ],
    ids=["in a callback", "an error of a library's", "an error of ours"],
)
def test_what_a_library_makes_of_an_interrupt_is_no_error(lost: str) -> None:
    process = start(f"signals._CLEAN_SECONDS = 600\n{lost}\ndef work():\n    swallow()\n    time.sleep(60)")
    process.send_signal(signal.SIGTERM)
    assert (*process.communicate(timeout=60), process.returncode) == ("", "Stopped.\n", 130)


def test_a_command_that_does_not_end_is_ended_with_what_it_started_and_would_leave_behind(tmp_path: Path) -> None:
    process = start(f"""
import pathlib
signals._CLEAN_SECONDS = 0.5
def work():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdout=subprocess.DEVNULL)
    pathlib.Path("{tmp_path}/pid").write_text(str(child.pid))
    with signals.left_behind(lambda: pathlib.Path("{tmp_path}/removed").touch()):
        try:
            say("ready")
            time.sleep(60)
        finally:
            time.sleep(60)
""")
    process.send_signal(signal.SIGTERM)
    assert (*process.communicate(timeout=30), process.returncode) == ("", "Stopped.\n", 130)
    assert (tmp_path / "removed").exists()
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_children_do_not_hear_of_a_closed_terminal_but_the_command_does() -> None:
    process = start("""
def work():
    with signals.hangups_kept_from_children():
        child = subprocess.Popen([sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(60)"])
        try:
            time.sleep(60)
        finally:
            child.send_signal(signal.SIGHUP)
            time.sleep(0.3)
            say("lives" if child.poll() is None else "died")
            child.kill()
""")
    process.send_signal(signal.SIGHUP)
    assert (*process.communicate(timeout=60), process.returncode) == ("lives\n", "Stopped.\n", 130)


def test_what_is_written_to_a_terminal_that_is_gone_is_lost_and_no_error(tmp_path: Path) -> None:
    master, slave = os.openpty()
    told = tmp_path / "told"
    work = f"""
import pathlib
from rich.live import Live
def work():
    with Live("shown", refresh_per_second=20):
        say("ready")
        while sys.stdout.isatty():
            time.sleep(0.05)
        for stream in (sys.stdout, sys.stderr):
            print("x" * 100000, file=stream, flush=True)
        time.sleep(0.3)
    pathlib.Path("{told}").write_text("went on")
    return 7
"""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(work=work)],
        env={**os.environ, "PYTHONPATH": package_root()},
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    seen = b""
    while b"ready" not in seen:
        seen += os.read(master, 1000)
    time.sleep(0.2)
    os.close(master)
    assert process.wait(60) == 7
    assert told.read_text() == "went on"
