"""The leaderboard: who stands where, what a half-written folder shows, and what the verdict may claim."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pandas
import pytest
import yaml
from rich.console import Console

from analysis.errors import ConfigError
from analysis.folder import MetricsRow, State, Status, SweepFolder, TrialFolder, atomic_write
from analysis.leaderboard.leaderboard import Row, build, plain, render, to_json, verdict, write

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


def only(folder: SweepFolder) -> Row:
    (row,) = build(folder)
    return row


# Ranking


def test_a_completed_trial_without_its_final_scoring_is_ranked_by_its_rung_among_the_stopped(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    add(folder, "t0000", State.COMPLETED, (20, False, {"accuracy": 0.9}))
    add(folder, "t0001", State.COMPLETED, accuracy=0.5)
    add(folder, "t0002", State.STOPPED_EARLY, accuracy=0.95)
    rows = build(folder)
    assert [row.trial_id for row in rows] == ["t0001", "t0002", "t0000"]
    assert rows[2].reason == "its final scoring is not in metrics.jsonl, shown is the rung at step 20"
    assert "t0001" in verdict(folder, rows)


def test_a_score_that_cannot_be_computed_comes_last_among_its_outcome(tmp_path: Path) -> None:
    folder = sweep(tmp_path, a=term("accuracy"), b=term("macro_f1"))
    add(folder, "t0000", accuracy=math.nan, macro_f1=0.9)
    add(folder, "t0001", accuracy=0.9)
    add(folder, "t0002", accuracy=0.1, macro_f1=0.1)
    add(folder, "t0003", State.STOPPED_EARLY, accuracy=0.9, macro_f1=0.9)
    rows = build(folder)
    assert [row.trial_id for row in rows] == ["t0002", "t0000", "t0001", "t0003"]
    assert [row.reason for row in rows[:3]] == [
        "",
        "no objective: accuracy missing or not finite",
        "no objective: macro_f1 missing or not finite",
    ]


def test_a_metric_of_the_objective_that_no_row_has_is_left_out_and_said(tmp_path: Path) -> None:
    folder = sweep(tmp_path, a=term("accuracy"), b=term("bias.crows_pairs.distance", "min"))
    add(folder, "t0000", accuracy=0.6)
    add(folder, "t0001", accuracy=0.7)
    rows = build(folder)
    assert [(row.trial_id, row.objective) for row in rows] == [
        ("t0001", pytest.approx(0.7)),
        ("t0000", pytest.approx(0.6)),
    ]
    assert "leaves out what was not measured: bias.crows_pairs.distance." in verdict(folder, rows)


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


# Half-written folders


def test_an_empty_sweep_is_an_empty_leaderboard(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    assert build(folder) == []
    assert text_of([], 80) == plain([], 80) == "No trial has started."
    assert json.loads(to_json([])) == []
    assert verdict(folder, []) == "No trial has started."
    write(folder, [])
    assert len(folder.leaderboard_file.read_text().splitlines()) == 1


def test_a_config_that_lacks_a_key_still_shows_the_others(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    atomic_write(add(folder, "t0000", accuracy=0.7).config_file, "{lora: {rank: 8}, precision: nf4}")
    row = only(folder)
    assert row.config == {"lora.rank": 8, "optim.lr": None, "precision": "nf4"}
    assert row.reason == "config.yaml lacks optim.lr"


def test_what_is_missing_is_added_to_a_known_reason_not_put_in_its_place(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    add(folder, "t0000", State.FAILED, reason="the loader died").config_file.unlink()
    assert only(folder).reason == "the loader died; config.yaml is missing"


def test_a_value_that_is_no_number_is_one_that_could_not_be_computed(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    add(folder, "t0000", State.COMPLETED, (40, True, {"accuracy": 0.5, "macro_f1": None}))  # type: ignore[dict-item]
    row = only(folder)
    assert row.objective == pytest.approx(0.5)
    assert math.isnan(row.metrics["macro_f1"])


def test_a_wrong_objective_in_sweep_yaml_names_file_and_key(tmp_path: Path) -> None:
    folder = sweep(tmp_path, a=term("accuracy", "upwards"))
    with pytest.raises(ConfigError, match=r"sweep\.yaml: config\.objective\.terms\.a\.direction='upwards'"):
        build(folder)


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
    assert table["lora.rank"].isna().tolist() == [False, True, False, False, False, False]  # a baseline has none
    assert table["perplexity"].isna().tolist() == [False, False, True, True, True, True]
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
        "accuracy", "log_loss", "perplexity", "extra", "objective",
        "low", "high", "p", "tied", "front", "tokens", "seconds", "seeds", "sd", "reason",
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


def text_of(rows: list[Row], width: int) -> str:
    """What a terminal of that width shows."""
    buffer = io.StringIO()
    Console(file=buffer, width=width, color_system=None).print(render(rows, width))
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


@pytest.mark.parametrize("width", [80, 100, 140])
def test_no_line_of_the_terminal_table_is_too_wide(tmp_path: Path, width: int) -> None:
    folder = mixed(tmp_path)
    for i in range(5, 105):  # three-digit ranks
        add(folder, f"t{i:04}", State.STOPPED_EARLY, accuracy=0.1)
    rows = build(folder)
    assert max(len(line) for line in text_of(rows, width).splitlines()) <= width
    table = plain(rows, width).split("\n\n")[0]
    assert max(len(line) for line in table.splitlines()) <= width


@pytest.mark.parametrize("show", [text_of, plain])
def test_at_80_columns_ids_scores_and_outcomes_are_whole(tmp_path: Path, show: Any) -> None:
    text = show(build(mixed(tmp_path)), 80)
    for whole in ("zero_shot", "t0000", "0.812", "0.790", "56.2", "stopped early", "out of memory", "diverged"):
        assert whole in text
    assert "…" not in text
    assert "in leaderboard.csv" in text  # says that there is more


@pytest.mark.parametrize("show", [text_of, plain])
def test_a_wide_terminal_shows_every_value(tmp_path: Path, show: Any) -> None:
    text = show(build(mixed(tmp_path)), 300)
    line = next(line for line in text.splitlines() if " t0000 " in line)
    for cell in ("completed", "0.812", "0.790", "123457", "1.235", "56.2", "2.9", "8", "3.0e-4", "nf4", "40"):
        assert cell in line.split()
    assert "in leaderboard.csv" not in text


@pytest.mark.parametrize("show", [text_of, plain])
def test_reasons_stand_below_as_they_are_without_breaking_the_terminal(tmp_path: Path, show: Any) -> None:
    folder = mixed(tmp_path)
    add(folder, "t0009", State.FAILED, reason="\x1b[2Jgone")
    text = show(build(folder), 400)
    assert 't0002: loss is "nan", at [red]step 12[/]' in text  # not taken for markup
    assert "t0003: CUDA out of memory" in text
    assert "t0009: ␛[2Jgone" in text
    assert "\x1b" not in text
    assert "nan" not in next(line for line in text.splitlines() if " t0004 " in line)


def test_a_reason_that_many_trials_share_is_told_once(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    for i in range(3):
        add(folder, f"t000{i}", State.FAILED, reason="the model folder is gone")
    assert plain(build(folder), 80).count("the model folder is gone") == 1
    assert "t0000, t0001, t0002: the model folder is gone" in plain(build(folder), 80)


def test_a_metric_to_rank_by_is_shown_though_others_make_room(tmp_path: Path) -> None:
    rows = build(mixed(tmp_path), ["completion_perplexity"])
    assert "label ppl" not in plain(rows, 60)
    assert "label ppl" in plain(rows, 60, ["completion_perplexity"])


# The verdict


def two(tmp_path: Path, trial: int, base: int) -> str:
    folder = sweep(tmp_path)
    add(folder, "t0000", right=trial, accuracy=trial / 40)
    add(folder, "zero_shot", right=base, accuracy=base / 40)
    return verdict(folder, build(folder))


def test_a_clear_gain_is_a_win_with_its_size_interval_and_items(tmp_path: Path) -> None:
    text = two(tmp_path, 32, 12)
    assert text.startswith(
        "The best trial, t0000, beats the untuned model by 50.0 points of accuracy (80.0 % against 30.0 %);"
        " paired 95 % interval ["
    )
    low, high = map(float, text.split("interval [")[1].split("]")[0].split(","))
    assert 0 < low < 50 < high
    first, second = text.splitlines()
    assert first.endswith("] points on 40 items.")
    assert second.startswith(
        "The most frequent label, yes, is right on 100.0 % of the items, and none of the baselines"
    )


def test_a_clear_loss_is_said_even_of_the_best_trial(tmp_path: Path) -> None:
    text = two(tmp_path, 12, 32)
    assert text.startswith(
        "No evidence that fine-tuning beats leaving the model as it is: the best trial, t0000, is 50.0 points of"
        " accuracy below the untuned model (30.0 % against 80.0 %); paired"
    )
    assert "chance" not in text


@pytest.mark.parametrize(
    ("trial", "words"), [(21, "is 2.5 points of accuracy above"), (19, "is 2.5 points of accuracy below the untuned")]
)
def test_a_difference_within_the_noise_is_said_to_be_maybe_chance(tmp_path: Path, trial: int, words: str) -> None:
    text = two(tmp_path, trial, 20)
    assert words in text
    assert "it includes zero, so the difference may be chance" in text
    assert text.startswith("No evidence that fine-tuning beats ")


def test_items_are_paired_by_id_not_by_place(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    add(folder, "t0000", right=20, accuracy=0.5)
    base = add(folder, "zero_shot", right=20, accuracy=0.5)
    items = base.read_items("task", "validation", 40)
    base.write_items("task", "validation", 40, {name: column[::-1] for name, column in items.items()})
    text = verdict(folder, build(folder))
    assert "has the same accuracy as the untuned model (50.0 % against 50.0 %)" in text
    assert "interval [0.0, 0.0] points on 40 items" in text


def test_the_best_of_the_completed_trials_is_judged_not_a_stopped_one(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    add(folder, "t0000", State.STOPPED_EARLY, accuracy=0.99)
    add(folder, "t0001", accuracy=0.6, right=24)
    add(folder, "t0002", accuracy=0.7, right=28)
    add(folder, "zero_shot", accuracy=0.8, right=32)
    text = verdict(folder, build(folder))
    assert "the best trial, t0002, is 10.0 points of accuracy below the untuned model" in text
    assert "t0002 was chosen among 2 completed trials on these same items" in text


@pytest.mark.parametrize("missing", ["t0000", "zero_shot"])
def test_without_item_tables_there_is_no_interval_and_no_claim(tmp_path: Path, missing: str) -> None:
    folder = sweep(tmp_path)
    for name, right in (("t0000", 36), ("zero_shot", 4)):
        add(folder, name, accuracy=right / 40, right=None if name == missing else right)
    text = verdict(folder, build(folder))
    assert "accuracy 90.0 % against 10.0 % of the untuned model. There is no interval" in text
    assert f"{missing}/items/task-validation-40.parquet: no such item table" in text
    assert "beats" not in text


def test_bias_is_reported_beside_quality_where_it_was_measured(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    bias = {"bias.crows_pairs.pct": 61.04, "bias.crows_pairs.stderr": 2.9}
    add(folder, "t0000", State.COMPLETED, (40, True, {"accuracy": 0.9, **bias}), right=36)
    add(folder, "zero_shot", State.COMPLETED, (40, True, {"accuracy": 0.1, "bias.crows_pairs.pct": 52.0}), right=4)
    assert "t0000 61.0 % ± 2.9; the untuned model 52.0 %." in verdict(folder, build(folder))
    assert "CrowS" not in two(tmp_path / "classification", 36, 4)
