"""Rows of half-written folders: whatever is missing or torn is said in its row, and hides no other."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.errors import FolderError
from analysis.folder import MetricsRow, State, TrialFolder, append_line
from analysis.leaderboard.leaderboard import build
from analysis.rows import Row


@pytest.fixture
def broken(sweep: Any) -> Any:
    """``t0000`` is whole; a test breaks ``t0001`` and asks for its row."""

    def read(damage: Callable[[TrialFolder], object], state: State = State.COMPLETED) -> Row:
        sweep.trial("t0000", 0.5)
        damage(sweep.trial("t0001", 0.9, state, step=24))
        rows = {row.trial_id: row for row in build(sweep.folder)}
        assert rows["t0000"].reason == ""
        assert rows["t0000"].objective == pytest.approx(0.5, abs=0.01)
        assert set(rows) == {"t0000", "t0001"}
        return rows["t0001"]

    return read


def cut(path: Path, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def test_a_whole_trial_shows_its_final_scoring_and_its_searched_values(sweep: Any) -> None:
    sweep.trial("t0000", 0.9, step=16)
    [row] = build(sweep.folder)
    assert (row.kind, row.status, row.step, row.n_items, row.final, row.rank) == (
        "trial",
        "completed",
        16,
        160,
        True,
        1,
    )
    assert row.config == {"lora.rank": 8, "lora.alpha_rule": "sqrt", "optim.lr": 0.00042, "precision": "nf4"}
    assert row.metrics["accuracy"] == 0.9


def test_a_stopped_trial_shows_its_last_rung_and_not_its_best(sweep: Any) -> None:
    files = sweep.trial("t0000", 0.9, State.STOPPED_EARLY, step=16)
    files.append_metrics(MetricsRow("t0000", 16, 0, 0.0, False, 64, {"macro_f1": 0.4}))
    files.append_metrics(MetricsRow("t0000", 12, 0, 0.0, False, 64, {"macro_f1": 0.6}))  # written late
    [row] = build(sweep.folder)
    assert (row.step, row.n_items, row.final, row.metrics["macro_f1"]) == (16, 64, False, 0.4)


def test_of_two_rows_at_a_step_the_later_written_counts(sweep: Any) -> None:
    files = sweep.trial("t0000", 0.9, State.RUNNING, step=8)
    files.append_metrics(MetricsRow("t0000", 8, 0, 0.0, False, 64, {"macro_f1": 0.4}))
    assert build(sweep.folder)[0].metrics["macro_f1"] == 0.4


def test_the_final_scoring_stands_though_a_rung_was_written_after_it(sweep: Any) -> None:
    files = sweep.trial("t0000", 0.9, step=16)
    files.append_metrics(MetricsRow("t0000", 24, 0, 0.0, False, 64, {"macro_f1": 0.4}))
    [row] = build(sweep.folder)
    assert (row.step, row.final, row.metrics["macro_f1"]) == (16, True, 0.9)


def test_a_folder_without_any_file_is_a_pending_trial(broken: Any) -> None:
    def empty(files: TrialFolder) -> None:
        for path in files.root.iterdir():
            path.unlink()

    row = broken(empty)
    assert (row.status, row.step, row.n_items, row.metrics, row.reason) == ("pending", 0, 0, {}, "")
    assert set(row.config.values()) == {None}


def test_metrics_without_a_status_are_shown_though_the_trial_counts_as_pending(broken: Any) -> None:
    row = broken(lambda files: files.status_file.unlink())
    assert (row.status, row.metrics["accuracy"], row.rank) == ("pending", 0.9, 2)


@pytest.mark.parametrize("content", [b"", b'{"state": "comp', b'{"state": "done"}', b"[1]", b"\xff\xfe"])
def test_a_torn_status_file_is_named_and_the_metrics_still_shown(broken: Any, content: bytes) -> None:
    row = broken(lambda files: files.status_file.write_bytes(content))
    assert row.status == "unknown"
    assert "status.json: not a status file" in row.reason
    assert row.metrics["accuracy"] == 0.9
    assert row.rank == 2


def test_a_torn_final_line_leaves_the_rung_ranked_below_what_was_scored_on_everything(broken: Any) -> None:
    row = broken(lambda files: cut(files.metrics_file, 0.8))
    assert (row.status, row.final, row.step, row.n_items) == ("completed", False, 8, 64)
    assert row.reason == "its final scoring is not in metrics.jsonl, shown is the rung at step 8"
    assert row.rank == 2  # 0.9 on the subset does not stand above 0.5 on all items


@pytest.mark.parametrize("damage", [lambda f: f.metrics_file.unlink(), lambda f: f.metrics_file.write_bytes(b"{")])
def test_a_completed_trial_without_metrics_says_so(broken: Any, damage: Any) -> None:
    row = broken(damage)
    assert (row.status, row.metrics, row.rank) == ("completed", {}, 2)
    assert row.reason == "its final scoring is not in metrics.jsonl, nor is a rung's"
    assert math.isnan(row.objective)


def test_metrics_that_cannot_be_opened_are_named(broken: Any) -> None:
    def directory(files: TrialFolder) -> None:
        files.metrics_file.unlink()
        files.metrics_file.mkdir()

    assert "metrics.jsonl cannot be read" in broken(directory).reason


@pytest.mark.parametrize(
    "wrong",
    [{"metrics": None}, {"metrics": [1]}, {"step": "24"}, {"step": None}, {"n_items": 1.5}, {"final": 1}, {"extra": 0}],
)
def test_a_record_with_wrong_types_is_passed_over(broken: Any, wrong: dict[str, Any]) -> None:
    record = {"trial_id": "t0001", "step": 30, "tokens": 0, "seconds": 0.0, "final": True, "n_items": 9, "metrics": {}}
    row = broken(lambda files: append_line(files.metrics_file, record | wrong))
    assert (row.step, row.n_items, row.metrics["accuracy"]) == (24, 160, 0.9)


@pytest.mark.parametrize("value", [math.nan, None, "0.9", True, math.inf])
def test_a_needed_metric_that_is_no_finite_number_leaves_the_row_without_objective(broken: Any, value: Any) -> None:
    def damage(files: TrialFolder) -> None:
        files.metrics_file.unlink()
        values = {"macro_f1": value, "accuracy": 0.9, "bias.crows_pairs.distance": 10.0}
        files.append_metrics(MetricsRow("t0001", 24, 0, 0.0, True, 160, values))

    row = broken(damage)
    assert math.isnan(row.objective)
    assert row.reason == "no objective: macro_f1 missing or not finite"
    assert (row.metrics["accuracy"], row.rank) == (0.9, 2)


def test_a_missing_config_leaves_the_values_unknown_and_the_rank_as_it_is(broken: Any) -> None:
    row = broken(lambda files: files.config_file.unlink())
    assert row.reason == "config.yaml is missing"
    assert set(row.config) == {"lora.rank", "lora.alpha_rule", "optim.lr", "precision"}
    assert set(row.config.values()) == {None}
    assert row.rank == 1


@pytest.mark.parametrize("content", [b"lora: {rank: 8", b"\xff\xfe\xfa", b"a: b: c"])
def test_a_torn_config_is_named(broken: Any, content: bytes) -> None:
    row = broken(lambda files: files.config_file.write_bytes(content))
    assert "config.yaml cannot be read" in row.reason
    assert "\n" not in row.reason
    assert row.rank == 1


@pytest.mark.parametrize("content", ["", "- 1\n", "lora: 3\n"])
def test_a_config_without_the_searched_paths_names_them(broken: Any, content: str) -> None:
    row = broken(lambda files: files.config_file.write_text(content))
    assert row.reason == "config.yaml lacks lora.rank, lora.alpha_rule, optim.lr, precision"


def test_the_trials_own_reason_comes_before_what_its_files_lack(sweep: Any) -> None:
    files = sweep.trial("t0000", None, State.DIVERGED, reason="the loss was nan at step 5", step=5)
    files.config_file.unlink()
    [row] = build(sweep.folder)
    assert row.reason == "the loss was nan at step 5; config.yaml is missing"
    assert row.step == 5


def test_temporary_files_and_stray_files_are_no_trials(sweep: Any) -> None:
    files = sweep.trial("t0000", 0.5)
    (files.root / ".status.json.99.tmp").write_text("{")
    (sweep.folder.trials_dir / "notes.txt").write_text("mine")
    assert [row.trial_id for row in build(sweep.folder)] == ["t0000"]


def test_an_empty_sweep_has_no_rows(sweep: Any) -> None:
    assert build(sweep.folder) == []


@pytest.mark.parametrize("content", ["", "config: [", "config: {}\n", "config: {objective: 3}\n", "- 1\n"])
def test_a_sweep_record_that_does_not_tell_how_to_rank_is_named(sweep: Any, content: str) -> None:
    sweep.folder.sweep_file.write_text(content)
    with pytest.raises(FolderError, match=r"sweep.yaml: cannot be read as a sweep's record"):
        build(sweep.folder)


def test_nothing_searched_means_no_config_columns_and_no_complaint(make_sweep: Any) -> None:
    lone = make_sweep(space={})
    lone.trial("t0000", 0.5).config_file.unlink()
    [row] = build(lone.folder)
    assert (row.config, row.reason) == ({}, "")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_that_may_not_be_read_are_named(broken: Any) -> None:
    row = broken(lambda files: files.status_file.chmod(0))
    assert (row.status, "Permission" in row.reason) == ("unknown", True)


def test_a_trial_that_ended_and_whose_folder_is_gone_is_a_row_that_says_so(sweep: Any) -> None:
    sweep.trial("t0000", 0.5)
    for name, event in (("t0000", "tell"), ("t0001", "ask"), ("t0001", "tell"), ("t0002", "ask")):
        values = {"lora.rank": 4, "precision": "nf4"}
        append_line(
            sweep.folder.asks_file, {"event": event, "trial_id": name, "values": values, "state": "stopped_early"}
        )
    rows = {row.trial_id: row for row in build(sweep.folder)}
    assert set(rows) == {"t0000", "t0001"}  # t0002 was handed out only: it may be about to start
    assert rows["t0001"].status == "unknown"
    assert rows["t0001"].config["lora.rank"] == 4
    assert rows["t0001"].reason == (
        "its folder is missing (it ended as stopped_early): restore trials/t0001 from a copy"
    )
    assert rows["t0000"].rank == 1
