"""Intervals without resampling: what they cover, where there is none, and figures against scipy and scikit-learn."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import binomtest, t
from sklearn.metrics import f1_score

from analysis.objective import Objective
from analysis.rows import Row
from analysis.statistics.comparison import figures, side_by_side
from analysis.statistics.estimators import ESTIMATORS, Scored
from analysis.statistics.intervals import freedom_of, lacking, spread, variance_of
from analysis.statistics.items import align
from tests.benchmarks.claims import SHARES, World, compared, lists, truths

F1 = Objective.from_config({"name": "s", "rho": 0.0, "terms": {"q": {"metric": "macro_f1", "range": [0.0, 1.0]}}})


def scored(world: World, n: int, metrics: list[str], seed: int = 0) -> tuple[Scored, list[pa.Table]]:
    tables = world.draw(np.random.default_rng(seed), n)["task"]
    rows = [Row("trial", f"t{i}", "completed", 1) for i in range(len(tables))]
    named = {"task": {f"t{i}": table for i, table in enumerate(tables)}}
    return side_by_side(rows, named, metrics, F1, world.labels, metrics[0])[0], tables


def test_the_interval_of_an_accuracy_is_wilsons_with_students_quantile() -> None:
    n = 80
    given, tables = scored(World(SHARES["4 equal"], (0.9,)), n, ["accuracy"])
    hits = sum(a == b for a, b in zip(tables[0]["label"].to_pylist(), tables[0]["prediction"].to_pylist(), strict=True))
    own = spread(given, "accuracy")
    low, high = own.ends(np.array([1.959964]))
    wilson = binomtest(hits, n).proportion_ci(method="wilson")
    assert (low[0], high[0]) == pytest.approx((wilson.low, wilson.high), abs=1e-3)  # n - 1 in place of n
    printed = figures(given, [], "accuracy")
    assert (printed.low[0], printed.high[0]) == pytest.approx(
        tuple(float(end[0]) for end in own.ends(np.array([t.ppf(0.975, n - 1)]))), abs=1e-12
    )


def test_an_accuracy_of_1_has_a_width() -> None:
    world = World(SHARES["4 equal"], (1.0, 1.0))
    for metric in ("accuracy", "macro_f1", "balanced_accuracy", "mcc"):
        found = compared(world.draw(np.random.default_rng(0), 60), [metric], F1, world.labels, metric)
        assert 0.85 < found.low[0] < 0.96, metric
        assert found.high[0] == pytest.approx(1.0)
        assert found.behind_low[1] < 0.0 < found.behind_high[1]


def test_the_variance_of_macro_f1_is_the_jackknifes_by_scikit_learn() -> None:
    given, tables = scored(World(SHARES["8 skewed"], (0.8,)), 120, ["macro_f1"], seed=3)
    gold, told = (np.array(tables[0][name].to_pylist()) for name in ("label", "prediction"))
    labels = World(SHARES["8 skewed"]).labels
    without = np.array(
        [
            f1_score(np.delete(gold, i), np.delete(told, i), labels=labels, average="macro", zero_division=0)
            for i in range(len(gold))
        ]
    )
    jackknife = (len(gold) - 1) / len(gold) * ((without - without.mean()) ** 2).sum()
    influences = given.jackknifed("macro_f1")[1]
    assert variance_of(influences, None)[0][0] == pytest.approx(jackknife, rel=1e-5)
    assert spread(given, "macro_f1").variance[0] > jackknife  # that of each class has one item less


def test_degrees_of_freedom_are_few_where_few_items_make_the_spread() -> None:
    rng = np.random.default_rng(0)
    normal, heavy = rng.standard_normal(4000), rng.standard_normal(4000) ** 5
    found = freedom_of(np.stack([normal, heavy - heavy.mean()]))
    assert found[0] == pytest.approx(3999, rel=0.1)  # of a normal distribution: those of the sample
    assert found[1] < 200
    classes = np.repeat([0, 1], [390, 10])
    influences = np.where(classes == 0, 0.1, 40.0) * rng.standard_normal((1, 400))
    assert variance_of(influences - influences.mean(), classes)[1][0] < 25  # those of ten items


def covering(world: World, metric: str, n: int, samples: int, seed: int) -> tuple[float, float, float]:
    """Shares of the samples that have an interval; of those whose interval has the truth inside; of differences."""
    labels, rng = world.labels, np.random.default_rng(seed)
    truth = truths(world.draw, (metric,), labels, 20_000, 3)[metric]
    inside, apart, printed = 0, 0, 0
    for _ in range(samples):
        found = compared(world.draw(rng, n), [metric], F1, labels, metric)
        if math.isfinite(found.low[0]):
            printed += 1
            inside += bool(found.low[0] <= truth[0] <= found.high[0])
            sign = 1.0 if metric != "completion_loss" else -1.0
            apart += bool(found.behind_low[1] <= sign * (truth[0] - truth[1]) <= found.behind_high[1])
    return printed / samples, inside / max(printed, 1), apart / max(printed, 1)


@pytest.mark.parametrize(
    ("world", "metric", "n"),
    [
        (World(SHARES["8 skewed"], (0.9, 0.88)), "macro_f1", 400),
        (World(SHARES["90/8/2"], (0.9, 0.88)), "balanced_accuracy", 400),
        (World(SHARES["4 equal"], (0.9, 0.88)), "mcc", 50),
        (World(uneven=0.3, accuracy=(0.0, 0.0)), "completion_loss", 100),
    ],
    ids=["macro-F1, eight skewed classes", "balanced accuracy, a rare class", "MCC of 50 items", "a loss"],
)
def test_intervals_cover(world: World, metric: str, n: int) -> None:
    """The cells that percentile intervals of a bootstrap fail worst; the whole table: make bench-claims."""
    printed, inside, apart = covering(world, metric, n, 300, 5)
    assert printed > 0.2
    assert 0.92 <= inside <= 0.99
    assert apart >= 0.92


def test_a_metric_over_classes_has_no_interval_where_a_class_has_few_items() -> None:
    world = World(SHARES["8 skewed"], (0.9, 0.9))
    found = compared(world.draw(np.random.default_rng(1), 100), ["macro_f1"], F1, world.labels, "macro_f1")
    assert math.isnan(found.low[0])
    assert math.isnan(found.behind_low[1])
    assert found.errors[1] > 0  # the rule of one standard error needs it
    assert found.without_interval["macro_f1"] == (
        "label class 3 has no item (4 labels have fewer than 5); at least 5 are needed"
    )
    by_score = compared(world.draw(np.random.default_rng(1), 100), ["macro_f1"], F1, world.labels, None)
    assert by_score.without_interval["objective"].startswith("it is made of macro_f1, and label class 3 has no item")
    accuracy = compared(world.draw(np.random.default_rng(1), 100), ["accuracy"], F1, world.labels, "accuracy")
    assert accuracy.without_interval == {}
    assert math.isfinite(accuracy.low[0])


def test_a_calibration_error_has_none_and_one_heavy_row_leaves_none() -> None:
    world = World(SHARES["4 equal"], (0.8, 0.8))
    given, _ = scored(world, 100, ["ece"])
    assert lacking(given, "ece", world.labels).startswith("the calibration error of a sample is too large")
    tables = World(uneven=0.1, accuracy=(0.0, 0.0)).draw(np.random.default_rng(0), 60)
    heavy = np.ones(60)
    heavy[3] = 400.0
    task = [
        table.set_column(table.column_names.index("completion_nll"), "completion_nll", pa.array(heavy + noise))
        for table, noise in zip(tables["task"], np.random.default_rng(1).uniform(0, 1, (2, 60)), strict=True)
    ]
    found = compared({"task": task}, ["completion_loss"], F1, [], "completion_loss")
    assert math.isnan(found.low[0])
    assert "a few of the 60 items" in found.without_interval["completion_loss"]


def test_a_distance_from_50_percent_has_the_folded_interval_of_the_share() -> None:
    pairs = [[1.0, 0.0]] * 27 + [[0.0, 1.0]] * 23
    table = pa.table({"item_id": [str(i) for i in range(50)], "logprobs": lists(np.array(pairs))})
    found = {
        metric: compared({"crows_pairs": [table, table]}, [metric], F1, [], metric)
        for metric in ("bias.crows_pairs.pct", "bias.crows_pairs.distance")
    }
    share, distance = found.values()
    assert share.low[0] < 50 < share.high[0]
    assert (distance.low[0], distance.high[0]) == pytest.approx((0.0, share.high[0] - 50))


def test_the_score_of_one_metric_has_that_metrics_interval() -> None:
    world = World(SHARES["4 equal"], (0.8, 0.75))
    tables = world.draw(np.random.default_rng(2), 200)
    by_score = compared(tables, ["macro_f1"], F1, world.labels, None)
    by_metric = compared(tables, ["macro_f1"], F1, world.labels, "macro_f1")
    assert by_score.low == pytest.approx(by_metric.low)
    assert by_score.behind_high == pytest.approx(by_metric.behind_high)
    two = replace(F1, rho=0.05, terms=(F1.terms[0], replace(F1.terms[0], metric="accuracy")))
    drawn = compared(tables, ["macro_f1", "accuracy"], two, world.labels, None)  # of nearly the same number twice
    assert drawn.low == pytest.approx(by_metric.low, abs=0.01)
    assert drawn.behind_low[1] == pytest.approx(by_metric.behind_low[1], abs=0.015)


def with_seeds(of_runs: list[float], seeds: int, n: int, seed: int) -> Any:
    world = World(SHARES["4 equal"], tuple(of_runs))
    tables = world.draw(np.random.default_rng(seed), n)["task"]
    runs = [Row("trial", f"t{i:04}", "completed", 1) for i in range(len(tables))]
    rows = [replace(runs[i], seeds=tuple(runs[i : i + seeds])) for i in range(0, len(runs), seeds)]
    named = {"task": {f"t{i:04}": table for i, table in enumerate(tables)}}
    given, labels = side_by_side(rows, named, ["accuracy"], F1, world.labels, "accuracy")
    return figures(given, labels, "accuracy"), tables


def test_a_configuration_of_several_seeds_has_their_mean_and_their_spread_in_its_interval() -> None:
    alike, tables = with_seeds([0.8, 0.8, 0.8, 0.8], 2, 500, 0)
    right = [
        float(ESTIMATORS["accuracy"].columns(align([table]), World(SHARES["4 equal"]).labels).mean())
        for table in tables
    ]
    assert alike.numbers == pytest.approx([np.mean(right[:2]), np.mean(right[2:])])
    apart, _ = with_seeds([0.86, 0.74, 0.86, 0.74], 2, 500, 0)
    assert apart.high[0] - apart.low[0] > 2 * (alike.high[0] - alike.low[0])
    assert apart.errors[1] > 2 * alike.errors[1]
