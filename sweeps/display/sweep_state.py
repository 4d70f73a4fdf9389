"""Where a running sweep is, and how long it will take."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from analysis.folder import State


@dataclass
class TrialState:
    """One trial as shown. Times are the clock's; ``metrics`` and ``objective`` are the last reported."""

    trial_id: str
    values: dict[str, Any]
    max_steps: int
    started: float
    step: int = 0
    state: State = State.RUNNING
    reason: str = ""
    ended: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    objective: float = math.nan
    reported: float | None = None  # when its last rung was


class SweepState:
    """Where a sweep is, and how long it will take.

    Args:
        name: of the sweep.
        trials: how many there will be in all.
        max_steps: optimiser steps of a whole trial, where its values do not say otherwise.
        ended_before: trials that ended before this process started (of a sweep that goes on).
        clock: seconds, never going back.
    """

    def __init__(
        self, name: str, trials: int, max_steps: int, ended_before: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name, self.total, self.max_steps, self.ended_before, self._clock = (
            name,
            trials,
            max_steps,
            ended_before,
            clock,
        )
        self.began = clock()
        self.phase = ""
        self.trials: dict[str, TrialState] = {}
        self._training_since: float | None = None
        self._last_report: float | None = None

    def start(self, trial_id: str, values: Mapping[str, Any]) -> bool:
        """False where the trial was known: a retry goes on in its row."""
        if trial_id in self.trials:
            return False
        steps = int(values.get("train.max_steps", self.max_steps))
        self.trials[trial_id] = TrialState(trial_id, dict(values), steps, self._clock())
        self.total = max(self.total, self.ended_before + len(self.trials))  # further seeds are not known beforehand
        return True

    def report(
        self, trial_id: str, step: int, metrics: Mapping[str, float], objective: float, seconds: float = 0.0
    ) -> None:
        """A trial was evaluated, ``seconds`` after it was admitted to its slot."""
        trial, now = self.trials[trial_id], self._clock()
        trial.step, trial.metrics, trial.objective = max(trial.step, step), dict(metrics), objective
        if self._training_since is None:
            # Loading the model and waiting for a slot happen once, and would make the rest look slow.
            self._training_since = max(trial.started, now - seconds)
        self._last_report = trial.reported = now

    def end(self, trial_id: str, state: State, reason: str) -> None:
        trial = self.trials[trial_id]
        trial.state, trial.reason, trial.ended = state, reason, self._clock()

    @property
    def running(self) -> list[TrialState]:
        return [trial for trial in self.trials.values() if trial.ended is None]

    @property
    def ended(self) -> int:
        return self.ended_before + len(self.trials) - len(self.running)

    def elapsed(self, trial_id: str | None = None) -> float:
        """Seconds since the start of the sweep, or of a trial (until its end)."""
        if trial_id is None:
            return self._clock() - self.began
        trial = self.trials[trial_id]
        return (self._clock() if trial.ended is None else trial.ended) - trial.started

    def trial_seconds_left(self, trial_id: str) -> float | None:
        """Until a running trial's last step, at its own pace up to its last rung; None before the first."""
        trial = self.trials[trial_id]
        if trial.ended is not None or not trial.step or trial.reported is None:
            return None
        pace = (trial.reported - trial.started) / trial.step
        return max(pace * (trial.max_steps - trial.step) - (self._clock() - trial.reported), 0.0)

    def seconds_left(self) -> float | None:
        """From the steps per second that all trials made together; None where that cannot be known.

        Running trials are taken to go to their last step, those to come to need as many steps as the ones so far:
        the estimate errs on the long side where a scheduler stops many. None before the first rung, and once the time
        that was estimated is over.
        """
        if self._training_since is None or self._last_report is None:
            return None
        done = sum(trial.step for trial in self.trials.values())
        spent = self._last_report - self._training_since
        if not done or spent <= 0:
            return None
        needed = [trial.max_steps if trial.ended is None else trial.step for trial in self.trials.values()]
        to_come = max(self.total - self.ended_before - len(self.trials), 0)
        steps = sum(needed) - done + to_come * sum(needed) / len(needed)
        left = steps * spent / done - (self._clock() - self._last_report)
        return left if left > 0 else None
