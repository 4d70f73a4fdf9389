"""Paired differences: against scipy called directly, and against cases whose answer is known."""

import math

import numpy as np
import pytest
from scipy.stats import binom, bootstrap

from analysis.stats import paired_difference


def scores(values: list[float], start: int = 0) -> dict[str, float]:
    return {f"i{start + i:03}": value for i, value in enumerate(values)}


def hits(n: int, seed: int, p: float) -> list[float]:
    return [float(x) for x in np.random.default_rng(seed).random(n) < p]


def test_the_interval_is_that_of_scipys_own_paired_bootstrap() -> None:
    """scipy resamples both samples with the same indices; with the same seed the intervals agree exactly."""
    a, b = hits(60, 1, 0.8), hits(60, 2, 0.6)
    direct = bootstrap(
        (np.array(a), np.array(b)), lambda x, y, axis: np.mean(x, axis) - np.mean(y, axis), paired=True, axis=0,
        vectorized=True, n_resamples=10_000, method="percentile", rng=np.random.default_rng(7), batch=1000,
    ).confidence_interval  # fmt: skip
    ours = paired_difference(scores(a), scores(b), seed=7)
    assert ours.mean == pytest.approx(np.mean(a) - np.mean(b))
    assert (ours.low, ours.high) == pytest.approx((direct.low, direct.high))
    assert ours.n == 60


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
    assert ours.high < 0.12


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


def test_without_common_items_nothing_is_known() -> None:
    for a, b in ((scores([1.0]), scores([1.0], start=1)), ({}, {})):
        ours = paired_difference(a, b)
        assert ours.n == 0
        assert all(math.isnan(value) for value in (ours.mean, ours.low, ours.high))


def test_exchanging_the_two_turns_the_sign() -> None:
    a, b = scores(hits(50, 3, 0.7)), scores(hits(50, 4, 0.5))
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert (there.mean, there.low, there.high) == pytest.approx((-back.mean, -back.high, -back.low), abs=0.021)


def test_the_same_items_give_the_same_interval_in_any_order() -> None:
    a, b = scores(hits(50, 5, 0.7)), scores(hits(50, 6, 0.5))
    assert paired_difference(a, b) == paired_difference(dict(reversed(a.items())), b)
