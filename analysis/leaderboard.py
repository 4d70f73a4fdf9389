"""The leaderboard of a sweep, running or finished: which trial is best, and where everything else stands.

Ranked are first the rows that were scored on all validation items, completed trials and baselines alike; then those
scored on the rung subset (stopped early, running); then diverged, out of memory, failed, unreadable and pending ones.
Within a class the objective decides, and between equals the trial id.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from analysis.errors import ConfigError, did_you_mean
from analysis.folder import State, SweepFolder, atomic_write
from analysis.metrics import METRICS, RANKABLE, badness
from analysis.objective import Objective
from analysis.rows import UNKNOWN, Row, read_rows, read_sweep
from analysis.table import plain, render
from analysis.verdict import verdict

__all__ = ["Row", "build", "plain", "render", "to_json", "verdict", "write"]

_CLASSES = {
    State.COMPLETED: 1,  # 0 with its final scoring
    State.STOPPED_EARLY: 1,
    State.RUNNING: 1,
    State.DIVERGED: 2,
    State.OUT_OF_MEMORY: 3,
    State.FAILED: 4,
    UNKNOWN: 5,
    State.PENDING: 6,
}


def build(folder: SweepFolder, by: Sequence[str] | None = None) -> list[Row]:
    """The rows of a sweep folder, ranked.

    Args:
        folder: may be half written; what a trial's files lack stands in its row's ``reason``.
        by: metrics to rank by, the first deciding, instead of the objective.

    Raises:
        FolderError: where ``sweep.yaml`` cannot be read.
        ConfigError: for a metric in ``by`` that is unknown or not measured in this sweep, or for an objective in
            ``sweep.yaml`` that is not one.
    """
    sweep = read_sweep(folder)
    rows = read_rows(folder, sweep.searched)
    measured = {name for row in rows for name in row.metrics}
    names = _checked(by or [], measured)
    try:
        objective = Objective.from_config(sweep.objective)
        if any(term.metric in measured for term in objective.terms):
            objective, _ = objective.restricted(measured, measured | METRICS.keys())
    except ConfigError as error:
        raise ConfigError(f"{folder.sweep_file}: config.{error}") from None
    rows = [_scored(row, objective) for row in rows]

    def place(row: Row) -> tuple[int, list[float], str, str]:
        scored_on_all = row.status == State.COMPLETED and row.final
        order = [badness(name, row.metrics.get(name, math.nan)) for name in names]
        if not names:
            order = [-row.objective if math.isfinite(row.objective) else math.inf]
        return 0 if scored_on_all else _CLASSES[row.status], order, row.trial_id, row.kind

    return [replace(row, rank=rank) for rank, row in enumerate(sorted(rows, key=place), start=1)]


def write(folder: SweepFolder, rows: Sequence[Row]) -> None:
    """Write ``leaderboard.csv``. Values that are not known or not finite are empty fields."""
    searched = list(dict.fromkeys(path for row in rows for path in row.config))
    metrics = _metric_columns(rows)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(
        ["rank", "kind", "trial_id", "status", "step", "n_items", *searched, *metrics, "objective", "reason"]
    )
    for row in rows:
        fields = [row.rank, row.kind, row.trial_id, row.status, row.step, row.n_items]
        fields += [row.config.get(path) for path in searched]
        fields += [row.metrics.get(name) for name in metrics]
        table.writerow([_finite(value) for value in [*fields, row.objective, row.reason]])
    atomic_write(folder.leaderboard_file, text.getvalue())


def to_json(rows: Sequence[Row]) -> str:
    """The rows as a JSON list, for other programs; values that are not finite are null."""
    return json.dumps([_plain(asdict(row)) for row in rows], indent=2, ensure_ascii=False, allow_nan=False)


def _checked(by: Sequence[str], measured: Iterable[str]) -> list[str]:
    """The names to rank by. Raises ConfigError for one that cannot."""
    names, there = [name.strip() for name in by], set(measured)
    rankable = [name for name in RANKABLE if name in there] or RANKABLE
    for name in names:
        if name not in RANKABLE:
            raise ConfigError(f"--by: '{name}' is not a metric to rank by. {did_you_mean(name, rankable)}")
        if there and name not in there:
            raise ConfigError(f"--by: {name} is not measured in this sweep. There are: {', '.join(rankable)}.")
    return names


def _scored(row: Row, objective: Objective) -> Row:
    """The row with its objective, or with the reason why there is none though it was scored."""
    score = objective.score(row.metrics)
    if not row.metrics or math.isfinite(score):
        return replace(row, objective=score)
    lacking = [t.metric for t in objective.terms if not math.isfinite(row.metrics.get(t.metric, math.nan))]
    note = f"no objective: {', '.join(lacking)} missing or not finite"
    return replace(row, objective=math.nan, reason=f"{row.reason}; {note}" if row.reason else note)


def _metric_columns(rows: Iterable[Row]) -> list[str]:
    """Names of the metrics that any row has: those that are known in their order, then others by name."""
    there = {name for row in rows for name in row.metrics}
    return [name for name in METRICS if name in there] + sorted(there - METRICS.keys())


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return _finite(value)
