"""The leaderboard for people: a Rich table for a terminal, aligned text for a pipe. Both drop what does not fit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from analysis.bias_sets import HEADLINE
from analysis.folder import State
from analysis.leaderboard.seeds import spread, with_seeds
from analysis.metrics import METRICS
from analysis.rows import Row, best_trial
from analysis.text.listing import listed
from analysis.text.visible import single_line

_HEADS = {"precision": "prec"}  # of config keys whose name is much wider than their values
_ALWAYS, _TERM, _CONFIG, _PREFERRED, _MORE = range(5)  # the higher, the sooner a column is dropped
_PREFERRED_METRICS = ("accuracy", "macro_f1", "perplexity", HEADLINE.metric("pct"))
_STYLES: dict[str, str] = {
    State.STOPPED_EARLY: "dim",
    State.PENDING: "dim",
    State.DIVERGED: "red",
    State.OUT_OF_MEMORY: "red",
    State.FAILED: "red",
}


@dataclass(frozen=True)
class _Column:
    """A column of the table.

    Attributes:
        head: its title, a line each.
        cells: a text for each row.
        keep: the higher, the sooner the column is dropped.
        left: whether it is aligned to the left.
    """

    head: tuple[str, ...]
    cells: list[str]
    keep: int
    left: bool = False

    @cached_property
    def width(self) -> int:
        return max(_cells_of(text) for text in (*self.head, *self.cells))


def render(rows: Sequence[Row], width: int, by: Sequence[str] = (), terms: Sequence[str] = ()) -> RenderableType:
    """A Rich table no wider than ``width``, with the reasons below it.

    Args:
        rows: ranked.
        width: in terminal cells.
        by: metrics that they are ranked by: their columns are never dropped.
        terms: metrics of the objective: they stand before all others, and are dropped after what was not asked for.
    """
    if not rows:
        return Text("No trial has started.")
    rows = with_seeds(rows)
    columns, gap, dropped = _fit(_columns(rows, by, terms), width)
    dropped += _unasked(rows, by, terms)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap - 1, 0, 0))
    for column in columns:
        table.add_column("\n".join(column.head), justify="left" if column.left else "right", no_wrap=True)
    best = best_trial(rows, by)
    for i, row in enumerate(rows):
        style = "cyan" if row.kind == "baseline" else "yellow" if row.broken else _STYLES.get(row.status, "")
        style = "bold green" if row is best and not row.broken else "dim" if row.kind == "seed" else style
        table.add_row(*(Text(column.cells[i]) for column in columns), style=style)
    return Group(table, *(Text(line, style="dim") for line in _below(rows, dropped)))


def plain(rows: Sequence[Row], width: int = 120, by: Sequence[str] = (), terms: Sequence[str] = ()) -> str:
    """The leaderboard as aligned text, for pipes and logs. Arguments as of ``render``."""
    if not rows:
        return "No trial has started."
    rows = with_seeds(rows)
    columns, gap, dropped = _fit(_columns(rows, by, terms), width)
    dropped += _unasked(rows, by, terms)
    heads = max(len(column.head) for column in columns)
    lines = [[(*[""] * (heads - len(c.head)), *c.head)[i] for c in columns] for i in range(heads)]
    lines += [[column.cells[i] for column in columns] for i in range(len(rows))]
    text = [(" " * gap).join(_pad(cell, c) for cell, c in zip(line, columns, strict=True)) for line in lines]
    return "\n".join(line.rstrip() for line in [*text, *_below(rows, dropped)])


def asked_first(rows: Sequence[Row], asked: Sequence[str]) -> list[str]:
    """The metrics that some row has: those that were asked for, in their order, then the others as in the table."""
    measured = {name for row in rows for name in row.metrics}
    return [name for name in dict.fromkeys([*asked, *METRICS]) if name in measured and name in METRICS]


def _unasked(rows: Sequence[Row], by: Sequence[str], terms: Sequence[str]) -> int:
    """How many metrics the table leaves out because nobody asked for them."""
    return sum(not METRICS[name].shown and name not in (*by, *terms) for name in asked_first(rows, ()))


def _columns(rows: Sequence[Row], by: Sequence[str], terms: Sequence[str]) -> list[_Column]:
    columns = [
        _Column(("#",), [_place(row) for row in rows], _ALWAYS),
        _Column(("trial",), [_name(row) for row in rows], _ALWAYS, left=True),
        _Column(("status",), [_status(row) for row in rows], _ALWAYS, left=True),
        _Column(("score",), [_score(row) for row in rows], _ALWAYS),
    ]
    if any(math.isfinite(row.low) for row in rows):
        cells = [f"{row.low:.2f}–{row.high:.2f}" if math.isfinite(row.low) else "-" for row in rows]
        columns.append(_Column(("95 %",), cells, _MORE))
    for name in asked_first(rows, [*by, *terms]):
        asked = _ALWAYS if name in by else _TERM if name in terms else None
        keep = asked if asked is not None else _PREFERRED if name in _PREFERRED_METRICS else _MORE
        if asked is not None or METRICS[name].shown:
            values = [row.metrics.get(name, math.nan) for row in rows]
            digits = METRICS[name].decimals
            cells = [_significant(v) if digits is None else decimals(v, digits) for v in values]
            columns.append(_Column((METRICS[name].head,), cells, keep))
    paths = list(dict.fromkeys(path for row in rows for path in row.config))
    for path in paths:
        cells = [_setting(row.config.get(path)) for row in rows]
        columns.append(_Column(_config_head(path, paths), cells, _CONFIG))
    columns.append(_Column(("step",), [str(row.step) for row in rows], _MORE))
    columns.append(_Column(("items",), [str(row.n_items) if row.metrics else "-" for row in rows], _MORE))
    return columns


def _place(row: Row) -> str:
    """Seeds have none: it is their configuration that is ranked."""
    return "" if row.kind == "seed" else f"{row.rank}=" if row.tied else str(row.rank)


def _name(row: Row) -> str:
    name = single_line(row.trial_id)
    return f" · {name}" if row.kind == "seed" else name


def _score(row: Row) -> str:
    """With the standard deviation over the configuration's seeds."""
    deviation = spread(row)
    return decimals(row.objective, 3) + (f" ± {deviation:.3f}" if math.isfinite(deviation) else "")


def _status(row: Row) -> str:
    """With a mark where a constraint is broken; which one stands in the reason."""
    return single_line(row.status.replace("_", " ")) + (" !" if row.broken else "")


def _fit(columns: list[_Column], width: int) -> tuple[list[_Column], int, int]:
    """The columns that fit, the cells between them, and how many columns were dropped."""
    shown = list(columns)
    while _total(shown, 1) > width and (droppable := [c for c in shown if c.keep != _ALWAYS]):
        worst = max(column.keep for column in droppable)
        shown.remove([column for column in droppable if column.keep == worst][-1])
    return shown, 2 if _total(shown, 2) <= width else 1, len(columns) - len(shown)


def _total(columns: list[_Column], gap: int) -> int:
    return sum(column.width for column in columns) + gap * (len(columns) - 1)


def _below(rows: Sequence[Row], dropped: int) -> list[str]:
    """Why trials ended, each reason once, and where the columns are that did not fit."""
    trials: dict[str, list[str]] = {}
    for row in rows:
        if row.reason:
            trials.setdefault(row.reason, []).append(single_line(row.trial_id))
    lines = ["= tied: on these items it cannot be told from the best score"] if any(r.tied for r in rows) else []
    lines += [f"{listed(ids, 12, last=', ')}: {single_line(reason)}" for reason, ids in trials.items()]
    if any(row.kind == "seed" for row in rows):
        lines.insert(0, "± standard deviation over the seeds, which stand below: · is one seed, and not ranked")
    if dropped:
        lines.append(f"{dropped} more column{'s' if dropped > 1 else ''} in leaderboard.csv")
    return ["", *lines] if lines else []


def _config_head(path: str, paths: Sequence[str]) -> tuple[str, ...]:
    """The last part of a path, a line a word; the whole path where another one ends alike."""
    path, paths = single_line(path), [*map(single_line, paths)]
    leaf = path.rsplit(".", 1)[-1]
    if sum(other.rsplit(".", 1)[-1] == leaf for other in paths) > 1:
        return tuple(path.split(".", 1))
    return tuple(_HEADS.get(path, leaf).split("_"))


def _pad(text: str, column: _Column) -> str:
    space = " " * (column.width - _cells_of(text))
    return text + space if column.left else space + text


def _cells_of(text: str) -> int:
    """Terminal cells of a text without line breaks and escapes."""
    return len(text) if text.isascii() else cell_len(text)


def decimals(value: float, digits: int | None) -> str:
    """A figure with a number of decimals; a dash where it is not known.

    Args:
        value: NaN where it is not known.
        digits: after the point; None for four significant ones.
    """
    if not math.isfinite(value):
        return "-"
    return f"{value:.4g}" if digits is None else f"{value:.{digits}f}"


def _significant(value: float) -> str:
    """Four significant digits, never an exponent below a million."""
    if not math.isfinite(value):
        return "-"
    if abs(value) >= 1e6:
        return _exponent(value)
    return f"{value:.{max(0, 3 - math.floor(math.log10(max(abs(value), 1.0))))}f}"


def _setting(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return single_line(value)
    return _exponent(value) if value and abs(value) < 0.01 else f"{value:.3g}"


def _exponent(value: float) -> str:
    """Such as 4.2e-4: two digits, no padding of the exponent."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"
