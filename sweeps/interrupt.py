"""Ctrl-C and SIGTERM while a sweep runs."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.tune.stopper import Stopper

from sweeps.progress import Progress

INTERRUPTED = 130  # exit status, as shells have it for Ctrl-C
_SHUTDOWN_SECONDS = 3.0  # for Ray's own processes, which would outlive the driver for a while


class Interrupt(Stopper):
    """The first Ctrl-C or SIGTERM stops the sweep and keeps everything, the second leaves at once.

    Args:
        progress: told that the sweep stops.
        abandon: called at the first signal.
    """

    def __init__(self, progress: Progress, abandon: Callable[[], None]):
        self._event = threading.Event()
        self._progress, self._abandon = progress, abandon

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._event.is_set()

    def is_set(self) -> bool:
        return self._event.is_set()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its stopper into scratch that nobody reads

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._event = threading.Event()

    @contextlib.contextmanager
    def catching(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._caught) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _caught(self, number: int, frame: Any) -> None:
        if self._event.is_set():
            self._progress.close()
            # Threads that are still at work find no Ray any more; what they say of it helps nobody.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
            # In a thread, and not for long: what the signal interrupted may hold Ray's locks.
            shutdown = threading.Thread(target=ray.shutdown, daemon=True)
            shutdown.start()
            shutdown.join(_SHUTDOWN_SECONDS)
            os._exit(INTERRUPTED)
        self._event.set()
        self._abandon()  # from here on, what Tune stops has not ended: it goes on with a resume
        self._progress.stopping("Stopping. Everything scored so far is kept. Press Ctrl-C again to leave at once.")
