"""``search.budget``: when a sweep has had enough. Whatever is used up first stops it, and it says which."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from analysis.folder import State, SweepFolder
from analysis.metrics import METRICS
from sweeps.config import BudgetConfig, limit_seconds
from sweeps.store.control import Spent
from sweeps.store.tune_results import trial_key

OBJECTIVE = "objective"


class StopBudget:
    """Watches a sweep's trials; a Tune callback of the driver.

    Args:
        limits: what may be spent.
        spent: time, counted by somebody else.
        time: ``search.time``; None: no limit.
        interrupted: whether trials that end now have only been paused.
    """

    def __init__(
        self,
        limits: BudgetConfig,
        spent: Spent,
        interrupted: Callable[[], bool] = lambda: False,
        time: str | None = None,
    ):
        self.limits, self.spent, self.interrupted, self.time = limits, spent, interrupted, time
        self.seconds = limit_seconds(time)
        self._pace = 0.0  # seconds of an optimiser step, of the trial that reported last
        self._tokens: dict[str, int] = {}  # trial → training tokens
        self._completed: dict[str, float] = {}  # trial that completed → its objective, for a moment
        self._best = -math.inf
        self._without_better = 0  # trials that ended since the best objective rose
        self._reached = ""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles what it is given into its scratch folder, and a sweep is never restored from there

    def replay(self, folder: SweepFolder, records: Iterable[Mapping[str, Any]]) -> None:
        """Count what earlier runs of the sweep have had, from its folder and the lines of ``study/asks.jsonl``."""
        objectives: dict[str, float] = {}
        for record in records:
            if record.get("event") == "tell":
                completed = record["state"] == State.COMPLETED and record["objective"] is not None
                self._ended(record["objective"] if completed else None)
                if completed:
                    objectives[record["trial_id"]] = record["objective"]
        for files in folder.trials():
            for row in files.read_metrics():
                self._tokens[files.trial_id] = max(self._tokens.get(files.trial_id, 0), row.tokens)
                if row.final and files.trial_id in objectives:
                    self._aim(files.trial_id, row.metrics, objectives[files.trial_id])

    def used_up(self) -> str:
        """What is used up, in a sentence; empty where nothing is."""
        limits, hours, device_hours = self.limits, self.spent.seconds / 3600, self.spent.device_seconds / 3600
        if self._reached:
            return self._reached
        if self.spent.seconds >= self.seconds:
            return f"search.time={self.time} is used up"
        if limits.hours is not None and hours >= limits.hours:
            return f"search.budget.hours={limits.hours:g} is used up ({hours:.3g} hours)"
        if limits.device_hours is not None and device_hours >= limits.device_hours:
            return f"search.budget.device_hours={limits.device_hours:g} is used up ({device_hours:.3g} device-hours)"
        if limits.tokens is not None and self.tokens >= limits.tokens:
            return f"search.budget.tokens={limits.tokens} is used up ({self.tokens} tokens)"
        if limits.patience is not None and self._without_better >= limits.patience:
            return (
                f"search.budget.patience={limits.patience}: the last {self._without_better} trials brought no better"
                " objective"
            )
        return ""

    def room_for(self, steps: int) -> bool:
        """Whether a trial of so many optimiser steps that began now would be over in ``search.time``."""
        return self.spent.seconds + self._pace * steps <= self.seconds

    @property
    def tokens(self) -> int:
        return sum(self._tokens.values())

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        trial_id = trial_key(trial)[0]
        self._tokens[trial_id] = max(self._tokens.get(trial_id, 0), result["tokens"])
        if result.get("step"):
            self._pace = result["seconds"] / result["step"]
        if result["state"] == State.COMPLETED:
            self._completed[trial_id] = result["objective"]
            self._aim(trial_id, result["metrics"], result["objective"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        objective = self._completed.pop(trial_key(trial)[0], None)
        if objective is not None or not self.interrupted():
            self._ended(objective)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.on_trial_complete(iteration, trials, trial)

    def _ended(self, objective: float | None) -> None:
        if objective is not None and objective > self._best:
            self._best, self._without_better = objective, 0
        else:
            self._without_better += 1

    def _aim(self, trial_id: str, metrics: Mapping[str, float], objective: float) -> None:
        target = self.limits.target
        values = {**metrics, OBJECTIVE: objective}
        if target and not self._reached and all(_as_good(name, values, wanted) for name, wanted in target.items()):
            shown = " and ".join(f"{name} {values[name]:.4g}" for name in target)
            self._reached = f"search.budget.target is reached: {trial_id} has {shown}"


def _as_good(name: str, values: Mapping[str, float], wanted: float) -> bool:
    value = values.get(name, math.nan)
    if name != OBJECTIVE and METRICS[name].better == "low":
        return value <= wanted
    return value >= wanted
