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
