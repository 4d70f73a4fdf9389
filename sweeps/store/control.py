"""Requests to a running sweep, from another terminal, and the record of who runs it: files in ``control/``.

A request is one JSON file with a name of its own, written whole, so that any number of terminals can ask at once. The
driver removes it when it is done: a point to try only once the study's record names the request, so that a driver that
dies in between neither loses the point nor tries it twice.
"""

import json
import os
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.buckets.bucket import explained
from analysis.errors import parsed_json
from analysis.files.file_system import lock_now
from analysis.files.plain_files import open_plain
from analysis.folder import SweepFolder, atomic_write, remove_file
from sweeps.store.bucket_lease import lives
from sweeps.store.driver_claim import is_claimed

STOP, ENQUEUE = "stop", "enqueue"


@dataclass(frozen=True)
class Request:
    """A request to a sweep.

    Attributes:
        name: of its file, without the ending; unique.
        kind: ``stop`` or ``enqueue``.
        trial_id: to stop; empty for the whole sweep.
        point: dotted path → value, to be tried.
    """

    name: str
    kind: str
    trial_id: str = ""
    point: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Driver:
    """Who drives a sweep, or did last.

    Attributes:
        alive: whether it runs now: it holds the folder's lock.
        pid, host: its process.
        started, seen: seconds since 1970 by its clock: its start, and when it last said that it runs.
        ended: how its run ended, in a sentence; empty while it runs, and where it was killed.
        status: its exit status, where it ended before all trials had.
    """

    alive: bool
    pid: int = 0
    host: str = ""
    started: float = 0.0
    seen: float = 0.0
    ended: str = ""
    status: int | None = None


def ask_to_stop(folder: SweepFolder, trial_id: str = "") -> Request:
    """Ask the sweep to stop, or one of its trials to end at its next rung.

    Args:
        folder: of the sweep.
        trial_id: the trial; empty for the whole sweep.
    """
    return _ask(folder, STOP, {"trial_id": trial_id})


def ask_to_try(folder: SweepFolder, point: Mapping[str, Any]) -> Request:
    """Ask the sweep to try a point next.

    Args:
        folder: of the sweep.
        point: dotted path → value, checked against the search space.
    """
    return _ask(folder, ENQUEUE, {"point": dict(point)})


def requests(folder: SweepFolder) -> list[Request]:
    """Requests still to be done, those of one terminal in the order in which it made them. Other files are ignored."""
    waiting = []
    for file in sorted(folder.control_dir.glob("*-*.json")):
        try:
            content = parsed_json(file.read_text())
            kind, trial_id, point = content["kind"], content.get("trial_id", ""), content.get("point")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if kind == STOP or (kind == ENQUEUE and isinstance(point, dict)):
            waiting.append(Request(file.stem, kind, str(trial_id), point))
    return waiting


def remove_request(folder: SweepFolder, request: Request) -> None:
    """Remove a request that was carried out."""
    remove_file(folder.control_dir / f"{request.name}.json")


@dataclass
class Spent:
    """What all drivers of a sweep have used so far.

    Attributes:
        seconds: for which drivers ran.
        device_seconds: the same, times the devices that each occupied.
        closed: the ``search.time`` that had no room for another trial; empty where that has not come up.
    """

    seconds: float = 0.0
    device_seconds: float = 0.0
    closed: str = ""


class Heartbeat(Spent):
    """The driver's record of itself: that it runs, what the sweep has spent, and how the run ended.

    Args:
        folder: of the sweep; its lock is held.
        devices: device workers that the sweep occupies.
        began: when the command did, on the clock of ``time.monotonic``; None: now.
    """

    BEAT = 5.0  # seconds between two signs of life; of a killed driver, at most so many are not counted

    def __init__(self, folder: SweepFolder, devices: int, began: float | None = None):
        before = spent(folder)
        super().__init__(before.seconds, before.device_seconds, before.closed)
        self.folder, self.devices = folder, devices
        self._identity = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.time()}
        now = time.monotonic()
        self._last = now if began is None else began  # up to when time was counted, by a clock that is never set back
        self._beat_at = now
        for request in requests(folder):
            if request.kind == STOP:  # meant for an earlier driver
                remove_request(folder, request)
        self._write()

    def beat(self) -> None:
        """Count the time since the last call; every few seconds, write a sign of life. To be called often."""
        now = time.monotonic()
        self.seconds += now - self._last
        self.device_seconds += (now - self._last) * self.devices
        self._last = now
        if now - self._beat_at >= self.BEAT:
            self._beat_at = now
            self._write()

    def end(self, how: str, status: int | None = None) -> None:
        """Write how the run ended.

        Args:
            how: a sentence.
            status: the exit status, where that is not told by the trials.
        """
        self.beat()
        self._write(how, status)

    def _write(self, ended: str = "", status: int | None = None) -> None:
        amounts: dict[str, Any] = {"seconds": round(self.seconds, 3), "device_seconds": round(self.device_seconds, 3)}
        amounts |= {"closed": self.closed} if self.closed else {}
        atomic_write(_spent_file(self.folder), json.dumps(amounts) + "\n")
        identity = self._identity | {"seen": time.time(), "ended": ended}
        identity |= {"status": status} if status is not None else {}
        atomic_write(_driver_file(self.folder), json.dumps(identity) + "\n")


def spent(folder: SweepFolder) -> Spent:
    """What all drivers of the sweep have used so far; 0 where that is not recorded."""
    try:
        content = parsed_json(_spent_file(folder).read_text())
        return Spent(float(content["seconds"]), float(content["device_seconds"]), str(content.get("closed", "")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return Spent()


def driver(folder: SweepFolder) -> Driver:
    """The process that runs the sweep, or ran it last."""
    alive = _locked(folder.root / ".lock") or is_claimed(folder) or _lives_elsewhere(folder)
    try:
        content = parsed_json(_driver_file(folder).read_text())
        recorded = [content[name] for name in ("pid", "host", "started", "seen", "ended")]
        known = Driver(alive, *recorded, content.get("status"))  # type: ignore[call-arg]
        _ = float(content["started"] or 0.0), float(content["seen"] or 0.0)
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return Driver(alive)
    return known if not alive or not known.ended else Driver(alive)  # a new driver that has not written its record yet


def _lives_elsewhere(folder: SweepFolder) -> bool:
    """Whether a driver of some machine gives signs of life in the sweep's bucket."""
    if folder.copy is None:
        return False
    try:
        return lives(folder.copy.bucket)
    except OSError as error:
        raise explained(folder.copy.bucket, error) from None


def _locked(lock: Path) -> bool:
    try:
        with os.fdopen(open_plain(lock, os.O_RDONLY), "rb") as file:
            lock_now(file, shared=True)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _ask(folder: SweepFolder, kind: str, content: Mapping[str, Any]) -> Request:
    # Names sort by time, so that one terminal's points are tried in their order.
    name = f"{kind}-{time.time_ns():020}-{uuid.uuid4().hex[:8]}"
    folder.write(folder.control_dir / f"{name}.json", json.dumps({"kind": kind, **content}) + "\n")
    return Request(name, kind, str(content.get("trial_id", "")), content.get("point"))


def _driver_file(folder: SweepFolder) -> Path:
    return folder.control_dir / "driver.json"


def _spent_file(folder: SweepFolder) -> Path:
    return folder.root / "study" / "spent.json"
