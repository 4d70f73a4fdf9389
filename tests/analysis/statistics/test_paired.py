"""Paired differences: against scipy called directly, and against cases whose answer is known."""

import math

import numpy as np
import pytest
from scipy.stats import binom, bootstrap

from analysis.errors import DataError
from analysis.statistics import paired
from analysis.statistics.paired import item_scores, paired_difference


def scores(values: list[float], start: int = 0) -> dict[str, float]:
    return {f"i{start + i:03}": value for i, value in enumerate(values)}


def hits(n: int, seed: int, p: float) -> list[float]:
    return [float(x) for x in np.random.default_rng(seed).random(n) < p]


def test_an_items_score_is_a_hit_or_minus_its_loss_a_token() -> None:
    labelled = {"item_id": ["x", "y"], "prediction": ["a", "b"], "label": ["a", "a"], "nll": [9.0, 9.0]}
    assert item_scores(labelled) == {"x": 1.0, "y": 0.0}
    text = {"item_id": [3, 4], "nll": [6.0, 8.0], "n_tokens": [3, 2]}
    assert item_scores(text) == {"3": -2.0, "4": -4.0}
    completion = {**text, "completion_nll": [5.0, 1.0], "completion_tokens": [2, 4]}
    assert item_scores(completion) == {"3": -2.5, "4": -0.25}, "the prompt's tokens do not count"


def test_the_interval_is_that_of_scipys_own_paired_bootstrap() -> None:
    """The one-sample bootstrap of the differences is the paired one; with the same seed they agree exactly."""
    a, b = (np.random.default_rng(i).lognormal(sigma=1.0 + i, size=25).tolist() for i in (1, 0))  # skewed: BCa matters
    direct = bootstrap(
        (np.array(a) - np.array(b),), np.mean, n_resamples=9_999, method="BCa", rng=np.random.default_rng(7)
    ).confidence_interval
    ours = paired_difference(scores(a), scores(b), seed=7)
    assert ours.mean == pytest.approx(np.mean(a) - np.mean(b))
    assert (ours.low, ours.high) == pytest.approx((direct.low, direct.high))
    assert ours.n == 25


def test_the_interval_is_the_binomial_one_where_that_is_exact() -> None:
    """Differences of 0 and 1 only: a resampled sum is binomial, its 2.5 % and 97.5 % points known in closed form."""
    n, right = 100, 30
    ours = paired_difference(scores([1.0] * right + [0.0] * (n - right)), scores([0.0] * n))
    assert ours.mean == pytest.approx(0.3)
    assert ours.low == pytest.approx(binom.ppf(0.025, n, 0.3) / n, abs=0.0101)
    assert ours.high == pytest.approx(binom.ppf(0.975, n, 0.3) / n, abs=0.0101)


def test_pairing_removes_what_both_share() -> None:
    """Hard items are hard for both: unpaired, a difference of 4 in 100 would drown in their spread."""
    b = [float(i % 2) for i in range(100)]
    a = [1.0 if i in range(0, 12, 2) else x for i, x in enumerate(b)]
    ours = paired_difference(scores(a), scores(b))
    assert ours.mean == pytest.approx(0.06)
    assert ours.low > 0.0
    assert ours.high < 0.15  # unpaired it would be 0.20


def test_items_are_matched_by_id_not_by_place() -> None:
    a = {"x": 1.0, "y": 0.0, "z": 1.0}
    assert paired_difference(a, dict(reversed(a.items()))).mean == 0.0
    assert paired_difference(a, dict(reversed(a.items()))).high == 0.0


def test_only_common_items_count() -> None:
    ours = paired_difference({"x": 1.0, "y": 1.0, "only_a": 0.0}, {"x": 0.0, "y": 0.0, "only_b": 1.0})
    assert (ours.mean, ours.n) == (1.0, 2)


@pytest.mark.parametrize("shift", [0.0, 0.25, -1.0])
def test_a_constant_difference_is_its_own_interval(shift: float) -> None:
    b = [0.0, 1.0, 0.5, 0.25]
    ours = paired_difference(scores([x + shift for x in b]), scores(b))
    assert (ours.mean, ours.low, ours.high, ours.n) == (shift, shift, shift, 4)


def test_without_common_items_nothing_is_said() -> None:
    for a, b in ((scores([1.0]), scores([1.0], start=1)), ({}, {}), ({"x": math.nan}, {"x": 1.0})):
        with pytest.raises(DataError, match="no scored item in common"):
            paired_difference(a, b)


def test_a_score_that_is_not_finite_counts_as_absent() -> None:
    ours = paired_difference({"x": 1.0, "y": 1.0, "z": math.nan}, {"x": 0.0, "y": 0.0, "z": 0.0})
    assert (ours.mean, ours.n) == (1.0, 2)


def test_one_item_has_a_difference_but_no_interval() -> None:
    ours = paired_difference({"x": 1.0}, {"x": 0.0})
    assert (ours.mean, ours.n) == (1.0, 1)
    assert math.isnan(ours.low)
    assert math.isnan(ours.high)


def test_more_confidence_is_a_wider_interval() -> None:
    a, b = scores(hits(60, 1, 0.8)), scores(hits(60, 2, 0.6))
    narrow, wide = paired_difference(a, b, confidence=0.8), paired_difference(a, b, confidence=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_many_items_are_resampled_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond ``MANY`` items the interval is the percentile one, close to the normal one."""
    monkeypatch.setattr(paired, "MANY", 100)
    a, b = hits(400, 8, 0.7), hits(400, 9, 0.6)
    ours = paired_difference(scores(a), scores(b))
    error = np.std(np.array(a) - np.array(b)) / math.sqrt(400)
    assert (ours.low, ours.high) == pytest.approx((ours.mean - 1.96 * error, ours.mean + 1.96 * error), abs=0.01)


def test_exchanging_the_two_turns_the_sign() -> None:
    a, b = scores(hits(50, 3, 0.7)), scores(hits(50, 4, 0.5))
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert (there.mean, there.low, there.high) == pytest.approx((-back.mean, -back.high, -back.low), abs=0.021)


def test_the_same_items_give_the_same_interval_in_any_order() -> None:
    a, b = scores(hits(50, 5, 0.7)), scores(hits(50, 6, 0.5))
    assert paired_difference(a, b) == paired_difference(dict(reversed(a.items())), b)
