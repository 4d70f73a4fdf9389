"""Intervals of metrics from the influence of each item, without resampling.

A metric is a smooth function of sums over items, so its sampling variance is that of the mean of the items' influence
values (``Scored.jackknifed``). What a plain interval, estimate ± 1.96 errors, lacks with few items is mended so:

- A quantity with two ends, such as a share, has the score interval of Wilson 1927 (JASA 22, 209-212): at each candidate
  value the variance is what that value would have. The number of items in it is the effective one, as in surveys (Korn
  and Graubard 1998, "Confidence intervals for proportions with small expected number of positive counts estimated from
  survey data", Survey Methodology 24, 193-201). It is not symmetric, stays within the ends, and has a width where all
  answers are right.
- A quantity with one end, such as a loss, has it on the logarithm.
- Quantiles are Student's t, with degrees of freedom by Satterthwaite 1946 ("An approximate distribution of estimates
  of variance components", Biometrics Bulletin 2, 110-114): of the classes where each counts alike, so that rare ones
  widen it; of losses and differences by the kurtosis of their influence values, so that few heavy rows do.
- Of a mean of classes, the spread within a class is joined with that of all classes, which counts as four
  further items: where all of few items of a class are right, its spread is not 0.

Measured coverage: ``make bench-claims``, BENCHMARKS.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.item_sums import TASK
from analysis.statistics.estimators import ESTIMATORS, Scored

Array = np.ndarray[Any, np.dtype[Any]]

CONFIDENCE = 0.95
LEAST_OF_CLASS = 5  # items, for an interval of a metric in which each class counts alike
LEAST_FREEDOM = 4.0  # degrees of freedom, for an interval of a loss
_SHARED_ITEMS = 4.0  # that the spread of all classes counts in that of one


@dataclass(frozen=True)
class Spread:
    """How sure one metric of each row is.

    Attributes:
        metric: its name.
        quantity: (rows,) what ``Estimator.metric`` makes it of; of rows with several seeds the mean.
        influences: (rows, units) of it, of mean 0.
        variance: (rows,) of sampling items, and seeds where there are several.
        freedom: (rows,) degrees of freedom of that.
        size: units that count as one draw each, where the variance itself cannot tell.
        seeds_variance: (rows,) the part of the variance that is the seeds'; 0 for rows of one run.
        seeds_doubt: (rows,) variance of that part as an estimate, over 2: what Satterthwaite's formula takes.
        uneven: (rows,) whether so few units make up most of the variance that no interval would cover.
        folded: whether the quantity is signed and the metric its distance from neutral.
    """

    metric: str
    quantity: Array
    influences: Array
    variance: Array
    freedom: Array
    size: float
    seeds_variance: Array
    seeds_doubt: Array
    uneven: Array
    folded: bool = True

    @property
    def bounds(self) -> tuple[float, float]:
        """Of the quantity."""
        estimator = ESTIMATORS[self.metric]
        return estimator.bounds if self.folded else (0.0, math.inf)

    def at_row(self, row: int, t: Array) -> Array:
        """Values of a row's quantity that lie ``t`` errors above the estimate."""
        return _at(self.quantity[row], self.variance[row], self.size, self.bounds, t)

    def ends(self, t: Array, shift: Array | float = 0.0) -> tuple[Array, Array]:
        """(rows,) ends of the metric's interval of ``t`` errors to both sides."""
        estimator = ESTIMATORS[self.metric]
        low, high = (_at(self.quantity - shift, self.variance, self.size, self.bounds, side) for side in (-t, t))
        return estimator.ends(low, high) if self.folded else (low, high)

    def shown(self, quantity: Array) -> Array:
        """The metric from its quantity."""
        return ESTIMATORS[self.metric].metric(quantity) if self.folded else quantity

    def shown_influences(self) -> Array:
        """(rows, units) influence values of the metric itself."""
        estimator = ESTIMATORS[self.metric]
        if estimator.exp:
            return self.influences * np.exp(self.quantity)[:, None]
        if estimator.neutral is None or not self.folded:
            return self.influences
        return self.influences * np.sign(self.quantity - estimator.neutral)[:, None]


def _at(estimate: Array, variance: Array, size: float, bounds: tuple[float, float], t: Array) -> Array:
    low, high = bounds
    if math.isfinite(high):
        p, v = np.clip((estimate - low) / (high - low), 0.0, 1.0), variance / (high - low) ** 2
        n = (p * (1 - p) + 1 / size) / (v + 1 / size**2)  # where p (1 - p) and v are 0: the size
        q = t * t / n
        return low + (high - low) * (p + q / 2 + t * np.sqrt(p * (1 - p) / n + q / (4 * n))) / (1 + q)
    error = np.sqrt(variance)
    if math.isfinite(low):
        above = np.maximum(estimate - low, 1e-300)
        return np.where(estimate > low, low + above * np.exp(np.clip(t * error / above, -700, 700)), estimate)
    return np.asarray(estimate + t * error)


def spread(scored: Scored, metric: str) -> Spread:
    """How sure a metric is, from the influence of each unit; and of the seeds, where rows have several."""
    estimator = ESTIMATORS[metric]
    quantity, influences = scored.jackknifed(metric)
    folded = True
    if estimator.neutral is not None and scored.runs_of_rows.max() > 1:  # a mean of distances is not one of a mean
        folded = False
        influences *= np.sign(quantity - estimator.neutral)[:, None]
        quantity = abs(quantity - estimator.neutral)
    own = scored.mean(influences)
    n = own.shape[1]
    classes = scored.classes if estimator.per_class and estimator.dataset == TASK else None
    variance, freedom = variance_of(own, classes, estimator.class_means)
    uneven = np.zeros(len(own), dtype=bool)
    if classes is None and not math.isfinite(estimator.bounds[1]):
        freedom = np.minimum(freedom, freedom_of(own))
        uneven = freedom < LEAST_FREEDOM
    size = float(n)
    if estimator.counted is not None:
        size = max(float(scored.columns[metric][..., estimator.counted].sum(axis=1, dtype=np.float64).min()), 1.0)
        freedom = np.minimum(freedom, max(size - 1.0, 1.0))
    if classes is not None:
        counts = np.bincount(classes)
        size = len(counts) ** 2 / float((1 / np.maximum(counts, 1)).sum())
    means = scored.mean(quantity)
    of_seeds, doubt = seeds_variance(scored, quantity, influences)
    total, freedom = joined(variance, freedom, of_seeds, doubt)
    return Spread(metric, means, own, total, freedom, size, of_seeds, doubt, uneven, folded)


def joined(variance: Array, freedom: Array, of_seeds: Array, doubt: Array) -> tuple[Array, Array]:
    """(rows,) variance of items and seeds together, and its degrees of freedom (Satterthwaite 1946)."""
    total = variance + of_seeds
    parts = variance**2 / np.maximum(freedom, 1.0) + doubt
    own = total**2 / np.where(parts > 0, parts, 1.0)
    return total, np.where((parts > 0) & (doubt > 0), np.maximum(own, 1.0), freedom)


def variance_of(influences: Array, classes: Array | None, join: bool = False) -> tuple[Array, Array]:
    """Variance of the mean influence, and its degrees of freedom.

    Args:
        influences: (rows, units), of mean 0.
        classes: (units,) class of each; None: they are one sample.
        join: join the spread within a class with that of all classes.
    """
    n = influences.shape[1]
    if classes is None or n < 2:
        with np.errstate(invalid="ignore", divide="ignore"):
            return (influences**2).sum(axis=1) / (n * (n - 1.0)), np.full(len(influences), max(n - 1.0, 1.0))
    counts = np.bincount(classes).astype(float)
    there = np.flatnonzero(counts)
    counts, inside = counts[there], (classes == there[:, None]).astype(float)
    means = influences @ inside.T / counts
    squares = np.maximum((influences**2) @ inside.T - counts * means**2, 0.0)  # (rows, classes)
    freedom = np.maximum(counts - 1, 0.0)
    if join:
        scale = (counts / n) ** 2  # the influence of an item of a class is that of its mean, times n / its items
        pooled = (squares * scale).sum(axis=1, keepdims=True) / max(float(freedom.sum()), 1.0)
        squares, freedom = squares + _SHARED_ITEMS * pooled / scale, freedom + _SHARED_ITEMS
    within = counts * squares / np.maximum(freedom, 1.0) / n**2
    between = (counts * means**2).sum(axis=1) / n**2
    total = within.sum(axis=1) + between
    if join:  # what is joined is known from all items
        return total * n / (n - 1), np.full(len(influences), n - 1.0)
    parts = (within**2 / np.maximum(freedom, 1.0)).sum(axis=1) + between**2 / (n - 1)
    own = np.where(parts > 0, total**2 / np.where(parts > 0, parts, 1.0), n - 1.0)
    return total * n / (n - 1), np.clip(own, 1.0, n - 1.0)


def freedom_of(influences: Array) -> Array:
    """(rows,) degrees of freedom of a variance, from the kurtosis of what it is of: 2 n / (kurtosis - 1).

    The variance of a sample variance is about (kurtosis - 1) / n of its square; a chi-square's is 2 / freedom.
    """
    n = influences.shape[1]
    squares = influences**2
    second, fourth = squares.mean(axis=1), (squares**2).mean(axis=1)
    kurtosis = np.where(second > 0, fourth / np.where(second > 0, second, 1.0) ** 2, 3.0)
    return np.clip(2 * n / np.maximum(kurtosis - 1, 1e-9), 1.0, max(n - 1.0, 1.0))


def seeds_variance(scored: Scored, quantity: Array, influences: Array) -> tuple[Array, Array]:
    """(rows,) variance of a row's mean by its seeds, and half the variance of that estimate; 0 for rows of one run.

    The spread between the seeds of a configuration is pooled over configurations. Part of it is that the same items
    come out differently; that part is in the items' variance already, and taken off.

    Args:
        scored: which runs are of which row.
        quantity: (runs,).
        influences: (runs, units) of it.
    """
    runs = scored.runs_of_rows
    freedom = int((runs - 1).sum())
    if not freedom or scored.owners is None:
        return np.zeros(len(runs)), np.zeros(len(runs))
    n = influences.shape[1]
    apart = quantity - scored.mean(quantity)[scored.owners]
    items_apart = influences - scored.mean(influences)[scored.owners]
    between = float((apart**2).sum()) / freedom
    by_items = float((items_apart**2).sum()) / freedom / (n * max(n - 1.0, 1.0))
    several = runs > 1
    doubt = (between / runs) ** 2 / freedom
    return np.where(several, max(between - by_items, 0.0) / runs, 0.0), np.where(several, doubt, 0.0)


def lacking(scored: Scored, metric: str, labels: Sequence[str]) -> str:
    """Why a metric has no interval, a clause; empty where it has one as far as labels and items can say."""
    if metric not in scored.columns:
        return "it is taken as measured, for want of item scores"
    estimator = ESTIMATORS[metric]
    if estimator.no_interval:
        return estimator.no_interval
    if estimator.per_class and scored.classes is not None:
        counts = np.bincount(scored.classes[scored.classes >= 0], minlength=len(labels))
        short = [i for i in np.argsort(counts, kind="stable") if counts[i] < LEAST_OF_CLASS]
        if short:
            more = f" ({len(short)} labels have fewer than {LEAST_OF_CLASS})" if len(short) > 1 else ""
            few = int(counts[short[0]])
            items = f"{few} item{'s' * (few != 1)}" if few else "no item"
            return f"label {labels[short[0]]} has {items}{more}; at least {LEAST_OF_CLASS} are needed"
    return ""


def t_quantile(freedom: Array, confidence: float = CONFIDENCE) -> Array:
    """(rows,) quantile of Student's t for both ends."""
    from scipy.special import stdtrit

    return np.asarray(stdtrit(np.maximum(freedom, 1.0), (1 + confidence) / 2))


def as_t(z: Array, freedom: Array) -> Array:
    """Normal numbers made into those of Student's t, by Cornish and Fisher's expansion.

    For z of 2 it is too small by 2 % with 4 degrees of freedom and by 0.2 % with 8; for z of 3, by 10 % and 2 %.
    """
    z2 = z * z
    first, second = z * (z2 + 1) / 4, z * (5 * z2 * z2 + 16 * z2 + 3) / 96
    return np.asarray(z + first / freedom + second / freedom**2)
