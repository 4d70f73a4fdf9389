"""One driver a sweep folder in a bucket: ``control/driver.json``, which the driver writes again every few seconds.

No clock of a machine decides: times are the store's own, compared with each other, or it is watched whether the file
changes. A driver that finds another one's id in it stops.
"""

import contextlib
import errno
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from analysis.buckets.bucket import Bucket
from analysis.buckets.local_copy import LocalCopy
from analysis.errors import FolderError

BEAT = 5.0  # seconds between two signs of life
SILENT = 30.0  # seconds without one after which a driver is dead
_POLL = 2.0  # seconds between two looks for requests
_CONFIRM = 20.0  # seconds after its last sign from which a driver looks who drives before it writes on
_SETTLE = 1.0  # seconds in which two that begin at once see each other
_FILE = "control/driver.json"


class Lease:
    """The right to write a sweep folder in a bucket.

    Args:
        copy: of the folder; its lock is held.
    """

    def __init__(self, copy: LocalCopy):
        self.copy, self.bucket = copy, copy.bucket
        self.id = uuid.uuid4().hex
        self.lost = ""  # who drives instead, in a sentence
        self._own = copy.root / ".lease"  # the last driver that worked in this copy
        self._before: dict[str, Any] | None = None
        self._identity = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.time()}
        self._confirmed = -float("inf")
        self._seen: set[str] = set()  # requests that were fetched
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._live, name="lease", daemon=True)

    def acquire(self) -> None:
        """Become the sweep's driver.

        Raises:
            FolderError: where another one lives.
            OSError: where the bucket cannot be read or written.
        """
        self._before = _read(self.bucket)
        if self._before and not self._before.get("ended") and self._before.get("id") != self._last_here():
            self._wait_for_end(self._before)
        self._write()
        self._own.write_text(self.id)
        if self._before is not None and not self._before.get("ended"):
            time.sleep(_SETTLE)
            if (now := _read(self.bucket)) and now.get("id") != self.id:
                raise _busy(self.bucket, now)

    def start(self) -> None:
        """From now on, write signs of life, and fetch the requests of other terminals, but for those that are here."""
        self._seen = {self.copy.name(path) for path in (self.copy.root / "control").glob("*.json")}
        self._thread.start()

    def check(self) -> None:
        """To be called before anything is written.

        Raises:
            OSError: where another driver has taken the sweep over, or it cannot be seen whether one has.
        """
        if not self.lost and time.monotonic() - self._confirmed > _CONFIRM:
            self._confirm()
        if self.lost:
            raise OSError(errno.EROFS, self.lost, self.bucket.uri)

    def end(self) -> None:
        """Leave it: how the run ended is written, as the driver has written it into its copy."""
        self._ends.set()
        if self._thread.is_alive():
            self._thread.join(_POLL + 10)
        if self.lost:
            return
        local = self._local()
        if local:
            self._write({**local, "ended": local.get("ended") or "its driver failed"})
        elif local is None and self._before:  # such as of `lorasweep finalize`: the sweep's own driver stands there
            self._write(self._before)
        elif local is None:
            self.bucket.remove([_FILE])

    def _live(self) -> None:
        beat_at = time.monotonic()
        while not self._ends.wait(_POLL) and not self.lost:
            with contextlib.suppress(OSError, ValueError):  # the store does not answer: again later
                self._fetch_requests()
                if time.monotonic() - beat_at >= BEAT:
                    self._confirm()
                    if not self.lost:
                        self._write(self._local())
                    beat_at = time.monotonic()

    def _confirm(self) -> None:
        now = _read(self.bucket)
        if now is not None and now.get("id") != self.id:
            by = f"{now.get('host', 'another machine')} (process {now.get('pid', '?')})"
            self.lost = f"another lorasweep, on {by}, has taken this sweep over: this one was not heard of for a while"
        else:
            self._confirmed = time.monotonic()

    def _fetch_requests(self) -> None:
        for name in sorted(self.bucket.listing("control")):
            if name != _FILE and name.endswith(".json") and name not in self._seen:
                self._seen.add(name)
                self.copy.fetch_missing([self.copy.root / name])

    def _local(self) -> dict[str, Any] | None:
        """What this process has written of itself; None before."""
        content = _parsed(self.copy.root / _FILE)
        return content if content and content.get("pid") == os.getpid() and "id" not in content else None

    def _write(self, content: dict[str, Any] | None = None) -> None:
        content = content or {**self._identity, "ended": ""}
        record = {**content, "seen": time.time(), "id": self.id}
        self.bucket.write(_FILE, json.dumps(record).encode() + b"\n")
        self._confirmed = time.monotonic()

    def _last_here(self) -> str:
        """The id of the last driver that worked in this copy: it is dead, as its lock is held by this process."""
        try:
            return self._own.read_text()
        except OSError:
            return ""

    def _wait_for_end(self, there: dict[str, Any]) -> None:
        """Wait until a driver has given no sign of life for long. Raises FolderError where it gives one."""
        entry, now = self.bucket.entry(_FILE), self.bucket.now(self.id)
        age = max(0.0, now - entry.modified) if entry and now is not None else 0.0
        until = time.monotonic() + SILENT - age
        if age < SILENT:
            print(
                f"The driver of {self.bucket.uri}, process {there.get('pid')} on {there.get('host')}, gave a sign of"
                f" life {age:.0f} s ago. Looking for {SILENT - age:.0f} s whether it still runs.",
                file=sys.stderr,
                flush=True,
            )
        while time.monotonic() < until:
            time.sleep(1.0)
            now_there = _read(self.bucket)
            if now_there is None or now_there.get("ended"):
                return
            if (now_there.get("seen"), now_there.get("id")) != (there.get("seen"), there.get("id")):
                raise _busy(self.bucket, now_there)


def lives(bucket: Bucket, clock: Callable[[], float] = time.monotonic) -> bool:
    """Whether some driver runs the sweep in a bucket now.

    Args:
        bucket: place of the sweep folder.
        clock: seconds, never going back.

    Raises:
        OSError: where the bucket cannot be read.
    """
    there = _read(bucket)
    if there is None or there.get("ended"):
        return False
    entry, now = bucket.entry(_FILE), bucket.now(uuid.uuid4().hex)
    if entry is not None and now is not None:
        return now - entry.modified < SILENT
    until = clock() + 2 * BEAT  # it may only be read: does the file change?
    while clock() < until:
        time.sleep(0.5)
        if (_read(bucket) or there).get("seen") != there.get("seen"):
            return True
    return False


def _busy(bucket: Bucket, there: dict[str, Any]) -> FolderError:
    return FolderError(
        f"{bucket.uri}: another lorasweep runs this sweep now: process {there.get('pid')} on {there.get('host')}. Wait"
        " for it, or stop it first (lorasweep stop)."
    )


def _read(bucket: Bucket) -> dict[str, Any] | None:
    try:
        content = json.loads(bucket.read(_FILE))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _parsed(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
