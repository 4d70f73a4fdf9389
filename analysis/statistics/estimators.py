"""Leaderboard rows resampled together: their metrics from weighted or exchanged items, and the score of those."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from analysis.item_sums import Estimator
from analysis.metrics import METRICS
from analysis.objective import BELOW_ONE, FARTHEST, LAST_SHARE, Objective

Array = np.ndarray[Any, np.dtype[Any]]

_AT_ONCE = 1 << 22  # numbers of a jackknife that are in memory at a time


class _Estimators(Mapping[str, Estimator]):
    """Metric → its estimator, of the metrics that have one, those of a config included."""

    def __getitem__(self, name: str) -> Estimator:
        estimator = METRICS[name].estimator
        if estimator is None:
            raise KeyError(name)
        return estimator

    def __iter__(self) -> Iterator[str]:
        return (name for name, metric in METRICS.items() if metric.estimator is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


ESTIMATORS = _Estimators()


@dataclass(frozen=True)
class Scored:
    """Runs with the columns of the metrics that they are compared by, and the leaderboard rows that they belong to.

    A row is one run, or a configuration's runs with several seeds: its figures are then the means over them.

    Attributes:
        sizes: data set → number of units: items, or clusters of them.
        columns: metric → (runs, units, k) in float32: the sums are of small numbers, and products twice as fast.
        fixed: metric → (runs,) measured values, of metrics that cannot be resampled.
        score: metric → values of any shape, to one number of that shape; higher is better.
        owners: (runs,) the row of each run, ascending; None: each run is a row.
        classes: (items,) of the data set ``task``: the class of each, as its place among the labels; None without.
    """

    sizes: Mapping[str, int]
    columns: Mapping[str, Array]
    fixed: Mapping[str, Array]
    score: Callable[[Mapping[str, Array]], Array]
    owners: Array | None = None
    classes: Array | None = None

    def weighted(self, counts: Mapping[str, Array]) -> dict[str, Array]:
        """Metric → (runs, resamples), items counted as often as ``counts`` says: data set → (resamples, units)."""
        values = {}
        for name, columns in self.columns.items():
            estimator = ESTIMATORS[name]
            weights = counts[estimator.dataset].astype(np.float32)
            values[name] = estimator.value(_product(weights, columns), weights.sum(axis=1, dtype=np.float64))
        resamples = next(iter(counts.values())).shape[0]
        values |= {name: np.repeat(given[:, None], resamples, axis=1) for name, given in self.fixed.items()}
        return values

    def exchanged(self, masks: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        """The first run and each other one with their answers exchanged on some items.

        Args:
            masks: data set → (resamples, units), 1 where they are exchanged.

        Returns:
            Metric → (others, resamples), of the first run and of the others.
        """
        first, other = {}, {}
        for name, columns in self.columns.items():
            estimator = ESTIMATORS[name]
            varying, apart = self._apart[name]
            moved = np.zeros((len(columns) - 1, len(masks[estimator.dataset]), columns.shape[2]))
            moved[..., varying] = _product(masks[estimator.dataset].astype(np.float32), apart)
            n = np.array(float(columns.shape[1]))
            first[name] = estimator.value(columns[:1].sum(axis=1, dtype=np.float64)[:, None] + moved, n)
            other[name] = estimator.value(columns[1:].sum(axis=1, dtype=np.float64)[:, None] - moved, n)
        resamples = next(iter(masks.values())).shape[0]
        for name, given in self.fixed.items():
            first[name] = np.full((len(given) - 1, resamples), given[0])
            other[name] = np.repeat(given[1:, None], resamples, axis=1)
        return first, other

    @cached_property
    def _apart(self) -> dict[str, tuple[Array, Array]]:
        """Metric → which of its columns differ between runs (labels do not), and by how much from the first run's."""
        differences = {name: columns[1:] - columns[:1] for name, columns in self.columns.items()}
        varying = {name: np.flatnonzero(given.any(axis=(0, 1))) for name, given in differences.items()}
        return {name: (varying[name], given[..., varying[name]]) for name, given in differences.items()}

    def jackknifed(self, metric: str) -> tuple[Array, Array]:
        """The quantity of a metric, and how much each unit moves it.

        Returns:
            (runs,) values, and (runs, units) influence values of mean 0, by leaving out one unit at a time (Efron 1982,
            "The jackknife, the bootstrap and other resampling plans", section 6). The sum of their squares over
            ``n·(n-1)`` is the jackknife's variance, which is rather too large than too small.
        """
        estimator, columns = ESTIMATORS[metric], self.columns[metric]
        runs, n, k = columns.shape
        sums = columns.sum(axis=1, dtype=np.float64)
        influences = np.empty((runs, n))
        step = max(1, _AT_ONCE // (n * k))
        for at in range(0, runs, step):
            without = sums[at : at + step, None] - columns[at : at + step]
            influences[at : at + step] = -(n - 1) * estimator.quantity(without, np.array(n - 1.0))
        influences -= influences.mean(axis=1, keepdims=True)
        return estimator.quantity(sums, np.array(float(n))), influences

    def mean(self, of_runs: Array) -> Array:
        """(rows, …) means over the runs of each row, from (runs, …)."""
        if self.owners is None:
            return of_runs
        starts = np.flatnonzero(np.diff(self.owners, prepend=-1))
        counts = np.diff(starts, append=len(self.owners))
        means: Array = np.add.reduceat(of_runs, starts, axis=0) / counts.reshape(-1, *(1,) * (of_runs.ndim - 1))
        return means

    @property
    def runs_of_rows(self) -> Array:
        """(rows,) how many runs each row has."""
        if self.owners is None:
            return np.ones(len(next(iter({**self.columns, **self.fixed}.values()))), dtype=int)
        return np.bincount(self.owners)

    @property
    def width(self) -> int:
        """Numbers of a resample, to bound memory by."""
        return max((columns.shape[0] * columns.shape[2] for columns in self.columns.values()), default=1)


def _product(weights: Array, columns: Array) -> Array:
    """(rows, resamples, k) sums from (resamples, items) and (rows, items, k), as one matrix product."""
    rows, items, k = columns.shape
    flat = weights @ columns.transpose(1, 0, 2).reshape(items, rows * k)
    return flat.reshape(len(weights), rows, k).transpose(1, 0, 2).astype(np.float64)


def scores(objective: Objective, values: Mapping[str, Array]) -> Array:
    """``Objective.score`` over arrays: metric → values of one shape gives one number each."""
    losses = [np.asarray(term.loss(values[term.metric])) for term in objective.terms]  # type: ignore[arg-type]
    if objective.method == "lexicographic":
        score = 1.0 - losses[-1]
        if len(losses) > 1:
            far = np.maximum(losses[-1], LAST_SHARE)
            score = np.where(far > LAST_SHARE, (1.0 - LAST_SHARE) ** 2 / (far + 1.0 - 2.0 * LAST_SHARE), score)
        for term, loss in zip(reversed(objective.terms[:-1]), reversed(losses[:-1]), strict=True):
            reached = np.floor(np.round((1.0 - np.clip(loss, 0.0, FARTHEST)) * term.steps, 6))
            beyond = np.maximum(-reached, 0.0) / term.steps
            low = np.where(reached > 0, 0.0, 1.0 / (2.0 + beyond))
            high = np.where(reached >= 0, 1.0, 1.0 / (2.0 + beyond - 1.0 / term.steps))
            below = low + (high - low) * np.minimum(score, 1.0) * BELOW_ONE
            score = (np.maximum(reached, 0.0) + below) / (term.steps + 1)
        return score
    weights = [term.weight for term in objective.terms]
    weighted = [weight * loss for weight, loss in zip(weights, losses, strict=True)]
    worst = np.maximum.reduce(weighted) + objective.rho * sum(weighted)
    return np.asarray(1.0 - worst / (max(weights) + objective.rho * sum(weights)))
