"""``search.budget``: when a sweep has had enough. Whatever is used up first stops it, and it says which."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from analysis.folder import State, SweepFolder
from analysis.leaderboard.seeds import WAIT
from analysis.metrics import METRICS
from analysis.rows import configuration_id
from sweeps.config import BudgetConfig, limit_seconds
from sweeps.store.control import Spent
from sweeps.store.tune_results import trial_key

OBJECTIVE = "objective"


@dataclass(frozen=True)
class _Seed:
    """How a seed of a configuration ended: its objective and metrics where it completed."""

    objective: float | None
    metrics: Mapping[str, float]
    diverged: bool


class StopBudget:
    """Watches a sweep's trials; a Tune callback of the driver.

    Args:
        limits: what may be spent.
        spent: time, counted by somebody else.
        time: ``search.time``; None: no limit.
        interrupted: whether trials that end now have only been paused.
        repeats: seeds of each configuration that completes. ``target`` and ``patience`` are about configurations, by
            the means of their seeds, as the sampler is told them.
    """

    def __init__(
        self,
        limits: BudgetConfig,
        spent: Spent,
        interrupted: Callable[[], bool] = lambda: False,
        time: str | None = None,
        repeats: int = 1,
    ):
        self.repeats = repeats
        self.limits, self.spent, self.interrupted, self.time = limits, spent, interrupted, time
        self.seconds = limit_seconds(time)
        self._pace = 0.0  # seconds of an optimiser step, of the trial that reported last
        self._tokens: dict[str, int] = {}  # trial → training tokens
        self._completed: dict[str, tuple[float, Mapping[str, float]]] = {}  # → objective and metrics, for a moment
        self._diverged: set[str] = set()  # trials that ended so, or without memory, for a moment
        self._seeds: dict[str, list[_Seed]] = {}  # configuration whose seeds have not all ended → those that have
        self._best = -math.inf
        self._without_better = 0  # trials that ended since the best objective rose
        self._reached = ""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles what it is given into its scratch folder, and a sweep is never restored from there

    def replay(self, folder: SweepFolder, records: Iterable[Mapping[str, Any]]) -> None:
        """Count what earlier runs of the sweep have had, from its folder and the lines of ``study/asks.jsonl``."""
        metrics: dict[str, Mapping[str, float]] = {}
        for files in folder.trials():
            for row in files.read_metrics():
                self._tokens[files.trial_id] = max(self._tokens.get(files.trial_id, 0), row.tokens)
                if row.final:
                    metrics[files.trial_id] = row.metrics
        for record in records:
            if record.get("event") == "tell":
                name, state = record["trial_id"], State(record["state"])
                objective = record["objective"] if state is State.COMPLETED else None
                seed = _Seed(objective, metrics.get(name, {}), state in (State.DIVERGED, State.OUT_OF_MEMORY))
                waits = record.get("repeat") or record.get("told") == WAIT
                self._seed_ended(name, seed, self.repeats if waits else 1)

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
            self._completed[trial_id] = result["objective"], result["metrics"]
            if self.repeats == 1:
                self._aim(trial_id, result["metrics"], result["objective"])
        elif result["state"] in (State.DIVERGED, State.OUT_OF_MEMORY):
            self._diverged.add(trial_id)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        trial_id = trial_key(trial)[0]
        objective, metrics = self._completed.pop(trial_id, (None, {}))
        if objective is not None or not self.interrupted():
            objective = objective if objective is not None and math.isfinite(objective) else None
            several = objective is not None or configuration_id(trial_id) != trial_id
            self._seed_ended(
                trial_id, _Seed(objective, metrics, trial_id in self._diverged), self.repeats if several else 1
            )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.on_trial_complete(iteration, trials, trial)

    def _seed_ended(self, trial_id: str, seed: "_Seed", of: int) -> None:
        """A seed ended; once all of its configuration have, that has.

        Args:
            trial_id: of the seed.
            seed: how it ended.
            of: seeds that its configuration has.
        """
        name = configuration_id(trial_id)
        seeds = self._seeds.setdefault(name, [])
        seeds.append(seed)
        if len(seeds) < of:
            return
        del self._seeds[name]
        done = [it for it in seeds if it.objective is not None]
        if not done or any(it.diverged for it in seeds):
            self._ended(None)
            return
        objective = fmean(it.objective or 0.0 for it in done)
        names = set.intersection(*(set(it.metrics) for it in done))
        metrics = {it: fmean(own.metrics[it] for own in done) for it in names}
        self._aim(f"{name}, the mean of {len(done)} seeds," if of > 1 else name, metrics, objective)
        self._ended(objective)

    def _ended(self, objective: float | None) -> None:
        if objective is not None and objective > self._best:
            self._best, self._without_better = objective, 0
        else:
            self._without_better += 1

    def _aim(self, trial: str, metrics: Mapping[str, float], objective: float) -> None:
        target = self.limits.target
        values = {**metrics, OBJECTIVE: objective}
        if target and not self._reached and all(_as_good(name, values, wanted) for name, wanted in target.items()):
            shown = " and ".join(f"{name} {values[name]:.4g}" for name in target)
            self._reached = f"search.budget.target is reached: {trial} has {shown}"


def _as_good(name: str, values: Mapping[str, float], wanted: float) -> bool:
    value = values.get(name, math.nan)
    if name != OBJECTIVE and METRICS[name].better == "low":
        return value <= wanted
    return value >= wanted
