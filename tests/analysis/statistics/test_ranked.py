"""Intervals of what ranks, and of how far a row is behind the first: each step against plain numpy."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import t

from analysis.statistics.estimators import Scored
from analysis.statistics.intervals import Spread, freedom_of
from analysis.statistics.ranked import Ranked

Array = np.ndarray[Any, np.dtype[Any]]
N = 30
RNG = np.random.default_rng(5)
INFLUENCES = 0.4 * RNG.standard_normal((3, N))
INFLUENCES -= INFLUENCES.mean(axis=1, keepdims=True)


def spread_of(metric: str, quantity: list[float], more: Array | None = None, doubt: float = 0.0) -> Spread:
    """Of N units; ``more`` is a variance by seeds."""
    rows = len(quantity)
    influences = INFLUENCES[:rows]
    seeds = np.zeros(rows) if more is None else more
    variance = (influences**2).sum(axis=1) / (N * (N - 1)) + seeds
    freedom = np.full(rows, N - 1.0)
    none = np.zeros(rows, dtype=bool)
    return Spread(metric, np.array(quantity), influences, variance, freedom, N, seeds, np.full(rows, doubt), none)


def ranked(spread: Spread, numbers: list[float], slope: float = 1.0, score: Any = None) -> Ranked:
    rows = len(numbers)
    scored = Scored({"task": N}, {spread.metric: np.zeros((rows, N, 1))}, {}, score or (lambda them: slope * them))
    return Ranked(scored, {spread.metric: spread}, {spread.metric: np.full(rows, slope)}, np.array(numbers))


def test_a_row_is_behind_by_the_difference_of_influences_with_half_an_item_more_in_each_cell() -> None:
    low, high, behind_low, behind_high, errors, freedom = ranked(
        spread_of("accuracy", [0.9, 0.7, 0.6]), [0.9, 0.7, 0.6]
    ).of_metric("accuracy", 0.0)
    for row in (1, 2):
        apart = INFLUENCES[0] - INFLUENCES[row]
        error = math.sqrt((apart**2).sum() / (N * (N - 1)) + (1 / N) ** 2)
        degrees = min(N - 1.0, float(freedom_of(apart[None])[0]))
        half = t.ppf(0.975, degrees) * error
        assert errors[row] == pytest.approx(error)
        assert freedom[row] == pytest.approx(degrees)
        assert behind_low[row] == pytest.approx(0.9 - [0.9, 0.7, 0.6][row] - half)
        assert behind_high[row] == pytest.approx(0.9 - [0.9, 0.7, 0.6][row] + half)
    assert (behind_low[0], behind_high[0], errors[0]) == (0.0, 0.0, 0.0)
    assert (low < [0.9, 0.7, 0.6]).all()
    assert (high > [0.9, 0.7, 0.6]).all()


def test_seeds_add_their_variance_to_a_difference_and_a_loss_is_turned_round() -> None:
    seeds = np.array([0.3, 0.1, 0.2])
    given = ranked(spread_of("completion_loss", [2.0, 2.5, 3.0], seeds, 0.01), [-2.0, -2.5, -3.0])
    _, _, behind_low, behind_high, errors, freedom = given.of_metric("completion_loss", 0.0)
    apart = INFLUENCES[0] - INFLUENCES[2]
    of_items = (apart**2).sum() / (N * (N - 1))
    assert errors[2] == pytest.approx(math.sqrt(of_items + 0.3 + 0.2))
    degrees = min(N - 1.0, float(freedom_of(apart[None])[0]))
    assert freedom[2] == pytest.approx((of_items + 0.5) ** 2 / (of_items**2 / degrees + 0.02))
    assert (behind_low[2] + behind_high[2]) / 2 == pytest.approx(1.0)  # behind: a higher loss


@pytest.mark.parametrize(
    ("metric", "quantity", "excess", "shifted"),
    [
        ("accuracy", 0.9, 0.05, 0.85),
        ("perplexity", math.log(4.0), -1.0, math.log(5.0)),  # the best shows 4 and truly has 5
        ("bias.crows_pairs.distance", 60.0, -3.0, 63.0),
        ("bias.crows_pairs.distance", 40.0, -3.0, 37.0),
    ],
)
def test_the_best_rows_interval_holds_what_it_shows_and_what_it_is_corrected_to(
    metric: str, quantity: float, excess: float, shifted: float
) -> None:
    def ends(at: float) -> tuple[float, float]:
        low, high = spread_of(metric, [at]).ends(np.array([t.ppf(0.975, N - 1)]))
        return float(low[0]), float(high[0])

    def of_first(excess: float) -> tuple[float, float]:
        shown = spread_of(metric, [quantity, quantity])
        given = ranked(shown, [1.0, 0.0], score=lambda them: them[metric])
        low, high, *_ = given.of_metric(metric, excess)
        alone = shown.ends(np.full(2, t.ppf(0.975, N - 1)))
        assert (low[1], high[1]) == pytest.approx((alone[0][1], alone[1][1]))  # the best's is corrected, no other
        return float(low[0]), float(high[0])

    own = spread_of(metric, [shifted])
    assert own.shown(own.quantity)[0] == pytest.approx(own.shown(np.array([quantity]))[0] - excess)
    assert of_first(0.0) == pytest.approx(ends(quantity))
    expected = min(ends(quantity)[0], ends(shifted)[0]), max(ends(quantity)[1], ends(shifted)[1])
    if metric == "accuracy":  # the variance of the score interval is that of the estimate: shifted, not another share's
        assert of_first(excess)[0] < expected[0] + 0.02
        assert of_first(excess)[1] == pytest.approx(ends(quantity)[1])
    else:
        assert of_first(excess) == pytest.approx(expected, rel=1e-6)


def test_a_score_that_is_a_metric_but_for_unit_and_direction_has_its_interval() -> None:
    loss = spread_of("completion_loss", [2.0, 2.5, 3.0])
    given = ranked(loss, [0.8, 0.75, 0.7], slope=-0.1, score=lambda them: 1.0 - 0.1 * them["completion_loss"])
    low, high, behind_low, behind_high, errors, _ = given.of_score(0.02)
    ends = loss.ends(np.full(3, t.ppf(0.975, N - 1)))
    assert low[1:] == pytest.approx(1.0 - 0.1 * ends[1][1:])
    assert high[1:] == pytest.approx(1.0 - 0.1 * ends[0][1:])
    assert low[0] == pytest.approx(1.0 - 0.1 * loss.ends(np.full(3, t.ppf(0.975, N - 1)), -0.2)[1][0])
    assert high[0] == pytest.approx(1.0 - 0.1 * ends[0][0])
    apart = INFLUENCES[0] - INFLUENCES[1]
    assert errors[1] == pytest.approx(0.1 * math.sqrt((apart**2).sum() / (N * (N - 1))))
    assert (behind_low[1] + behind_high[1]) / 2 == pytest.approx(0.05)


def test_a_score_of_two_metrics_is_drawn_with_their_correlation() -> None:
    """The difference of two metrics that move alike is surer than either; of two data sets they do not move alike."""

    def found_of(second: str, seeds: Array | None = None, slope: float = -1.0) -> Any:
        spreads = {"brier": spread_of("brier", [2.0, 1.5, 3.0], seeds), second: spread_of(second, [2.0, 1.5, 3.0])}
        sizes = {"task": N, "crows_pairs": N}
        columns = {name: np.zeros((3, N, 1)) for name in spreads}
        scored = Scored(sizes, columns, {}, lambda them: them["brier"] + slope * them[second])
        found = Ranked(scored, spreads, {}, np.array([0.0, 0.0, 0.0])).of_score(0.0)
        assert (found[2][0], found[3][0], found[4][0]) == (0.0, 0.0, 0.0)
        return found

    def errors(second: str, seeds: Array | None = None, slope: float = -1.0) -> Array:
        low, high, *_ = found_of(second, seeds, slope)
        return np.asarray(high - low)

    assert errors("log_loss").max() < 1e-6  # the same influences: the difference is known exactly
    own = math.sqrt((INFLUENCES[1] ** 2).sum() / (N * (N - 1)))
    both = errors("log_loss", slope=1.0)[1] / (2 * 1.96)
    assert both == pytest.approx(2 * own, rel=0.1)
    unlike = errors("bias.crows_pairs.abs")[1] / (2 * 1.96)
    assert unlike == pytest.approx(math.sqrt(2) * own, rel=0.1)
    seeds = np.full(3, 4 * own**2)  # of the first metric; what is due to them is not alike
    of_five = errors("log_loss", seeds)[1] / (2 * 1.96)
    # variances 5 and 1 of items 1 and 1 that are the same: their correlation is √(1/5), the difference has 5 + 1 - 2
    assert of_five == pytest.approx(math.sqrt(5 + 1 - 2 * math.sqrt(5) * math.sqrt(1 / 5)) * own, rel=0.1)
    *_, behind_low, behind_high, of_difference, freedom = found_of("log_loss", slope=1.0)
    apart = 2 * (INFLUENCES[0] - INFLUENCES[1])  # both metrics of both rows
    assert of_difference[1] == pytest.approx(math.sqrt((apart**2).sum() / (N * (N - 1))), rel=0.1)
    assert (behind_low[1] + behind_high[1]) / 2 == pytest.approx(1.0, abs=0.2)  # 2 · (2.0 - 1.5)
    assert list(freedom) == [N - 1.0] * 3
