"""Ray Tune's event loop in one process and in no time: the real search and scheduler, trials that are functions.

Trials run side by side in simulated time. What Tune does in each case is done here in its order: the scheduler decides,
then the search is told of a rung that is not the last one, or of the end.
"""

import heapq
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from analysis.folder import SweepFolder, read_lines
from sweeps.search.scheduler import build_sampler, build_scheduler, replay_scheduler
from sweeps.search.searcher import GuardedOptunaSearch, SearchPlan
from sweeps.space.dimensions import DefineByRun, Space

# (values, step) → objective, or a state in which the trial ends there
Curve = Callable[[Mapping[str, Any], int], float | str]


class TuneTrial:
    """As Tune knows a trial: its own id, and ours in the config."""

    def __init__(self, tune_id: str, config: dict[str, Any]):
        self.trial_id, self.config, self.status = tune_id, config, "RUNNING"
        self.rungs_done = 0
        self.scores: list[float] = []


@dataclass
class Ended:
    """How a trial ended, at which step, its best rung's objective (NaN where it had none), and all steps until then."""

    trial_id: str
    values: dict[str, Any]
    state: str
    step: int
    objective: float
    all_steps: int


@dataclass
class Loop:
    """One run of a driver.

    Args:
        root: the sweep folder.
        space: flat.
        curve: what trials answer.
        rungs: optimiser steps, ascending.
        sampler, scheduler: as in their config groups.
        trials, concurrent: in all, and at a time.
        search_options: further fields of the search's plan.
        pace: seconds a step of a trial takes, by its values.
    """

    root: Path
    space: Space
    curve: Curve
    rungs: list[int]
    sampler: dict[str, Any]
    scheduler: dict[str, Any]
    trials: int
    concurrent: int = 1
    seed: int = 0
    search_options: dict[str, Any] = field(default_factory=dict)
    pace: Callable[[Mapping[str, Any]], float] = lambda values: 1.0
    ended: list[Ended] = field(default_factory=list)
    steps: int = 0  # that all trials made

    def __post_init__(self) -> None:
        folder = SweepFolder(self.root)
        self.search = GuardedOptunaSearch(
            DefineByRun(self.space),
            build_sampler(self.sampler, self.seed, len(self.search_options.get("start_from", ()))),
            folder,
            SearchPlan(self.trials, self.seed, **self.search_options),
        )
        self.decide = build_scheduler(self.scheduler, self.rungs)
        self._records = list(read_lines(folder.asks_file))
        if self._records:
            self.search.replay(self._records)
            replay_scheduler(self.decide, self._records)
        self._handed = 0
        self._queue: list[tuple[float, int, TuneTrial]] = []
        self._now = 0.0

    def run(self, rungs: float = math.inf, until: Callable[["Loop"], bool] = lambda loop: False) -> "Loop":
        """Until all trials ended, so many rungs were reported, or ``until``: then the driver is dead."""
        done = 0
        self._fill()
        while self._queue:
            if done >= rungs or until(self):
                return self
            self._now, _, trial = heapq.heappop(self._queue)
            self._report(trial)
            done += 1
            self._fill()
        return self

    def _fill(self) -> None:
        while len(self._queue) < self.concurrent:
            tune_id = f"{id(self)}-{self._handed}"
            config = self.search.suggest(tune_id)
            if config == Searcher.FINISHED or config is None:
                return
            self._handed += 1
            trial = TuneTrial(tune_id, config)
            known = {r["step"]: r["objective"] for r in self._records if r["event"] == "rung"
                     and r["trial_id"] == config["trial_id"]}  # fmt: skip
            trial.rungs_done = len(known)
            trial.scores = [score for score in known.values() if score is not None]
            self.decide.on_trial_add(None, trial)
            self._train(trial)

    def _train(self, trial: TuneTrial) -> None:
        before = ([0, *self.rungs])[trial.rungs_done]
        seconds = (self.rungs[trial.rungs_done] - before) * self.pace(trial.config["values"])
        heapq.heappush(self._queue, (self._now + seconds, int(trial.trial_id.split("-")[1]), trial))

    def _report(self, trial: TuneTrial) -> None:
        step, values = self.rungs[trial.rungs_done], trial.config["values"]
        self.steps += step - ([0, *self.rungs])[trial.rungs_done]
        trial.rungs_done += 1
        answer = self.curve(values, step)
        if isinstance(answer, str):
            result = {"step": step, "objective": math.nan, "state": answer, "reason": "", "done": True}
        else:
            trial.scores.append(answer)
            last = step == self.rungs[-1]
            state, value = ("completed", max(trial.scores)) if last else ("running", answer)
            result = {"step": step, "objective": value, "state": state, "reason": "", "done": last}
        self._process(trial, result)

    def _process(self, trial: TuneTrial, result: dict[str, Any]) -> None:
        decision = self.decide.on_trial_result(None, trial, result)
        stopped = decision == "STOP" or result["done"]
        if decision != "STOP":
            self.search.on_trial_result(trial.trial_id, result)
        if not stopped:
            self._train(trial)
            return
        self.decide.on_trial_complete(None, trial, result)
        self.search.on_trial_complete(trial.trial_id, result)
        state = "stopped_early" if result["state"] == "running" else result["state"]
        best = max(trial.scores, default=math.nan)
        self.ended.append(
            Ended(trial.config["trial_id"], trial.config["values"], state, result["step"], best, self.steps)
        )
