"""``lorasweep breakdown RUN [TRIAL]``: each class and each category of the bias sets, beside the untuned model."""

import math
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len

from analysis.bias_sets import BIAS_SETS
from analysis.errors import FolderError
from analysis.folder import SweepFolder
from analysis.leaderboard import leaderboard
from analysis.leaderboard.baselines import UNTUNED
from analysis.leaderboard.seeds import best_seed, runs
from analysis.leaderboard.table import decimals
from analysis.rows import Row, best_trial, row_files, sweep_yaml
from analysis.text.visible import middle_out, single_line
from sweeps.commands.parser import Parser
from trainer.config import BiasConfig

if TYPE_CHECKING:
    from sweeps.commands.breakdown_tables import ClassRow

SETS = {name: bias_set.title for name, bias_set in BIAS_SETS.items() if bias_set.category}
_GAP = 2  # cells between columns
_OFTEN = 3  # classes that one is predicted as, where a column for each would be too wide
_NARROWEST = 12  # cells of a class's name
_CATEGORY = 24  # cells of a category's name
_LONGEST = 400  # cells of a name in the legend


def main(arguments: list[str]) -> int:
    parser = Parser("breakdown", "Each class, what it is mistaken for, and each category of the bias sets.")
    parser.add_sweep_folder()
    parser.add_argument("trial", metavar="TRIAL", nargs="?", help="a trial or baseline; the best trial if left out")
    options = parser.read(arguments)
    folder = SweepFolder.open(options.run)
    rows = leaderboard.build(folder)
    shown = _chosen(rows, options.trial, folder)
    base = next((row for row in rows if row.trial_id == UNTUNED and row.kind == "baseline" and row.metrics), None)
    compared = [shown] + ([base] if base is not None and base is not shown else [])
    settings = _bias_settings(folder)
    of = next((row for row in rows if len(row.seeds) > 1 and shown.trial_id in [it.trial_id for it in row.seeds]), None)
    seed = f", one of {len(of.seeds)} seeds of {of.trial_id}" if of is not None else ""
    print(f"{single_line(shown.trial_id)}{seed}, step {shown.step}, {shown.n_items} items")
    tables_of = [{name: _items(folder, row, name) for name in ("task", *SETS)} for row in compared]
    task = tables_of[0]["task"]
    if task and "prediction" in task:
        print("\n" + _class_part(task, settings, shutil.get_terminal_size((120, 24)).columns))
    for name, title in SETS.items():
        tables = [tables[name] for tables in tables_of]
        if tables[0]:
            print(f"\n{title}\n" + _lines(_category_table(name, [row.trial_id for row in compared], tables, settings)))
    return 0


def _chosen(rows: Sequence[Row], name: str | None, folder: SweepFolder) -> Row:
    scored = [row for row in [*runs(rows), *rows] if row.metrics]
    if name is None:
        best = best_trial(rows)
        trials = [row for row in scored if row.kind == "trial"]
        scored = [best_seed(best)] if best is not None else trials or scored
    else:
        scored = [row for row in scored if row.trial_id == name]
    if not scored:
        there = ", ".join(dict.fromkeys(row.trial_id for row in [*rows, *runs(rows)] if row.metrics)) or "none"
        raise FolderError(f"{folder.where}: {name or 'no trial'} has no scores to break down. Scored are: {there}.")
    return scored[0]


def _items(folder: SweepFolder, row: Row, name: str) -> dict[str, list[Any]]:
    try:
        return row_files(folder, row).read_items(name, "validation", row.step)
    except FolderError:
        return {}  # not scored on that set


def _bias_settings(folder: SweepFolder) -> BiasConfig:
    """The sweep's config of bias; defaults for what another version did not know."""
    stored = sweep_yaml(folder).get("config", {}).get("bias", {})
    return BiasConfig(**{item.name: stored[item.name] for item in fields(BiasConfig) if item.name in stored})


def _class_part(task: dict[str, list[Any]], settings: BiasConfig, width: int) -> str:
    """Classes with their scores, and what they are predicted as: all of it, or where that is too wide, the most."""
    from sweeps.commands.breakdown_tables import classes

    rows = classes(task, settings)
    counts = [[*map(str, row.predicted_as.values())] for row in rows]
    whole = _lines(
        _class_table(rows, ["predicted as:", *(row.label for row in rows)], [["", *line] for line in counts])
    )
    if max(map(cell_len, whole.split("\n"))) <= width:
        return whole
    numbers = {row.label: f"#{number}" for number, row in enumerate(rows, 1)}
    often = []
    for row in rows:
        others = sorted(((n, label) for label, n in row.predicted_as.items() if n and label != row.label), reverse=True)
        often.append([", ".join(f"{numbers[label]} {n}×" for n, label in others[:_OFTEN])])
    table = _class_table(rows, ["mistaken for"], often)
    for line, number in zip(table, ["#", *numbers.values()], strict=True):
        line.insert(0, number)
        line.append(line.pop(1))  # names last: they may be cut, and what is beside them stays in its place
    left = width - max(cell_len(line) for line in _lines([[*line[:-1], ""] for line in table]).split("\n")) - _GAP
    names = [line[-1] for line in table]
    for line in table:
        line[-1] = _fitted(line[-1], max(left, _NARROWEST))
    legend = []
    for line, name in zip(table, names, strict=True):
        if line[-1] != name:
            indent = " " * (len(line[0]) + 1)
            room = width if name.isascii() else width // 2  # of characters: some take two cells
            legend.append(textwrap.fill(f"{line[0]} {_fitted(name, _LONGEST)}", room, subsequent_indent=indent))
    last = len(table[0]) - 1
    shown = _lines(table, to_left=(0, last - 1, last))
    return "\n".join([shown, "", *legend] if legend else [shown])


def _class_table(rows: "Sequence[ClassRow]", heads: list[str], predicted: list[list[str]]) -> list[list[str]]:
    grouped = any(math.isfinite(row.tpr_gap) for row in rows)
    head = ["class", "n", "precision", "recall", "F1", *(["TPR gap", "if fair"] if grouped else [])]
    lines = [[*head, *map(single_line, heads)]]
    for row, counts in zip(rows, predicted, strict=True):
        scores = [f"{value:.3f}" for value in (row.precision, row.recall, row.f1)]
        gap = [decimals(row.tpr_gap, 3), decimals(row.fair_gap, 3)] if grouped else []
        lines.append([single_line(row.label), str(row.n), *scores, *gap, *counts])
    return lines


def _category_table(
    name: str, who: list[str], tables: list[dict[str, list[Any]]], settings: BiasConfig
) -> list[list[str]]:
    from sweeps.commands.breakdown_tables import categories

    parts = [categories(name, table, settings) if table else {} for table in tables]
    figures = list(next(iter(parts[0].values()))[1])
    shown = BIAS_SETS[name].metrics
    lines = [["category", "n", *(f"{single_line(trial)} {figure} ±" for trial in who for figure in figures)]]
    for category, (n, _) in parts[0].items():
        cells = []
        for part in parts:
            for figure in figures:
                value, error = part[category][1][figure] if category in part else (math.nan, math.nan)
                digits = shown[figure].decimals
                cells.append(f"{decimals(value, digits)} ± {decimals(error, digits)}")
        lines.append([_fitted(single_line(category), _CATEGORY), str(n), *cells])
    return lines


def _lines(table: list[list[str]], to_left: Sequence[int] = (0,)) -> str:
    """Aligned text: columns ``to_left``, the others to the right."""
    widths = [max(cell_len(line[i]) for line in table) for i in range(len(table[0]))]
    lines = []
    for line in table:
        spaces = [" " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True)]
        cells = [c + s if i in to_left else s + c for i, (c, s) in enumerate(zip(line, spaces, strict=True))]
        lines.append((" " * _GAP).join(cells).rstrip())
    return "\n".join(lines)


def _fitted(text: str, most: int) -> str:
    """A text in so many cells of a terminal, its middle left out where it is longer."""
    length = len(text)
    while cell_len(shown := middle_out(text, length)) > most:
        length -= 1
    return shown
