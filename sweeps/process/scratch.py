"""A private folder for the temporary files of a command and of all processes that it starts, gone when it ends.

Ray writes its logs, sockets and runtime environments into a folder that it opens to everybody and never removes, W&B
stages what it uploads, and a process that is killed removes nothing. So all of it lies in a folder of mode 0700, and a
small process beside the command, the *janitor*, waits for the command's end, however that comes, ends what still has
files open there, and removes it. Where the janitor was killed too, as by a reboot, the next command does it.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from analysis.errors import HardwareError
from analysis.files.file_system import lock_now

_PREFIX, _OWNER = "lsw-", ".owner"  # the file is locked for as long as the folder's command or its janitor lives
_LONGEST = 20  # bytes of the place for sockets: below it Ray's have up to 84 more, and a socket's path may have 107
_SHORT = ("/tmp", "/var/tmp", "/dev/shm")  # where the usual place is too long for sockets
_WANDB = "WANDB_CACHE_DIR"  # each service of W&B leaves a log there; by default in the home folder
_VARIABLES = ("TMPDIR", "RAY_TMPDIR", _WANDB)
_EVERY = 0.05  # seconds between two looks of the janitor
_PATIENCE = 6.0  # for processes to end by themselves: W&B's service writes what it has, Ray's agents take a while
_UNMARKED = 3600.0  # seconds after which a folder without an owner is one whose command died while making it
_JANITOR = (
    "import sys; sys.path[:] = {}; from sweeps.process.scratch import clean_up_after; clean_up_after(sys.argv[1:])"
)
_open: list[Path] = []  # the folders of this process, while it has any
_janitors: list["subprocess.Popen[bytes]"] = []  # the one that waits for the end of this process
outliving: set[int] = set()  # process ids of janitors: whoever ends what this process has started leaves them alone


@contextlib.contextmanager
def private_scratch() -> Iterator[None]:
    """For the length of the block, this process and those that it starts have temporary files in private folders.

    One is for sockets, with a short path; where ``TMPDIR`` has a long one, there is a second one below that, for files.
    Within such a block it does nothing.

    Raises:
        HardwareError: where ``LORASWEEP_TMP`` cannot be used, or no folder can be made anywhere.
    """
    if _open:
        yield
        return
    with contextlib.ExitStack() as made:
        sockets, files, locks = _folders(made)
        folders = sorted({sockets, files})
        before = {name: os.environ.get(name) for name in _VARIABLES}
        _open.extend(folders)
        with contextlib.suppress(OSError):  # no process can be started: the folders are removed at a usual end alone
            _janitors.append(_start_janitor(folders, locks))
            outliving.add(_janitors[-1].pid)
        os.environ.update({"TMPDIR": str(files), "RAY_TMPDIR": str(sockets)})
        os.environ.setdefault(_WANDB, str(files / "wandb"))
        tempfile.tempdir = str(files)
        try:
            remove_abandoned({folder.parent for folder in folders})
            yield
        finally:
            tempfile.tempdir = None
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
            still_mine = bool(_open)
            _open.clear()
            if still_mine:  # and still locked: else another command would end what is at work there, this one too
                _let_clean(_janitors.pop() if _janitors else None, folders)


def take_over() -> None:
    """In a process that was forked to go on in the place of this one: the folders are its own from now on."""
    for janitor in _janitors:
        if janitor.stdin:
            janitor.stdin.write(f"{os.getpid()}\n".encode())
            janitor.stdin.flush()


def leave_to_janitor() -> None:
    """End without waiting for the folders' end: another process has taken them over, or this one is in a hurry."""
    _open.clear()
    while _janitors:
        janitor = _janitors.pop()
        if janitor.stdin:
            janitor.stdin.close()
        janitor.returncode = 0  # it is not waited for


def socket_folder() -> Path:
    """A place for sockets: with a short path where ``private_scratch`` is at work, else that of temporary files."""
    return Path(os.environ["RAY_TMPDIR"] if _open else tempfile.gettempdir())


def socket_place() -> Path:
    """Where folders with sockets are made: the first place with a short path that can be written.

    Raises:
        HardwareError: where there is none, or ``LORASWEEP_TMP`` is too long.
    """
    if _open:
        return socket_folder().parent
    named = os.environ.get("LORASWEEP_TMP")
    if named and len(os.fsencode(named)) > _LONGEST:
        raise HardwareError(
            f"LORASWEEP_TMP={named}: too long for the sockets of Ray, which take {_LONGEST} bytes at most."
            " Give a shorter one, such as /tmp."
        )
    usual = (os.environ.get("RAY_TMPDIR"), _usual())
    places = [Path(named)] if named else [Path(place) for place in (*usual, *_SHORT) if place]
    for place in places:
        if len(os.fsencode(place)) <= _LONGEST and place.is_dir() and os.access(place, os.W_OK | os.X_OK):
            return place
    raise HardwareError(
        f"{' and '.join(map(str, places))}: no folder for temporary files can be made there. Give one of a short path"
        f" ({_LONGEST} bytes) that can be written: LORASWEEP_TMP=DIR"
    )


def _usual() -> str | None:
    with contextlib.suppress(OSError):  # no folder anywhere that could be written
        return tempfile.gettempdir()
    return None


def _folders(made: contextlib.ExitStack) -> tuple[Path, Path, list[int]]:
    """New folders for sockets and for files, and the descriptors of their locks, open until the stack is closed."""
    place = socket_place()
    sockets, lock = _new_folder(place, made)
    usual = _usual()
    if usual is None or Path(usual) == place:
        return sockets, sockets, [lock]
    files, second = _new_folder(Path(usual), made)
    return sockets, files, [lock, second]


def _new_folder(place: Path, made: contextlib.ExitStack) -> tuple[Path, int]:
    try:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))  # mode 0700
        lock = made.enter_context((folder / f"{_OWNER}.new").open("wb"))
        _try_lock(lock)
        os.rename(lock.name, folder / _OWNER)  # nobody sees it unlocked
    except OSError as error:
        raise HardwareError(
            f"{place}: no folder can be made there ({error.strerror}). Give another one: LORASWEEP_TMP=DIR"
        ) from None
    return folder, lock.fileno()


def _start_janitor(folders: Sequence[Path], locks: Sequence[int]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _JANITOR.format(sys.path), *map(str, folders)],
        stdin=subprocess.PIPE,  # its end is this process's, however that comes
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,  # Ctrl-C is this process's
        pass_fds=locks,  # a lock ends with the last process that has it: there is no moment without one
    )


def _let_clean(janitor: "subprocess.Popen[bytes] | None", folders: Sequence[Path]) -> None:
    """Have the janitor clean up, and wait for it; where there is none, or it was killed, do its work."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        if janitor:
            janitor.communicate(timeout=3 * _PATIENCE)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def clean_up_after(folders: Sequence[str]) -> None:
    """The janitor's process: wait for the end of the one that started it, then clean up.

    It has inherited the folders' locks: until it ends, no other command takes them for abandoned.

    Args:
        folders: to be removed.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    owner = parent = os.getppid()
    os.set_blocking(0, False)
    while owner != parent or os.getppid() == parent:  # a child of it that it forked may hold the pipe open
        with contextlib.suppress(BlockingIOError):
            told = os.read(0, 64)
            if not told:
                break
            owner = int(told)
        time.sleep(_EVERY)
    _remove([Path(folder) for folder in folders], {parent, owner})


def remove_abandoned(places: Iterable[Path]) -> None:
    """Remove the folders of this user's commands that were killed together with their janitors.

    Args:
        places: folders in which theirs were made.
    """
    for place in places:
        for folder in place.glob(f"{_PREFIX}*"):
            if folder not in _open and _is_abandoned(folder):
                _remove([folder], set(), patience=0.0)


def _is_abandoned(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        about = folder.lstat()
        if about.st_uid != os.getuid() or not folder.is_dir() or folder.is_symlink():
            return False
        try:
            with (folder / _OWNER).open("rb") as lock:
                return _try_lock(lock)
        except FileNotFoundError:
            return time.time() - about.st_mtime > _UNMARKED
    return False


def _try_lock(file: IO[bytes]) -> bool:
    """Whether nobody else has the lock; on a file system without locks nobody can tell, and nothing is removed."""
    try:
        return lock_now(file)
    except OSError:
        return False


def _remove(folders: Sequence[Path], owners: set[int], patience: float = _PATIENCE) -> None:
    """End the processes that have files of the folders open or name them, after some patience, and remove the folders.

    The owners are none of them: a command that has ended well has a log of Ray's open until it exits, and one that was
    detached is read by the process that the user started, for as long as its terminal takes.

    Ray's workers are no children of anybody that is left; but their logs are in the folder, as those of its agents,
    and its servers have it in their command lines.
    """
    until, spared = time.monotonic() + patience, {*owners, os.getpid()}
    for _ in range(200):
        using = [process for process in _users(folders) if process not in spared]
        if not using:
            break
        if time.monotonic() >= until:
            for process in using:
                with contextlib.suppress(OSError):
                    os.kill(process, signal.SIGKILL)
        time.sleep(_EVERY)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _users(folders: Sequence[Path]) -> list[int]:
    """The processes of this user that have files below the folders open or name one of them."""
    if not Path("/proc/self/fd").is_dir():
        return _naming(folders)
    names = tuple(os.fsencode(folder) for folder in folders)
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended meanwhile, or is another user's
                if entry.stat().st_uid == os.getuid() and _uses(entry, names):
                    found.append(int(entry.name))
    return found


def _uses(process: Path, names: Sequence[bytes]) -> bool:
    """Whether a process has files below folders open, or names one of them. Raises OSError where it is gone."""
    if any(name in (process / "cmdline").read_bytes() for name in names):
        return True
    starts = tuple(name + b"/" for name in names)
    for descriptor in (process / "fd").iterdir():
        with contextlib.suppress(OSError):
            if os.fsencode(os.readlink(descriptor)).startswith(starts):
                return True
    return False


def _naming(folders: Sequence[Path]) -> list[int]:
    """Where there is no /proc: by command lines alone."""
    import psutil

    names, found = [str(folder) for folder in folders], []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(name in word for word in process.cmdline() for name in names):
                found.append(process.pid)
    return found
