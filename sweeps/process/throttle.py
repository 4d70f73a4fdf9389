"""A function that may be called at any time and runs only as often as it costs next to nothing."""

import time
from collections.abc import Callable


class Throttle:
    """Skips calls of a function, so that it takes only a small share of the time.

    Each leaderboard is built from all files of the sweep folder. Built after every trial, the cost would grow with the
    square of the trials. Whoever ends the sweep writes the last leaderboard, so a skipped call loses nothing.

    Args:
        work: the function.
        share: most of the time that it may take, from 0 to 1.
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
