"""Population based training (Jaderberg et al. 2017, arXiv 1711.09846) over the trials that train side by side.

At every rung, once all of the population have reached it, the worst quantile each take up the weights and the
optimiser state of one of the best quantile, at that same step, with its learning rate and weight decay perturbed. Ray
Tune's own scheduler pauses a trial and starts it again from the donor's checkpoint; here a slot that pauses would go to
the next trial, so the exchange happens in the slot. What is decided depends on the scores at the rung alone, not on
who comes first.
"""

import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from sweeps.search.pbt_exchange import PERTURBED, Exchange
from sweeps.space.dimensions import Choices, Scalar, Space


class PopulationBasedTraining(FIFOScheduler):
    """The population's decisions; ``exchange`` carries them out.

    Args:
        quantile: share of the population that is replaced, and share that is copied; at most a half.
        factors: a perturbed value is the donor's times one of these, kept within the space.
        resample: probability of a value drawn anew from the space instead.
        seed: with the trial and the step, decides what is drawn.
    """

    def __init__(
        self, quantile: float = 0.25, factors: tuple[float, ...] = (0.8, 1.25), resample: float = 0.2, seed: int = 0
    ):
        super().__init__()
        if not 0 < quantile <= 0.5:
            raise ValueError(f"quantile must be above 0 and at most 0.5, not {quantile}")
        if not 0 <= resample <= 1:
            raise ValueError(f"resample must be a probability, not {resample}")
        if not factors or any(isinstance(it, bool) or not isinstance(it, int | float) or it <= 0 for it in factors):
            raise ValueError(f"factors must be numbers above 0, not {factors}")
        self.quantile, self.factors, self.resample, self.seed = quantile, tuple(factors), resample, seed
        self.space: Space = {}
        self.exchange: Callable[[Exchange], bool] | None = None  # None while the past is replayed
        self._values: dict[str, dict[str, Any]] = {}  # of the living
        self._scores: dict[int, dict[str, float]] = {}  # step → trial → objective
        self._decided: set[int] = set()
        self._exchanged: set[tuple[str, int]] = set()

    def note_exchange(self, trial_id: str, step: int, values: Mapping[str, Any]) -> None:
        """An exchange was carried out."""
        self._values[trial_id] = dict(values)
        self._exchanged.add((trial_id, step))

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._values[trial.trial_id] = dict(trial.config["values"])

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        step = round(result["step"])
        self._values[trial.trial_id] = dict(trial.config["values"])
        self._scores.setdefault(step, {})[trial.trial_id] = result["objective"]
        self._decide_where_all_are()
        return str(TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self.on_trial_error(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self.on_trial_error(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._values.pop(trial.trial_id, None)
        self._decide_where_all_are()  # perhaps it was the last one that the others' rung waited for

    def debug_string(self) -> str:
        return f"population of {len(self._values)}"

    def _decide_where_all_are(self) -> None:
        for step in sorted(self._scores):
            if step not in self._decided and all(name in self._scores[step] for name in self._values):
                self._decided.add(step)
                if self.exchange is not None:
                    self._decide(step, self.exchange)

    def _decide(self, step: int, exchange: Callable[[Exchange], bool]) -> None:
        at_rung = {name: score for name, score in self._scores[step].items() if name in self._values}
        order = sorted(at_rung, key=lambda name: (at_rung[name], name))
        n = min(math.ceil(len(order) * self.quantile), len(order) // 2)
        gone_on = {name for later, scores in self._scores.items() if later > step for name in scores}
        donors = [name for name in order[len(order) - n :] if name not in gone_on]
        for name in order[:n]:
            if name in gone_on or not donors or (name, step) in self._exchanged:
                continue
            random = np.random.default_rng([self.seed, zlib.crc32(name.encode()), step])
            parent = donors[int(random.integers(len(donors)))]
            new = self._values[name] | perturbed(self._values[parent], self.space, self, random)
            if exchange(Exchange(name, parent, step, self._values[name], new)):
                self.note_exchange(name, step, new)


def perturbed(
    values: Mapping[str, Any], space: Space, how: PopulationBasedTraining, random: np.random.Generator
) -> dict[str, Scalar]:
    """The donor's perturbable values, each times a factor, or one step along its choices, or drawn anew."""
    made: dict[str, Scalar] = {}
    for path in PERTURBED:
        dimension = space.get(path)
        if dimension is None or path not in values:
            continue
        anew = random.random() < how.resample
        if isinstance(dimension, Choices):
            order = sorted(dimension.values, key=lambda it: float(it or 0.0))
            at = int(random.integers(len(order))) if anew else order.index(values[path]) + int(random.choice([-1, 1]))
            made[path] = order[min(max(at, 0), len(order) - 1)]
            continue
        low, high = dimension.low, dimension.high
        if anew and dimension.log:
            value = math.exp(random.uniform(math.log(low), math.log(high)))
        elif anew:
            value = random.uniform(low, high)
        else:
            value = values[path] * float(random.choice(how.factors))
        if dimension.step:
            value = low + round((value - low) / dimension.step) * dimension.step
        made[path] = min(max(float(f"{value:.6g}"), low), high)
    return made
