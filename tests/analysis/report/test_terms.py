"""The objective's terms in the report: which way is better along an axis, and their columns first."""

from typing import Any

import pytest

from analysis.objective import Objective
from analysis.report import figures, write


@pytest.mark.parametrize(
    ("metric", "title"),
    [
        ("log_loss", "log_loss (↓ better)"),
        ("macro_f1", "macro_f1 (↑ better)"),
        ("bias.crows_pairs.pct", "bias.crows_pairs.pct (best at 50)"),
        ("bias.crows_pairs.signed", "bias.crows_pairs.signed (best at 0)"),
    ],
)
def test_an_axis_says_which_way_its_metric_is_better(metric: str, title: str) -> None:
    term = Objective.from_config({"terms": {"a": {"metric": metric}}}).terms[0]
    assert figures.quality_cost([], term).layout.yaxis.title.text == title


def test_the_table_of_the_report_has_the_objectives_metrics_right_after_the_score(make_sweep: Any) -> None:
    terms = {name: {"metric": name} for name in ("log_loss", "weighted_f1")}
    fake = make_sweep({"name": "x", "rho": 0.0, "terms": terms})
    fake.trial("t0000", fake.metrics(0.5) | {"weighted_f1": 0.5})
    page = write(fake.folder).read_text()
    heads = ["interval of the score", "log_loss", "weighted_f1", "accuracy", "macro_f1"]
    places = [page.index(f'title="{head}"') for head in heads]
    assert places == sorted(places)
