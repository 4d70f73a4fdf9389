"""The leaderboard of a sweep: built from its folder, written as CSV or JSON, shown as a table and in sentences."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from analysis.folder import ENDED, SweepFolder
from analysis.leaderboard.ranking import Ranking, build, objective_of, ranked
from analysis.leaderboard.seeds import spread, with_seeds
from analysis.leaderboard.table import plain, render
from analysis.leaderboard.verdict import verdict
from analysis.metrics import METRICS
from analysis.rows import Row, best_trial, leading_trial
from analysis.text.visible import csv_cell, finite, json_text

__all__ = [
    "Ranking",
    "Row",
    "build",
    "nothing_scored",
    "objective_of",
    "plain",
    "ranked",
    "render",
    "to_csv",
    "to_json",
    "verdict",
    "write",
]


_MORE = ("low", "high", "p", "tied", "front", "tokens", "seconds", "seeds", "sd")


def write(folder: SweepFolder, rows: Sequence[Row]) -> None:
    """Write ``leaderboard.csv``.

    Args:
        folder: of the sweep.
        rows: ranked.
    """
    folder.write(folder.leaderboard_file, to_csv(rows))


def to_csv(rows: Sequence[Row]) -> str:
    """One line a row, and one of kind ``seed`` for each seed of a configuration that has several.

    Values that are not known or not finite are empty fields. Texts are safe to show, and none is a formula to a
    spreadsheet (``analysis.text.visible.csv_cell``).
    """
    rows = with_seeds(rows)
    searched = list(dict.fromkeys(path for row in rows for path in row.config))
    metrics = _metric_columns(rows)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    head = ["rank", "kind", "trial_id", "status", "step", "n_items", *searched, *metrics, "objective", *_MORE, "reason"]
    table.writerow([csv_cell(name) for name in head])
    for row in rows:
        fields: list[Any] = [row.rank or None, row.kind, row.trial_id, row.status, row.step, row.n_items]
        fields += [row.config.get(path) for path in searched]
        fields += [row.metrics.get(name) for name in metrics]
        fields += [row.objective, row.low, row.high, row.p, int(row.tied), row.front or None, row.tokens, row.seconds]
        fields += [len(row.seeds) or None, spread(row)]
        table.writerow([csv_cell(finite(value)) for value in [*fields, row.reason]])
    return text.getvalue()


def to_json(rows: Sequence[Row]) -> str:
    """The rows as a JSON list, for other programs; values that are not finite are null."""
    return json_text([{"rank": row.rank, "sd": spread(row)} | asdict(row) for row in rows])


def nothing_scored(rows: Iterable[Row], by: Sequence[str] = ()) -> str:
    """That trials ended and none has a score, in a sentence; empty where one has, or where none has ended yet.

    Args:
        rows: ranked.
        by: metrics that they are ranked by instead of the objective.
    """
    trials = [row for row in rows if row.kind == "trial"]
    ended = Counter(row.status for row in trials if row.status in ENDED)
    if not ended or best_trial(trials, by) or leading_trial(trials, by):
        return ""
    how = ", ".join(f"{n} {status.replace('_', ' ')}" for status, n in ended.items())
    return f"No trial has {by[0] if by else 'a score'}: there is no best one ({how})."


def _metric_columns(rows: Iterable[Row]) -> list[str]:
    """Names of the metrics that any row has: those that are known in their order, then others by name."""
    measured = {name for row in rows for name in row.metrics}
    return [name for name in METRICS if name in measured] + sorted(measured - METRICS.keys())
