"""The leaderboard: who stands where, what a half-written folder shows, and what the verdict may claim."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pandas
import pytest
import yaml

from analysis.errors import ConfigError, FolderError
from analysis.folder import MetricsRow, State, Status, SweepFolder, TrialFolder, append_line, atomic_write
from analysis.leaderboard import build, render, short_values, to_json, verdict, write

SPACE = {"lora.rank": {"choices": [4, 8]}, "optim.lr": {"low": 1e-5, "high": 1e-2, "log": True}, "precision": {}}


def term(metric: str, direction: str = "max", **more: Any) -> dict[str, Any]:
    return {"metric": metric, "direction": direction, "range": [0.0, 1.0], "weight": 1.0, **more}


def sweep(root: Path, **terms: dict[str, Any]) -> SweepFolder:
    folder = SweepFolder(root / "sweep")
    objective = {"name": "x", "rho": 0.0, "terms": terms or {"quality": term("accuracy")}}
    atomic_write(folder.sweep_file, yaml.safe_dump({"config": {"objective": objective}, "space": SPACE}))
    return folder


def add(
    folder: SweepFolder,
    trial_id: str,
    state: State = State.COMPLETED,
    *evaluations: tuple[int, bool, dict[str, float]],
    reason: str = "",
    right: int | None = None,
    **metrics: float,
) -> TrialFolder:
    """A trial (or ``zero_shot``) with these evaluations; ``metrics`` is short for one at step 40.

    ``right``: of 40 items, so many are predicted right (the first ones).
    """
    baseline = trial_id == "zero_shot"
    files = folder.baseline(trial_id) if baseline else folder.trial(trial_id)
    for step, final, values in evaluations or ([(40, state is State.COMPLETED, metrics)] if metrics else []):
        files.append_metrics(MetricsRow(trial_id, step, step * 100, 1.0, final, 40 if final else 8, values))
    files.write_status(Status(state, reason, 40))
    if not baseline:
        config = {"lora": {"rank": 8}, "optim": {"lr": 3e-4, "beta": 0.9}, "precision": "nf4"}
        atomic_write(files.config_file, yaml.safe_dump(config))
    if right is not None:
        columns = {
            "item_id": [f"i{i}" for i in range(40)],
            "label": ["yes"] * 40,
            "prediction": ["yes"] * right + ["no"] * (40 - right),
        }
        files.write_items("task", "validation", 40, columns)
    return files


def ids(folder: SweepFolder, by: list[str] | None = None) -> list[str]:
    return [row.trial_id for row in build(folder, by)]


def only(folder: SweepFolder) -> Any:
    (row,) = build(folder)
    return row


# Ranking


def test_outcome_comes_before_score_and_score_before_id(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    add(folder, "t0000", State.DIVERGED, accuracy=0.99)
    add(folder, "t0001", State.PENDING)
    add(folder, "t0002", State.RUNNING, accuracy=0.95)
    add(folder, "t0003", State.STOPPED_EARLY, accuracy=0.70)
    add(folder, "t0004", State.STOPPED_EARLY, accuracy=0.90)
    add(folder, "t0006", State.COMPLETED, accuracy=0.50)
    add(folder, "t0005", State.COMPLETED, accuracy=0.50)
    add(folder, "t0007", State.COMPLETED, accuracy=0.60)
    add(folder, "t0008", State.OUT_OF_MEMORY)
    add(folder, "t0009", State.FAILED, accuracy=0.98)
    rows = build(folder)
    assert [row.trial_id[-1] for row in rows] == list("7564321098")
    assert [row.rank for row in rows] == list(range(1, 11))


def test_a_baseline_is_ranked_among_the_completed_trials(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    add(folder, "t0000", accuracy=0.7)
    add(folder, "t0001", accuracy=0.5)
    add(folder, "t0002", State.STOPPED_EARLY, accuracy=0.9)
    add(folder, "zero_shot", accuracy=0.6)
    rows = build(folder)
    assert [row.trial_id for row in rows] == ["t0000", "zero_shot", "t0001", "t0002"]
    assert [row.kind for row in rows] == ["trial", "baseline", "trial", "trial"]
    assert rows[1].config == {}
    assert rows[1].reason == ""  # a baseline has no config.yaml, and none is missed


def test_the_final_evaluation_stands_for_a_completed_trial_though_a_later_rung_was_better(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    add(folder, "t0000", State.COMPLETED, (20, False, {"accuracy": 0.8}), (40, False, {"accuracy": 0.9}),
        (20, True, {"accuracy": 0.7}))  # fmt: skip
    row = only(folder)
    assert (row.step, row.n_items, row.metrics, row.objective) == (20, 40, {"accuracy": 0.7}, pytest.approx(0.7))


def test_the_last_rung_stands_for_a_stopped_trial_though_an_earlier_one_was_better(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    add(folder, "t0000", State.STOPPED_EARLY, (10, False, {"accuracy": 0.8}), (20, False, {"accuracy": 0.6}))
    row = only(folder)
    assert (row.step, row.n_items, row.objective) == (20, 8, pytest.approx(0.6))


def test_a_score_that_cannot_be_computed_comes_last_among_its_outcome(tmp_path: Path) -> None:
    folder = sweep(tmp_path, a=term("accuracy"), b=term("macro_f1"))
    add(folder, "t0000", accuracy=math.nan, macro_f1=0.9)
    add(folder, "t0001", accuracy=0.9)
    add(folder, "t0002", accuracy=0.1, macro_f1=0.1)
    add(folder, "t0003", State.STOPPED_EARLY, accuracy=0.9, macro_f1=0.9)
    assert ids(folder) == ["t0002", "t0000", "t0001", "t0003"]


@pytest.mark.parametrize(
    ("by", "order"),
    [
        (["accuracy"], "201"),
        (["perplexity"], "012"),
        (["bias.crows_pairs.pct"], "120"),  # the nearest to 50, not the highest nor the lowest
        (["macro_f1", "perplexity"], "021"),
        (["macro_f1", "accuracy"], "201"),
    ],
)
def test_by_ranks_each_metric_from_its_good_end_the_first_one_first(tmp_path: Path, by: list[str], order: str) -> None:
    folder = sweep(tmp_path)
    trials = [(0.8, 5.0, 61.0, 0.5), (0.7, 6.0, 49.0, 0.4), (0.9, 7.0, 44.0, 0.5)]
    for i, (accuracy, perplexity, pct, f1) in enumerate(trials):
        metrics = {"accuracy": accuracy, "perplexity": perplexity, "bias.crows_pairs.pct": pct, "macro_f1": f1}
        add(folder, f"t000{i}", State.COMPLETED, (40, True, metrics))
    assert [name[-1] for name in ids(folder, by)] == list(order)


def test_by_keeps_the_outcomes_apart_and_puts_trials_without_the_metric_last(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    add(folder, "t0000", State.STOPPED_EARLY, accuracy=0.9, perplexity=1.0)
    add(folder, "t0001", accuracy=0.9)
    add(folder, "t0002", accuracy=0.5, perplexity=9.0)
    assert ids(folder, ["perplexity"]) == ["t0002", "t0001", "t0000"]


def test_by_follows_the_direction_that_the_objective_gives(tmp_path: Path) -> None:
    folder = sweep(tmp_path, drift=term("drift", "min"))
    add(folder, "t0000", drift=0.9)
    add(folder, "t0001", drift=0.1)
    assert ids(folder, ["drift"]) == ["t0001", "t0000"]


def test_an_unknown_metric_is_named_with_a_near_one(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    add(folder, "t0000", accuracy=0.9, macro_f1=0.8)
    with pytest.raises(ConfigError, match=r"--by acuracy: no row has this metric\. Did you mean 'accuracy'\?"):
        build(folder, ["macro_f1", "acuracy"])


# Half-written folders


def test_an_empty_sweep_is_an_empty_leaderboard(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    assert build(folder) == []
    assert render([], 80) == "No trial has started yet."
    assert json.loads(to_json([])) == []
    assert "No trial has completed" in verdict(folder, [])
    write(folder, [])
    assert len(folder.leaderboard_file.read_text().splitlines()) == 1


def test_a_trial_folder_with_nothing_in_it_is_pending(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    folder.trial("t0000").root.mkdir(parents=True)
    row = only(folder)
    assert (row.status, row.config, row.metrics) == (State.PENDING, {}, {})
    assert math.isnan(row.objective)
    assert row.reason == "config.yaml cannot be read (FileNotFoundError)"


@pytest.mark.parametrize("content", [b"", b"lora: {rank: [", b"- 1", b"lora: {rank: 8}", b"lora: 8", b"\xff\xfe\xfa"])
def test_an_unreadable_config_leaves_the_scores_and_says_so(tmp_path: Path, content: bytes) -> None:
    folder = sweep(tmp_path)
    atomic_write(add(folder, "t0000", accuracy=0.7).config_file, content)
    row = only(folder)
    assert row.config == {}
    assert row.objective == pytest.approx(0.7)
    assert row.reason.startswith("config.yaml cannot be read")


def test_a_known_reason_is_not_replaced_by_a_missing_file(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    add(folder, "t0000", State.FAILED, reason="the loader died").config_file.unlink()
    assert only(folder).reason == "the loader died"


def test_a_torn_last_metrics_line_leaves_the_ones_before(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    files = add(folder, "t0000", State.RUNNING, (10, False, {"accuracy": 0.6}))
    with files.metrics_file.open("a") as file:
        file.write('{"trial_id": "t0000", "step": 20, "metr')
    assert (only(folder).step, only(folder).metrics) == (10, {"accuracy": 0.6})


@pytest.mark.parametrize("state", [State.COMPLETED, State.STOPPED_EARLY])
def test_an_ended_trial_without_metrics_says_what_is_missing(tmp_path: Path, state: State) -> None:
    folder = sweep(tmp_path)
    add(folder, "t0000", state)
    add(folder, "t0001", state, accuracy=0.1)
    last = build(folder)[-1]
    assert (last.trial_id, last.reason) == ("t0000", "metrics.jsonl is missing or empty")


def test_metrics_of_another_version_do_not_stop_the_leaderboard(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    append_line(add(folder, "t0000").metrics_file, {"version": 9})
    assert only(folder).reason == "metrics.jsonl is missing or empty"


def test_a_broken_status_is_a_failure_that_names_the_file(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    atomic_write(add(folder, "t0000", accuracy=0.9).status_file, '{"state": "comp')
    add(folder, "t0001", accuracy=0.1)
    rows = build(folder)
    assert [row.trial_id for row in rows] == ["t0001", "t0000"]
    assert rows[1].status is State.FAILED
    assert "t0000/status.json: not a status file" in rows[1].reason
    assert rows[1].metrics == {"accuracy": 0.9}


@pytest.mark.parametrize(
    "content", [b"", b"a: [", b"[]", b"config: {}", b"config: {objective: }", b"\xff\xfe\xfa", b"config: 3\nspace: {}"]
)
def test_an_unreadable_sweep_yaml_is_explained(tmp_path: Path, content: bytes) -> None:
    folder = sweep(tmp_path)
    atomic_write(folder.sweep_file, content)
    with pytest.raises(FolderError, match=r"sweep\.yaml: cannot be read .*Restore it"):
        build(folder)


def test_three_hundred_trials_are_ranked(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    for i in range(300):
        add(folder, f"t{i:04}", State.COMPLETED if i % 3 else State.STOPPED_EARLY, accuracy=(i * 7 % 300) / 300)
    rows = build(folder)
    assert [row.rank for row in rows] == list(range(1, 301))
    assert [row.status for row in rows] == [State.COMPLETED] * 200 + [State.STOPPED_EARLY] * 100
    for part in (rows[:200], rows[200:]):
        scores = [row.objective for row in part]
        assert scores == sorted(scores, reverse=True)
    assert len(render(rows, 100).splitlines()) >= 301


# Tables for programs


def mixed(tmp_path: Path) -> SweepFolder:
    """One row of every kind, with what makes tables hard: NaN, infinity, commas, quotes, line breaks, markup."""
    folder = sweep(tmp_path)
    full = {
        "accuracy": 0.8125, "macro_f1": 0.79, "log_loss": 0.51, "perplexity": 123456.7, "completion_perplexity": 1.4,
        "bits_per_byte": 1.23456, "bias.crows_pairs.pct": 56.25, "bias.crows_pairs.distance": 6.25,
        "bias.crows_pairs.signed": 0.1, "bias.crows_pairs.stderr": 2.9,
    }  # fmt: skip
    add(folder, "zero_shot", State.COMPLETED, (0, True, {**full, "accuracy": 0.25}))
    add(folder, "t0000", State.COMPLETED, (40, True, full))
    add(folder, "t0001", State.STOPPED_EARLY, (10, False, {**full, "perplexity": math.inf}))
    add(
        folder,
        "t0002",
        State.DIVERGED,
        (10, False, {"accuracy": math.nan}),
        reason='loss is "nan",\nat [red]step 12[/]',
    )
    add(folder, "t0003", State.OUT_OF_MEMORY, reason="CUDA out of memory: " + "needed_17.3_GiB_" * 20)
    add(folder, "t0004", State.RUNNING)
    return folder


def test_the_csv_is_read_by_pandas_value_for_value(tmp_path: Path) -> None:
    folder = mixed(tmp_path)
    rows = build(folder)
    write(folder, rows)
    table = pandas.read_csv(folder.leaderboard_file)
    assert list(table["trial_id"]) == [row.trial_id for row in rows]
    assert list(table["rank"]) == [1, 2, 3, 4, 5, 6]
    assert list(table["status"]) == ["completed", "completed", "stopped_early", "running", "diverged", "out_of_memory"]
    first = table.iloc[0]
    assert (first["kind"], first["step"], first["n_items"], first["precision"]) == ("trial", 40, 40, "nf4")
    assert (first["lora.rank"], first["optim.lr"], first["bits_per_byte"]) == (8, 3e-4, 1.23456)
    assert first["objective"] == pytest.approx(0.8125)
    assert math.isinf(table["perplexity"][2])
    assert table["accuracy"].isna().tolist() == [False, False, False, True, True, True]
    assert table["objective"].isna().tolist() == [False, False, False, True, True, True]
    assert table["reason"][4] == 'loss is "nan",\nat [red]step 12[/]'


def test_the_csv_columns_keep_their_order_whichever_trial_leads(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    add(folder, "t0000", State.COMPLETED, (40, True, {"extra": 1.0, "perplexity": 3.0, "accuracy": 0.9}))
    add(folder, "t0001", State.COMPLETED, (40, True, {"accuracy": 0.1, "log_loss": 1.0, "perplexity": 9.0}))
    rows = build(folder)
    headers = []
    for order in (rows, rows[::-1]):
        write(folder, order)
        headers.append(next(csv.reader(folder.leaderboard_file.open())))
    assert headers[0] == headers[1]
    assert headers[0] == [
        "rank", "kind", "trial_id", "status", "step", "n_items", "lora.rank", "optim.lr", "precision",
        "accuracy", "log_loss", "perplexity", "extra", "objective", "reason",
    ]  # fmt: skip


def test_json_holds_every_row_and_no_number_that_json_does_not_have(tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    records = json.loads(to_json(build(mixed(tmp_path))), parse_constant=refuse)
    assert [record["rank"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert records[0]["metrics"]["accuracy"] == 0.8125
    assert records[0]["config"] == {"lora.rank": 8, "optim.lr": 3e-4, "precision": "nf4"}
    assert records[2]["metrics"]["perplexity"] is None
    assert records[4]["status"] == "diverged"
    assert records[4]["metrics"] == {"accuracy": None}
    assert records[4]["objective"] is None


# The table for people


@pytest.mark.parametrize("width", [20, 80, 120])
def test_no_line_is_wider_than_the_terminal_or_80(tmp_path: Path, width: int) -> None:
    folder = mixed(tmp_path)
    for i in range(5, 105):  # three-digit ranks
        add(folder, f"t{i:04}", State.STOPPED_EARLY, accuracy=0.1)
    lines = render(build(folder), width).splitlines()
    assert max(map(len, lines)) <= max(width, 80)


def test_at_80_columns_ids_scores_and_outcomes_are_whole(tmp_path: Path) -> None:
    text = render(build(mixed(tmp_path)), 80)
    for whole in ("zero_shot", "t0000", "0.812", "0.790", "56.2", "nf4", "lr=3e-4"):
        assert whole in text
    assert "…" not in text
    assert "\x1b" not in text


def test_a_row_shows_outcome_step_and_reason_as_they_are(tmp_path: Path) -> None:
    text = render(build(mixed(tmp_path)), 400)
    lines = {line.split()[1]: line for line in text.splitlines() if len(line.split()) > 3}
    assert "completed" in lines["t0000"]
    assert "step" not in lines["t0000"]
    assert "stopped early, step 10" in lines["t0001"]
    assert 'diverged, step 10: loss is "nan",' in lines["t0002"]
    assert "[red]step 12[/]" in text  # not taken for markup
    assert "out of memory, step 40: CUDA out of memory" in lines["t0003"]
    assert lines["zero_shot"].endswith("baseline")
    assert "(untuned model)" in lines["zero_shot"]
    assert "56.2 ±2.9" in lines["t0000"]
    assert "1.2e+05" in lines["t0000"]
    assert "nan" not in lines["t0004"]
    assert "–" in lines["t0004"]


def test_values_are_short_and_exact_enough() -> None:
    values = {
        "lora.rank": 8,
        "optim.lr": 3e-4,
        "lora.dropout": 0.05,
        "optim.wd": 0.0,
        "x.big": 2.5e4,
        "precision": "nf4",
    }
    assert short_values(values) == "rank=8 lr=3e-4 dropout=0.05 wd=0 big=2.5e4 nf4"


# The verdict


def two(tmp_path: Path, trial: int, base: int) -> str:
    folder = sweep(tmp_path)
    add(folder, "t0000", right=trial, accuracy=trial / 40)
    add(folder, "zero_shot", right=base, accuracy=base / 40)
    return verdict(folder, build(folder))


def test_a_clear_gain_is_a_win_with_its_size_interval_and_items(tmp_path: Path) -> None:
    text = two(tmp_path, 32, 12)
    assert "Best completed trial: t0000 (rank=8 lr=3e-4 nf4), accuracy 0.800 on 40 validation items." in text
    assert "It beats the untuned model by 50.0 points of accuracy (paired 95 % interval [+" in text
    assert "40 items)." in text


def test_a_clear_loss_is_said_even_of_the_best_trial(tmp_path: Path) -> None:
    assert "It is worse than the untuned model by 50.0 points of accuracy (paired 95 % interval [-" in two(
        tmp_path, 12, 32
    )


@pytest.mark.parametrize(("trial", "sign"), [(21, "+2.5"), (19, "-2.5"), (20, "+0.0")])
def test_a_gain_within_the_noise_is_not_called_one(tmp_path: Path, trial: int, sign: str) -> None:
    text = two(tmp_path, trial, 20)
    assert f"Against the untuned model: {sign} points of accuracy" in text
    assert "no difference is shown" in text
    assert "beats" not in text
    assert "worse" not in text


def test_the_interval_is_taken_over_items_paired_by_id(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    add(folder, "t0000", right=20, accuracy=0.5)
    base = add(folder, "zero_shot", right=20, accuracy=0.5)
    items = base.read_items("task", "validation", 40)
    base.write_items("task", "validation", 40, {name: column[::-1] for name, column in items.items()})
    assert "+0.0 points of accuracy (paired 95 % interval [+0.0, +0.0], 40 items)" in verdict(folder, build(folder))


def test_the_best_of_the_completed_trials_is_judged_not_a_stopped_one(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    add(folder, "t0000", State.STOPPED_EARLY, accuracy=0.99)
    add(folder, "t0001", accuracy=0.6, right=24)
    add(folder, "t0002", accuracy=0.7, right=28)
    add(folder, "zero_shot", accuracy=0.8, right=32)
    text = verdict(folder, build(folder))
    assert text.startswith("Best completed trial: t0002")
    assert "worse than the untuned model by 10.0" in text


def test_without_a_baseline_it_is_not_known_whether_tuning_helps(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    add(folder, "t0000", accuracy=0.9, right=36)
    add(folder, "zero_shot", State.FAILED, accuracy=0.1, right=4)
    text = verdict(folder, build(folder))
    assert "No baseline was scored, so it is not known whether fine-tuning was worth it." in text
    assert "beats" not in text


def test_without_a_completed_trial_nothing_is_recommended(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    add(folder, "t0000", State.STOPPED_EARLY, accuracy=0.9)
    add(folder, "t0001", State.DIVERGED)
    add(folder, "zero_shot", accuracy=0.1)
    assert verdict(folder, build(folder)) == "No trial has completed, so there is nothing to recommend yet."


@pytest.mark.parametrize("missing", ["t0000", "zero_shot"])
def test_without_item_tables_the_comparison_is_refused_not_guessed(tmp_path: Path, missing: str) -> None:
    folder = sweep(tmp_path)
    for name, right in (("t0000", 36), ("zero_shot", 4)):
        add(folder, name, accuracy=right / 40, right=None if name == missing else right)
    text = verdict(folder, build(folder))
    assert "It cannot be compared with the untuned model:" in text
    assert f"{missing}/items/task-validation-40.parquet: no such item table" in text
    assert "beats" not in text


def test_without_common_items_the_comparison_is_refused(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    add(folder, "t0000", accuracy=0.9, right=36)
    base = add(folder, "zero_shot", accuracy=0.1)
    base.write_items("task", "validation", 40, {"item_id": ["other"], "label": ["yes"], "prediction": ["no"]})
    text = verdict(folder, build(folder))
    assert "no validation item in common" in text
    assert "nan" not in text


def test_bias_is_reported_beside_quality_where_both_were_measured(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    bias = {"bias.crows_pairs.pct": 61.04, "bias.crows_pairs.stderr": 2.9}
    add(folder, "t0000", State.COMPLETED, (40, True, {"accuracy": 0.9, **bias}), right=36)
    add(folder, "zero_shot", State.COMPLETED, (40, True, {"accuracy": 0.1, "bias.crows_pairs.pct": 52.0}), right=4)
    assert "CrowS-Pairs (50 is the target; noisy): 61.0 ±2.9 %, the untuned model 52.0 %." in verdict(
        folder, build(folder)
    )
    folder = sweep(tmp_path / "classification")
    add(folder, "t0000", accuracy=0.9, right=36)
    add(folder, "zero_shot", accuracy=0.1, right=4)
    assert "CrowS" not in verdict(folder, build(folder))
