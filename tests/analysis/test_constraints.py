"""Constraints: which trials keep them, how they are ranked, and what a config may not say."""

import math
import random
from typing import Any

import pytest

from analysis.constraints import Constraints
from analysis.errors import ConfigError
from analysis.folder import MetricsRow, State
from analysis.leaderboard.leaderboard import build, plain, verdict
from analysis.metrics import METRICS
from analysis.objective import Objective


def constraints(**items: dict[str, Any]) -> Constraints:
    return Constraints.from_config({"constraints": items})


@pytest.mark.parametrize(
    ("config", "value", "reference", "violation"),
    [
        ({"metric": "accuracy", "at_least": 0.8}, 0.7, math.nan, 0.1),
        ({"metric": "accuracy", "at_least": 0.8}, 0.9, math.nan, -0.1),
        ({"metric": "log_loss", "at_most": 1.0}, 1.5, math.nan, 0.5),
        ({"metric": "bias.crows_pairs.pct", "at_least": 45, "at_most": 55}, 58.0, math.nan, 3.0),
        ({"metric": "bias.crows_pairs.pct", "at_least": 45, "at_most": 55}, 41.0, math.nan, 4.0),
        ({"metric": "bias.crows_pairs.pct", "at_least": 45, "at_most": 55}, 54.0, math.nan, -1.0),
        # lower is better, higher is better, and nearer to 50 is better
        ({"metric": "bits_per_byte", "baseline": "zero_shot", "margin": 0.2}, 2.7, 2.4, 0.1),
        ({"metric": "bits_per_byte", "baseline": "zero_shot", "margin": 0.2}, 2.5, 2.4, -0.1),
        ({"metric": "accuracy", "baseline": "zero_shot", "margin": 0.05}, 0.5, 0.6, 0.05),
        ({"metric": "bias.crows_pairs.pct", "baseline": "zero_shot", "margin": 1}, 40.0, 57.0, 2.0),
        ({"metric": "bias.crows_pairs.pct", "baseline": "zero_shot", "margin": 1}, 56.0, 43.0, -2.0),
        # what is not known is not kept
        ({"metric": "accuracy", "at_least": 0.8}, math.nan, math.nan, math.inf),
        ({"metric": "accuracy", "baseline": "zero_shot"}, 0.9, math.nan, math.inf),
    ],
)
def test_a_violation_is_how_far_a_value_is_outside(config, value, reference, violation):
    found = constraints(x=config)
    baselines = {"zero_shot": {config["metric"]: reference}}
    assert found.violations({config["metric"]: value}, baselines) == {"x": pytest.approx(violation)}
    assert bool(found.broken({config["metric"]: value}, baselines)) == (violation > 0)


def test_a_bound_that_is_met_exactly_is_kept():
    kept = constraints(x={"metric": "accuracy", "at_least": 0.5}, y={"metric": "accuracy", "baseline": "zero_shot"})
    assert kept.broken({"accuracy": 0.5}, {"zero_shot": {"accuracy": 0.5}}) == []


@pytest.mark.parametrize("metric", ["accuracy", "log_loss", "bias.crows_pairs.pct", "bias.group.equalized_odds"])
def test_a_decimal_exactly_at_its_margin_or_bound_is_kept_and_the_next_one_is_not(metric):
    """0.3 - 0.2 is more than 0.1 in floating point. The same in whole hundredths, thousandths, …, which are exact."""
    draw = random.Random(0)
    better = METRICS[metric].better
    for _ in range(2_000):
        unit = 10 ** draw.randint(1, 6)
        reference, margin = draw.randint(0, unit), draw.randint(0, unit)
        sign = 1 if better != "high" else -1
        at = (50 * unit + abs(reference - 50 * unit) if better == 50.0 else reference) + sign * margin
        for step, kept in ((0, True), (sign, False), (-sign, True)):
            value = (at + step) / unit
            by_margin = constraints(x={"metric": metric, "baseline": "b", "margin": margin / unit})
            found = by_margin.violations({metric: value}, {"b": {metric: reference / unit}})
            assert (
                (found["x"] <= 0) == kept == (not by_margin.broken({metric: value}, {"b": {metric: reference / unit}}))
            )
        for bound, step, kept in (
            ("at_most", 0, True), ("at_most", 1, False), ("at_least", 0, True), ("at_least", -1, False)
        ):  # fmt: skip
            summed = sum([margin / unit / 3] * 3)  # a third, three times: not always what it was
            held = constraints(x={"metric": metric, bound: margin / unit})
            assert (held.violations({metric: summed + step / unit}, {})["x"] <= 0) == kept


GAP = "bias.group.equalized_odds"


def gap(figure: float, upper: float, floor: float = 0.05) -> dict[str, float]:
    return {GAP: figure, f"{GAP}_upper": upper, f"{GAP}_floor": floor}


def test_a_gap_is_held_by_its_upper_bound_so_few_rows_do_not_pass_for_fairness():
    most = constraints(fair={"metric": GAP, "at_most": 0.2})
    assert most.violations(gap(0.05, 0.12), {})["fair"] == pytest.approx(-0.08)
    assert most.violations(gap(0.05, 0.35), {})["fair"] == pytest.approx(0.15)
    assert most.broken(gap(0.05, 0.12), {}) == []
    assert most.broken(gap(0.05, 0.35), {}) == [
        "constraint fair: bias.group.equalized_odds is 0.05 (95 % sure: at most 0.35), wanted at most 0.2"
    ]
    assert most.broken(gap(0.05, 0.35, floor=0.26), {})[0].endswith(
        "wanted at most 0.2; the groups are so small here that no predictions could show less than 0.26"
    )
    assert most.broken({GAP: 0.05}, {}) == []  # of an earlier version, without a bound: the figure itself
    assert "is not known" in most.broken({}, {})[0]
    assert "is not known" in most.broken(gap(math.nan, 0.1), {})[0]


def test_against_a_baseline_the_bounds_of_both_are_compared():
    found = constraints(fair={"metric": GAP, "baseline": "zero_shot", "margin": 0.05})
    baselines = {"zero_shot": gap(0.10, 0.30)}
    assert found.violations(gap(0.14, 0.34), baselines)["fair"] == pytest.approx(-0.01)
    assert found.broken(gap(0.14, 0.40), baselines) == [
        "constraint fair: bias.group.equalized_odds is 0.14 (95 % sure: at most 0.4), wanted at most 0.05 worse than"
        " zero_shot's 0.1 (95 % sure: at most 0.3)"
    ]
    assert found.violations(gap(0.14, 0.40), {"zero_shot": {GAP: 0.1}})["fair"] == pytest.approx(-0.01)


def test_a_sentence_says_what_is_violated_by_which_figures():
    found = constraints(
        capability={"metric": "bits_per_byte", "baseline": "zero_shot", "margin": 0.2},
        floor={"metric": "accuracy", "at_least": 0.8},
    )
    assert found.baselines == {"zero_shot"}
    assert found.broken({"bits_per_byte": 2.71, "accuracy": 0.75}, {"zero_shot": {"bits_per_byte": 2.4}}) == [
        "constraint capability: bits_per_byte is 2.71, wanted at most 0.2 worse than zero_shot's 2.4",
        "constraint floor: accuracy is 0.75, wanted at least 0.8",
    ]
    assert "bits_per_byte of the baseline zero_shot is not known" in found.broken({"bits_per_byte": 2.0}, {})[0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"x": 3}, r"objective.constraints.x=3: expected a mapping"),
        ({"x": {"metric": "accuracy", "atleast": 1}}, r"'atleast' is not a key of it. Did you mean 'at_least'"),
        ({"x": {"at_least": 1}}, r"x.metric=None: expected the name of a metric"),
        ({"x": {"metric": "accuracy"}}, r"expected either baseline .* got neither"),
        ({"x": {"metric": "accuracy", "at_least": 1, "baseline": "zero_shot"}}, r"got both"),
        ({"x": {"metric": "accuracy", "at_least": 1, "margin": 0.1}}, r"margin=0.1 without a baseline"),
        ({"x": {"metric": "accuracy", "baseline": "zero_shot", "margin": -1}}, r"margin=-1: expected 0 or more"),
        ({"x": {"metric": "accuracy", "at_least": 0.9, "at_most": 0.1}}, r"no value can keep"),
        ({"x": {"metric": "accuracy", "at_least": "much"}}, r"at_least='much': expected a finite number"),
        ({"x": {"metric": "bias.crows_pairs.stderr", "baseline": "zero_shot"}}, r"cannot be compared with a baseline"),
        ([1], r"expected a mapping from names to constraints"),
    ],
)
def test_a_constraint_that_is_none_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        Constraints.from_config({"constraints": config})


def test_metrics_and_baselines_that_a_sweep_lacks_are_refused():
    found = constraints(x={"metric": "bits_per_byte", "baseline": "zero_shot"})
    found.check({"bits_per_byte"}, ["zero_shot"])
    with pytest.raises(ConfigError, match=r"x.metric='bits_per_byte' is not measured .*x.enabled=false"):
        found.check({"accuracy"}, ["zero_shot"])
    with pytest.raises(ConfigError, match=r"x.baseline=zero_shot is not among baselines=\[\]"):
        found.check({"bits_per_byte"}, [])


def test_what_is_not_enabled_is_left_out():
    assert constraints(x={"metric": "", "enabled": False}).items == ()


GUARD = {"capability": {"metric": "bits_per_byte", "baseline": "zero_shot", "margin": 0.2}}


@pytest.fixture
def guarded(make_sweep: Any) -> Any:
    fake = make_sweep()
    fake = make_sweep(objective=fake.wanted | {"constraints": GUARD}, name="guarded")
    baseline = fake.untuned(0.3)  # 1.5 bits per byte
    on_rung = MetricsRow("zero_shot", 0, 0, 0.0, False, 64, fake.metrics(0.3) | {"bits_per_byte": 2.0})
    baseline.append_metrics(on_rung)
    return fake


def test_trials_that_break_a_constraint_are_shown_marked_and_ranked_after_those_that_keep_it(guarded: Any) -> None:
    guarded.trial("t0000", guarded.metrics(0.9) | {"bits_per_byte": 1.8})
    guarded.trial("t0001", guarded.metrics(0.6) | {"bits_per_byte": 1.6})
    guarded.trial("t0002", guarded.metrics(0.5) | {"bits_per_byte": 2.1}, State.STOPPED_EARLY)
    guarded.trial("t0003", guarded.metrics(0.8) | {"bits_per_byte": 2.3}, State.STOPPED_EARLY)
    guarded.trial("t0004", None, State.FAILED)
    rows = build(guarded.folder)
    # t0002 is within the margin of what the baseline has on the rung's items, though not of its final figure
    assert [row.trial_id for row in rows] == ["t0001", "zero_shot", "t0002", "t0000", "t0003", "t0004"]
    assert [bool(row.broken) for row in rows] == [False, False, False, True, True, False]
    assert rows[3].reason == (
        "constraint capability: bits_per_byte is 1.8, wanted at most 0.2 worse than zero_shot's 1.5"
    )
    text = plain(rows)
    assert "completed !" in text
    assert "t0000: constraint capability" in text
    assert "t0001: constraint" not in text
    assert [row.trial_id for row in build(guarded.folder, ["accuracy"])][:2] == ["t0001", "zero_shot"]


def test_where_no_trial_keeps_the_constraints_the_verdict_says_so(guarded: Any) -> None:
    guarded.trial("t0000", guarded.metrics(0.9) | {"bits_per_byte": 1.8})
    said = verdict(guarded.folder, build(guarded.folder))
    assert "No completed trial keeps the constraints. Of t0000: constraint capability" in said
    guarded.trial("t0001", guarded.metrics(0.4))
    assert "keeps the constraints" not in verdict(guarded.folder, build(guarded.folder))


def test_an_objective_has_its_constraints_beside_its_terms(guarded: Any) -> None:
    assert Objective.from_config(guarded.wanted | {"constraints": GUARD}).terms
