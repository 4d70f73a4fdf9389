"""Gaps between groups through the command: what is said before, what a constraint holds, and what the verdict says."""

import csv
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.folder import SweepFolder
from sweeps import cli

GAP = "bias.group.equalized_odds"
WORDS = ("apple", "pear", "plum", "iron", "zinc", "owl", "hawk", "crow")


@pytest.fixture
def overrides(tiny: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A trial on rows of two groups that have enough of each label, and one that has not."""
    draw = random.Random(0)
    for name in ("train", "validation"):
        rows = [
            (f"the {draw.choice(WORDS)} is a {draw.choice(WORDS)} and {k}", label, who)
            for label in ("fruit", "metal")
            for who, n in (("x", 14), ("y", 14), ("z", 3))
            for k in range(n)
        ]
        with open(tmp_path / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([("text", "label", "who"), *rows])
    monkeypatch.chdir(tmp_path)
    return tiny(
        "bert", "task=classification", "data.train=train.csv", "data.validation=validation.csv", "data.group=who",
        "data.allow_overlap=true", "eval.rung_items=62", "sweep.name=gaps", "baselines=[majority]", "tracking=none",
        f"+objective.constraints.fair={{metric: {GAP}, at_most: 0.1}}",
    )  # fmt: skip


def require_said(out: str, folder: SweepFolder) -> None:
    assert "take no part for it: z with label fruit (3), z with label metal (3)" in out
    assert "equalized odds cannot be shown to be below 0.16 (group x with label fruit has 14 rows)" in out
    metrics = folder.trial("t0000").read_metrics()[-1].metrics
    assert metrics[GAP] <= metrics[f"{GAP}_upper"]
    assert metrics[f"{GAP}_stderr"] > 0
    assert all(math.isfinite(metrics[f"{GAP}_{end}"]) for end in ("fair", "fair_high", "floor"))
    assert f"constraint fair: {GAP} is {metrics[GAP]:.4g} (95 % sure: at most {metrics[f'{GAP}_upper']:.4g})" in out
    assert "the groups are so small here that no predictions could show less than 0.16" in out
    assert "completed !" in out
    assert "Fair predictions of these group sizes would score" in out
    assert "Groups with fewer than 10 rows of a label take no part for it: z with label fruit (3)" in out


def test_a_lone_trial_says_what_its_groups_can_show(overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trial", *overrides]) == 0
    require_said(capsys.readouterr().out, SweepFolder(Path("runs/gaps")))


def test_a_constraint_on_a_gap_that_no_rung_can_measure_is_refused(
    overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["trial", *overrides, "eval.rung_items=30"]) != 0
    said = capsys.readouterr().err
    assert f"objective.constraints.fair.metric={GAP} is not measured on these data" in said
    assert "no two groups of data.group=who have 10 rows of the same label each" in said
    assert "raise eval.rung_items, or lower bias.group_rows" in said


@pytest.mark.heavy
def test_a_sweep_says_the_same_and_tells_the_sampler(overrides: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    import json

    assert cli.main(["run", *overrides, "search.trials=2"]) == 0
    folder = SweepFolder(Path("runs/gaps"))
    require_said(capfd.readouterr().out, folder)
    told = [json.loads(line) for line in (folder.root / "study" / "asks.jsonl").read_text().splitlines()]
    held = [record["constraints"]["fair"] for record in told if record.get("constraints")]
    metrics = folder.trial("t0000").read_metrics()[-1].metrics
    assert any(amount == pytest.approx(metrics[f"{GAP}_upper"] - 0.1) for amount in held)
