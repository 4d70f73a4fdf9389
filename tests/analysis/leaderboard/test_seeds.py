"""Several seeds of a configuration beside the ranking of single trials."""

import pytest

from analysis.leaderboard.seeds import configurations, sentence
from analysis.rows import Row


def row(trial_id: str, objective: float, status: str = "completed", kind: str = "trial") -> Row:
    return Row(kind, trial_id, status, 8, objective=objective)


def test_configurations_stand_by_their_mean_over_the_seeds_that_completed() -> None:
    rows = [
        row("t0002", 0.9), row("t0001.2", 0.86), row("t0001", 0.84), row("t0001.1", 0.82), row("t0002.1", 0.7),
        row("t0002.2", 0.99, "stopped_early"), row("t0003", 0.95), row("zero_shot", 0.1, kind="baseline"),
    ]  # fmt: skip
    first, second = configurations(rows)
    assert (first.trial_id, [it.trial_id for it in first.rows]) == ("t0001", ["t0001", "t0001.1", "t0001.2"])
    assert (first.mean, first.deviation) == (pytest.approx(0.84), pytest.approx(0.02))
    assert (second.trial_id, second.mean) == ("t0002", pytest.approx(0.8))
    assert "t0001 0.840 ± 0.020 (3 seeds), t0002 0.800 ± 0.141 (2 seeds)" in sentence(rows)


def test_without_repeats_nothing_is_said() -> None:
    assert sentence([row("t0001", 0.9), row("t0002", 0.8), row("t0002.1", float("nan"))]) == ""
