"""The metric table: complete, without contradictions, and readable without anything heavy."""

import math

import pytest

from analysis.bias_sets import BIAS_SETS
from analysis.metrics import METRICS, direction, full_name, ranking_metrics, scale
from tests.analysis.test_light_imports import imported


def test_reading_the_table_imports_the_standard_library_only() -> None:
    assert imported("analysis.metrics") == {"analysis"}


@pytest.mark.parametrize("name", METRICS)
def test_each_row_agrees_with_itself(name: str) -> None:
    metric = METRICS[name]
    low, high = metric.range
    assert low < high
    if isinstance(metric.better, float):
        assert low <= metric.better <= high
    if metric.error:
        assert METRICS[metric.error].better is None
    if metric.estimator:
        assert metric.estimator.dataset in {
            "task",
            "generated",
            *(bias_set.item_table for bias_set in BIAS_SETS.values()),
        }
    assert (metric.head == "±") == (name in {other.error for other in METRICS.values()})


def test_the_metrics_of_each_bias_set_stand_in_the_table_with_its_tasks_and_switch() -> None:
    for bias_set in BIAS_SETS.values():
        for name in bias_set.metric_names:
            assert (METRICS[name].tasks, METRICS[name].switch) == (bias_set.tasks, bias_set.path)
    assert METRICS["bias.pairs.pct"].switch == "bias.pairs_file"
    assert METRICS["bias.group.tpr_gap"].switch == "data.group"


@pytest.mark.parametrize("name", ranking_metrics())
def test_each_metric_that_ranks_has_a_scale_within_its_range_and_a_direction(name: str) -> None:
    low, high = scale(name)
    assert METRICS[name].range[0] <= low < high <= METRICS[name].range[1]
    assert (low, high) == METRICS[name].range or not all(map(math.isfinite, METRICS[name].range))
    way, target = direction(name) or ("", None)
    assert way in ("max", "min", "target")
    assert (way == "target") == (target is not None)
    assert target is None or low < target < high


def test_a_metric_that_does_not_rank_or_is_not_known_has_no_direction() -> None:
    assert direction("classes_predicted") is None
    assert direction("of another version") is None
    assert scale("of another version") == (0.0, 1.0)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("F1", "macro_f1"),
        ("f1_weighted", "weighted_f1"),
        ("bias.crows_pairs", "bias.crows_pairs.distance"),
        ("bias.stereoset", "bias.stereoset"),
    ],
)
def test_a_short_name_means_an_alias_or_the_distance_of_a_bias_set(given: str, name: str) -> None:
    assert full_name(given) == name
