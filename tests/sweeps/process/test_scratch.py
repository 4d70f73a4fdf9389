"""Private folders for temporary files: of whom they are, and who removes them."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from analysis.errors import HardwareError
from sweeps.process.installation import package_root
from sweeps.process.scratch import private_scratch, remove_abandoned, socket_folder

HOLDS = """
import sys, tempfile, time
from pathlib import Path
from sweeps.process.scratch import private_scratch
with private_scratch():
    Path(tempfile.mkdtemp(), "file").write_text("of a process that is killed")
    print("there", flush=True)
    time.sleep(300)
"""


LEAVES_AT_ONCE = """
import signal
from sweeps.process.scratch import leave_to_janitor, private_scratch, socket_folder
from sweeps.process.termination import end_now
with private_scratch():
    (socket_folder() / "file").touch()
    {leave}
    end_now(8)
"""
GOES_ON = """
import os, sys, time
from pathlib import Path
from sweeps.process.scratch import leave_to_janitor, private_scratch, socket_folder, take_over
with private_scratch():
    if os.fork():
        leave_to_janitor()
    else:
        take_over()
        while not Path(sys.argv[1]).exists():
            time.sleep(0.05)
        Path(sys.argv[1]).write_text(str(socket_folder().exists()))
"""
ENDS = """
import sys
from sweeps.process.scratch import private_scratch, socket_folder
with private_scratch():
    log = (socket_folder() / "log").open("wb")  # Ray's, which is open until the process exits
    print("there", flush=True)
    sys.stdin.readline()
"""
READS_ON = """
import os, tempfile
from sweeps.process.scratch import _janitors, leave_to_janitor, private_scratch, take_over
with private_scratch():
    printed = tempfile.TemporaryFile()
    janitor = _janitors[0].pid
    if pid := os.fork():
        leave_to_janitor()
        os.waitpid(pid, 0)
        os.waitpid(janitor, 0)  # its terminal is not read for as long as that takes
        print(os.pread(printed.fileno(), 100, 0).decode())
    else:
        take_over()
        printed.write(b"what it printed")
        printed.flush()
"""


@pytest.fixture
def place(tmp_path_factory, monkeypatch):
    folder = Path(tempfile.mkdtemp(prefix="sc-", dir="/tmp"))
    for name in ("TMPDIR", "LORASWEEP_TMP"):
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    assert not list(folder.iterdir())
    folder.rmdir()


def holder(place: Path) -> "subprocess.Popen[str]":
    environment = {**os.environ, "TMPDIR": str(place), "LORASWEEP_TMP": str(place), "PYTHONPATH": package_root()}
    process = subprocess.Popen([sys.executable, "-c", HOLDS], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "there\n"
    return process


def open_in(process: "subprocess.Popen[str]") -> list[str]:
    """What a process has open, by the names of its descriptors."""
    found = []
    for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(descriptor))
    return found


def until_empty(place: Path) -> bool:
    gives_up = time.monotonic() + 20
    while any(place.iterdir()) and time.monotonic() < gives_up:
        time.sleep(0.05)
    return not any(place.iterdir())


def test_temporary_files_are_private_and_gone_at_the_end(place):
    with private_scratch():
        (folder,) = place.iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
        assert Path(tempfile.mkdtemp()).parent == socket_folder() == folder
        with private_scratch():
            assert [folder] == list(place.iterdir())
        assert os.environ["TMPDIR"] == os.environ["RAY_TMPDIR"] == str(folder)
    assert not list(place.iterdir())
    assert os.environ["TMPDIR"] == tempfile.gettempdir() == str(place)
    assert "RAY_TMPDIR" not in os.environ


def test_wandbs_logs_are_private_too_unless_a_place_is_named_and_the_variable_is_as_before(place, monkeypatch):
    monkeypatch.delenv("WANDB_CACHE_DIR", raising=False)
    with private_scratch():
        assert os.environ["WANDB_CACHE_DIR"] == str(socket_folder() / "wandb")
    assert "WANDB_CACHE_DIR" not in os.environ  # else the next service would make the folder again, and leave it
    monkeypatch.setenv("WANDB_CACHE_DIR", "/mine")
    with private_scratch():
        assert os.environ["WANDB_CACHE_DIR"] == "/mine"
    assert os.environ["WANDB_CACHE_DIR"] == "/mine"


def test_sockets_have_a_short_path_and_files_the_place_that_was_named(place, monkeypatch):
    long = place / ("long" * 20)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with private_scratch():
        assert socket_folder().parent == place
        assert Path(tempfile.gettempdir()).parent == long
    assert list(place.iterdir()) == [long]
    assert not list(long.iterdir())
    monkeypatch.setenv("LORASWEEP_TMP", str(long))
    with pytest.raises(HardwareError, match="too long for the sockets of Ray, which take 20 bytes"), private_scratch():
        pass
    monkeypatch.setenv("LORASWEEP_TMP", "/proc")
    with pytest.raises(HardwareError, match="/proc: no folder"), private_scratch():
        pass
    long.rmdir()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_killed_process_leaves_is_removed_and_what_has_files_open_there_is_ended(place, number, monkeypatch):
    with holder(place) as process:
        (folder,) = place.iterdir()
        user = subprocess.Popen(["sleep", "300"], stdout=(folder / "log").open("wb"), start_new_session=True)
        stranger = subprocess.Popen(["sleep", "300"])
        process.send_signal(number)
    assert until_empty(place)
    assert user.wait(5) == -signal.SIGKILL
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_a_process_that_was_forked_to_go_on_keeps_the_folder(tmp_path, place):
    told = tmp_path / "told"
    environment = {**os.environ, "PYTHONPATH": package_root()}
    subprocess.run([sys.executable, "-c", GOES_ON, str(told)], env=environment, check=True)  # the first one has ended
    time.sleep(1)  # for a janitor that does not know better
    assert len(list(place.iterdir())) == 1
    told.touch()
    assert until_empty(place)
    assert told.read_text() == "True"


def test_the_process_that_a_detached_one_was_forked_from_may_still_read_what_it_printed(place):
    environment = {**os.environ, "PYTHONPATH": package_root()}
    reader = subprocess.run([sys.executable, "-c", READS_ON], env=environment, stdout=subprocess.PIPE, check=False)
    assert (reader.returncode, reader.stdout) == (0, b"what it printed\n")
    assert until_empty(place)


@pytest.mark.parametrize("leave", ["", "leave_to_janitor()"])
def test_a_process_that_ends_all_it_started_leaves_the_janitor_to_its_work(place, leave):
    environment = {**os.environ, "PYTHONPATH": package_root()}
    user = "import subprocess; subprocess.Popen(['sleep', '300'], stdout=(socket_folder() / 'log').open('wb'))"
    code = LEAVES_AT_ONCE.format(leave=f"{user}; {leave}")
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 8
    assert until_empty(place)


def test_the_next_command_removes_what_a_lost_machine_left_and_nothing_of_others(place):
    with holder(place) as process:
        (left,) = place.iterdir()
        for janitor in psutil.Process(process.pid).children():
            janitor.kill()
        process.kill()
    with holder(place) as lives:
        (lived,) = place.iterdir()  # it removed that of the first
        assert lived != left
        young, linked, other = place / "lsw-new", place / "lsw-link", place / "lsw-other"
        young.mkdir()
        other.mkdir()
        linked.symlink_to(other)
        os.utime(young)
        os.utime(other, (0, 0))
        os.chown(other, 1234, 1234)
        remove_abandoned([place])
        assert sorted(place.iterdir()) == sorted([lived, young, linked, other])
        os.utime(young, (0, 0))  # its command died in the moment of making it
        remove_abandoned([place])
        assert sorted(place.iterdir()) == sorted([lived, linked, other])
        linked.unlink()
        other.rmdir()
        lives.kill()
    assert until_empty(place)


@pytest.mark.parametrize("kill", [False, True])
def test_a_command_that_ends_is_not_taken_for_abandoned_before_its_janitor_has_seen_the_end(place, kill):
    environment = {**os.environ, "PYTHONPATH": package_root()}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", ENDS], env=environment, **pipes) as process:
        assert process.stdout.readline() == "there\n"
        (folder,) = place.iterdir()
        (janitor,) = psutil.Process(process.pid).children()
        janitor.suspend()  # it is slow to look, as on a busy machine
        if kill:
            process.kill()
            process.wait()
        else:
            pipe = os.readlink(f"/proc/{janitor.pid}/fd/0")
            print(file=process.stdin, flush=True)
            while pipe in open_in(process):  # until it waits for the janitor
                time.sleep(0.05)
        remove_abandoned([place])  # of another command, which has just begun
        assert folder.exists()
        janitor.resume()
        assert process.wait(30) == (-signal.SIGKILL if kill else 0)
    assert until_empty(place)


def test_without_locks_nothing_is_taken_for_abandoned(place, monkeypatch):
    def unsupported(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    folder = place / "lsw-a"
    folder.mkdir()
    (folder / ".owner").touch()
    with monkeypatch.context() as context:
        context.setattr(fcntl, "flock", unsupported)
        remove_abandoned([place])
        assert folder.exists()
    remove_abandoned([place])
    assert not folder.exists()
