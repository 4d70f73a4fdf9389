"""How sure a ranking is: no winner among equals, a clear one named, and figures against scipy and statsmodels."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import bootstrap, norm
from sklearn.metrics import f1_score
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from analysis.folder import State, SweepFolder
from analysis.leaderboard import leaderboard
from analysis.objective import Objective
from analysis.rows import Row
from analysis.statistics import comparison
from analysis.statistics.comparison import Judgement, holm, judge
from analysis.statistics.estimators import Scored
from analysis.statistics.selection import expected_largest

LABELS = ["a", "b", "c", "d"]
F1 = Objective.from_config({"name": "s", "rho": 0.0, "terms": {"q": {"metric": "macro_f1", "range": [0.0, 1.0]}}})


def simulated(folder: SweepFolder, truths: list[float], n: int, seed: int, shared: float = 0.5) -> list[Row]:
    """Trials of known true accuracy on ``n`` items, the best first.

    Args:
        shared: how much of what makes an item hard is hard for all trials: fine-tunes of one model err alike.
    """
    rng = np.random.default_rng(seed)
    gold, hard = rng.integers(4, size=n), rng.standard_normal(n)
    rows = []
    for i, truth in enumerate(truths):
        own = math.sqrt(shared) * hard + math.sqrt(1 - shared) * rng.standard_normal(n)
        told = np.where(own < norm.ppf(truth), gold, (gold + rng.integers(1, 4, size=n)) % 4)
        files = folder.trial(f"t{i:04}")
        columns = {"item_id": [f"i{j}" for j in range(n)]}
        columns |= {"label": [LABELS[g] for g in gold], "prediction": [LABELS[g] for g in told]}
        files.write_items("task", "validation", 1, columns)
        right, either = (
            [((gold == c) & (told == c)).sum() for c in range(4)],
            [(gold == c).sum() + (told == c).sum() for c in range(4)],
        )
        f1 = float(np.mean([2 * r / e for r, e in zip(right, either, strict=True)]))
        metrics = {"macro_f1": f1, "accuracy": float((gold == told).mean())}
        rows.append(Row("trial", files.trial_id, "completed", 1, n, True, {}, metrics, metrics["macro_f1"]))
    return sorted(rows, key=lambda row: -row.objective)


@pytest.fixture(autouse=True)
def _no_crash_to_survive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of item tables are written here; flushing each to the disk would take most of the time."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def judged(folder: SweepFolder, rows: list[Row], by: str | None = None) -> Judgement:
    found = judge(folder, sorted(rows, key=lambda row: -row.metrics[by]) if by else rows, F1, LABELS, by)
    assert found is not None
    return found


def test_of_32_identical_trials_none_is_the_winner_and_the_corrected_estimate_is_the_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50 simulations: the best of 32 shows 3 points too much; corrected, it is within 1 point on average."""
    monkeypatch.setattr("analysis.statistics.comparison.RESAMPLES", 399)  # a fifth of the time
    shown, corrected = [], []
    for seed in range(50):
        folder = SweepFolder(tmp_path / str(seed))
        rows = simulated(folder, [0.85] * 32, 500, seed, shared=0.0)
        found = judged(folder, rows)
        assert found.winner is None
        assert len(found.tied) >= 20
        shown.append(rows[0].objective)
        corrected.append(found.corrected["macro_f1"])
    assert np.mean(shown) - 0.85 > 0.025
    assert abs(np.mean(corrected) - 0.85) < 0.01


def test_a_trial_that_is_8_points_better_is_named_with_500_items(tmp_path: Path) -> None:
    named = []
    for seed in range(10):
        folder = SweepFolder(tmp_path / str(seed))
        found = judged(folder, simulated(folder, [0.85] + [0.77] * 7, 500, seed))
        assert found.best == "t0000"
        named.append(found.winner)
    assert set(named) <= {"t0000", None}
    assert named.count("t0000") >= 9


def test_two_equal_trials_are_told_apart_no_more_often_than_the_level(tmp_path: Path) -> None:
    told = 0
    for seed in range(40):
        folder = SweepFolder(tmp_path / str(seed))
        told += judged(folder, simulated(folder, [0.8, 0.8], 200, seed)).winner is not None
    assert told <= 6  # 5 % of 40 is 2; 7 or more has a chance of 1 in 200


def test_the_intervals_are_those_of_scipys_paired_bootstrap(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    rows = simulated(folder, [0.85, 0.75], 150, 3)
    best, other = rows
    standing = judged(folder, rows).standings[other.trial_id]
    gold, mine, yours = (
        np.array(folder.trial(t).read_items("task", "validation", 1)[c])
        for t, c in ((best.trial_id, "label"), (best.trial_id, "prediction"), (other.trial_id, "prediction"))
    )

    def f1(told: np.ndarray, at: np.ndarray) -> float:
        return float(f1_score(gold[at], told[at], labels=LABELS, average="macro", zero_division=0))

    direct = bootstrap(
        (np.arange(150),), lambda at: f1(mine, at) - f1(yours, at), vectorized=False, n_resamples=500,
        method="percentile", rng=np.random.default_rng(1),
    )  # fmt: skip
    low, high = direct.confidence_interval
    assert standing.behind == pytest.approx(best.objective - other.objective, abs=1e-6)
    assert (standing.behind_low, standing.behind_high) == pytest.approx((low, high), abs=0.012)
    assert standing.error == pytest.approx(direct.standard_error, rel=0.1)


def test_by_accuracy_the_test_is_mcnemars_with_holms_correction(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    rows = simulated(folder, [0.85, 0.83, 0.78, 0.7], 200, 4)
    found = judged(folder, rows, by="accuracy")
    assert found.test == "McNemar's test"
    right = {}
    for row in rows:
        items = folder.trial(row.trial_id).read_items("task", "validation", 1)
        right[row.trial_id] = np.array(items["label"]) == np.array(items["prediction"])
    best = right.pop(found.best)
    p = {
        name: mcnemar([[0, int((best & ~own).sum())], [int((~best & own).sum()), 0]], exact=True).pvalue
        for name, own in right.items()
    }
    assert {name: found.standings[name].p for name in p} == pytest.approx(p)
    adjusted = multipletests(list(p.values()), method="holm")[1]
    assert [found.standings[name].adjusted for name in p] == pytest.approx(adjusted.tolist())


@pytest.mark.parametrize("p", [[], [0.2], [0.04, 0.01, 0.04, 0.5, 0.0], [1.0, 0.03, 0.02, 0.021], [0.9, 0.6, 0.7]])
def test_holms_correction_is_that_of_statsmodels(p: list[float]) -> None:
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1].tolist() if p else [])


def test_the_permutation_test_agrees_with_mcnemar_where_both_fit(tmp_path: Path) -> None:
    """On accuracy exchanging answers is the sign test that McNemar's is; macro-F1 of balanced classes is near it."""
    folder = SweepFolder(tmp_path)
    rows = simulated(folder, [0.85, 0.78, 0.6], 300, 6)
    by_f1, by_accuracy = judged(folder, rows), judged(folder, rows, by="accuracy")
    for name in ("t0001", "t0002"):
        assert by_f1.standings[name].p == pytest.approx(by_accuracy.standings[name].p, abs=0.03)
    assert by_f1.standings["t0002"].p < 1e-4  # smaller than resampling alone can show


def test_rows_with_other_items_are_compared_on_the_common_ones(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    rows = simulated(folder, [0.9, 0.8, 0.8], 200, 7)
    files = folder.trial(rows[1].trial_id)
    items = files.read_items("task", "validation", 1)
    files.write_items("task", "validation", 1, {name: column[:120] for name, column in items.items()})
    found = judged(folder, rows)
    assert [found.standings[row.trial_id].n for row in rows[1:]] == [120, 200]
    of_own_items = judged(folder, [rows[0], rows[2]])
    assert found.corrected == of_own_items.corrected, "from those with all items of the best, whoever is second"


def test_a_row_without_a_common_item_is_named_and_the_others_are_compared(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    rows = simulated(folder, [0.9, 0.8, 0.8, 0.8], 200, 7)
    for row in rows[1:3]:  # two other lists of items
        files = folder.trial(row.trial_id)
        items = files.read_items("task", "validation", 1)
        files.write_items("task", "validation", 1, items | {"item_id": [f"{row.trial_id}-{i}" for i in range(200)]})
    found = judged(folder, rows)
    assert sorted(found.standings) == sorted([rows[0].trial_id, rows[3].trial_id])
    assert sorted(found.lacking) == sorted(row.trial_id for row in rows[1:3])


def test_a_row_without_item_table_is_named_and_prevents_a_winner(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    rows = simulated(folder, [0.95, 0.5, 0.5], 300, 8)
    folder.trial("t0002").items_file("task", "validation", 1).unlink()
    found = judged(folder, rows)
    assert found.tied == []
    assert found.winner is None
    assert "t0002/items/task-validation-1.parquet: no such item table" in found.lacking["t0002"]


def test_identical_answers_are_tied(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    rows = simulated(folder, [0.8, 0.8], 100, 9)
    items = folder.trial("t0000").read_items("task", "validation", 1)
    folder.trial("t0001").write_items("task", "validation", 1, items)
    found = judged(folder, [rows[0], rows[1]])
    assert found.standings[rows[1].trial_id].p == 1.0
    assert found.tied == [rows[1].trial_id]


def test_there_is_nothing_to_judge_of_one_trial_or_without_tables(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    rows = simulated(folder, [0.8, 0.7], 50, 1)
    assert judge(folder, rows[:1], F1, LABELS) is None
    folder.trial(rows[0].trial_id).items_file("task", "validation", 1).unlink()
    assert judge(folder, rows, F1, LABELS) is None


def test_a_metric_without_item_scores_stays_as_measured_and_is_named(sweep: Any) -> None:
    sweep.trial("t0000", 0.9, hits=144)
    sweep.trial("t0001", 0.5, hits=80)
    ranking = leaderboard.ranked(sweep.folder)
    assert ranking.judgement is not None
    assert ranking.judgement.fixed == ("bias.crows_pairs.distance",)
    told = leaderboard.verdict(sweep.folder, ranking.rows, ranking.judgement)
    assert "Taken as measured, without sampling error: bias.crows_pairs.distance." in told


# In the leaderboard


def with_adapter(files: Any, numbers: int) -> Any:
    head = json.dumps({"w": {"dtype": "F32", "shape": [numbers, 2], "data_offsets": [0, 0]}}).encode()
    files.adapter_dir.mkdir()
    (files.adapter_dir / "adapter_model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)
    return files


def test_tied_trials_within_a_standard_error_stand_by_cost_and_are_marked(sweep: Any) -> None:
    with_adapter(sweep.trial("t0000", 0.906, hits=145), 800)
    with_adapter(sweep.trial("t0001", 0.9, hits=144), 100)
    with_adapter(sweep.trial("t0002", 0.3, hits=48), 10)
    ranking = leaderboard.ranked(sweep.folder)
    assert [(row.trial_id, row.tied) for row in ranking.rows] == [("t0001", True), ("t0000", True), ("t0002", False)]
    text = leaderboard.plain(ranking.rows, 160)
    assert [line.split()[0] for line in text.splitlines()[2:5]] == ["1=", "2=", "3"]
    assert "= tied: on these items it cannot be told from the best score" in text
    told = leaderboard.verdict(sweep.folder, ranking.rows, ranking.judgement)
    assert "No winner: t0000 has the best score, but cannot be told from t0001 on 160 items" in told
    first, second = (f"{row.objective:.3f}" for row in ranking.rows[:2])
    assert f"t0001 ({first}) stands before t0000 ({second}), which has the best score" in told
    assert "t0000 was chosen among 1 configuration on these same items (1 ran to the end, 2 more were copies" in told


def test_a_clear_best_is_named_and_cost_changes_nothing(sweep: Any) -> None:
    with_adapter(sweep.trial("t0000", 0.9, hits=144), 800)
    with_adapter(sweep.trial("t0001", 0.5, hits=80), 1)
    ranking = leaderboard.ranked(sweep.folder)
    assert [(row.trial_id, row.tied) for row in ranking.rows] == [("t0000", False), ("t0001", False)]
    told = leaderboard.verdict(sweep.folder, ranking.rows, ranking.judgement)
    assert "t0000 is better than the other completed trial on 160 items (permutation test, p " in told


def test_ties_by_score_and_by_a_metric_leave_the_order_of_the_numbers(make_sweep: Any) -> None:
    fake = make_sweep()
    for ties in ("cost", "score"):
        fake = make_sweep(objective={**fake.wanted, "ties": ties}, name=ties)
        with_adapter(fake.trial("t0000", 0.906, hits=145), 800)
        with_adapter(fake.trial("t0001", 0.9, hits=144), 100)
        assert [row.trial_id for row in leaderboard.ranked(fake.folder, ["f1"]).rows] == ["t0000", "t0001"]
    assert [row.trial_id for row in leaderboard.ranked(fake.folder).rows] == ["t0000", "t0001"]


def test_stopped_infeasible_and_baseline_rows_take_no_part_in_the_correction(sweep: Any) -> None:
    sweep.untuned(0.875, hits=140)
    sweep.trial("t0000", 0.9, hits=144)
    sweep.trial("t0001", 0.5, hits=80)
    sweep.trial("t0002", 0.95, State.STOPPED_EARLY, hits=152)
    ranking = leaderboard.ranked(sweep.folder)
    assert ranking.judgement is not None
    assert set(ranking.judgement.standings) == {"t0000", "t0001", "zero_shot"}
    assert ranking.judgement.winner == "t0000"
    assert not any(row.tied for row in ranking.rows)
    assert math.isfinite(next(row for row in ranking.rows if row.trial_id == "zero_shot").low)


def test_pareto_rows_stand_by_front(make_sweep: Any) -> None:
    fake = make_sweep()
    fake = make_sweep(objective={**fake.wanted, "method": "pareto"}, name="pareto")
    fake.trial("t0000", fake.metrics(0.9, crows=75.0))
    fake.trial("t0001", fake.metrics(0.5, crows=50.0))
    fake.trial("t0002", fake.metrics(0.89, crows=75.0))  # beaten by t0000 in one, equal in the other
    rows = leaderboard.ranked(fake.folder).rows
    assert [(row.trial_id, row.front) for row in rows] == [("t0000", 1), ("t0001", 1), ("t0002", 2)]
    assert rows[1].objective < rows[2].objective


# What judge makes of the rows of a sweep


def unlabelled(folder: SweepFolder, offsets: list[float], n: int = 120) -> list[Row]:
    """Trials of completions without labels; a trial's loss a token is 1 plus its offset, and noise of each row."""
    rng, rows = np.random.default_rng(0), []
    hard = rng.normal(0, 0.3, n)
    for i, offset in enumerate(offsets):
        files, tokens = folder.trial(f"t{i:04}"), rng.integers(5, 40, n)
        nll = tokens * np.exp(hard + 0.05 * rng.standard_normal(n)) * (1 + offset)
        columns = {"item_id": [str(j) for j in range(n)], "nll": nll.tolist(), "n_tokens": tokens.tolist()}
        columns |= {"n_bytes": (4 * tokens).tolist(), "completion_nll": nll.tolist()}
        files.write_items("task", "validation", 1, columns | {"completion_tokens": tokens.tolist()})
        metrics = {"completion_loss": float(nll.sum() / tokens.sum())}
        rows.append(
            Row("trial", files.trial_id, "completed", 1, n, True, {"i": i}, metrics, -metrics["completion_loss"])
        )
    return sorted(rows, key=lambda row: -row.objective)


def test_a_sweep_without_labels_has_intervals_ties_and_a_winner(tmp_path: Path) -> None:
    loss = {"metric": "completion_loss", "direction": "min", "range": [0.0, 8.0]}
    objective = Objective.from_config({"name": "s", "rho": 0.0, "terms": {"q": loss}})
    for by in (None, "completion_loss"):
        clear = judge(folder := SweepFolder(tmp_path), unlabelled(folder, [0.2, 0.0, 0.5]), objective, [], by)
        assert clear is not None
        assert (clear.best, clear.winner) == ("t0001", "t0001")
        at = clear.standings["t0000"]
        assert at.p < 0.001
        assert 0 < at.behind_low < at.behind < at.behind_high
        equal = judge(folder, unlabelled(folder, [0.0, 0.0, 0.5]), objective, [], by)
        assert equal is not None
        assert equal.winner is None
        assert len(equal.tied) == 1
        low, high = equal.standings["t0002"].low, equal.standings["t0002"].high
        loss_of = next(row for row in unlabelled(folder, [0.0, 0.0, 0.5]) if row.trial_id == "t0002").metrics
        shown = loss_of["completion_loss"]
        assert low < (shown if by else 1 - shown / 8) < high


def test_ranked_by_any_metric_of_the_task_no_metric_stays_as_measured(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    rows = simulated(folder, [0.9, 0.7], 200, 3)
    for by in ("balanced_accuracy", "mcc"):
        better = [r.trial_id for r in rows]
        found = judge(folder, rows, F1, LABELS, by)
        assert found is not None
        assert found.fixed == ()
        assert found.winner == better[0]
        assert found.standings[better[0]].low < found.standings[better[0]].high


def test_without_enough_items_of_a_label_the_reason_is_given_and_the_test_stays(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    rows = simulated(folder, [0.95, 0.5], 160, 4)
    found = judge(folder, rows, F1, [*LABELS, "e"])
    assert found is not None
    assert found.without_interval["macro_f1"] == "label e has no item; at least 5 are needed"
    assert all(math.isnan(at.low) and math.isnan(at.high) for at in found.standings.values())
    assert found.winner == rows[0].trial_id


def test_trials_that_were_stopped_early_are_counted_and_raise_the_correction(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    rows = [replace(row, config={"lr": i}) for i, row in enumerate(simulated(folder, [0.8] * 5, 200, 5))]
    stopped = [Row("trial", f"s{i}", "stopped_early", 1, 100, config={"lr": 100 + i // 2}) for i in range(40)]
    alone, among = judge(folder, rows, F1, LABELS), judge(folder, rows, F1, LABELS, stopped=stopped)
    assert alone is not None
    assert among is not None
    assert (alone.looked_at, among.looked_at) == (5, 25)  # two copies of each of those that were stopped
    shown = rows[0].metrics["macro_f1"]
    more = 0.5 * (expected_largest(25) / expected_largest(5) - 1)  # they were scored on half of the items
    assert (shown - among.corrected["macro_f1"]) / (shown - alone.corrected["macro_f1"]) == pytest.approx(1 + more)


def test_the_best_rows_own_interval_reaches_down_by_the_correction(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    rows = simulated(folder, [0.8] * 30, 200, 1, shared=0.0)
    found, alone = judged(folder, rows), judged(folder, rows[:2])
    at, uncorrected = found.standings[rows[0].trial_id], alone.standings[rows[0].trial_id]
    excess = rows[0].objective - found.corrected["objective"]
    assert excess > 0.02
    assert uncorrected.low - at.low > 0.01  # itself corrected for the choice of two
    assert at.high == pytest.approx(uncorrected.high, abs=0.001)
    assert at.low < 0.8 < at.high


def test_a_configuration_of_several_seeds_is_judged_by_its_mean_with_the_spread_of_seeds(tmp_path: Path) -> None:
    """A lucky seed of a configuration with a poor mean is not crowned; few items of each seed are told apart by t."""
    folder = SweepFolder(tmp_path)
    runs = sorted(simulated(folder, [0.9, 0.5, 0.75, 0.75, 0.6, 0.6], 300, 7), key=lambda row: row.trial_id)

    def configuration(*seeds: Row) -> Row:
        names = seeds[0].metrics
        means = {name: float(np.mean([seed.metrics[name] for seed in seeds])) for name in names}
        return replace(seeds[0], metrics=means, objective=means["macro_f1"], seeds=seeds)

    rows = [configuration(*runs[i : i + 2]) for i in (2, 0, 4)]
    found = judge(folder, rows, F1, LABELS)
    assert found is not None
    assert found.test == "t-test over items and seeds"
    assert found.standings["t0000"].behind == pytest.approx(rows[0].objective - rows[1].objective, abs=1e-6)
    assert found.winner is None  # the permutation test, which knows no seeds, would name one
    single = judge(folder, [replace(row, seeds=()) for row in rows], F1, LABELS)
    assert single is not None
    wide, narrow = (given.standings["t0004"].high - given.standings["t0004"].low for given in (found, single))
    assert wide > 2 * narrow


def test_the_test_is_the_same_however_many_exchanges_are_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = SweepFolder(tmp_path)
    rows = simulated(folder, [0.7, 0.6, 0.55], 150, seed=3)
    many = judged(folder, rows).standings
    monkeypatch.setattr(comparison, "_AT_ONCE", 1)
    one = judged(folder, rows).standings
    assert {name: at.p for name, at in one.items()} == pytest.approx({name: at.p for name, at in many.items()})


def test_a_thousand_rivals_are_tested_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"accuracy": np.random.default_rng(0).integers(2, size=(1000, 40, 1)).astype(np.float32)}
    scored = Scored({"task": 40}, columns, {}, lambda values: values["accuracy"])
    widest: list[int] = []
    plain = Scored.exchanged
    monkeypatch.setattr(
        Scored, "exchanged", lambda self, masks: widest.append(len(masks["task"])) or plain(self, masks)
    )
    monkeypatch.setattr(comparison, "RESAMPLES", 9_999)
    comparison._permutation(scored, columns["accuracy"].mean(axis=(1, 2)))
    assert max(widest) * scored.width <= 1 << 22
