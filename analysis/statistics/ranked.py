"""Intervals of what ranks the rows: a metric, or the score of several, and of how far each row is behind the first."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.item_sums import TASK
from analysis.metrics import METRICS
from analysis.statistics.estimators import ESTIMATORS, Scored
from analysis.statistics.intervals import CONFIDENCE, Spread, as_t, freedom_of, joined, t_quantile, variance_of

Array = np.ndarray[Any, np.dtype[Any]]
Ends = tuple[Array, Array, Array, Array, Array, Array]  # low, high, behind_low, behind_high, errors, freedom: (rows,)

DRAWS = 2_000  # of the joint distribution of a row's metrics and the first row's


@dataclass(frozen=True)
class Ranked:
    """Rows, the first of which the others are compared with.

    Attributes:
        scored: their items.
        spreads: of each metric.
        slopes: metric → (rows,) by how much the score rises with it.
        numbers: (rows,) what ranks them, higher is better.
    """

    scored: Scored
    spreads: Mapping[str, Spread]
    slopes: Mapping[str, Array]
    numbers: Array

    def of_metric(self, metric: str, excess: float) -> Ends:
        """Of one metric that ranks.

        Args:
            metric: its name.
            excess: by how much the first row's is too high, for having been chosen.
        """
        spread = self.spreads[metric]
        low, high = spread.ends(t_quantile(spread.freedom))
        self._reach(low, high, *self._shifted(metric, excess))
        if isinstance(METRICS[metric].better, float):
            _, _, *behind = self.of_score(0.0)
            return low, high, *behind  # type: ignore[return-value]
        return low, high, *self._behind(metric, 1.0 if METRICS[metric].better == "high" else -1.0)

    def of_score(self, excess: float) -> Ends:
        """Of a score.

        Args:
            excess: by how much the first row's is too high, for having been chosen.
        """
        if len(self.spreads) == 1 and not self.scored.fixed and self._affine(only := next(iter(self.spreads))):
            slope = float(self.slopes[only][0])
            spread = self.spreads[only]
            low, high = spread.ends(t_quantile(spread.freedom))
            self._reach(low, high, *self._shifted(only, excess / slope if slope else 0.0))
            level = self.numbers - slope * spread.shown(spread.quantity)
            ends = (level + slope * low, level + slope * high)
            return min(ends, key=np.sum), max(ends, key=np.sum), *self._behind(only, slope)
        low, high, behind_low, behind_high, errors = self._by_draws()
        self._reach(low, high, low[0] - excess, high[0] - excess)
        freedom = np.min([given.freedom for given in self.spreads.values()], axis=0)
        return low, high, behind_low, behind_high, errors, freedom

    @staticmethod
    def _reach(low: Array, high: Array, corrected_low: float, corrected_high: float) -> None:
        """Let the first row's interval have both in it: around what it shows, and around the corrected figure.

        How much of what the best shows is luck is itself only estimated, and the more, the less it stands out: where it
        truly is the best, the corrected interval alone covers in four of five cases.
        """
        low[0], high[0] = min(low[0], corrected_low), max(high[0], corrected_high)

    def _shifted(self, metric: str, excess: float) -> tuple[float, float]:
        """The first row's interval around what it is after a correction."""
        spread = self.spreads[metric]
        shown = spread.shown(spread.quantity)
        low, high = spread.ends(t_quantile(spread.freedom), self._shift(spread, shown, excess))
        return float(low[0]), float(high[0])

    def _shift(self, spread: Spread, shown: Array, excess: float) -> float:
        """What to take off the quantity for the metric to be lower by ``excess``."""
        estimator = ESTIMATORS[spread.metric]
        if estimator.exp:
            return float(spread.quantity[0] - np.log(max(shown[0] - excess, 1e-300)))
        if estimator.neutral is not None and spread.folded:
            return excess * float(np.sign(spread.quantity[0] - estimator.neutral))
        return excess

    def _affine(self, metric: str) -> bool:
        """Whether the score is the metric, but for unit and direction."""
        spread = self.spreads[metric]
        shown, error = spread.shown(spread.quantity), np.sqrt(spread.variance)
        points = [self.scored.score({metric: shown + step * np.maximum(error, 1e-6)}) for step in (-3.0, 0.0, 2.0)]
        slopes = (points[1] - points[0]) / 3, (points[2] - points[1]) / 2
        return bool(np.allclose(*slopes, rtol=1e-6, atol=1e-12))

    def _behind(self, metric: str, slope: float) -> tuple[Array, Array, Array, Array]:
        """Of the difference of the first row and each, from the differences of their influence values."""
        spread = self.spreads[metric]
        estimator = ESTIMATORS[metric]
        influences = spread.shown_influences()
        apart = influences[:1] - influences
        classes = self.scored.classes if estimator.per_class and estimator.dataset == TASK else None
        variance, freedom = variance_of(apart, classes, estimator.class_means)
        freedom = np.minimum(freedom, freedom_of(apart))
        width = estimator.bounds[1] - estimator.bounds[0]
        if math.isfinite(
            width
        ):  # half an item more in each cell (Agresti and Min 2005, Statistics in Medicine 24, 729)
            variance = variance + (width / spread.size) ** 2
        of_seeds, doubt = (given[0] + given for given in (spread.seeds_variance, spread.seeds_doubt))
        variance, freedom = joined(variance, freedom, of_seeds, doubt)
        errors = np.sqrt(variance) * abs(slope)
        half = t_quantile(freedom) * errors
        behind = self.numbers[0] - self.numbers
        half[0] = errors[0] = 0.0
        return behind - half, behind + half, errors, freedom

    def _by_draws(self) -> tuple[Array, Array, Array, Array, Array]:
        """Draws of the metrics of a row and of the first, each with its own interval's shape, scored together."""
        names = list(self.spreads)
        sides = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
        z = np.random.default_rng(0).standard_normal((2 * len(names), DRAWS // 2))
        z = np.concatenate([z, -z], axis=1)
        found = np.empty((5, len(self.numbers)))
        fixed = {name: self.scored.mean(given) for name, given in self.scored.fixed.items()}
        for row in range(len(self.numbers)):
            both = _root(self._correlation(names, row)) @ z
            scores = []
            for side, number in enumerate((0, row)):
                values = {}
                for i, name in enumerate(names):
                    spread = self.spreads[name]
                    t = as_t(both[side * len(names) + i], spread.freedom[number])
                    values[name] = spread.shown(spread.at_row(number, t))
                values |= {name: np.full(z.shape[1], given[number]) for name, given in fixed.items()}
                scores.append(self.scored.score(values))
            low, high = np.quantile(scores[1], sides)
            behind_low, behind_high = np.quantile(scores[0] - scores[1], sides)
            found[:, row] = low, high, behind_low, behind_high, (scores[0] - scores[1]).std(ddof=1)
        found[2:, 0] = 0.0
        return tuple(found)  # type: ignore[return-value]

    def _correlation(self, names: list[str], row: int) -> Array:
        """(2 · metrics, 2 · metrics) correlation of the first row's metrics and a row's."""
        k = len(names)
        whole = np.eye(2 * k)
        datasets = [ESTIMATORS[name].dataset for name in names]
        for dataset in set(datasets):
            of = [i for i, own in enumerate(datasets) if own == dataset]
            influences = np.stack([self.spreads[names[i]].influences[number] for number in (0, row) for i in of])
            norms = np.sqrt((influences**2).sum(axis=1))
            inside = (
                influences @ influences.T / np.where(norms > 0, norms, 1.0) / np.where(norms > 0, norms, 1.0)[:, None]
            )
            places = [side * k + i for side in (0, 1) for i in of]
            whole[np.ix_(places, places)] = inside
        # what is due to seeds is a row's own
        share = np.array(
            [
                1.0 - np.divide(given.seeds_variance[number], given.variance[number] or 1.0)
                for number in (0, row)
                for given in (self.spreads[name] for name in names)
            ]
        )
        whole *= np.sqrt(np.outer(share, share))
        np.fill_diagonal(whole, 1.0)
        return whole


def _root(correlation: Array) -> Array:
    """A matrix whose product with its transpose is the correlation, also where that is singular."""
    values, vectors = np.linalg.eigh(correlation)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))
