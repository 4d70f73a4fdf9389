"""What stops a sweep before its end: Ctrl-C, SIGTERM and SIGHUP, requests, budgets, a disk that is full."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ray.tune.stopper import Stopper

from analysis.errors import INTERRUPTED, FolderError, HardwareError, LorasweepError
from analysis.folder import State
from analysis.rows import configuration_id
from sweeps.display.progress import Progress
from sweeps.driver.ray_cluster import end_ray, expect_end
from sweeps.process import signals

_KEPT = "Everything recorded so far is kept."
_SIGNALS = {
    signal.SIGINT: "Stopping on Ctrl-C. Everything scored so far is kept.",
    signal.SIGTERM: "Stopping on SIGTERM. Everything scored so far is kept.",
    signal.SIGHUP: "Stopping: the terminal was closed (SIGHUP). Everything scored so far is kept.",
}
_HURRY = {signal.SIGINT: " Press Ctrl-C again to leave at once."}
_SHUTDOWN_SECONDS = 3.0  # for Ray's own processes, which would outlive the driver for a while


class SweepStopper(Stopper):
    """How a sweep ends before all its trials have; Tune's stopper, asked after every report of a trial.

    - *At once* (Ctrl-C, SIGTERM, SIGHUP, ``lorasweep stop``, a disk that cannot be written): device workers are ended
      in the middle of their rung. A second Ctrl-C leaves without the ranking.
    - *Gently* (a budget that is used up): each running trial goes on to its next rung.

    Either way nothing new is suggested, no running trial has ended, and all go on from their last rung on resume. And
    one trial alone can be asked to end, which it does at its next rung.

    Args:
        progress: told that the sweep stops.
        abandon: called when the sweep stops.
    """

    def __init__(self, progress: Progress, abandon: Callable[[], None]):
        self._at_once, self._gently = threading.Event(), threading.Event()
        self._progress, self._abandon = progress, abandon
        self._unwanted: set[str] = set()
        self.why = ""
        self.error: LorasweepError | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        if result.get("halt"):
            self.disk(str(result["halt"]))
        if self.is_set():
            return True
        ours = str(result.get("config", {}).get("trial_id"))
        if self._unwanted & {ours, configuration_id(ours)} and result.get("state") == State.RUNNING:
            result["reason"] = f"stopped on request at step {result['step']}"  # a scheduler gives no reason
            return True
        return False

    def stop_all(self) -> bool:
        return self._at_once.is_set()

    def is_set(self) -> bool:
        """Whether the sweep stops: trials that stop from now on have not ended, unless they say so themselves."""
        return self._at_once.is_set() or self._gently.is_set()

    def at_once(self) -> bool:
        return self._at_once.is_set()

    def stop(self, why: str, at_once: bool = True, hint: str = "") -> None:
        """Stop the sweep. May be called from any thread, and more than once.

        Args:
            why: a sentence; it is recorded.
            at_once: rather than at the next rung of each trial.
            hint: said after it.
        """
        if self.is_set() and not (at_once and not self._at_once.is_set()):
            return
        self.why = self.why or why
        (self._at_once if at_once else self._gently).set()
        self._abandon()  # from here on, what Tune stops has not ended: it goes on with a resume
        self._progress.stopping(why + hint)

    def stop_trial(self, trial_id: str) -> None:
        """End a trial, with all seeds of its configuration where it is the first, at the next rung."""
        self._unwanted.add(trial_id)

    def disk(self, fault: str) -> None:
        """The sweep folder cannot be written."""
        self.fail(
            FolderError(f"{fault}. {_KEPT} Mend it (free some space?), then go on: lorasweep resume RUN"),
            "Stopping: the sweep folder cannot be written.",
        )

    def no_device(self, why: str) -> None:
        """There is nothing to train on, and it is not to be waited for any longer."""
        self.fail(HardwareError(f"{why} {_KEPT} Go on: lorasweep resume RUN"), "Stopping: there is no device.")

    def fail(self, error: LorasweepError, why: str) -> None:
        """Stop at once with an error; the first one counts."""
        self.error = self.error or error
        self.stop(why)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its stopper into scratch that nobody reads

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._at_once, self._gently = threading.Event(), threading.Event()

    @contextlib.contextmanager
    def catching(self) -> Iterator[None]:
        """While the block lasts, the first signal stops the sweep, and a Ctrl-C that follows leaves at once."""
        with signals.installed(), signals.handled_by(self._signalled, self._leave):
            yield

    def _signalled(self, number: signal.Signals) -> None:
        expect_end()
        self.stop(_SIGNALS[number], hint=_HURRY.get(number, ""))

    def _leave(self) -> None:
        self._progress.close()
        end_ray(_SHUTDOWN_SECONDS)  # not for long: what the signal interrupted may hold Ray's locks
        os._exit(INTERRUPTED)
