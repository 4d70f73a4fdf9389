"""The order of a leaderboard."""

import math
import random
from typing import Any

import pytest

from analysis.errors import ConfigError
from analysis.folder import MetricsRow, State, Status
from analysis.leaderboard import leaderboard, ranking
from analysis.leaderboard.leaderboard import build


def order(sweep: Any, by: list[str] | None = None) -> list[str]:
    rows = build(sweep.folder, by)
    assert [row.rank for row in rows] == list(range(1, len(rows) + 1))
    return [row.trial_id for row in rows]


def test_what_was_scored_on_everything_stands_above_what_was_not_however_good(sweep: Any) -> None:
    sweep.trial("t0000", None, State.PENDING)
    sweep.trial("t0001", 0.99, State.FAILED)
    sweep.trial("t0002", 0.98, State.OUT_OF_MEMORY)
    sweep.trial("t0003", 0.97, State.DIVERGED)
    sweep.trial("t0004", 0.95, State.STOPPED_EARLY)
    sweep.trial("t0005", 0.96, State.RUNNING)
    sweep.trial("t0006", 0.1)
    sweep.untuned(0.05)
    sweep.trial("t0007", 0.99).status_file.write_text("torn")
    assert order(sweep) == ["t0006", "zero_shot", "t0005", "t0004", "t0003", "t0002", "t0001", "t0007", "t0000"]


def test_baselines_are_ranked_among_completed_trials_and_marked(sweep: Any) -> None:
    sweep.trial("t0000", 0.4)
    sweep.trial("t0001", 0.8)
    sweep.untuned(0.6, crows=60.0)
    assert [(row.trial_id, row.kind) for row in build(sweep.folder)] == [
        ("t0001", "trial"),
        ("zero_shot", "baseline"),
        ("t0000", "trial"),
    ]


def test_the_objective_of_the_sweep_decides(sweep: Any) -> None:
    sweep.trial("t0000", sweep.metrics(0.90, crows=75.0))  # biased: distance 25 of 25 costs a weighted 0.25
    sweep.trial("t0001", sweep.metrics(0.85, crows=51.0))
    assert order(sweep) == ["t0001", "t0000"]
    assert order(sweep, ["macro_f1"]) == ["t0000", "t0001"]


def test_equals_stand_in_the_order_of_their_ids_whatever_the_order_of_writing(sweep: Any) -> None:
    for trial_id in ("t0002", "t0000", "t0001"):
        sweep.trial(trial_id, 0.7)
    sweep.trial("t0004", None, State.FAILED)
    sweep.trial("t0003", None, State.FAILED)
    assert order(sweep) == ["t0000", "t0001", "t0002", "t0003", "t0004"]


def test_a_trial_and_a_baseline_that_are_equal_stand_in_the_order_of_their_ids_too(sweep: Any) -> None:
    sweep.untuned(0.7, crows=60.0)
    sweep.trial("t0000", 0.7)
    assert order(sweep) == ["t0000", "zero_shot"]


def test_a_diverged_trials_own_reason_is_enough(sweep: Any) -> None:
    sweep.trial("t0000", sweep.metrics(0.9) | {"macro_f1": math.nan}, State.DIVERGED, reason="the loss was nan")
    assert build(sweep.folder)[0].reason == "the loss was nan"


def test_a_row_without_objective_is_last_of_its_class(sweep: Any) -> None:
    sweep.trial("t0000", sweep.metrics(0.9) | {"macro_f1": math.nan})
    sweep.trial("t0001", 0.1)
    sweep.trial("t0002", None, State.STOPPED_EARLY, step=3)
    sweep.trial("t0003", 0.1, State.STOPPED_EARLY)
    assert order(sweep) == ["t0001", "t0000", "t0003", "t0002"]


def test_a_new_trial_never_reorders_the_others(sweep: Any) -> None:
    chooser = random.Random(0)
    known: list[str] = []
    for i in range(25):
        values = sweep.metrics(chooser.uniform(-0.2, 1.2), crows=chooser.uniform(0.0, 100.0))
        sweep.trial(f"t{i:04d}", values)
        after = order(sweep)
        assert [trial_id for trial_id in after if trial_id in known] == known
        known = after


def test_what_was_not_measured_is_left_out_of_the_objective(sweep: Any) -> None:
    for trial_id, quality in (("t0000", 0.5), ("t0001", 0.8)):
        sweep.trial(trial_id, {"accuracy": quality, "macro_f1": quality, "log_loss": 1.0})
    rows = build(sweep.folder)
    assert [(row.trial_id, row.reason) for row in rows] == [("t0001", ""), ("t0000", "")]
    assert rows[0].objective == pytest.approx(0.8)


def test_one_row_without_a_metric_does_not_change_what_the_others_are_ranked_by(sweep: Any) -> None:
    sweep.trial("t0000", sweep.metrics(0.90, crows=75.0))
    sweep.trial("t0001", sweep.metrics(0.85, crows=51.0))
    sweep.trial("t0002", {"accuracy": 0.99, "macro_f1": 0.99})
    rows = build(sweep.folder)
    assert [row.trial_id for row in rows] == ["t0001", "t0000", "t0002"]
    assert rows[-1].reason == "no objective: bias.crows_pairs.distance missing or not finite"


def test_where_nothing_of_the_objective_was_measured_rows_are_still_shown(sweep: Any) -> None:
    sweep.trial("t0000", {"log_loss": 1.0})
    [row] = build(sweep.folder)
    assert row.reason == "no objective: macro_f1, bias.crows_pairs.distance missing or not finite"


def test_an_objective_that_is_none_is_refused_naming_the_file(make_sweep: Any) -> None:
    fake = make_sweep(objective={"name": "x", "terms": {}})
    with pytest.raises(ConfigError, match=r"sweep.yaml: config.objective.terms is empty"):
        build(fake.folder)


def test_an_objective_with_an_unknown_metric_is_refused(make_sweep: Any) -> None:
    quality = {"metric": "macro_f1", "direction": "max", "range": [0, 1], "weight": 1}
    fake = make_sweep(objective={"name": "x", "terms": {"a": quality, "b": quality | {"metric": "acuracy"}}})
    fake.trial("t0000", 0.5)
    with pytest.raises(ConfigError, match=r"sweep.yaml: config.objective.terms.b.metric='acuracy' .*'accuracy'"):
        build(fake.folder)


@pytest.mark.parametrize(
    ("name", "better", "worse"),
    [
        ("accuracy", 0.9, 0.8),
        ("macro_f1", 0.9, 0.8),
        ("log_loss", 0.5, 0.6),
        ("perplexity", 20.0, 21.0),
        ("completion_perplexity", 2.0, 3.0),
        ("bits_per_byte", 1.0, 1.1),
        ("bias.crows_pairs.distance", 2.0, 3.0),
        ("bias.crows_pairs.pct", 48.0, 53.0),
        ("bias.crows_pairs.signed", -0.1, 0.2),
    ],
)
def test_by_a_metric_the_better_value_comes_first(sweep: Any, name: str, better: float, worse: float) -> None:
    sweep.trial("t0000", sweep.metrics(0.5) | {name: math.nan})
    sweep.trial("t0001", sweep.metrics(0.5) | {name: worse})
    sweep.trial("t0002", sweep.metrics(0.5) | {name: better})
    assert order(sweep, [name]) == ["t0002", "t0001", "t0000"]


def test_by_several_metrics_the_first_decides_and_the_next_between_equals(sweep: Any) -> None:
    sweep.trial("t0000", sweep.metrics(0.5) | {"accuracy": 0.8, "log_loss": 0.9})
    sweep.trial("t0001", sweep.metrics(0.5) | {"accuracy": 0.8, "log_loss": 0.7})
    sweep.trial("t0002", sweep.metrics(0.5) | {"accuracy": 0.9, "log_loss": 2.0})
    assert order(sweep, ["accuracy", " log_loss"]) == ["t0002", "t0001", "t0000"]
    assert order(sweep, ["log_loss", "accuracy"]) == ["t0001", "t0000", "t0002"]


def test_by_a_metric_completed_trials_still_stand_above_stopped_ones(sweep: Any) -> None:
    sweep.trial("t0000", 0.2)
    sweep.trial("t0001", 0.9, State.STOPPED_EARLY)
    assert order(sweep, ["accuracy"]) == ["t0000", "t0001"]


@pytest.mark.parametrize("name", ["acuracy", "bias.crows_pairs.stderr", ""])
def test_by_what_is_no_metric_to_rank_by_is_refused(sweep: Any, name: str) -> None:
    sweep.trial("t0000", 0.2)
    with pytest.raises(ConfigError, match=f"--by: '{name}' is not a metric to rank by. (Did you mean|There are)"):
        build(sweep.folder, ["macro_f1", name])


def test_by_a_metric_that_was_not_measured_is_refused_with_those_that_were(sweep: Any) -> None:
    sweep.trial("t0000", {"accuracy": 0.5, "macro_f1": 0.5})
    with pytest.raises(
        ConfigError, match=r"perplexity is not measured in this sweep\. There are: accuracy, macro_f1\."
    ):
        build(sweep.folder, ["perplexity"])


def test_by_a_metric_before_anything_was_scored_is_no_error(sweep: Any) -> None:
    sweep.trial("t0000", None, State.RUNNING)
    assert order(sweep, ["perplexity"]) == ["t0000"]


def test_a_running_trial_with_its_final_scoring_is_not_completed_yet(sweep: Any) -> None:
    files = sweep.trial("t0000", 0.9)
    files.write_status(Status(State.RUNNING, "", 24))  # the process died between the two writes
    sweep.trial("t0001", 0.2)
    rows = build(sweep.folder)
    assert [(row.trial_id, row.status, row.final) for row in rows] == [
        ("t0001", "completed", True),
        ("t0000", "running", True),
    ]


def test_two_hundred_trials_are_all_ranked(sweep: Any) -> None:
    for i in range(200):
        files = sweep.folder.trial(f"t{i:04d}")
        files.append_metrics(MetricsRow(files.trial_id, 8, 0, 0.0, True, 64, sweep.metrics(i / 200)))
        files.write_status(Status(State.COMPLETED, "", 8))
    assert order(sweep) == [f"t{i:04d}" for i in reversed(range(200))]


def test_word_counts_that_have_no_bias_stand_in_no_comparison_and_prevent_no_winner(sweep: Any) -> None:
    for trial_id, hits in (("t0000", 150), ("t0001", 90)):
        sweep.trial(trial_id, hits / 160, hits=hits)
    for name in ("t0000", "t0001"):
        logprobs = [[-1.0, -2.0] if i % 5 < 3 else [-2.0, -1.0] for i in range(40)]
        said = ["more" if more > less else "less" for more, less in logprobs]
        items = [f"pair-{i}" for i in range(40)]
        pairs = {"item_id": items, "label": ["stereo"] * 40, "prediction": said, "logprobs": logprobs}
        sweep.folder.trial(name).write_items("crows_pairs", "validation", 24, pairs)
    sweep.trial("linear", {"accuracy": 0.7, "macro_f1": 0.7}, hits=112, step=0, kind="baseline")
    judgement = leaderboard.ranked(sweep.folder).judgement
    assert judgement is not None
    assert judgement.lacking == {}
    assert judgement.winner == "t0000"
    assert sorted(judgement.standings) == ["t0000", "t0001"]
    by = leaderboard.ranked(sweep.folder, ["accuracy"]).judgement
    assert by is not None
    assert sorted(by.standings) == ["linear", "t0000", "t0001"]


def test_by_fronts_what_nothing_beats_stands_above_a_better_number(sweep: Any, make_sweep: Any) -> None:
    """t0003 is beaten by t0000 in both terms, and has a better number than the others of the first front."""
    places = {"t0000": (0.85, 60.0), "t0001": (0.9, 70.0), "t0002": (0.5, 50.0), "t0003": (0.84, 61.0)}

    def ranked_by(method: str) -> list[str]:
        made = make_sweep({**sweep.wanted, "method": method}, name=method)
        for name, (quality, crows) in places.items():
            made.trial(name, made.metrics(quality, crows))
        return order(made)

    assert ranked_by("pareto") == ["t0000", "t0001", "t0002", "t0003"]
    assert ranked_by("chebyshev") == ["t0000", "t0003", "t0001", "t0002"]


@pytest.mark.parametrize(("ties", "expected"), [("cost", ["t0000", "t0001"]), ("score", ["t0001", "t0000"])])
def test_of_those_tied_with_the_best_the_cheapest_is_first_in_every_list(
    make_sweep: Any, ties: str, expected: list[str]
) -> None:
    """The list that is kept while a sweep runs, which compares only where that decides, and the one with intervals."""
    quality = {"metric": "accuracy", "direction": "max", "range": [0.0, 1.0], "weight": 1.0}
    sweep = make_sweep({"name": "x", "rho": 0.0, "ties": ties, "terms": {"quality": quality}})
    for name, wrong in (("t0000", range(20, 68)), ("t0001", range(46))):  # 48 and 46 of 160, most of them other items
        predictions = ["b" if i in wrong else "a" for i in range(160)]
        columns = {"item_id": [str(i) for i in range(160)], "label": ["a"] * 160, "prediction": predictions}
        files = sweep.trial(name, 1 - len(wrong) / 160)
        files.write_items("task", "validation", 24, columns)
        files.adapter_size_file.write_text('{"parameters": 1000}')
    sweep.trial("t0002", 0.5, hits=80).adapter_size_file.write_text('{"parameters": 10}')  # cheapest, and not tied
    slow = sweep.folder.trial("t0001").metrics_file
    slow.write_text(slow.read_text().replace('"seconds": 3.0', '"seconds": 300.0'))
    assert order(sweep) == [*expected, "t0002"]
    assert [row.trial_id for row in leaderboard.ranked(sweep.folder).rows] == [*expected, "t0002"]


@pytest.mark.parametrize(("ties", "by"), [("score", None), ("cost", ["accuracy"])])
def test_nothing_is_compared_for_the_list_of_a_running_sweep_where_ties_do_not_decide(
    make_sweep: Any, monkeypatch: pytest.MonkeyPatch, ties: str, by: list[str] | None
) -> None:
    quality = {"metric": "accuracy", "direction": "max", "range": [0.0, 1.0], "weight": 1.0}
    sweep = make_sweep({"name": "x", "rho": 0.0, "ties": ties, "terms": {"quality": quality}})
    for name, hits in (("t0000", 100), ("t0001", 120)):
        sweep.trial(name, hits / 160, hits=hits)
    monkeypatch.setattr(ranking, "judged", None)
    assert order(sweep, by) == ["t0001", "t0000"]


def test_a_baseline_that_was_scored_again_counts_by_its_last_scores_of_the_kind_asked_for(sweep: Any) -> None:
    files = sweep.folder.baseline("zero_shot")
    files.root.mkdir(parents=True)
    for final, accuracy in ((False, 0.1), (True, 0.2), (False, 0.3), (True, 0.4), (False, 0.5)):
        files.append_metrics(MetricsRow("zero_shot", 0, 0, 1.0, final, 12, {"accuracy": accuracy}))
    named = ["zero_shot", "few_shot"]
    assert ranking.baselines_metrics(sweep.folder, named, True) == {"zero_shot": {"accuracy": 0.4}}
    assert ranking.baselines_metrics(sweep.folder, named, False) == {"zero_shot": {"accuracy": 0.5}}
    other = sweep.folder.baseline("few_shot")
    other.root.mkdir(parents=True)
    other.append_metrics(MetricsRow("few_shot", 0, 0, 1.0, False, 12, {"accuracy": 0.6}))
    assert ranking.baselines_metrics(sweep.folder, ["few_shot"], True) == {"few_shot": {"accuracy": 0.6}}
