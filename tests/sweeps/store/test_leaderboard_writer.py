"""The adapters that stay on disk."""

from pathlib import Path

import pytest

from analysis.folder import SweepFolder
from analysis.leaderboard import leaderboard
from analysis.leaderboard.leaderboard import Row
from sweeps.store.leaderboard_writer import LeaderboardWriter


def test_only_the_adapters_of_the_best_trials_stay_and_those_of_running_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = SweepFolder(tmp_path)
    states = ["completed", "running", "completed", "stopped_early", "completed", "failed"]
    rows = [Row("baseline", "zero_shot", "completed", 0)]
    rows += [Row("trial", f"t{n:04d}", state, 8) for n, state in enumerate(states)]  # as ranked
    for row in rows[1:6]:
        (folder.trial(row.trial_id).adapter_dir / "inner").mkdir(parents=True)
    monkeypatch.setattr(leaderboard, "build", lambda folder: rows)
    monkeypatch.setattr(leaderboard, "write", lambda folder, rows: None)

    def left() -> list[str]:
        return [row.trial_id for row in rows[1:] if folder.trial(row.trial_id).adapter_dir.exists()]

    LeaderboardWriter(folder).trial_ended()
    assert left() == ["t0000", "t0001", "t0002", "t0003", "t0004"]
    LeaderboardWriter(folder, keep=3).trial_ended()
    assert left() == ["t0000", "t0001", "t0002"]
    LeaderboardWriter(folder, keep=1).trial_ended()
    assert left() == ["t0000", "t0001"], "a running trial's adapter is not ours to drop, nor the best one's"


def test_all_seeds_of_the_best_configurations_keep_their_adapters_and_whoever_asks_is_told_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = SweepFolder(tmp_path)

    def configuration(name: str, status: str, seeds: int) -> Row:
        runs = [Row("trial", f"{name}.{k}" if k else name, "completed", 8, objective=0.5) for k in range(seeds)]
        for run in runs:
            folder.trial(run.trial_id).adapter_dir.mkdir(parents=True)
        return Row("trial", name, status, 8, objective=0.5, final=True, seeds=tuple(runs))

    rows = [configuration("t0002", "completed", 2), configuration("t0000", "completed", 2)]
    rows += [configuration("t0001", "running", 1)]
    monkeypatch.setattr(leaderboard, "build", lambda folder: rows)
    monkeypatch.setattr(leaderboard, "write", lambda folder, rows: None)
    told: list[Row | None] = []
    LeaderboardWriter(folder, keep=1, best=told.append).trial_ended()
    there = sorted(files.trial_id for files in folder.trials() if files.adapter_dir.exists())
    assert there == ["t0001", "t0002", "t0002.1"], "t0001 has seeds to come"
    assert told == [rows[0]]
