"""Which runs of a sweep are complete, and where: ``study/tracked.jsonl``.

A line is written only once a tracker says that nothing of a finished run can be lost any more; one that takes it back,
before such a run is gone on with or written again. So whatever a driver
that was killed leaves, the next one knows which runs it has to write again from the sweep folder.
"""

import logging
import threading
from dataclasses import dataclass, replace

from analysis.folder import SweepFolder, append_line, read_lines

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """A complete run.

    Attributes:
        stamp: what it is complete of, such as the state in which a trial ended; empty for one that is not any more.
        place: where it is, in the tracker's words.
    """

    stamp: str
    place: str


class TrackingRecord:
    """The record of one sweep. May be used from several threads."""

    def __init__(self, folder: SweepFolder) -> None:
        self._file = folder.tracked_file
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, str], Kept] | None = None

    def get(self, tracker: str, run: str) -> Kept | None:
        with self._lock:
            return self._read().get((tracker, run))

    def add(self, tracker: str, run: str, kept: Kept) -> None:
        with self._lock:
            if self._read().get((tracker, run)) == kept:
                return
            self._read()[tracker, run] = kept
            line = {"tracker": tracker, "run": run, "stamp": kept.stamp, "place": kept.place}
            try:
                append_line(self._file, line)
            except OSError as error:  # then the run is written once more, by the next resume
                log.warning("%s: %s", self._file, error)

    def withdraw(self, tracker: str, run: str) -> None:
        """A run goes on, or is written again: until it is added anew, it is not complete."""
        kept = self.get(tracker, run)
        if kept is not None:
            self.add(tracker, run, replace(kept, stamp=""))

    def _read(self) -> dict[tuple[str, str], Kept]:
        if self._kept is None:
            self._kept = {
                (str(line["tracker"]), str(line["run"])): Kept(str(line["stamp"]), str(line["place"]))
                for line in read_lines(self._file)
                if {"tracker", "run", "stamp", "place"} <= line.keys()
            }
        return self._kept
