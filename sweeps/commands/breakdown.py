"""``lorasweep breakdown RUN [TRIAL]``: each class and each category of the bias sets, beside the untuned model."""

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from analysis.bias_sets import BIAS_SETS
from analysis.errors import FolderError
from analysis.folder import SweepFolder
from analysis.leaderboard import leaderboard
from analysis.leaderboard.baselines import UNTUNED
from analysis.leaderboard.seeds import best_seed, runs
from analysis.leaderboard.table import decimals
from analysis.rows import Row, best_trial, row_files, sweep_yaml
from sweeps.commands.parser import Parser
from trainer.config import BiasConfig

SETS = {name: bias_set.title for name, bias_set in BIAS_SETS.items() if bias_set.category}
_GAP = 2  # cells between columns


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
    print(f"{shown.trial_id}{seed}, step {shown.step}, {shown.n_items} items")
    tables_of = [{name: _items(folder, row, name) for name in ("task", *SETS)} for row in compared]
    task = tables_of[0]["task"]
    if task and "prediction" in task:
        print("\n" + _lines(_class_table(task, settings)))
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


def _class_table(task: dict[str, list[Any]], settings: BiasConfig) -> list[list[str]]:
    from sweeps.commands.breakdown_tables import classes

    rows = classes(task, settings)
    grouped = any(math.isfinite(row.tpr_gap) for row in rows)
    head = ["class", "n", "precision", "recall", "F1", *(["TPR gap", "if fair"] if grouped else []), "predicted as:"]
    lines = [[*head, *(row.label for row in rows)]]
    for row in rows:
        scores = [f"{value:.3f}" for value in (row.precision, row.recall, row.f1)]
        gap = [decimals(row.tpr_gap, 3), decimals(row.fair_gap, 3)] if grouped else []
        lines.append([row.label, str(row.n), *scores, *gap, "", *map(str, row.predicted_as.values())])
    return lines


def _category_table(
    name: str, who: list[str], tables: list[dict[str, list[Any]]], settings: BiasConfig
) -> list[list[str]]:
    from sweeps.commands.breakdown_tables import categories

    parts = [categories(name, table, settings) if table else {} for table in tables]
    figures = list(next(iter(parts[0].values()))[1])
    shown = BIAS_SETS[name].metrics
    lines = [["category", "n", *(f"{trial} {figure} ±" for trial in who for figure in figures)]]
    for category, (n, _) in parts[0].items():
        cells = []
        for part in parts:
            for figure in figures:
                value, error = part[category][1][figure] if category in part else (math.nan, math.nan)
                digits = shown[figure].decimals
                cells.append(f"{decimals(value, digits)} ± {decimals(error, digits)}")
        lines.append([category, str(n), *cells])
    return lines


def _lines(table: list[list[str]]) -> str:
    """Aligned text: the first column to the left, the others to the right."""
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    return "\n".join(
        (" " * _GAP).join(
            c.ljust(w) if not i else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    )
