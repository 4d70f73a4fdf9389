"""One tracker, the queue of what it is told, and the thread that works it off.

A tracker's errors and delays stay in here: what goes wrong is noted once and logged. What a run's tracker confirms is
recorded, and what it lacks is written from the sweep folder (``from_folder.py``).
"""

import contextlib
import copy
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from analysis.errors import first_line
from sweeps.tracking.base import Hint, Tracker
from sweeps.tracking.from_folder import Due, Story, stamp
from sweeps.tracking.record import Kept, TrackingRecord

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Call:
    """One call of a tracker's method, for a run."""

    run: str
    method: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class _CatchUp:
    """Have the tracker told of what it lacks of these runs."""

    due: Sequence[Due]


class TrackerThread:
    """One tracker with its queue, and the thread that works it off. What comes after ``stop`` is not done.

    Args:
        tracker: what is told.
        record: of the runs that are complete; None: nothing is recorded.
    """

    def __init__(self, tracker: Tracker, record: TrackingRecord | None = None) -> None:
        self._tracker, self._record = tracker, record
        self._title = tracker.title or type(tracker).__name__
        self._lock = threading.Lock()  # other threads may post while the driver stops this
        self._queue: SimpleQueue[_Call | _CatchUp | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._given_up = self._closed = False
        self._noted = False
        self._refused: set[str] = set()  # runs whose start raised
        self._spoiled: set[str] = set()  # runs of which a call raised
        self._ended: dict[str, str] = {}  # run that ended here and is not confirmed → its stamp

    def start(self) -> None:
        """Start the thread, which connects; nothing where it runs already."""
        with self._lock:
            self._start()

    def post(self, run: str, method: str, *arguments: Any) -> None:
        """Have a method called, after all that was posted before.

        Its arguments are copied: trackers work at the same time, and a library may change what it is given, if only
        for a moment (Plotly does, where it makes a figure of a dictionary).
        """
        if not self._given_up:
            self._put(_Call(run, method, copy.deepcopy(arguments)))

    def tell(self, story: Story) -> None:
        """Post a whole run."""
        for method, *arguments in self._calls(story):
            self.post(story.run.name, method, *arguments)

    def catch_up(self, due: Sequence[Due]) -> None:
        """Have those runs written that the tracker lacks when it has done what was posted before."""
        if due and not self._given_up:
            self._put(_CatchUp(due))

    def lacks(self, due: Due) -> bool:
        """Whether the tracker has not all of a run; nobody is asked for this."""
        kept = self._record.get(self._key, due.name) if self._record else None
        if kept is not None and kept.stamp == due.stamp and self._tracker.holds(due.name, kept.place):
            return False
        return due.name not in self._ended or self._tracker.cut_off(due.name)  # else it is on its way

    def stop(self) -> None:
        """Have the tracker closed once all that was posted is done."""
        with self._lock:
            self._closed = True
            if self._thread is not None:
                self._queue.put(None)

    def join(self, seconds: float) -> bool:
        """Wait until a stopped tracker is closed. False where it is not within the time."""
        if self._thread is None or self._given_up:
            return True
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def abandon(self, seconds: float) -> None:
        """Queue nothing more for the tracker, and say so. What is queued may still be done while the process lives."""
        self._given_up = True
        hint = self.hint(cut_short=True)
        after = f" {hint.purpose[:1].upper()}{hint.purpose[1:]}: `{hint.command}`" if hint else ""
        self._say(f"{self._title} is still busy after {seconds:.0f} s: not waiting for it.{after}")

    def hint(self, cut_short: bool = False) -> Hint | None:
        try:
            return self._tracker.hint(cut_short)
        except Exception as error:
            self._trouble("its hint cannot be shown", error)
            return None

    def _put(self, call: "_Call | _CatchUp") -> None:
        with self._lock:
            self._start()
            self._queue.put(call)  # after what stops the thread, it stays there

    def _start(self) -> None:
        if self._thread is None and not self._given_up and not self._closed:
            # A daemon: a call that hangs must not keep the process alive.
            self._thread = threading.Thread(target=self._work, name=f"lorasweep-{self._title}", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        try:
            self._tracker.connect()
        except Exception as error:
            self._given_up = True
            self._trouble("the trials are not tracked there", error)
            return
        while (call := self._queue.get()) is not None:
            if isinstance(call, _CatchUp):
                self._write_lacking(call.due)
            else:
                self._do(call.run, call.method, *call.arguments)
            self._settle()
        try:
            self._tracker.close()
        except Exception as error:
            self._trouble("it could not be closed", error)
        self._settle()

    def _do(self, run: str, method: str, *arguments: Any) -> None:
        if run in self._refused:
            return
        if method == "start_run":
            self._ended.pop(run, None)
            self._spoiled.discard(run)
            if self._record is not None:  # first of all: a driver that is killed in the midst of it leaves no whole run
                self._record.withdraw(self._key, run)
        try:
            getattr(self._tracker, method)(*arguments)
        except Exception as error:
            self._spoiled.add(run)
            if method == "start_run":
                self._refused.add(run)
            what = {"start_run": "is not tracked", "log_point": "lacks a point", "finish_run": "lacks its end"}
            self._trouble(f"{run} {what[method]}", error)
        else:
            if method == "finish_run" and run not in self._spoiled and (of := stamp(run, arguments[1])):
                self._ended[run] = of

    def _settle(self) -> None:
        """Record the runs of which the tracker now says that nothing can be lost."""
        for run, of in list(self._ended.items()):
            try:
                place = self._tracker.kept(run)
            except Exception as error:
                log.warning("%s: %s", self._title, run, exc_info=error)
                continue
            if place is not None:
                del self._ended[run]
                if self._record is not None:
                    self._record.add(self._key, run, Kept(of, place))

    def _write_lacking(self, due: Sequence[Due]) -> None:
        try:
            lacking = [it for it in due if self.lacks(it)]
            if lacking:
                runs = "1 run" if len(lacking) == 1 else f"{len(lacking)} runs"
                self._say(f"{self._title} lacks {runs} of this sweep: written there from the sweep folder.")
            for it in lacking:
                for method, *arguments in self._calls(it.story()):
                    self._do(it.name, method, *arguments)
                self._settle()
        except Exception as error:  # of reading the folder
            self._trouble("not all that it lacks could be written", error)

    def _calls(self, story: Story) -> list[tuple[Any, ...]]:
        name = story.run.name
        calls: list[tuple[Any, ...]] = [("start_run", story.run)]
        if not self._tracker.writes_earlier:
            calls += [("log_point", name, step, values) for step, values in story.run.earlier]
        return [*calls, ("finish_run", name, story.outcome)]

    @property
    def _key(self) -> str:
        return self._tracker.key or self._title

    def _trouble(self, what: str, error: Exception) -> None:
        log.warning("%s: %s", self._title, what, exc_info=error)
        if not self._noted:
            self._noted = True
            self._say(
                f"{self._title}: {what} ({first_line(error)[:160]}). Results are in the sweep folder all the same."
            )

    def _say(self, text: str) -> None:
        with contextlib.suppress(Exception):  # the terminal may be gone
            self._tracker.sweep.note(text)


def close_all(threads: Sequence[TrackerThread], timeout: float) -> None:
    """Close trackers once they have done what was posted, and wait for all of them together, at most ``timeout`` s."""
    for thread in threads:
        thread.stop()
    until = time.monotonic() + timeout
    for thread in threads:
        if not thread.join(max(0.0, until - time.monotonic())):
            thread.abandon(timeout)
