"""What the best of many shows beyond the truth, because it was chosen by what it shows: the winner's curse.

The items are split into two halves of the same class shares, the best row of one half is chosen, and its figure there
is compared with its figure in the other, over many splits: what a choice by half of the items adds. Both halves are of
one size, so what few items do to a metric by itself cancels out, other than out of the bag (Tsamardinos, Greasidou and
Borboudakis 2018, "Bootstrapping the out-of-sample predictions for efficient and accurate cross-validation", Machine
Learning 107, 1895-1922). The same by quarters says how it falls when the items double: by 1/√2 where all rows are
equally good and only noise chooses, by more where one stands out. It is taken to fall so once more, to all items.

Rows of several seeds differ by their seeds too, which halves of the items do not show. For them the choice is repeated
with noise as large, and as correlated, as theirs.

Measured bias: ``make bench-claims``, BENCHMARKS.md.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.item_sums import TASK
from analysis.statistics.estimators import ESTIMATORS, Scored
from analysis.statistics.intervals import Spread

Array = np.ndarray[Any, np.dtype[Any]]

SPLITS = 100
NOISES = 400
LEAST_QUARTERED = 16  # items of a set, for a choice by quarters of them
SCORE = "objective"


def optimism(
    scored: Scored,
    spreads: Mapping[str, Spread],
    slopes: Mapping[str, Array],
    trials: Sequence[int],
    left_behind: int = 0,
    part: float = 1.0,
) -> dict[str, float]:
    """Metric, and ``objective`` → by how much the chosen row's figure is too high (of losses: too low, below 0).

    Args:
        scored: the rows.
        spreads: of each of their metrics.
        slopes: metric → (rows,) by how much the score rises with it.
        trials: numbers of the rows that were chosen among, at least 2.
        left_behind: further configurations that took part in the choice: trials that were stopped early.
        part: the share of the items by which those were left behind. The estimate grows by that share of what the
            expected largest of all so many normal numbers is above that of ``trials``.
    """
    by_seeds = scored.runs_of_rows.max() > 1
    estimate = _by_noise(scored, spreads, slopes, trials) if by_seeds else _by_parts(scored, trials)
    more = expected_largest(len(trials) + left_behind) / expected_largest(len(trials)) - 1.0 if left_behind else 0.0
    grown = 1.0 + part * more
    return {name: value * grown for name, value in estimate.items()}


def _by_noise(
    scored: Scored, spreads: Mapping[str, Spread], slopes: Mapping[str, Array], trials: Sequence[int]
) -> dict[str, float]:
    """The choice repeated with noise on truths that are as far apart as the figures are without it."""
    noise = {name: _noise(spread, _rng_of(name, scored)) for name, spread in spreads.items()}
    whole = scored.weighted({name: np.ones((1, n)) for name, n in scored.sizes.items()})
    numbers = scored.mean(scored.score(whole))[trials, 0]
    disturbance = np.asarray(sum(slopes[name][:, None] * given for name, given in noise.items()))[trials]
    apart = disturbance - disturbance.mean(axis=0)
    of_noise = float((apart**2).sum()) / ((len(trials) - 1) * NOISES)
    seen = float(numbers.var(ddof=1))
    real = max(0.0, 1.0 - of_noise / seen) if seen > 0 else 0.0
    truths = numbers.mean() + np.sqrt(real) * (numbers - numbers.mean())
    best, each = np.argmax(truths[:, None] + disturbance, axis=0), np.arange(NOISES)
    estimate = {name: float(given[trials][best, each].mean()) for name, given in noise.items()}
    return estimate | {SCORE: float(disturbance[best, each].mean())}


def _rng_of(metric: str, scored: Scored) -> np.random.Generator:
    """Numbers that are the same for all metrics of a data set: their noise is of the same items."""
    return np.random.default_rng([1, sorted(scored.sizes).index(ESTIMATORS[metric].dataset)])


def _noise(spread: Spread, rng: np.random.Generator) -> Array:
    """(rows, NOISES) normal noise of a metric, correlated between rows as their influence values are."""
    influences = spread.shown_influences()
    n = influences.shape[1]
    scale = np.sqrt(np.maximum(spread.seeds_variance, 0.0))[:, None]
    of_items = influences @ rng.standard_normal((n, NOISES)) / n
    if not scale.any():
        return np.asarray(of_items)
    return np.asarray(of_items + scale * rng.standard_normal((len(influences), NOISES)))


def _by_parts(scored: Scored, trials: Sequence[int]) -> dict[str, float]:
    """From halves of the items, and from quarters how it falls with their number."""
    rng = np.random.default_rng(0)
    part = {
        name: quarters(scored.classes if name == TASK and scored.classes is not None else np.zeros(n, dtype=int), rng)
        for name, n in scored.sizes.items()
    }

    def values(*of: int) -> dict[str, Array]:
        weighted = scored.weighted({name: np.isin(own, of) for name, own in part.items()})
        weighted[SCORE] = scored.score(weighted)
        return {name: given[trials] for name, given in weighted.items()}

    one, other = values(0, 2), values(1, 3)
    by_halves = _fall(one, other)
    if min(scored.sizes.values()) < LEAST_QUARTERED:
        return {name: value / math.sqrt(2) for name, value in by_halves.items()}
    by_quarters = _fall(values(0), values(2))[SCORE] + _fall(values(1), values(3))[SCORE]
    ratio = 2 * by_halves[SCORE] / by_quarters if by_quarters > 0 else 1.0
    return {name: value * min(max(ratio, 0.0), math.sqrt(0.5)) for name, value in by_halves.items()}


def _fall(one: Mapping[str, Array], other: Mapping[str, Array]) -> dict[str, float]:
    """By how much a metric of the best row of one part is less in the other part, on average over splits.

    Args:
        one, other: metric, and ``objective`` → (trials, SPLITS); either chooses once.
    """
    falls: dict[str, list[Array]] = {}
    for here, there in ((one, other), (other, one)):
        best = np.argmax(np.where(np.isfinite(here[SCORE]), here[SCORE], -np.inf), axis=0)
        for name in here:
            falls.setdefault(name, []).append((here[name] - there[name])[best, np.arange(SPLITS)])
    return {name: float(np.mean(given)) for name, given in falls.items()}


def quarters(classes: Array, rng: np.random.Generator) -> Array:
    """(SPLITS, items) which of four parts an item is in: each has a quarter of each class; 0 and 2 are a half.

    Args:
        classes: (items,) class of each.
        rng: of the splits.
    """
    n = len(classes)
    order = np.lexsort((rng.random((SPLITS, n)), np.broadcast_to(classes, (SPLITS, n))), axis=1)
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.broadcast_to(np.arange(n), (SPLITS, n)), axis=1)
    return np.asarray((place + rng.integers(4, size=(SPLITS, 1))) % 4)


def expected_largest(k: int) -> float:
    """Expected largest of ``k`` standard normal numbers."""
    from scipy.stats import norm

    x = np.linspace(-8.0, 8.0, 2001)
    return float(np.trapezoid(x * k * norm.pdf(x) * norm.cdf(x) ** (k - 1), x))
