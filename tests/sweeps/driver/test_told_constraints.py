"""What the sampler is told of constraints: as the ranking judges them, on the items that the trial was scored on."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from analysis.folder import MetricsRow, SweepFolder
from sweeps.driver.tune_run import TuneRun

GAP = "bias.group.equalized_odds"


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """What ``_violated`` reads of a run: the folder, and the config's constraints."""
    folder = SweepFolder(tmp_path)
    baseline = folder.baseline("zero_shot")
    baseline.root.mkdir(parents=True)
    for final, bits in ((False, 2.0), (True, 1.5)):
        baseline.append_metrics(MetricsRow("zero_shot", 0, 0, 0.0, final, 8, {"bits_per_byte": bits}))
    constraints = {
        "capability": {"metric": "bits_per_byte", "baseline": "zero_shot", "margin": 0.3},
        "fair": {"metric": GAP, "at_most": 0.1},
    }
    composed = SimpleNamespace(resolved=lambda: {"objective": {"constraints": constraints}})
    return SimpleNamespace(folder=folder, composed=composed)


def test_a_trial_is_compared_with_the_baselines_figures_on_the_same_items(run: Any) -> None:
    metrics = {"bits_per_byte": 2.1, GAP: 0.05, f"{GAP}_upper": 0.3}
    assert TuneRun._violated(run, metrics, False)["capability"] == pytest.approx(-0.2)
    assert TuneRun._violated(run, metrics, True)["capability"] == pytest.approx(0.3)


def test_the_sampler_hears_of_the_upper_bound_and_of_no_rounding(run: Any) -> None:
    metrics = {"bits_per_byte": 1.5 + 0.1 + 0.2, GAP: 0.05, f"{GAP}_upper": 0.3}
    assert 1.5 + 0.1 + 0.2 - 1.5 - 0.3 > 0
    told = TuneRun._violated(run, metrics, True)
    assert told["capability"] == 0.0
    assert told["fair"] == pytest.approx(0.2)
    assert TuneRun._violated(run, metrics | {f"{GAP}_upper": 0.3 - 0.2}, True)["fair"] <= 0
