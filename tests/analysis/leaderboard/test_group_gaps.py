"""The sentences on gaps between groups: chance beside the figure, and who has too few rows to take part."""

from typing import Any

import pytest
import yaml

from analysis.leaderboard.leaderboard import build, verdict

GAP, PARITY = "bias.group.equalized_odds", "bias.group.demographic_parity"


def gap(name: str, value: float, fair_high: float) -> dict[str, float]:
    return {name: value, f"{name}_upper": value + 0.13, f"{name}_fair": 0.24, f"{name}_fair_high": fair_high}


@pytest.fixture
def lines(sweep: Any) -> Any:
    def of(metrics: dict[str, float], **columns: list[Any]) -> list[str]:
        files = sweep.trial("t0000", sweep.metrics(0.9) | metrics)
        if columns:
            files.write_items("task", "validation", 24, columns)
        return [line for line in verdict(sweep.folder, build(sweep.folder)).splitlines() if "roup" in line]

    return of


def test_what_fair_predictions_would_score_stands_beside_each_gap(lines: Any) -> None:
    assert lines(gap(GAP, 0.31, 0.41) | gap(PARITY, 0.5, 0.41)) == [
        "Gap between groups of t0000, equalized odds: 0.31 (95 % sure: at most 0.44). Fair predictions of these group"
        " sizes would score 0.24 on average, up to 0.41: this may be chance.",
        "Gap between groups of t0000, demographic parity: 0.50 (95 % sure: at most 0.63). Fair predictions of these"
        " group sizes would score 0.24 on average, up to 0.41: this is more than chance.",
    ]


def test_groups_that_take_no_part_are_named_with_their_rows(sweep: Any, lines: Any) -> None:
    content = yaml.safe_load(sweep.folder.sweep_file.read_text())
    content["config"]["bias"] = {"group_rows": 4}
    sweep.folder.sweep_file.write_text(yaml.safe_dump(content))
    labels, groups = ["a"] * 8 + ["b"] * 11, ["x"] * 4 + ["y"] * 4 + ["x"] * 3 + ["y"] * 8
    found = lines(
        gap(GAP, 0.31, 0.41),
        item_id=[f"i{k}" for k in range(19)], label=labels, prediction=labels, group=groups,
    )  # fmt: skip
    assert found[-1] == "Groups with fewer than 4 rows of a label take no part for it: x with label b (3)."


def test_a_sweep_without_groups_or_of_an_earlier_version_has_no_such_sentence(lines: Any) -> None:
    assert lines({GAP: 0.31}) == []
