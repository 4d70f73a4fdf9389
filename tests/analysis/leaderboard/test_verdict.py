"""The sentences below the leaderboard."""

import math
from typing import Any

import numpy as np
import pytest

from analysis.folder import State
from analysis.leaderboard import leaderboard
from analysis.leaderboard.verdict import beats_baselines


def verdict(sweep: Any, by: list[str] | None = None) -> list[str]:
    return leaderboard.verdict(sweep.folder, leaderboard.build(sweep.folder, by)).splitlines()


def test_a_clear_win_is_told_in_points_with_a_paired_interval_above_zero(sweep: Any) -> None:
    sweep.untuned(0.65, hits=104)
    sweep.trial("t0003", 0.875, hits=140, step=16)
    line = verdict(sweep)[0]
    assert line.startswith(
        "The best trial, t0003, beats the untuned model by 22.5 points of accuracy (87.5 % against 65.0 %);"
        " paired 95 % interval [16."
    )
    assert line.endswith("] points on 160 items.")


def test_an_interval_with_zero_in_it_is_called_that(sweep: Any) -> None:
    sweep.untuned(0.65, hits=104)
    sweep.trial("t0003", 0.66, hits=0)
    files = sweep.folder.trial("t0003")
    sweep.items(files, 24, hits=56, n=160)  # the first 56 right …
    items = files.read_items("task", "validation", 24)
    flip = {"sport": "science", "science": "sport"}
    items["prediction"][104:154] = [flip[p] for p in items["prediction"][104:154]]  # … and 50 others
    files.write_items("task", "validation", 24, items)
    line = verdict(sweep)[0]
    assert "t0003, is 1.2 points of accuracy above the untuned model (66.0 % against 65.0 %)" in line
    assert line.endswith("on 160 items: it includes zero, so the difference may be chance.")


def test_a_trial_below_the_untuned_model_does_not_beat_it(sweep: Any) -> None:
    sweep.untuned(0.75, hits=120)
    sweep.trial("t0003", 0.65, hits=104)
    line = verdict(sweep)[0]
    assert line.startswith(
        "No evidence that fine-tuning beats leaving the model as it is: the best trial, t0003, is 10.0 points of"
        " accuracy below the untuned model (65.0 % against 75.0 %); paired"
    )
    assert "includes zero" not in line


def test_the_same_answers_are_no_difference(sweep: Any) -> None:
    sweep.untuned(0.75, hits=120)
    sweep.trial("t0003", 0.75, hits=120)
    line = verdict(sweep)[0]
    assert "t0003, has the same accuracy as the untuned model (75.0 % against 75.0 %)" in line
    assert "interval [0.0, 0.0] points on 160 items: it includes zero" in line


def test_only_items_that_both_were_scored_on_are_compared_and_that_is_said(sweep: Any) -> None:
    sweep.trial("t0003", 0.9, hits=160)
    sweep.items(sweep.untuned(0.6), 0, hits=80, shift=40)
    assert "on 120 items that both were scored on." in verdict(sweep)[0]


def test_the_best_baseline_is_the_one_to_beat(sweep: Any) -> None:
    sweep.untuned(0.5, hits=80, crows=60.0)
    sweep.trial("few_shot", 0.7, hits=112, kind="baseline", step=0)
    sweep.trial("t0000", 0.9, hits=144)
    assert "beats the best of 2 baselines, the baseline few_shot, by 20.0 points" in verdict(sweep)[0]


def test_the_best_baseline_is_the_most_accurate_one_whatever_the_objective_says(sweep: Any) -> None:
    sweep.untuned(0.5, hits=80, crows=50.0)
    sweep.trial("few_shot@nf4", {"accuracy": 0.95}, hits=152, kind="baseline", step=0)  # ranked last: no objective
    sweep.trial("t0000", 0.9, hits=144)
    line = verdict(sweep)[0]
    assert line.startswith(
        "No evidence that fine-tuning beats prompting with a few examples: the best trial, t0000, is 5.0 points of"
        " accuracy below the best of 2 baselines, the baseline few_shot@nf4, (90.0 % against 95.0 %)"
    )


def test_the_best_trial_is_the_first_that_completed_and_by_another_metric_another(sweep: Any) -> None:
    sweep.untuned(0.5, hits=80)
    sweep.trial("t0000", sweep.metrics(0.8) | {"log_loss": 0.1}, hits=128)
    sweep.trial("t0001", 0.9, hits=144)
    sweep.trial("t0002", 0.99, State.STOPPED_EARLY)
    assert verdict(sweep)[0].startswith("The best trial, t0001,")
    assert verdict(sweep, ["log_loss"])[0].startswith("The best trial, t0000,")


def test_the_best_of_several_is_called_optimistic_and_a_lone_one_not(sweep: Any) -> None:
    sweep.untuned(0.5, hits=80)
    sweep.trial("t0000", 0.8, hits=128)
    assert not any("chosen" in line for line in verdict(sweep))
    sweep.trial("t0001", 0.7, hits=112)
    assert verdict(sweep)[1] == (
        "t0000 was chosen among 2 completed trials on these same items: expect a little less on new ones."
    )


def test_without_a_baseline_it_says_how_to_get_one(sweep: Any) -> None:
    sweep.trial("t0000", 0.8, hits=128)
    assert verdict(sweep)[0] == (
        "The best trial, t0000, has accuracy 80.0 % on 160 items. There is no baseline to compare it with:"
        " baselines=[zero_shot,majority,linear] scores some too."
    )


def test_a_baseline_that_was_not_scored_is_no_comparison(sweep: Any) -> None:
    sweep.trial("t0000", 0.8, hits=128)
    sweep.trial("zero_shot", None, State.FAILED, kind="baseline", reason="worker died")
    line = verdict(sweep)[0]
    assert line.endswith("The untuned model is there to compare it with, but is failed (worker died).")


def test_without_a_completed_trial_it_counts_the_outcomes_and_tells_the_baseline(sweep: Any) -> None:
    sweep.untuned(0.656, hits=105)
    sweep.trial("t0000", 0.8, State.STOPPED_EARLY)
    sweep.trial("t0001", 0.7, State.STOPPED_EARLY)
    sweep.trial("t0002", None, State.OUT_OF_MEMORY)
    assert verdict(sweep) == [
        "No trial has completed: 2 stopped early, 1 out of memory.",
        "The untuned model has accuracy 65.6 % on 160 items.",
    ]


def test_a_trial_called_completed_whose_final_scoring_is_lost_is_not_the_best(sweep: Any) -> None:
    files = sweep.trial("t0000", 0.8)
    lines = files.metrics_file.read_text().splitlines()
    files.metrics_file.write_text(lines[0] + "\n" + lines[1][:40])
    [line] = verdict(sweep)
    assert line.startswith("No trial has been scored on all validation items: its final scoring is not in")


def test_trials_without_a_score_are_told_with_what_is_wrong_with_it(sweep: Any) -> None:
    sweep.trial("t0000", sweep.metrics(math.nan))
    [line] = verdict(sweep)
    assert line == "No trial has a score to rank by: no objective: macro_f1 missing or not finite."


def test_an_empty_sweep_says_that_nothing_started(sweep: Any) -> None:
    assert verdict(sweep) == ["No trial has started."]


@pytest.mark.parametrize("damage", ["missing", "torn", "stub", "column"])
def test_item_tables_that_cannot_be_used_leave_the_figures_without_an_interval(sweep: Any, damage: str) -> None:
    sweep.untuned(0.5, hits=80)
    files = sweep.trial("t0000", 0.8, hits=128)
    table = files.items_file("task", "validation", 24)
    if damage == "missing":
        table.unlink()
    elif damage == "stub":
        table.write_bytes(b"PAR1")
    elif damage == "torn":
        table.write_bytes(table.read_bytes()[:-20])
    else:
        files.write_items("task", "validation", 24, {"item_id": ["a"], "label": ["b"]})
    line = verdict(sweep)[0]
    assert line.startswith(
        "The best trial, t0000, has accuracy 80.0 % against 50.0 % of the untuned model. There is no"
    )
    assert "interval" in line


def test_item_tables_without_a_common_item_leave_no_interval(sweep: Any) -> None:
    sweep.items(sweep.untuned(0.5), 0, hits=5, n=10, shift=1000)
    sweep.trial("t0000", 0.8, hits=128)
    assert "The two have no scored item in common" in verdict(sweep)[0]


def test_bias_of_the_best_trial_stands_beside_the_untuned_models(sweep: Any) -> None:
    sweep.untuned(0.5, hits=80, crows=65.0)
    sweep.trial("t0000", sweep.metrics(0.8, crows=58.3), hits=128)
    assert verdict(sweep)[-1] == (
        "CrowS-Pairs (50 % shows no preference; ± standard error): t0000 58.3 % ± 6.3; the untuned model 65.0 % ± 6.3."
    )


def test_bias_stands_alone_without_the_untuned_model(sweep: Any) -> None:
    sweep.trial("t0000", sweep.metrics(0.8, crows=58.3))
    assert verdict(sweep)[-1].endswith("t0000 58.3 % ± 6.3.")


def test_bias_that_was_not_measured_is_not_mentioned_but_that_the_ranking_leaves_it_out(sweep: Any) -> None:
    sweep.trial("t0000", {"accuracy": 0.8, "macro_f1": 0.8})
    lines = verdict(sweep)
    assert not any("CrowS" in line for line in lines)
    assert lines[-1] == "The ranking leaves out what was not measured: bias.crows_pairs.distance."


def test_an_accuracy_that_could_not_be_computed_is_not_known(sweep: Any) -> None:
    sweep.trial("t0000", {"macro_f1": 0.8, "accuracy": float("nan")})
    assert "t0000, has accuracy not known on 160 items" in verdict(sweep)[0]


def unlabelled(sweep: Any, name: str, loss: float, kind: str, spread: float = 0.01) -> None:
    """A row of 160 texts without labels: ``completion_loss`` and the items that give it."""
    files = sweep.trial(
        name, {"completion_loss": loss, "perplexity": 30.0}, kind=kind, step=0 if kind == "baseline" else 24
    )
    tokens = [10 + i for i in range(160)]
    losses = [loss + spread * ((i * 7) % 5 - 2) for i in range(160)]
    nll = [n * value for n, value in zip(tokens, losses, strict=True)]
    items = {"item_id": [f"item-{i}" for i in range(160)], "nll": nll, "n_tokens": tokens, "n_bytes": tokens}
    items |= {"completion_nll": nll, "completion_tokens": tokens}
    files.write_items("task", "validation", 0 if kind == "baseline" else 24, items)


def test_without_labels_the_loss_is_compared_item_by_item(make_sweep: Any) -> None:
    terms = {
        "loss": {"metric": "completion_loss", "direction": "min", "target": None, "range": [0.0, 8.0], "weight": 1.0}
    }
    sweep = make_sweep({"name": "loss", "rho": 0.0, "terms": terms})
    unlabelled(sweep, "zero_shot", 2.0, "baseline")
    unlabelled(sweep, "few_shot", 1.8, "baseline")
    unlabelled(sweep, "t0000", 1.5, "trial")
    assert verdict(sweep)[0] == (
        "The best trial, t0000, beats the best of 2 baselines, the baseline few_shot, by 0.300 nats a token"
        " (1.500 against 1.800); paired 95 % interval [0.300, 0.300] nats a token on 160 items."
    )
    worse = make_sweep({"name": "loss", "rho": 0.0, "terms": terms}, name="worse")
    unlabelled(worse, "zero_shot", 1.0, "baseline")
    unlabelled(worse, "t0000", 1.5, "trial")
    assert verdict(worse)[0].startswith(
        "No evidence that fine-tuning beats leaving the model as it is: the best trial, t0000, is 0.500 nats a token"
        " worse than the untuned model (1.500 against 1.000); paired"
    )


def objective_of(metric: str, direction: str = "max", ends: tuple[float, float] = (0.0, 1.0)) -> dict[str, Any]:
    term = {"metric": metric, "direction": direction, "target": None, "range": list(ends), "weight": 1.0}
    return {"name": "single", "rho": 0.0, "terms": {"quality": term}}


def with_probabilities(sweep: Any, name: str, hits: int, sure: float, kind: str, **metrics: float) -> None:
    """A row of 160 items that has ``hits`` right, each with probability ``sure``."""
    step = 0 if kind == "baseline" else 24
    loss = -(hits * np.log(sure) + (160 - hits) * np.log(1 - sure)) / 160
    values = {"accuracy": hits / 160, "macro_f1": hits / 160, "log_loss": float(loss)} | metrics
    files = sweep.trial(name, values, kind=kind, step=step)
    sweep.items(files, step, hits)
    items = files.read_items("task", "validation", step)
    order = ["science", "sport"]
    items["logprobs"] = [
        [float(np.log(sure if said == it else 1 - sure)) for it in order] for said in items["prediction"]
    ]
    files.write_items("task", "validation", step, items)


def test_another_metric_that_ranks_is_compared_with_the_baseline_that_is_best_in_it(make_sweep: Any) -> None:
    sweep = make_sweep(objective_of("log_loss", "min", (0.0, 5.0)))
    sweep.folder.sweep_file.write_text(sweep.folder.sweep_file.read_text() + "data: {labels: [science, sport]}\n")
    with_probabilities(sweep, "linear", 100, 0.6, "baseline")  # best by log loss
    with_probabilities(sweep, "retrieval", 136, 0.999, "baseline")  # most accurate, and overconfident
    with_probabilities(sweep, "t0000", 130, 0.8, "trial")
    first, *others = verdict(sweep)
    assert first.startswith(
        "No evidence that fine-tuning beats asking the nearest training rows: the best trial, t0000, is 3.8 points of"
        " accuracy below the best of 2 baselines, the baseline retrieval, (81.2 % against 85.0 %);"
    )
    assert others[0].startswith(
        "The best trial, t0000, beats the best of 2 baselines, the baseline linear, by 0.180 nats of log loss"
        " (0.483 against 0.663); paired 95 % interval [0."
    )
    assert others[0].endswith("] nats on 160 items.")
    assert verdict(sweep, ["accuracy"])[0] == first
    ranking = leaderboard.ranked(sweep.folder)
    assert beats_baselines(sweep.folder, ranking.rows, ranking.judgement) is False, "in one of two metrics alone"


def test_a_baseline_without_the_metric_that_ranks_takes_no_part(make_sweep: Any) -> None:
    sweep = make_sweep(objective_of("bits_per_byte", "min", (0.0, 8.0)))
    for name, kind, bits, tokens in (("zero_shot", "baseline", 2.0, 10), ("t0000", "trial", 1.5, 10)):
        files = sweep.trial(
            name, {"bits_per_byte": bits, "perplexity": 9.0}, kind=kind, step=0 if kind == "baseline" else 24
        )
        nll = [bits * tokens * math.log(2) * (1 + 0.01 * (i % 3)) for i in range(160)]
        items = {
            "item_id": [f"item-{i}" for i in range(160)],
            "nll": nll,
            "n_tokens": [4] * 160,
            "n_bytes": [tokens] * 160,
        }
        files.write_items("task", "validation", 0 if kind == "baseline" else 24, items)
    sweep.trial("linear", {"accuracy": 1.0}, kind="baseline", step=0)
    line = verdict(sweep)[0]
    assert line.startswith("The best trial, t0000, beats the untuned model by 0.505 bits a byte (1.500 against 2.000);")
    assert line.endswith("] bits a byte on 160 items.")


def test_of_equal_baselines_the_simplest_is_named(make_sweep: Any) -> None:
    sweep = make_sweep(objective_of("accuracy"))
    for name in ("few_shot", "majority", "zero_shot"):
        sweep.trial(name, {"accuracy": 0.5}, hits=80, kind="baseline", step=0)
    sweep.trial("t0000", {"accuracy": 0.9}, hits=144)
    assert "beats the best of 3 baselines, the baseline majority, by 40.0 points" in verdict(sweep)[0]


def test_the_only_trial_that_completed_has_an_interval_too(sweep: Any) -> None:
    sweep.trial("t0000", 0.9, hits=144)
    sweep.trial("zero_shot", 0.5, hits=80, kind="baseline")
    ranking = leaderboard.ranked(sweep.folder)
    assert ranking.judgement is not None
    assert all(row.low < row.high for row in ranking.rows)
    assert "t0000 has no rival to be compared with." in leaderboard.verdict(
        sweep.folder, ranking.rows, ranking.judgement
    )


def test_the_untuned_model_is_named_first_among_baselines_that_have_no_scores(sweep: Any) -> None:
    sweep.trial("t0000", 0.9)
    sweep.trial("linear", None, State.FAILED, kind="baseline", reason="no rows")
    sweep.trial("zero_shot", None, State.RUNNING, kind="baseline")
    (line, *_) = verdict(sweep)
    assert line.endswith("The untuned model is there to compare it with, but is running.")
