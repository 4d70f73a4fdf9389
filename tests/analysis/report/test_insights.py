"""What mattered, and the notebook's frames."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import analysis
from analysis.errors import FolderError
from analysis.folder import MetricsRow, State
from analysis.report import insights
from analysis.report.optuna_study import study_of
from analysis.rows import Row
from tests.benchmarks.synthetic import SPACE, make


def rows_of(n: int, seed: int = 0, **more: Any) -> list[Row]:
    """Trials whose score depends on the learning rate and not on the rank."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        rate, rank = 10 ** rng.uniform(-4, -2), int(rng.choice([4, 8, 16]))
        score = 0.9 - 0.2 * (math.log10(rate) + 3) ** 2 + 0.005 * rng.standard_normal()
        config = {"optim.lr": float(rate), "lora.rank": rank, **more}
        rows.append(Row("trial", f"t{i:04}", "completed", 9, 100, True, config, {"macro_f1": score}, score))
    return rows


def test_the_learning_rate_is_found_to_matter_and_few_trials_are_warned_of() -> None:
    for n, warned in ((60, False), (12, True)):
        rows = rows_of(n)
        by = insights.basis(rows, {}, lambda metrics: metrics["macro_f1"])
        found, _ = insights.importance_of("x", rows, SPACE, by)
        assert next(iter(found.shares)) == "optim.lr"
        assert found.shares["optim.lr"] > 0.8
        assert sum(found.shares.values()) == pytest.approx(1.0)
        assert bool(found.warning) == warned
        assert found.method == "fANOVA"


def test_a_value_that_only_some_trials_have_is_left_to_ped_anova() -> None:
    rows = rows_of(60)
    for i, row in enumerate(rows):
        row.config["lora.dropout"] = 0.1 * (i % 3) if i % 2 else None
    by = insights.basis(rows, {}, lambda metrics: metrics["macro_f1"])
    found, _ = insights.importance_of("x", rows, SPACE, by)
    assert found.method == "PED-ANOVA"
    assert found.shares["optim.lr"] == max(found.shares.values())


@pytest.mark.parametrize("n", [0, 1, 3])
def test_too_few_trials_have_no_importances(n: int) -> None:
    rows = rows_of(n)
    found, _ = insights.importance_of("x", rows, SPACE, insights.basis(rows, {}, lambda m: m["macro_f1"]))
    assert found.shares == {}
    assert found.warning == f"Too few trials were scored to tell ({n})."


def test_points_outside_the_space_and_values_of_other_types_enter_the_study() -> None:
    rows = rows_of(5)
    rows[0].config["optim.lr"] = 0.5
    rows[1].config["lora.rank"] = 3
    study = study_of("x", rows, SPACE, {row.trial_id: row.objective for row in rows})
    assert [trial.params for trial in study.trials] == [row.config for row in rows]


def test_stopped_trials_are_compared_at_the_rung_that_all_reached() -> None:
    rows = rows_of(4)
    rows[0] = Row("trial", "t0000", State.STOPPED_EARLY, 4, 10, False, rows[0].config, {"macro_f1": 0.3}, 0.3)
    curves = {
        row.trial_id: [MetricsRow(row.trial_id, step, 0, 0.0, False, 10, {"macro_f1": step / 10}) for step in steps]
        for row, steps in zip(rows, ([4], [4, 8], [4, 8], [8]), strict=True)
    }
    by = insights.basis(rows, curves, lambda metrics: metrics["macro_f1"])
    assert by.words == "the score at step 4, which each of them reached"
    assert by.values == {"t0000": 0.4, "t0001": 0.4, "t0002": 0.4}
    many = rows_of(insights.ENOUGH)
    assert insights.basis(many, curves, lambda m: m["macro_f1"]).words == "the final scoring of completed trials"


def test_effects_have_a_level_a_value_or_a_quartile_and_count_what_diverged() -> None:
    rows = rows_of(40)
    rows[5] = Row("trial", "t0005", State.DIVERGED, 3, config={"optim.lr": 0.01, "lora.rank": 4}, reason="nan")
    by = insights.basis(rows, {}, lambda metrics: metrics["macro_f1"])
    found = insights.effects(rows, by, ["macro_f1"])
    assert [level.label for level in found["lora.rank"]] == ["4", "8", "16"]
    assert sum(level.trials for level in found["lora.rank"]) == 40
    assert found["lora.rank"][0].ended["diverged"] == 1
    assert len(found["optim.lr"]) == 4
    own = [row.metrics["macro_f1"] for row in rows if row.config["lora.rank"] == 8]
    assert found["lora.rank"][1].medians["macro_f1"] == pytest.approx(np.median(own))
    assert [row.trial_id for row in insights.diverged(rows)] == ["t0005"]


# In a notebook


def test_a_sweep_is_tidy_frames(tmp_path: Path) -> None:
    folder = make(tmp_path / "twelve", 12, items=40)
    run = analysis.load(folder.root)
    frame = run.frame()
    assert len(frame) == 13
    assert list(frame["rank"]) == list(range(1, 14))
    assert set(frame["sweep"]) == {"twelve"}
    assert frame.set_index("trial_id").loc["zero_shot", "kind"] == "baseline"
    first = frame[frame["kind"] == "trial"].iloc[0]
    config = folder.trial(first["trial_id"]).config_file.read_text()
    assert f"rank: {first['lora.rank']}" in config
    items = run.items(first["trial_id"])
    assert (items["label"] == items["prediction"]).mean() == pytest.approx(first["accuracy"])
    assert len(run.items(first["trial_id"], "crows_pairs")) == 60
    curves = run.curves()
    assert set(curves[~curves["final"]]["step"]) <= {4, 12, 36}
    assert len(curves[curves["trial_id"] == "zero_shot"]) == 1
    with pytest.raises(FolderError, match="no trial or baseline 't9999'"):
        run.items("t9999")


def test_loading_what_is_no_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="no sweep here"):
        analysis.load(tmp_path)
