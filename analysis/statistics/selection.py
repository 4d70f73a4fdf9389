"""What the best of many shows beyond the truth, because it was chosen by what it shows: the winner's curse.

Two estimates of that, joined. *Halves*: the items are split into two halves of the same class shares, the best row of
one half is chosen, and its figure there is compared with its figure in the other, over many splits. Both halves are of
one size, so what few items do to a metric by itself cancels out, other than out of the bag (Tsamardinos, Greasidou and
Borboudakis 2018, "Bootstrapping the out-of-sample predictions for efficient and accurate cross-validation", Machine
Learning 107, 1895-1922). Noise of half the items is larger by √2, and so is the difference. That is exact where all
rows are equally good, and too much where one stands out. *Noise*: the rows' figures are taken for their truths, noise
as correlated as theirs is put on them, and the best chosen: exact where the rows are far apart, and too little where
they are equal, for their figures are further apart than their truths. The second counts by the share of the rows'
spread that is not noise. Measured bias: ``make bench-claims``, BENCHMARKS.md.

Seeds are not seen by halves of the items. Rows with several have the second estimate alone, with truths that are drawn
together until they are as far apart as figures are without noise.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.item_sums import TASK
from analysis.statistics.estimators import Scored
from analysis.statistics.intervals import Spread

Array = np.ndarray[Any, np.dtype[Any]]

SPLITS = 100
NOISES = 400
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
    rng = np.random.default_rng(0)
    noise = {name: _noise(spread, rng_of(name, scored, rng)) for name, spread in spreads.items()}
    whole = scored.weighted({name: np.ones((1, n)) for name, n in scored.sizes.items()})
    numbers = scored.mean(scored.score(whole))[trials, 0]
    disturbance = sum(slopes[name][:, None] * given for name, given in noise.items())
    disturbance = np.asarray(disturbance)[trials]
    apart = disturbance - disturbance.mean(axis=0)
    of_noise = float((apart**2).sum()) / ((len(trials) - 1) * NOISES)
    seen = float(numbers.var(ddof=1))
    real = max(0.0, 1.0 - of_noise / seen) if seen > 0 else 0.0
    several_seeds = scored.runs_of_rows.max() > 1  # halves of the items do not show what is due to seeds
    kept = np.sqrt(real) if several_seeds else 1.0
    truths = numbers.mean() + kept * (numbers - numbers.mean())
    best = np.argmax(truths[:, None] + disturbance, axis=0)
    each = np.arange(NOISES)
    parametric = {name: float(given[trials][best, each].mean()) for name, given in noise.items()}
    parametric[SCORE] = float(disturbance[best, each].mean())
    if several_seeds:
        estimate = parametric
    else:
        by_halves = _by_halves(scored, trials, rng)
        estimate = {
            name: real * value + (1 - real) * by_halves[name] for name, value in parametric.items() if name in by_halves
        }
    more = expected_largest(len(trials) + left_behind) / expected_largest(len(trials)) - 1.0 if left_behind else 0.0
    grown = 1.0 + part * more
    return {name: value * grown for name, value in estimate.items()}


def rng_of(metric: str, scored: Scored, rng: np.random.Generator) -> np.random.Generator:
    """Numbers that are the same for all metrics of a data set: their noise is of the same items."""
    from analysis.statistics.estimators import ESTIMATORS

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


def _by_halves(scored: Scored, trials: Sequence[int], rng: np.random.Generator) -> dict[str, float]:
    inside = {
        name: halves(scored.classes if name == TASK and scored.classes is not None else np.zeros(n, dtype=int), rng)
        for name, n in scored.sizes.items()
    }
    pairs = []
    for sides in (inside, {name: ~half for name, half in inside.items()}):
        values = scored.weighted(sides)
        given = {name: scored.mean(value)[trials] for name, value in values.items()}
        given[SCORE] = scored.mean(scored.score(values))[trials]
        pairs.append(given)
    each = np.arange(SPLITS)
    found: dict[str, list[Array]] = {}
    for one, other in (pairs, pairs[::-1]):
        chosen = np.argmax(np.where(np.isfinite(one[SCORE]), one[SCORE], -np.inf), axis=0)
        for name in one:
            found.setdefault(name, []).append(one[name][chosen, each] - other[name][chosen, each])
    return {name: float(np.mean(given)) / np.sqrt(2) for name, given in found.items()}


def halves(classes: Array, rng: np.random.Generator) -> Array:
    """(SPLITS, items) whether an item is in the first half: of each class half, and of all items half.

    Args:
        classes: (items,) class of each.
        rng: of the splits.
    """
    n = len(classes)
    order = np.lexsort((rng.random((SPLITS, n)), np.broadcast_to(classes, (SPLITS, n))), axis=1)
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.broadcast_to(np.arange(n), (SPLITS, n)), axis=1)
    return np.asarray((place + rng.integers(2, size=(SPLITS, 1))) % 2 == 0)


def expected_largest(k: int) -> float:
    """Expected largest of ``k`` standard normal numbers."""
    from scipy.stats import norm

    x = np.linspace(-8.0, 8.0, 2001)
    return float(np.trapezoid(x * k * norm.pdf(x) * norm.cdf(x) ** (k - 1), x))
