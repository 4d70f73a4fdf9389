"""What some items can show: against Monte Carlo, against published tables, and against the tool's own test."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, multinomial, ttest_ind

from analysis.folder import SweepFolder
from analysis.objective import Objective
from analysis.rows import Row
from analysis.statistics.comparison import Judgement, judge
from analysis.statistics.power import could_have_shown, items_needed, mean_square, power, rounded, seeds_needed

OBJECTIVE = Objective.from_config(
    {"terms": {"quality": {"metric": "macro_f1", "direction": "max", "range": [0, 1], "weight": 1}}}
)


@pytest.mark.parametrize("disagreeing", [0.08, 0.15, 0.3])
@pytest.mark.parametrize("n", [100, 400, 1000])
def test_mcnemars_power_is_what_drawn_tables_give(n: int, disagreeing: float) -> None:
    apart = could_have_shown(disagreeing, n, shares=True)
    share = max(disagreeing, apart)
    drawn = np.random.default_rng(0).multinomial(n, [(share + apart) / 2, (share - apart) / 2, 1 - share], 20_000)
    p = np.minimum(1, 2 * binom.cdf(drawn[:, :2].min(1), drawn[:, :2].sum(1), 0.5))
    assert np.mean(p < 0.05) == pytest.approx(0.8, abs=0.01)
    assert items_needed(apart, disagreeing, shares=True) == pytest.approx(n, rel=0.03)


@pytest.mark.parametrize(("size", "share", "n"), [(0.2, 0.5, 12), (0.0, 0.4, 15), (0.3, 0.3, 20), (0.1, 0.05, 9)])
def test_mcnemars_power_of_few_items_is_the_sum_over_all_tables(size: float, share: float, n: int) -> None:
    share = max(size, share)
    named = 0.0
    for ahead in range(n + 1):
        for behind in range(n + 1 - ahead):
            apart = ahead + behind
            p = min(1.0, 2 * binom.cdf(min(ahead, behind), apart, 0.5)) if apart else 1.0
            if p < 0.05:
                cells = [(share + size) / 2, (share - size) / 2, 1 - share]
                named += multinomial.pmf([ahead, behind, n - apart], n, cells)
    assert power(size, share, n, shares=True) == pytest.approx(named, abs=1e-8)
    assert power(-size, share, n, shares=True) == pytest.approx(named, abs=1e-8)


def test_nothing_is_found_where_nothing_differs_and_all_where_nothing_varies() -> None:
    for shares in (False, True):
        assert power(0.0, 0.0, 100, shares) == 0.0
    assert power(0.3, 0.09, 43) == 1.0  # every item differs by as much: 1.96 · 0.3 / √43 is below it
    assert power(0.3, 0.09, 3) == 0.0
    assert power(0.3, 0.01, 3) == 0.0  # a mean square below the square of the mean is none
    assert math.isnan(could_have_shown(0.04, 2))
    found = could_have_shown(0.04, 400)  # mean square 0.2², of 400 items
    assert power(found, 0.04, 400) == pytest.approx(0.8)
    assert found == pytest.approx((1.959964 + 0.841621) * 0.01, rel=0.01)
    assert could_have_shown(1e4, 400) == pytest.approx(500 * found)
    assert mean_square(0.3, 0.1, 50) == pytest.approx(50 * 0.01 + 0.09)


def test_the_number_of_items_is_connors() -> None:
    # n = (1.96 √ψ + 0.8416 √(ψ − d²))² / d², Connor 1987: ψ = 0.2, d = 0.1
    wanted = (1.959964 * 0.2**0.5 + 0.841621 * (0.2 - 0.01) ** 0.5) ** 2 / 0.01
    assert items_needed(0.1, 0.2) == pytest.approx(wanted, abs=1)
    assert power(0.1, 0.2, round(wanted)) == pytest.approx(0.8, abs=0.002)


def test_a_difference_that_none_is_and_one_that_no_number_shows() -> None:
    assert items_needed(0.0, 0.1) is None
    assert items_needed(1e-9, 0.1) is None
    assert np.isnan(could_have_shown(0.1, 4, shares=True))  # four items are never significant


def test_more_seeds_tell_smaller_differences_and_the_number_is_the_t_tests() -> None:
    assert [seeds_needed(effect, 1.0) for effect in (0.2, 0.5, 0.8)] == [394, 64, 26]  # Cohen 1988, table 2.4.1
    assert seeds_needed(1.0, 0.0) == 2
    assert seeds_needed(0.0, 1.0) is None
    assert seeds_needed(1e-4, 1.0) is None
    rng, seeds = np.random.default_rng(1), seeds_needed(1.5, 1.0)
    named = ttest_ind(rng.normal(1.5, 1, (seeds, 20_000)), rng.normal(0, 1, (seeds, 20_000))).pvalue < 0.05
    assert 0.79 < np.mean(named) < 0.87  # 8 seeds of each; 7 would not do


@pytest.mark.parametrize(
    ("number", "shown"), [(2722, "2,700"), (48, "48"), (155, "160"), (9, "9"), (123_456, "120,000")]
)
def test_an_estimate_has_two_digits(number: int, shown: str) -> None:
    assert rounded(number) == shown


def pair(folder: SweepFolder, n: int, apart: float, rng: np.random.Generator, metric: str) -> Judgement:
    """Two trials' answers on n items of three classes, judged: the first is better by ``apart`` in truth."""
    disagreeing, labels = 0.2, np.arange(n) % 3
    kinds = rng.choice(4, n, p=[(disagreeing + apart) / 2, (disagreeing - apart) / 2, 0.65, 0.15])
    wrong = (labels + rng.integers(1, 3, n)) % 3
    for name, right in (("t0000", np.isin(kinds, (0, 2))), ("t0001", np.isin(kinds, (1, 2)))):
        said = np.where(right, labels, wrong)
        names = np.array(["a", "b", "c"])
        items = {
            "item_id": list(map(str, range(n))),
            "label": names[labels].tolist(),
            "prediction": names[said].tolist(),
        }
        folder.trial(name).write_items("task", "validation", 8, items)
    rows = [Row("trial", name, "completed", 8, n, True, {"seed": i}) for i, name in enumerate(("t0000", "t0001"))]
    judged = judge(folder, rows, OBJECTIVE, ("a", "b", "c"), metric)
    assert judged is not None
    return judged


@pytest.mark.heavy
@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
@pytest.mark.parametrize("n", [100, 200, 500, 1000])
def test_a_difference_that_could_have_been_shown_is_named_in_four_of_five_pairs(
    tmp_path: Path, n: int, metric: str
) -> None:
    """The tool's own test, on pairs whose true difference is what earlier pairs' errors say could have been shown."""
    folder, rng, pairs = SweepFolder(tmp_path), np.random.default_rng(n), 300
    said = [_said(pair(folder, n, 0.01, rng, metric)) for _ in range(20)]
    named = [pair(folder, n, float(np.mean(said)), rng, metric).winner == "t0000" for _ in range(pairs)]
    assert 0.75 <= np.mean(named) <= 0.85


def _said(judged: Any) -> float:
    at = judged.standings["t0001"]
    return could_have_shown(mean_square(at.behind, at.error, at.n), at.n, judged.test.startswith("McNemar"))
