"""The leaderboard of a sweep: built from its folder, written as CSV or JSON, shown as a table and in sentences."""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from analysis.folder import SweepFolder
from analysis.leaderboard.ranking import Ranking, build, objective_of, ranked
from analysis.leaderboard.table import plain, render
from analysis.leaderboard.verdict import verdict
from analysis.metrics import METRICS
from analysis.rows import Row

__all__ = [
    "Ranking",
    "Row",
    "build",
    "objective_of",
    "plain",
    "ranked",
    "render",
    "to_csv",
    "to_json",
    "verdict",
    "write",
]


_MORE = ("low", "high", "p", "tied", "front", "tokens", "seconds")


def write(folder: SweepFolder, rows: Sequence[Row]) -> None:
    """Write ``leaderboard.csv``.

    Args:
        folder: of the sweep.
        rows: ranked.
    """
    folder.write(folder.leaderboard_file, to_csv(rows))


def to_csv(rows: Sequence[Row]) -> str:
    """One line a row. Values that are not known or not finite are empty fields."""
    searched = list(dict.fromkeys(path for row in rows for path in row.config))
    metrics = _metric_columns(rows)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(
        ["rank", "kind", "trial_id", "status", "step", "n_items", *searched, *metrics, "objective", *_MORE, "reason"]
    )
    for row in rows:
        fields = [row.rank, row.kind, row.trial_id, row.status, row.step, row.n_items]
        fields += [row.config.get(path) for path in searched]
        fields += [row.metrics.get(name) for name in metrics]
        fields += [row.objective, row.low, row.high, row.p, int(row.tied), row.front or None, row.tokens, row.seconds]
        table.writerow([_finite(value) for value in [*fields, row.reason]])
    return text.getvalue()


def to_json(rows: Sequence[Row]) -> str:
    """The rows as a JSON list, for other programs; values that are not finite are null."""
    return json.dumps(
        [_plain({"rank": row.rank} | asdict(row)) for row in rows], indent=2, ensure_ascii=False, allow_nan=False
    )


def _metric_columns(rows: Iterable[Row]) -> list[str]:
    """Names of the metrics that any row has: those that are known in their order, then others by name."""
    measured = {name for row in rows for name in row.metrics}
    return [name for name in METRICS if name in measured] + sorted(measured - METRICS.keys())


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return _finite(value)
