"""How far a running sweep is, and how long it will still take."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from analysis.folder import State
from analysis.metrics import one_class
from analysis.rows import configuration_id


@dataclass
class TrialState:
    """One trial as shown.

    Attributes:
        started, ended, reported: seconds by the sweep state's clock; ``reported``: when its last rung came in.
        step, max_steps: optimiser steps.
        metrics, objective: the last reported; the objective is NaN before.
    """

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

    @property
    def one_class(self) -> bool:
        """Whether its predictions at the last rung were one label for all rows: it has not begun to tell them apart."""
        return one_class(self.metrics)


class SweepState:
    """Where a sweep is, and how long it will take.

    What is counted are configurations: one whose first seed completes is over when its other seeds are.

    Args:
        name: of the sweep.
        trials: how many configurations there will be in all.
        max_steps: optimiser steps of a whole trial, where its values do not say otherwise.
        ended_before: configurations that were over before this process started (of a sweep that goes on).
        clock: seconds, never going back.
        repeats: seeds of each configuration that completes.
        seeds_before: configuration that was not over then → how many of its seeds had ended.

    Attributes:
        best: id and objective of the best completed trial by the ranking of the sweep folder.
    """

    def __init__(
        self,
        name: str,
        trials: int,
        max_steps: int,
        ended_before: int = 0,
        clock: Callable[[], float] = time.monotonic,
        repeats: int = 1,
        seeds_before: Mapping[str, int] | None = None,
    ) -> None:
        self.name, self.total, self.max_steps, self.ended_before, self._clock = (
            name,
            trials,
            max_steps,
            ended_before,
            clock,
        )
        self.repeats, self.seeds_before = repeats, dict(seeds_before or {})
        self.best: tuple[str, float] | None = None
        self.began = clock()
        self.phase = ""
        self.terms: tuple[str, ...] = ()  # metrics of the objective: what is shown of a trial first
        self.trials: dict[str, TrialState] = {}
        self._training_since: float | None = None
        self._last_report: float | None = None

    def start(self, trial_id: str, values: Mapping[str, Any]) -> bool:
        """Note that a trial started. False where it was known already: a retry goes on in its row."""
        if trial_id in self.trials:
            return False
        steps = int(values.get("train.max_steps", self.max_steps))
        self.trials[trial_id] = TrialState(trial_id, dict(values), steps, self._clock())
        self.total = max(self.total, self.ended_before + len(self._configurations()))
        return True

    def report(
        self, trial_id: str, step: int, metrics: Mapping[str, float], objective: float, seconds: float = 0.0
    ) -> None:
        """Note a rung of a trial.

        Args:
            trial_id: of a trial that started.
            step: optimiser steps done.
            metrics: of the rung.
            objective: of the rung, higher is better.
            seconds: since the trial was admitted to its slot.
        """
        trial, now = self.trials[trial_id], self._clock()
        trial.step, trial.metrics, trial.objective = max(trial.step, step), dict(metrics), objective
        if self._training_since is None:
            # Loading the model and waiting for a slot happen once, and would make the rest look slow.
            self._training_since = max(trial.started, now - seconds)
        self._last_report = trial.reported = now

    def end(self, trial_id: str, state: State, reason: str) -> None:
        """Note that a trial ended, and why, in a sentence."""
        trial = self.trials[trial_id]
        trial.state, trial.reason, trial.ended = state, reason, self._clock()

    @property
    def running(self) -> list[TrialState]:
        """Trials that have not ended."""
        return [trial for trial in self.trials.values() if trial.ended is None]

    @property
    def ended(self) -> int:
        """How many configurations are over, those before a resume included."""
        seen = self._configurations()
        return self.ended_before + sum(self._over(name, seeds) for name, seeds in seen.items())

    def _configurations(self) -> dict[str, list[TrialState]]:
        """Configuration → its seeds that this process has seen."""
        seeds: dict[str, list[TrialState]] = {}
        for trial in self.trials.values():
            seeds.setdefault(configuration_id(trial.trial_id), []).append(trial)
        return seeds

    def _over(self, name: str, seeds: list[TrialState]) -> bool:
        return all(trial.ended is not None for trial in seeds) and not self._seeds_left(name, seeds)

    def _seeds_left(self, name: str, seeds: list[TrialState]) -> int:
        """How many seeds of a configuration are to come."""
        first = next((trial for trial in seeds if trial.trial_id == name), None)
        if first is not None and first.state not in (State.COMPLETED, State.RUNNING):
            return 0  # the others are not trained
        return max(0, self.repeats - len(seeds) - self.seeds_before.get(name, 0))

    def elapsed(self, trial_id: str | None = None) -> float:
        """Seconds since the start of the sweep, or of a trial (until its end)."""
        if trial_id is None:
            return self._clock() - self.began
        trial = self.trials[trial_id]
        return (self._clock() if trial.ended is None else trial.ended) - trial.started

    def trial_seconds_left(self, trial_id: str) -> float | None:
        """Seconds to a running trial's last step, at its own pace up to its last rung; None before its first rung."""
        trial = self.trials[trial_id]
        if trial.ended is not None or not trial.step or trial.reported is None:
            return None
        pace = (trial.reported - trial.started) / trial.step
        return max(pace * (trial.max_steps - trial.step) - (self._clock() - trial.reported), 0.0)

    def seconds_left(self) -> float | None:
        """Seconds to the end of the sweep, from the steps per second that all trials made together.

        The estimate takes running trials to go to their last step, and trials to come to need as many steps as those so
        far. It is too long where a scheduler stops many.

        Returns:
            None before the first rung, and once the estimated time is over.
        """
        if self._training_since is None or self._last_report is None:
            return None
        done = sum(trial.step for trial in self.trials.values())
        spent = self._last_report - self._training_since
        if not done or spent <= 0:
            return None
        needed = [trial.max_steps if trial.ended is None else trial.step for trial in self.trials.values()]
        seen = self._configurations()
        to_come = max(self.total - self.ended_before - len(seen), 0) * self.repeats
        to_come += sum(self._seeds_left(name, seeds) for name, seeds in seen.items())
        steps = sum(needed) - done + to_come * sum(needed) / len(needed)
        left = steps * spent / done - (self._clock() - self._last_report)
        return left if left > 0 else None
