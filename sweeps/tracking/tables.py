"""What trackers show of a sweep as tables and charts: a trial's predictions, the leaderboard, the metrics."""

import math
from collections.abc import Sequence
from typing import Any

from analysis.answers import read, worst_first
from analysis.errors import FolderError
from analysis.folder import TrialFolder
from analysis.leaderboard.seeds import with_seeds
from analysis.objective import Objective
from analysis.rows import Row

Columns = list[str]
Cells = list[list[Any]]

_PREDICTION = ("item_id", "group", "label", "prediction", "confidence", "nll")


def predictions(files: TrialFolder, step: int, most: int | None = None) -> tuple[Columns, Cells]:
    """A trial's validation predictions at a step, the surest mistakes first; nothing where none are there.

    Texts are left out: they stay in the user's files, and ``item_id`` names the row.

    Args:
        files: of the trial.
        step: of the checkpoint that was scored.
        most: rows at most; None: all.

    Returns:
        Column names and rows. ``confidence`` is the probability of the predicted label.
    """
    try:
        items = files.read_items("task", "validation", step)
    except FolderError:
        return [], []
    if not {"item_id", "label", "prediction"} <= items.keys():
        return [], []
    logprobs = items.get("logprobs")
    if logprobs is not None:
        items = items | {"confidence": [_confidence(row) for row in logprobs]}
    columns = [name for name in _PREDICTION if any(value not in (None, "") for value in items.get(name, []))]
    right, sure = columns.index("label"), columns.index("confidence") if "confidence" in columns else None
    rows = [list(row) for row in zip(*(items[name] for name in columns), strict=True)]
    rows.sort(key=lambda row: (row[right] == row[columns.index("prediction")], -(row[sure] if sure is not None else 0)))
    return columns, rows[:most]


def answers(files: TrialFolder, step: int, most: int | None = None) -> tuple[Columns, Cells]:
    """What a trial or baseline wrote to the validation rows, one row an item, the worst first; nothing without answers.

    Unlike ``predictions`` it holds texts: prompts, references and answers (``tracking.answers``).

    Args:
        files: of the trial or baseline.
        step: of the checkpoint that was scored.
        most: rows at most; None: all.

    Returns:
        Column names and rows; a figure that an item has not is empty.
    """
    written = read(files, step)
    if written is None:
        return [], []
    figures = list(written.figures)
    counts = [name for name in ("n_tokens", "finished") if name in written.columns]
    rows = []
    for item in worst_first(written, figures[0])[:most]:
        i = written.places[item.item_id]
        values = [_number(written.figures[name][i]) for name in figures]
        of_answer = [written.get(name, i) for name in counts]
        rows.append([item.item_id, item.prompt, item.reference, written.text(i), *of_answer, *values])
    return ["item_id", "prompt", "reference", "answer", *counts, *figures], rows


def leaderboard_table(rows: Sequence[Row]) -> tuple[Columns, Cells]:
    """The leaderboard with a column for every searched key and metric; what is unknown or not finite is empty.

    Below a configuration of several seeds is a row of kind ``seed`` for each.
    """
    rows = with_seeds(rows)
    searched = list(dict.fromkeys(path for row in rows for path in row.config))
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    columns = ["rank", "kind", "trial", "status", "step", "n_items", "objective", *searched, *metrics, "reason"]
    cells = [
        [row.rank or None, row.kind, row.trial_id, str(row.status), row.step, row.n_items, _number(row.objective)]
        + [_text(row.config.get(path)) for path in searched]  # one column holds one type: W&B refuses mixed ones
        + [_number(row.metrics.get(name)) for name in metrics]
        + [row.reason]
        for row in rows
    ]
    return columns, cells


def charts(rows: Sequence[Row], objective: Objective) -> dict[str, dict[str, Any]]:
    """Plotly figures, as JSON: the objective of every row, and the objective's first metric against each other one."""
    shown = [row for row in rows if math.isfinite(row.objective)]
    figures = {
        "chart/objective": _figure(
            "bar", [r.trial_id for r in shown], [r.objective for r in shown], "", "objective", shown
        )
    }
    first, *others = [term.metric for term in objective.terms]
    for other in others:
        both = [row for row in rows if all(_number(row.metrics.get(name)) is not None for name in (first, other))]
        x, y = ([row.metrics[name] for row in both] for name in (other, first))
        figures[f"chart/{first} against {other}"] = _figure("scatter", x, y, other, first, both)
    return figures


def _figure(
    kind: str, x: Sequence[Any], y: Sequence[float], x_title: str, y_title: str, rows: Sequence[Row]
) -> dict[str, Any]:
    text = [f"{row.trial_id}, {str(row.status).replace('_', ' ')}" for row in rows]
    trace: dict[str, Any] = {"type": kind, "x": list(x), "y": list(y), "hovertext": text}
    if kind == "scatter":
        trace |= {"mode": "markers+text", "text": [row.trial_id for row in rows], "textposition": "top center"}
    return {"data": [trace], "layout": {"xaxis": {"title": {"text": x_title}}, "yaxis": {"title": {"text": y_title}}}}


def _confidence(logprobs: Sequence[float] | None) -> float | None:
    finite = [value for value in logprobs or () if value is not None and math.isfinite(value)]
    return round(math.exp(max(finite)), 4) if finite else None


def _number(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _text(value: Any) -> str | None:
    return None if value is None else f"{value:g}" if isinstance(value, float) else str(value)
