"""The formulas of ``analysis/statistics/intervals.py``, each against its text in plain loops, or against scipy."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm, t

from analysis.statistics.estimators import Scored
from analysis.statistics.intervals import Spread, as_t, joined, lacking, seeds_variance, t_quantile, variance_of

Array = np.ndarray[Any, np.dtype[Any]]


def spread_of(metric: str, quantity: list[float], variance: list[float], folded: bool = True) -> Spread:
    """Of influences 1, 2 and -3 in every row."""
    rows = len(quantity)
    zeros, influences = np.zeros(rows), np.tile([1.0, 2.0, -3.0], (rows, 1))
    of = np.array(quantity), influences, np.array(variance), zeros, 3.0, zeros, zeros, zeros.astype(bool)
    return Spread(metric, *of, folded)


def of_seeds(values: Array, owners: list[int], influences: Array | None = None) -> tuple[Array, Array]:
    """``seeds_variance`` of runs with these values of a metric."""
    given = Scored({"task": 4}, {}, {"m": values}, lambda them: them["m"], np.array(owners))
    return seeds_variance(given, values, np.zeros((len(values), 4)) if influences is None else influences)


def test_the_influence_of_an_item_on_what_is_shown_is_the_derivative_times_that_on_the_quantity() -> None:
    loss = spread_of("perplexity", [math.log(3.0), math.log(5.0)], [1.0, 1.0])
    assert loss.shown_influences() == pytest.approx(np.array([[3.0, 6.0, -9.0], [5.0, 10.0, -15.0]]))
    assert loss.shown(loss.quantity) == pytest.approx([3.0, 5.0])
    share = spread_of("accuracy", [0.7], [1.0])
    assert share.shown_influences() == pytest.approx(np.array([[1.0, 2.0, -3.0]]))
    distance = spread_of("bias.crows_pairs.distance", [40.0, 60.0], [1.0, 1.0])
    assert distance.shown_influences() == pytest.approx(np.array([[-1.0, -2.0, 3.0], [1.0, 2.0, -3.0]]))
    assert distance.bounds == (0.0, 100.0)
    unfolded = spread_of("bias.crows_pairs.distance", [10.0], [1.0], folded=False)
    assert unfolded.shown_influences() == pytest.approx(np.array([[1.0, 2.0, -3.0]]))
    assert unfolded.bounds == (0.0, math.inf)


def test_the_interval_of_a_loss_is_symmetric_on_the_logarithm() -> None:
    own = spread_of("completion_loss", [2.0, 0.5], [0.09, 0.04])
    low, high = own.ends(np.array([1.5, 2.0]))
    assert low == pytest.approx([2.0 * math.exp(-1.5 * 0.3 / 2.0), 0.5 * math.exp(-2.0 * 0.2 / 0.5)])
    assert high == pytest.approx([2.0 * math.exp(1.5 * 0.3 / 2.0), 0.5 * math.exp(2.0 * 0.2 / 0.5)])
    low, _ = own.ends(np.array([1.5, 2.0]), shift=0.25)
    assert low[0] == pytest.approx(1.75 * math.exp(-1.5 * 0.3 / 1.75))


@pytest.mark.parametrize("freedom", [4.0, 12.0, 60.0])
@pytest.mark.parametrize("z", [-2.2, 0.4, 1.96, 3.0])
def test_quantiles_are_students(freedom: float, z: float) -> None:
    exact = float(t.ppf(norm.cdf(z), freedom))
    near = {4.0: 0.11, 12.0: 0.006, 60.0: 1e-4}[freedom] if abs(z) > 2 else {4.0: 0.02, 12.0: 8e-4, 60.0: 1e-5}[freedom]
    assert as_t(np.array([z]), np.array([freedom]))[0] == pytest.approx(exact, rel=near)
    assert t_quantile(np.array([freedom, 0.2])) == pytest.approx([t.ppf(0.975, freedom), t.ppf(0.975, 1)])
    assert t_quantile(np.array([freedom]), 0.8) == pytest.approx([t.ppf(0.9, freedom)])


def test_variances_of_items_and_seeds_are_joined_as_satterthwaite_does() -> None:
    two = np.array([2.0, 2.0, 1e-3, 2.0])
    total, freedom = joined(
        two, np.array([4.0, 4.0, 4.0, 0.5]), np.array([1.0, 0.0, 1.0, 1.0]), np.array([0.5, 0.0, 9.0, 0.5])
    )
    assert total == pytest.approx([3.0, 2.0, 1.001, 3.0])
    # (2 + 1)² / (2² / 4 + 0.5); that of the items alone; never below 1; with freedom of 1 at least
    assert freedom == pytest.approx([9 / 1.5, 4.0, 1.0, 9 / 4.5])
    assert joined(np.zeros(1), np.array([7.0]), np.zeros(1), np.zeros(1))[1] == 7.0


def by_classes(values: list[float], classes: list[int], join: bool) -> tuple[float, float]:
    """Variance and degrees of freedom of one row, as the docstring of the module says, without a matrix."""
    n, kinds = len(values), sorted(set(classes))
    groups = [[value for value, its in zip(values, classes, strict=True) if its == kind] for kind in kinds]
    squares = [sum((value - np.mean(group)) ** 2 for value in group) for group in groups]
    freedom = [float(len(group) - 1) for group in groups]
    if join:
        scales = [(len(group) / n) ** 2 for group in groups]
        pooled = sum(s * scale for s, scale in zip(squares, scales, strict=True)) / max(sum(freedom), 1.0)
        squares = [s + 4.0 * pooled / scale for s, scale in zip(squares, scales, strict=True)]
        freedom = [f + 4.0 for f in freedom]
    within = [
        len(group) * s / max(f, 1.0) / n**2 for group, s, f in zip(groups, squares, freedom, strict=True)
    ]  # fmt: skip
    between = sum(len(group) * float(np.mean(group)) ** 2 for group in groups) / n**2
    known = [float(n - 1)] * len(groups) if join else [max(f, 1.0) for f in freedom]
    parts = sum(w**2 / f for w, f in zip(within, known, strict=True)) + between**2 / (n - 1)
    total = sum(within) + between
    return total * n / (n - 1), min(max(total**2 / parts, 1.0), n - 1.0)


@pytest.mark.parametrize("join", [False, True])
def test_the_variance_of_classes_is_that_within_and_that_between(join: bool) -> None:
    rng = np.random.default_rng(4)
    classes = [0] * 9 + [1] * 4 + [3] * 2 + [5]  # not every label occurs, and one has a single item
    influences = rng.standard_normal((3, len(classes))) * [[1.0], [3.0], [0.2]]
    influences[1, :9] = 5.0  # no spread in a class
    influences -= influences.mean(axis=1, keepdims=True)
    variance, freedom = variance_of(influences, np.array(classes), join)
    expected = [by_classes(list(row), classes, join) for row in influences]
    assert variance == pytest.approx([it[0] for it in expected])
    assert freedom == pytest.approx([it[1] for it in expected])


def test_the_variance_of_one_sample_is_that_of_its_mean() -> None:
    values = np.array([[3.0, -1.0, -2.0, 0.0]])
    variance, freedom = variance_of(values, None)
    assert variance[0] == pytest.approx(np.var(values, ddof=1) / 4)
    assert freedom[0] == 3.0
    variance, freedom = variance_of(np.zeros((2, 1)), np.array([0]))  # of one item nothing can be known
    assert np.isnan(variance).all()
    assert list(freedom) == [1.0, 1.0]
    variance, freedom = variance_of(np.zeros((1, 4)), np.array([0, 0, 1, 1]))
    assert (variance[0], freedom[0]) == (0.0, 3.0)


def test_the_variance_of_seeds_is_pooled_over_configurations_less_that_of_items() -> None:
    values = np.array([0.5, 0.7, 0.9, 0.6, 0.8])
    variance, doubt = of_seeds(values, [0, 0, 1, 2, 2])  # the second configuration has one run
    between = (np.var([0.5, 0.7], ddof=1) + np.var([0.6, 0.8], ddof=1)) / 2
    assert variance == pytest.approx([between / 2, 0.0, between / 2])
    assert doubt == pytest.approx([(between / 2) ** 2 / 2, 0.0, (between / 2) ** 2 / 2])
    influences = np.array([[1.0, -1.0, 0, 0], [0, 0, 1.0, -1.0], [9.0, -9.0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]) / 4
    by_items = 2 * 4 * (0.5 / 4) ** 2 / 2 / (4 * 3)  # of the first configuration: four items, each 1/8 apart twice
    less, same = of_seeds(values, [0, 0, 1, 2, 2], influences)
    assert less == pytest.approx([(between - by_items) / 2, 0.0, (between - by_items) / 2])
    assert same == pytest.approx(doubt)
    alike = np.array([0.5, 0.5, 0.9, 0.6, 0.6])
    assert list(of_seeds(alike, [0, 0, 1, 2, 2], influences)[0]) == [0.0, 0.0, 0.0]  # never below 0
    assert [list(them) for them in of_seeds(values[:2], [0, 1])] == [[0.0, 0.0], [0.0, 0.0]]


def test_the_words_for_labels_that_are_too_rare() -> None:
    def words(counts: list[int], labels: list[str]) -> str:
        classes = np.repeat(np.arange(len(counts)), counts)
        columns = {name: np.zeros((1, len(classes), 3), np.float32) for name in ("macro_f1", "accuracy")}
        return lacking(Scored({"task": len(classes)}, columns, {}, lambda them: 0.0, None, classes), "macro_f1", labels)

    assert words([5, 9], ["ham", "spam"]) == ""
    assert words([4, 9], ["ham", "spam"]) == "label ham has 4 items; at least 5 are needed"
    assert words([9, 1], ["ham", "spam"]) == "label spam has 1 item; at least 5 are needed"
    assert words([9], ["ham", "spam"]) == "label spam has no item; at least 5 are needed"
    three = words([3, 9, 2], ["ham", "spam", "eggs"])
    assert three == "label eggs has 2 items (2 labels have fewer than 5); at least 5 are needed"
