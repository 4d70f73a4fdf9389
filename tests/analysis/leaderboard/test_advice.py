"""What the sentences below the leaderboard advise where fine-tuning does not pay: from the folder, and in order."""

import math
from typing import Any

import pytest
import yaml

from analysis.folder import MetricsRow
from analysis.leaderboard import leaderboard

BOTH = {
    "name": "balanced",
    "rho": 0.0,
    "terms": {
        name: {"metric": name, "direction": "max", "target": None, "range": [0.0, 1.0], "weight": 1.0}
        for name in ("accuracy", "macro_f1")
    },
}


def verdict(sweep: Any, by: list[str] | None = None) -> list[str]:
    return leaderboard.verdict(sweep.folder, leaderboard.build(sweep.folder, by)).splitlines()


def lost(sweep: Any, *rungs: dict[str, float], **final: float) -> str:
    """The advice on a sweep whose best trial has these rungs, and ends below the baseline ``linear``."""
    sweep.trial("linear", 0.9, hits=144, kind="baseline", step=0)
    files = sweep.trial("t0000", sweep.metrics(0.7) | final, hits=112)
    final_row = files.read_metrics()[-1]
    files.metrics_file.unlink()
    for i, metrics in enumerate(rungs, start=1):
        files.append_metrics(MetricsRow("t0000", 8 * i, 0, 1.0, False, 64, metrics))
    files.append_metrics(final_row)
    lines = verdict(sweep)
    assert lines[0].startswith(
        "No evidence that fine-tuning beats counting words: the best trial, t0000, is 20.0 points"
    )
    return lines[1]


def with_config(sweep: Any, **train: Any) -> None:
    content = yaml.safe_load(sweep.folder.sweep_file.read_text())
    content["config"]["train"] = train
    sweep.folder.sweep_file.write_text(yaml.safe_dump(content))


def rate(sweep: Any, value: float) -> None:
    config = sweep.folder.trial("t0000").config_file
    config.write_text(config.read_text().replace("0.00042", str(value)))


def rung(quality: float, loss: float = 1.0) -> dict[str, float]:
    return {"macro_f1": quality, "accuracy": quality, "log_loss": loss, "bias.crows_pairs.distance": 10.0}


def test_one_label_for_all_rows_asks_for_longer_or_faster_training(sweep: Any) -> None:
    with_config(sweep, max_steps=48)
    assert lost(sweep, rung(0.5), rung(0.6), classes_predicted=1.0) == (
        "t0000 still gives every row the same label: train longer (train.max_steps=96) or raise the learning rate"
        " (it had 0.00042)."
    )


def test_an_objective_that_still_rose_asks_for_longer_training_in_the_unit_of_the_config(sweep: Any) -> None:
    with_config(sweep, max_steps=48, epochs=1.5)
    assert lost(sweep, rung(0.5), rung(0.6), classes_predicted=2.0) == (
        "t0000 was still getting better at its last rung: train longer (train.epochs=3)."
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.0045, "upper end of those searched (0.0045 of at most 0.005): space.optim.lr.high=0.015."),
        (0.00012, "lower end of those searched (0.00012 of at least 0.0001): space.optim.lr.low=3.3e-05."),
    ],
)
def test_a_rate_at_an_end_of_those_searched_asks_for_wider_ones(sweep: Any, value: float, words: str) -> None:
    sweep.trial("linear", 0.9, hits=144, kind="baseline", step=0)
    files = sweep.trial("t0000", 0.7, hits=112)
    files.append_metrics(MetricsRow("t0000", 16, 0, 1.0, False, 64, sweep.metrics(0.6)))
    rate(sweep, value)
    assert verdict(sweep)[1] == f"The learning rate of t0000 lies at the {words}"


def test_a_loss_that_rose_again_asks_for_more_rows(sweep: Any) -> None:
    said = lost(sweep, rung(0.6, 0.9), rung(0.7, 0.5), rung(0.65, 0.8))
    assert said.startswith("The validation loss of t0000 was lowest at step 16 and rose from there")


def test_where_nothing_stands_out_a_larger_model_is_left(sweep: Any) -> None:
    assert lost(sweep, rung(0.7, 0.9), rung(0.7, 0.8)).endswith("try a larger model (model=…).")


def test_a_trial_that_beats_all_baselines_gets_no_advice(sweep: Any) -> None:
    sweep.trial("linear", 0.5, hits=80, kind="baseline", step=0)
    sweep.trial("t0000", sweep.metrics(0.9) | {"classes_predicted": 1.0}, hits=144)
    assert len(verdict(sweep)) == 2
    assert verdict(sweep)[1].startswith("CrowS-Pairs")


def test_a_difference_that_may_be_chance_gets_advice_too(sweep: Any) -> None:
    sweep.trial("frozen", 0.68, hits=109, kind="baseline", step=0)
    sweep.trial("t0000", 0.68, hits=109)
    lines = verdict(sweep)
    assert lines[0].startswith("No evidence that fine-tuning beats a linear classifier on the frozen model: ")
    assert "larger model" in lines[1]


def test_of_baselines_that_are_equally_good_the_simplest_is_named(sweep: Any) -> None:
    for name in ("frozen", "linear", "zero_shot"):
        sweep.trial(name, 0.9, hits=144, kind="baseline", step=0)
    sweep.trial("t0000", 0.7, hits=112)
    assert "the best of 3 baselines, the baseline linear," in verdict(sweep)[0]


def skewed(sweep: Any, name: str, right: dict[str, float], kind: str = "trial") -> dict[str, float]:
    """A row of 200 items with labels of which 160, 30 and 10 are a, b and c; what is wrong is called a (or b)."""
    from sklearn.metrics import accuracy_score, f1_score

    labels = ["a"] * 160 + ["b"] * 30 + ["c"] * 10
    said = []
    for label, n in (("a", 160), ("b", 30), ("c", 10)):
        hits = round(right[label] * n)
        said += [label] * hits + ["b" if label == "a" else "a"] * (n - hits)
    metrics = {
        "accuracy": accuracy_score(labels, said),
        "macro_f1": f1_score(labels, said, average="macro"),
        "bias.crows_pairs.distance": math.nan,
    }
    step = 0 if kind == "baseline" else 24
    files = sweep.trial(name, metrics, kind=kind, step=step)
    items = {"item_id": [f"item-{i}" for i in range(200)], "label": labels, "prediction": said}
    files.write_items("task", "validation", step, items)
    return metrics


def test_skewed_classes_are_compared_by_macro_f1_too_with_the_baseline_that_is_best_in_it(make_sweep: Any) -> None:
    sweep = make_sweep(BOTH)
    skewed(sweep, "majority", {"a": 1.0, "b": 0.0, "c": 0.0}, "baseline")
    linear = skewed(sweep, "linear", {"a": 0.7, "b": 0.9, "c": 0.9}, "baseline")
    best = skewed(sweep, "t0000", {"a": 1.0, "b": 0.6, "c": 0.0})
    assert best["accuracy"] > 0.88 > linear["accuracy"]
    assert best["macro_f1"] < linear["macro_f1"]
    first, second, advice, *_ = verdict(sweep)
    size = f"{100 * (linear['macro_f1'] - best['macro_f1']):.1f}"
    assert first.startswith(
        f"No evidence that fine-tuning beats counting words: the best trial, t0000, is {size} points of macro-F1 below"
        f" the best of 2 baselines, the baseline linear, ({100 * best['macro_f1']:.1f} % against"
        f" {100 * linear['macro_f1']:.1f} %); paired 95 % interval ["
    )
    assert second.startswith(
        "The best trial, t0000, beats the best of 2 baselines, the baseline majority, by 9.0 points of accuracy"
    )
    assert "larger model" in advice


def test_where_macro_f1_ranks_alone_it_alone_is_compared(make_sweep: Any) -> None:
    sweep = make_sweep({**BOTH, "terms": {"quality": BOTH["terms"]["macro_f1"]}})  # type: ignore[index]
    skewed(sweep, "linear", {"a": 0.7, "b": 0.3, "c": 0.1}, "baseline")
    skewed(sweep, "t0000", {"a": 0.9, "b": 0.9, "c": 0.9})
    lines = verdict(sweep)
    assert lines[0].startswith("The best trial, t0000, beats the baseline linear by ")
    assert "points of macro-F1 (" in lines[0]
    assert not any("points of accuracy" in line for line in lines)


def test_even_classes_are_compared_by_accuracy_alone(make_sweep: Any) -> None:
    sweep = make_sweep(BOTH)
    sweep.trial("linear", 0.9, hits=144, kind="baseline", step=0)
    sweep.trial("t0000", 0.7, hits=112)
    assert not any("macro-F1" in line for line in verdict(sweep))
