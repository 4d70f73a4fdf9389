"""Work that may be skipped, because it will be asked for again: done as often as it costs next to nothing."""

import time
from collections.abc import Callable


class Throttle:
    """Called as often as one likes; does its work only where that takes a small share of the time.

    The leaderboard is rebuilt from all files of the sweep folder: after every trial that would make a sweep's
    orchestration grow with the square of its trials. The last state is written by whoever ends the sweep.

    Args:
        work: what to do.
        share: of the time, at most.
    """

    def __init__(self, work: Callable[[], None], share: float = 0.02):
        self.work, self.share = work, share
        self._not_before = 0.0

    def __call__(self) -> None:
        began = time.monotonic()
        if began < self._not_before:
            return
        self.work()
        ended = time.monotonic()
        self._not_before = ended + (ended - began) / self.share
