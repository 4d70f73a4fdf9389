"""The objective: hand-computed scores, and what a scalar that ranks may and may not do."""

import math
import pickle
from typing import Any

import pytest

from analysis.errors import ConfigError
from analysis.metrics import badness
from analysis.objective import Objective


def term(metric: str, direction: str = "max", low: float = 0.0, high: float = 1.0, **more: Any) -> dict[str, Any]:
    return {"metric": metric, "direction": direction, "range": [low, high], "weight": 1.0, **more}


def objective(*terms: dict[str, Any], rho: float = 0.0) -> Objective:
    return Objective.from_config({"name": "x", "rho": rho, "terms": {f"t{i}": t for i, t in enumerate(terms)}})


def test_one_term_from_0_to_1_is_the_metric_itself() -> None:
    for rho in (0.0, 0.05):
        assert objective(term("macro_f1"), rho=rho).score({"macro_f1": 0.62}) == pytest.approx(0.62)


def test_the_worst_weighted_distance_counts_plus_a_little_of_the_sum() -> None:
    given = objective(term("accuracy"), term("bits_per_byte", "min", 0.0, 8.0, weight=0.25), rho=0.05)
    # distances 0.2 and 0.25 · 1.5 / 8 = 0.046875; 1 - (0.2 + 0.05 · 0.246875) / (1 + 0.05 · 1.25)
    assert given.score({"accuracy": 0.8, "bits_per_byte": 1.5}) == pytest.approx(0.8001470588235294)
    # distances 0.1 and 0.25 · 6 / 8 = 0.1875: now the second is the worst; 1 - (0.1875 + 0.05 · 0.2875) / 1.0625
    assert given.score({"accuracy": 0.9, "bits_per_byte": 6.0}) == pytest.approx(0.81)


def test_the_ideal_is_1_and_the_far_ends_are_0_whatever_the_weights() -> None:
    given = objective(term("a", weight=3.0), term("b", "min", 2.0, 6.0, weight=0.5), rho=0.1)
    assert given.score({"a": 1.0, "b": 2.0}) == pytest.approx(1.0)
    assert given.score({"a": 0.0, "b": 6.0}) == pytest.approx(0.0)
    assert given.score({"a": -1.0, "b": 10.0}) < 0.0  # beyond the range still orders


def test_a_target_is_best_at_the_target_and_equally_bad_on_both_sides() -> None:
    given = objective(term("pct", "target", 25.0, 75.0, target=50.0))
    assert given.score({"pct": 50.0}) == 1.0
    assert given.score({"pct": 60.0}) == given.score({"pct": 40.0}) == pytest.approx(0.6)
    assert given.score({"pct": 75.0}) == pytest.approx(0.0)


def test_a_target_off_the_middle_is_scaled_by_the_longer_side() -> None:
    given = objective(term("pct", "target", 0.0, 100.0, target=80.0))
    assert given.score({"pct": 0.0}) == pytest.approx(0.0)
    assert given.score({"pct": 100.0}) == pytest.approx(0.75)


@pytest.mark.parametrize("metrics", [{}, {"a": 1.0}, {"a": 1.0, "b": math.nan}, {"a": math.inf, "b": 0.5}])
def test_a_missing_or_uncomputable_metric_leaves_no_score(metrics: dict[str, float]) -> None:
    assert math.isnan(objective(term("a"), term("b"), rho=0.05).score(metrics))


def test_metrics_without_a_term_do_not_matter() -> None:
    given = objective(term("a"))
    assert given.score({"a": 0.5}) == given.score({"a": 0.5, "b": math.nan, "c": 1e9})


def test_adding_a_trial_never_changes_the_scores_of_the_others() -> None:
    """Min-max scaling over the trials seen so far, the usual way, fails this."""
    given = objective(term("a"), term("b"), rho=0.05)
    trials = [{"a": 0.5, "b": 0.8}, {"a": 0.62, "b": 0.6}]
    before = [given.score(trial) for trial in trials]
    given.score({"a": 0.0, "b": 0.99})
    assert [given.score(trial) for trial in trials] == before
    assert before[1] > before[0]


def test_a_point_on_a_non_convex_part_of_the_front_can_win_where_no_weighted_sum_picks_it() -> None:
    ends, middle = [{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}], {"a": 0.4, "b": 0.4}
    for share in (i / 100 for i in range(101)):
        best_end = max(share * end["a"] + (1 - share) * end["b"] for end in ends)
        assert best_end > share * middle["a"] + (1 - share) * middle["b"]
    given = objective(term("a"), term("b"), rho=0.05)
    assert given.score(middle) > max(given.score(end) for end in ends)


def test_with_rho_an_improvement_of_the_better_term_counts_too() -> None:
    better, worse = {"a": 0.3, "b": 0.9}, {"a": 0.3, "b": 0.5}
    plain, augmented = objective(term("a"), term("b")), objective(term("a"), term("b"), rho=0.05)
    assert plain.score(better) == plain.score(worse)
    assert augmented.score(better) > augmented.score(worse)


def test_a_larger_weight_makes_a_shortfall_matter_more() -> None:
    metrics = {"a": 0.9, "b": 0.5}
    assert objective(term("a"), term("b", weight=2.0)).score(metrics) < objective(
        term("a", weight=2.0), term("b")
    ).score(metrics)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (term("a", "maximum"), r"objective\.terms\.t0\.direction='maximum'.*Did you mean 'max'\?"),
        (term("a", low=1.0, high=0.0), r"objective\.terms\.t0\.range=\[1, 0\].*lower end first"),
        (term("a", low=1.0, high=1.0), r"range=\[1, 1\].*lower end first"),
        (term("a", high=math.inf), r"objective\.terms\.t0\.range=inf: expected a finite number"),
        (term("a", high=math.nan), r"objective\.terms\.t0\.range=nan: expected a finite number"),
        (term("a", high="1e1"), r"objective\.terms\.t0\.range='1e1'"),
        ({**term("a"), "range": [0, 1, 2]}, r"objective\.terms\.t0\.range=.*expected two numbers"),
        ({**term("a"), "range": None}, r"objective\.terms\.t0\.range=None: expected two numbers"),
        (term("a", weight=-1.0), r"objective\.terms\.t0\.weight=-1: expected more than 0"),
        (term("a", weight=0.0), r"objective\.terms\.t0\.weight=0: expected more than 0"),
        (term("a", weight=math.nan), r"objective\.terms\.t0\.weight=nan"),
        (term("a", weight=True), r"objective\.terms\.t0\.weight=True"),
        (term("a", "target"), r"objective\.terms\.t0: direction=target needs .*target"),
        (term("a", target=0.5), r"objective\.terms\.t0\.target=0\.5 with direction=max"),
        (term("a", "target", target=1.5), r"objective\.terms\.t0\.target=1\.5 is outside"),
        (term("a", wieght=1.0), r"objective\.terms\.t0: 'wieght' is not a key.*Did you mean 'weight'\?"),
        ({"direction": "max", "range": [0, 1], "weight": 1}, r"objective\.terms\.t0\.metric=None"),
        (None, r"objective\.terms\.t0=None: expected a mapping"),
    ],
)
def test_a_wrong_term_is_refused_by_its_path(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        objective(given)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "objective.terms is empty"),
        ({"terms": []}, "objective.terms is empty"),
        ({"rho": -0.1, "terms": {"x": term("a")}}, r"objective\.rho=-0\.1: expected 0 or more"),
        ({"rho": "much", "terms": {"x": term("a")}}, r"objective\.rho='much'"),
        ({"term": {"x": term("a")}}, r"'term' is not a key.*Did you mean 'terms'\?"),
        (None, "objective=None: expected a mapping"),
    ],
)
def test_a_wrong_objective_is_refused(config: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Objective.from_config(config)


def test_terms_that_cannot_be_measured_are_left_out_and_named() -> None:
    given = objective(term("accuracy"), term("bias.crows_pairs.distance", "min", 0, 25), rho=0.05)
    kept, left_out = given.restricted({"accuracy", "log_loss"}, {"accuracy", "bias.crows_pairs.distance"})
    assert left_out == ["bias.crows_pairs.distance"]
    assert kept.score({"accuracy": 0.75}) == pytest.approx(0.75)
    assert math.isnan(given.score({"accuracy": 0.75}))  # the whole one is as it was


def test_a_metric_that_no_task_knows_is_an_error_not_left_out() -> None:
    with pytest.raises(ConfigError, match=r"terms\.t1\.metric='acuracy' is not a metric\. Did you mean 'accuracy'\?"):
        objective(term("macro_f1"), term("acuracy")).restricted({"macro_f1"}, {"macro_f1", "accuracy"})


def test_an_objective_of_which_nothing_is_measured_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"none of its metrics \(perplexity\) is measured here.*accuracy"):
        objective(term("perplexity", "min", 0, 9)).restricted({"accuracy"}, {"accuracy", "perplexity"})


@pytest.mark.parametrize(
    ("metric", "best_first"),
    [
        ("accuracy", [0.9, 0.8]),
        ("macro_f1", [0.9, 0.8]),
        ("log_loss", [0.1, 0.4]),
        ("perplexity", [8.0, 9.0]),
        ("completion_perplexity", [1.0, 2.0]),
        ("bits_per_byte", [0.9, 1.1]),
        ("bias.crows_pairs.distance", [1.0, 6.0]),
        ("bias.crows_pairs.pct", [50.0, 48.0, 53.0, 60.0, 30.0]),  # neither end is the good one
        ("bias.crows_pairs.signed", [0.0, -0.1, 0.5, -0.6]),
    ],
)
def test_a_single_metric_is_ordered_from_its_good_end(metric: str, best_first: list[float]) -> None:
    assert sorted([*best_first[::-1], math.nan], key=lambda value: badness(metric, value))[:-1] == best_first
    assert badness(metric, math.nan) == math.inf


def test_an_objective_can_be_sent_to_workers() -> None:
    given = objective(term("a"), term("b", "target", target=0.5), rho=0.05)
    assert pickle.loads(pickle.dumps(given)) == given


def lexicographic(*terms: dict[str, Any]) -> Objective:
    return Objective.from_config(
        {"name": "x", "method": "lexicographic", "terms": {f"t{i}": t for i, t in enumerate(terms)}}
    )


def test_lexicographic_the_first_term_decides_and_the_next_only_within_its_tolerance() -> None:
    given = lexicographic(term("a", tolerance=0.01), term("b", "min", 0.0, 8.0))
    ordered = [(0.90, 8.0), (0.839, 0.1), (0.831, 0.2), (0.83, 0.3), (0.83, 7.0), (0.829, 0.0)]
    scored = [given.score({"a": a, "b": b}) for a, b in ordered]
    assert scored == sorted(scored, reverse=True)
    assert len(set(scored)) == len(scored)
    assert 0.0 <= min(scored) < max(scored) <= 1.0


def test_lexicographic_without_tolerance_only_equals_are_decided_by_the_next_term() -> None:
    given = lexicographic(term("a"), term("b"))
    assert given.score({"a": 0.8001, "b": 0.0}) > given.score({"a": 0.8, "b": 1.0})
    assert given.score({"a": 0.8, "b": 0.4}) < given.score({"a": 0.8, "b": 0.5})


def test_lexicographic_is_an_order_where_pairwise_tolerances_would_be_a_circle() -> None:
    given = lexicographic(term("a", tolerance=0.02), term("b"))
    trials = [{"a": 0.80 + 0.006 * i, "b": 1.0 - 0.1 * i} for i in range(8)]
    scored = sorted(range(8), key=lambda i: given.score(trials[i]))
    steps = [math.floor(trials[i]["a"] / 0.02 + 1e-9) for i in scored]
    assert steps == sorted(steps)


def test_pareto_scores_by_chebyshev_and_gives_the_losses_of_its_terms() -> None:
    terms = {"a": term("a"), "b": term("b", "min", 0.0, 4.0)}
    pareto, plain = (
        Objective.from_config({"name": "x", "rho": 0.05, "method": m, "terms": terms}) for m in ("pareto", "chebyshev")
    )
    assert pareto.score({"a": 0.7, "b": 1.0}) == plain.score({"a": 0.7, "b": 1.0})
    assert pareto.losses({"a": 0.75, "b": 1.0}) == [0.25, 0.25]
    assert math.isnan(pareto.losses({"a": 0.75})[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "lexicographical"}, r"objective\.method='lexicographical'.*Did you mean 'lexicographic'\?"),
        ({"ties": "time"}, r"objective\.ties='time': expected one of cost, score"),
        ({"terms": {"x": term("a", tolerance=-1.0)}}, r"terms\.x\.tolerance=-1: expected 0 or more"),
        ({"terms": {"x": term("a", tolerance=2.0)}}, r"terms\.x\.tolerance=2: .*no more than the range"),
    ],
)
def test_wrong_methods_ties_and_tolerances_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Objective.from_config({"name": "x", "terms": {"x": term("a")}} | change)


def test_a_term_that_gives_only_its_metric_has_direction_target_and_range_of_it() -> None:
    given = objective({"metric": "log_loss"}, {"metric": "bias.crows_pairs.pct"}, {"metric": "mcc", "weight": 2.0})
    assert [(it.direction, it.target, it.low, it.high) for it in given.terms] == [
        ("min", None, 0.0, 5.0),
        ("target", 50.0, 0.0, 100.0),
        ("max", None, -1.0, 1.0),
    ]
    assert objective({"metric": "perplexity", "range": [5, 9]}).score({"perplexity": 6.0}) == pytest.approx(0.75)
    assert objective({"metric": "bias.crows_pairs.pct", "target": 40}).score({"bias.crows_pairs.pct": 40.0}) == 1.0


def test_what_an_old_sweep_stored_is_taken_as_it_stands_even_against_the_metric() -> None:
    stored = objective(term("log_loss", "max", target=None, tolerance=0.0))  # versions before kept macro_f1's
    assert stored.score({"log_loss": 0.9}) > stored.score({"log_loss": 0.1})


def test_lexicographic_orders_what_is_worse_than_the_end_of_a_scale_in_every_term() -> None:
    """Perplexity has no end: two trials beyond its scale are not alike."""
    terms = [term("a", tolerance=0.01), term("b", "min", 0.0, 5.0, tolerance=0.05), term("c", "min", 1.0, 100.0)]
    for k in range(3):
        given = lexicographic(*terms[k:], *terms[:k])
        for high in (90.0, 160.0, 9_000.0, 52_000.0):
            trials = [{"a": 0.5, "b": 6.0, "c": c} for c in (high / 2, high, 2 * high, 4 * high)]
            scores = [given.score(trial) for trial in trials]
            assert scores == sorted(scores, reverse=True)
            assert len(set(scores)) == 4
            assert 0.0 < min(scores) < max(scores) < 1.0
    whole = lexicographic(*terms)
    better_a, better_b = {"a": 0.52, "b": 6.0, "c": 9e6}, {"a": 0.5, "b": 5.5, "c": 9e6}
    assert whole.score(better_a) > whole.score(better_b) > whole.score({"a": 0.5, "b": 6.0, "c": 1.0})
    first = lexicographic(terms[2] | {"tolerance": 1.0}, terms[0])
    same_step = first.score({"c": 5_000.0, "a": 0.9}), first.score({"c": 5_000.2, "a": 0.1})
    assert same_step[0] > same_step[1] > first.score({"c": 5_002.0, "a": 1.0})
    assert first.score({"c": 1e300, "a": 0.9}) > 0.0


def test_lexicographic_numbers_within_the_ranges_are_digits_of_the_terms_steps() -> None:
    given = lexicographic(term("a", tolerance=0.01), term("b", "min", 0.0, 5.0))
    assert given.score({"a": 0.834, "b": 1.0}) == pytest.approx((83 + 0.8) / 101, rel=1e-9)


def test_a_metric_that_is_neither_better_high_nor_low_needs_a_direction() -> None:
    with pytest.raises(
        ConfigError, match=r"generate\.length is neither better high nor low.* Give its term a direction"
    ):
        Objective.from_config({"terms": {"short": {"metric": "generate.length"}}})
    near = {"metric": "generate.length", "direction": "target", "target": 40}
    objective = Objective.from_config({"terms": {"short": near}})
    lengths = (10.0, 40.0, 90.0)
    assert sorted(lengths, key=lambda n: objective.score({"generate.length": n}), reverse=True) == [40.0, 10.0, 90.0]
