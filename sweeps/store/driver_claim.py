"""One driver a sweep folder where its file system has no locks: ``.driver``, which is made only where it is not there.

Its driver counts in it every few seconds. Whether that driver lives is seen at its process, on the machine that it runs
on; elsewhere by whether it goes on counting: no clocks are compared.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from analysis.errors import FolderError
from analysis.folder import SweepFolder

BEAT = 5.0  # seconds between two signs of life
SILENT = 30.0  # seconds without one after which a driver of another machine is dead
_SAME = 2.0  # seconds by which two readings of one process's start may differ


@contextlib.contextmanager
def claimed(folder: SweepFolder) -> Iterator[None]:
    """Be the only driver of a folder for the length of the block.

    A driver that was taken for dead, such as on a machine that was suspended, and finds another one there when it goes
    on, is stopped as by SIGTERM.

    Args:
        folder: of the sweep; it is there.

    Raises:
        FolderError: where another driver lives.
        OSError: where the folder cannot be read or written.
    """
    claim = _claim_file(folder)
    mine = _identity()
    while not _made(claim, mine):
        refuse_living(folder)
        stale = claim.with_name(f".driver.{mine['id']}")
        with contextlib.suppress(FileNotFoundError):  # its driver has just ended, or somebody else takes it away
            os.rename(claim, stale)
        stale.unlink(missing_ok=True)
    ends = threading.Event()
    counting = threading.Thread(target=_count, args=(claim, mine, folder.where, ends), name="claim", daemon=True)
    counting.start()
    try:
        yield
    finally:
        ends.set()
        counting.join()
        if _read(claim).get("id") == mine["id"]:
            claim.unlink(missing_ok=True)


def refuse_living(folder: SweepFolder) -> None:
    """Raises FolderError where a driver lives that has no lock: on this machine, or on another one."""
    claim = _claim_file(folder)
    holder = _read(claim)
    if holder and _lives(claim, holder, folder.where):
        by = f"process {holder.get('pid')} on {holder.get('host')}"
        raise FolderError(
            f"{folder.where}: another lorasweep runs this sweep now: {by}. Wait for it, or stop it first"
            " (lorasweep stop)."
        )


def is_claimed(folder: SweepFolder, clock: Callable[[], float] = time.monotonic) -> bool:
    """Whether a driver without a lock runs a sweep now; takes a few seconds where that is seen by its counting alone.

    Args:
        folder: of the sweep.
        clock: seconds, never going back.
    """
    claim = _claim_file(folder)
    holder = _read(claim)
    if not holder:
        return False
    known = _process_lives(holder)
    return known if known is not None else _counts(claim, holder, 2 * BEAT, clock)


def _claim_file(folder: SweepFolder) -> Path:
    return folder.root / ".driver"


def _identity() -> dict[str, Any]:
    started = psutil.Process().create_time()
    here = {"pid": os.getpid(), "host": socket.gethostname(), "machine": _machine(), "started": started}
    return here | {"id": uuid.uuid4().hex, "count": 0}


def _machine() -> str:
    """What two processes share that see each other: the running system, and its table of processes."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"


def _made(claim: Path, mine: dict[str, Any]) -> bool:
    """Make the file, unless it is there: a file system without locks can do that for one of two."""
    try:
        descriptor = os.open(claim, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    with open(descriptor, "w") as file:
        json.dump(mine, file)
    return True


def _count(claim: Path, mine: dict[str, Any], where: str, ends: threading.Event) -> None:
    while not ends.wait(BEAT):
        with contextlib.suppress(OSError):  # the disk does not answer: again later
            if (there := _read(claim)).get("id") != mine["id"]:
                by = f"process {there['pid']} on {there['host']}" if there else "somebody"
                print(f"{where}: {by} has taken this sweep over: this one stops.", file=sys.stderr, flush=True)
                os.kill(os.getpid(), signal.SIGTERM)
                return
            mine["count"] += 1
            # It is never made anew, and its text never gets shorter.
            with open(os.open(claim, os.O_WRONLY | os.O_NOFOLLOW), "w") as file:
                json.dump(mine, file)


def _lives(claim: Path, holder: dict[str, Any], where: str) -> bool:
    known = _process_lives(holder)
    if known is not None:
        return known
    print(
        f"{where} was driven by process {holder.get('pid')} on {holder.get('host')}, which has not said that it ended."
        f" Looking for {SILENT:.0f} s whether it still runs.",
        file=sys.stderr,
        flush=True,
    )
    return _counts(claim, holder, SILENT)


def _process_lives(holder: dict[str, Any]) -> bool | None:
    """Whether a driver's process is there; None where it is, or was, one of another machine."""
    if holder.get("machine") != _machine():
        return None
    try:
        return abs(psutil.Process(int(holder["pid"])).create_time() - float(holder["started"])) < _SAME
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


def _counts(claim: Path, holder: dict[str, Any], seconds: float, clock: Callable[[], float] = time.monotonic) -> bool:
    """Whether a driver of another machine goes on counting."""
    until = clock() + seconds
    while clock() < until:
        time.sleep(0.5)
        now = _read(claim)
        if not now:
            return False  # it has just ended
        if (now.get("id"), now.get("count")) != (holder.get("id"), holder.get("count")):
            return True
    return False


def _read(claim: Path) -> dict[str, Any]:
    """What stands in the file; nothing where there is none, or a driver is just writing it."""
    for _ in range(3):
        try:
            content = json.loads(claim.read_text())
            return dict(content)
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError):
            time.sleep(0.1)
    return {"id": "", "pid": "?", "host": "?"}
