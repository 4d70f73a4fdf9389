"""A sweep with nothing left to do, whose trackers lack runs of it: they get them from the folder, without Ray."""

from collections.abc import Sequence

from analysis.folder import SweepFolder
from sweeps.tracking.base import Hint, Tracker
from sweeps.tracking.from_folder import Due
from sweeps.tracking.record import TrackingRecord
from sweeps.tracking.tracker_thread import TrackerThread, close_all

SECONDS = 30.0  # to wait, and more for many runs
SECONDS_A_RUN = 1.0


class CatchUp:
    """The trackers of a sweep that is over for now.

    Args:
        folder: the sweep's.
        trackers: its trackers.
        due: the runs that they should have.
    """

    def __init__(self, folder: SweepFolder, trackers: Sequence[Tracker], due: Sequence[Due]) -> None:
        record = TrackingRecord(folder)
        self._threads = [TrackerThread(tracker, record) for tracker in trackers]
        self._due = due

    @property
    def needed(self) -> bool:
        """Whether some tracker lacks a run. None is contacted to find out."""
        return any(thread.lacks(it) for thread in self._threads for it in self._due)

    def write(self) -> list[Hint]:
        """Write what is missing, and wait for a bounded time. Returns what the user can do afterwards."""
        for thread in self._threads:
            if any(map(thread.lacks, self._due)):
                thread.catch_up(self._due)
        close_all(self._threads, SECONDS + SECONDS_A_RUN * len(self._due))
        return [hint for thread in self._threads if (hint := thread.hint()) is not None]
