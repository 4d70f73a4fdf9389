"""Gaps between groups against fairlearn, rows shuffled by hand, and what is known of the truth in simulations."""

import numpy as np
import pytest

from analysis.group_cells import FIGURES, Cells, fair_gaps, gap_errors, gaps, upper_bounds
from analysis.shares import share_error, wilson

Rows = tuple[list[str], list[str], list[str]]


def rows(n: int, classes: int, groups: int, seed: int, accuracy: float = 0.7) -> Rows:
    """Labels, predictions and groups that know nothing of each other but the labels."""
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, classes, n)
    predicted = np.where(rng.random(n) < accuracy, gold, rng.integers(0, classes, n))
    group = rng.integers(0, groups, n)
    gold[: classes * groups] = np.repeat(np.arange(classes), groups)  # every cell has a row
    group[: classes * groups] = np.tile(np.arange(groups), classes)
    return ([f"y{i}" for i in gold], [f"y{i}" for i in predicted], [f"g{i}" for i in group])


@pytest.mark.parametrize(("classes", "groups"), [(2, 2), (2, 3), (4, 3)])
def test_gaps_are_fairlearns_of_each_class_against_the_rest(classes: int, groups: int) -> None:
    from fairlearn.metrics import (
        demographic_parity_difference,
        equal_opportunity_difference,
        equalized_odds_difference,
    )

    gold, predicted, group = rows(300, classes, groups, seed=classes)
    cells = Cells.of(gold, predicted, group)
    found = gaps(cells.counts, cells.taking_part(1), list(FIGURES))
    references = (equalized_odds_difference, demographic_parity_difference, equal_opportunity_difference)
    for name, reference in zip(FIGURES, references, strict=True):
        each = [
            reference([y == label for y in gold], [p == label for p in predicted], sensitive_features=group)
            for label in sorted(set(gold))
        ]
        assert found[name] == pytest.approx(max(each))


def test_a_rate_over_fewer_rows_than_the_least_takes_no_part() -> None:
    gold = ["a"] * 20 + ["b"] * 20 + ["a"] * 9
    group = ["x", "y"] * 20 + ["z"] * 9
    predicted = ["a"] * 20 + ["b"] * 20 + ["b"] * 9  # z is never recognised
    cells = Cells.of(gold, predicted, group)
    assert cells.left_out(10) == [("z", "b", 0), ("z", "a", 9)]
    assert gaps(cells.counts, cells.taking_part(9), ["tpr_gap"])["tpr_gap"] == 1.0
    ten = cells.taking_part(10)
    assert gaps(cells.counts, ten, ["tpr_gap"])["tpr_gap"] == 0.0
    others = Cells.of(gold, ["b" if p == "a" else "a" for p in predicted], group)  # z alone is recognised
    assert gaps(others.counts, cells.taking_part(9), ["tpr_gap"])["tpr_gap"] == 1.0
    assert gaps(others.counts, ten, ["tpr_gap"])["tpr_gap"] == 0.0
    assert not ten["predicted"][:, cells.groups.index("z")].any()
    assert cells.measurable(10) == list(FIGURES)
    assert cells.measurable(11) == ["demographic_parity"]  # ten rows of each label in x and in y
    assert cells.measurable(21) == []
    assert cells.smallest("equalized_odds", 9) == ("group z with label a", 9)
    assert cells.smallest("equalized_odds", 10) == ("group x with label a", 10)
    assert cells.smallest("demographic_parity", 10) == ("group x", 20)


def test_rows_without_a_group_do_not_count() -> None:
    some = rows(120, 3, 2, seed=0)
    more = ([*some[0], "y0", "y9"], [*some[1], "y1", "y9"], [*some[2], None, None])
    assert Cells.of(*more).labels == Cells.of(*some).labels
    assert (Cells.of(*more).counts == Cells.of(*some).counts).all()


def test_fair_gaps_are_those_of_rows_whose_groups_are_shuffled() -> None:
    gold, predicted, group = map(np.array, rows(150, 3, 3, seed=3))
    cells = Cells.of(gold, predicted, group)
    part = cells.taking_part(10)
    ours = fair_gaps(cells.counts, part, list(FIGURES), n=2_000)
    rng = np.random.default_rng(5)
    shuffled: dict[str, list[float]] = {name: [] for name in FIGURES}
    for _ in range(2_000):
        within = group.copy()
        for label in set(gold):
            at = np.flatnonzero(gold == label)
            within[at] = within[rng.permutation(at)]
        for name, of in (
            ("equalized_odds", within),
            ("tpr_gap", within),
            ("demographic_parity", rng.permutation(group)),
        ):
            again = Cells.of(gold, predicted, of)
            shuffled[name].append(float(gaps(again.counts, part, [name])[name]))
    for name, values in ours.items():
        assert values.mean() == pytest.approx(np.mean(shuffled[name]), abs=0.008)
        assert np.quantile(values, 0.95) == pytest.approx(np.quantile(shuffled[name], 0.95), abs=0.03)


@pytest.mark.parametrize("apart", [0.0, 0.2])
@pytest.mark.parametrize(("classes", "groups", "n"), [(2, 2, 96), (4, 3, 300), (8, 2, 300)])
def test_the_bound_holds_and_the_error_is_that_of_repeated_samples(
    classes: int, groups: int, n: int, apart: float
) -> None:
    rng = np.random.default_rng(0)
    right = np.full((classes, groups), 0.8)
    right[0, 0] -= apart
    shares = np.repeat(((1 - right) / (classes - 1))[..., None], classes, axis=2)
    shares[np.arange(classes), :, np.arange(classes)] = right
    truth = np.zeros((classes, groups, classes + 1))
    truth[..., :-1] = shares
    found, kept, errors = [], [], []
    for _ in range(200):
        counts = np.zeros((classes, groups, classes + 1), dtype=np.int64)
        counts[..., :-1] = rng.multinomial(rng.multinomial(n, np.ones(classes * groups) / classes / groups)
                                           .reshape(classes, groups), shares)  # fmt: skip
        cells = Cells(tuple(map(str, range(classes))), tuple(map(str, range(groups))), counts)
        part = cells.taking_part(5)
        true = gaps(truth, part, ["equalized_odds"])["equalized_odds"]
        found.append(float(gaps(counts, part, ["equalized_odds"])["equalized_odds"]))
        kept.append(upper_bounds(counts, part, ["equalized_odds"])["equalized_odds"] >= true)
        errors.append(gap_errors(counts, part, ["equalized_odds"])["equalized_odds"])
    assert np.mean(kept) >= 0.93
    assert 0.85 * np.std(found) <= np.mean(errors) <= 1.6 * np.std(found)
    assert min(errors) > 0.3 * np.std(found)


def test_errors_and_bounds_of_faultless_predictions_are_not_zero() -> None:
    gold = ["a", "b"] * 20
    cells = Cells.of(gold, gold, ["x", "x", "y", "y"] * 10)
    part = cells.taking_part()
    assert gaps(cells.counts, part, list(FIGURES))["equalized_odds"] == 0.0
    assert all(error > 0.03 for error in gap_errors(cells.counts, part, list(FIGURES)).values())
    # Newcombe 1998, method 10, of 10/10 against 10/10 at one-sided 95 %: the width of Wilson's limit at 1
    limit = 1.0 - float(wilson(np.array(1.0), np.array(10.0), 1.6448536)[0])
    assert upper_bounds(cells.counts, part, ["tpr_gap"])["tpr_gap"] == pytest.approx(limit)
    assert limit == pytest.approx(0.2129, abs=1e-4)


def test_the_bound_of_a_difference_is_newcombes() -> None:
    """Newcombe 1998, table II: 56/70 against 48/80, method 10, 95 % two-sided: 0.0524 to 0.3339."""
    counts = np.zeros((2, 2, 3), dtype=np.int64)
    counts[0, 0, :2], counts[0, 1, :2] = (56, 14), (48, 32)
    counts[1, :, 1] = 1
    cells = Cells(("a", "b"), ("x", "y"), counts)
    found = upper_bounds(counts, cells.taking_part(), ["tpr_gap"], z=1.959964)
    assert found["tpr_gap"] == pytest.approx(0.3339, abs=1e-4)


def test_a_shares_error_is_that_of_the_sample_but_where_all_items_are_alike() -> None:
    hits = np.array([1.0] * 30 + [0.0] * 70)
    assert share_error(30, 100) == pytest.approx(hits.std(ddof=1) / 10)
    assert share_error(0, 40) == share_error(40, 40) == pytest.approx(0.0170, abs=1e-4)
    assert np.isnan(share_error(0, 1))
