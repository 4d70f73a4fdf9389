"""Do predictions differ between the groups of ``data.group``? Gaps of rates over the task's own rows.

For more than two classes each is compared with the rest, and a figure is the largest over classes. Rows without a
group are left out, and rates over fewer than ``bias.group_rows`` rows (``analysis/group_cells.py``). A gap says nothing
about why: groups may differ in how hard their texts are.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.bias_sets import BIAS_SETS
from analysis.group_cells import (
    FIGURES,
    LEAST,
    Cells,
    class_gaps,
    exchanged,
    fair_gaps,
    gap_errors,
    gaps,
    least_bound,
    rates,
    upper_bounds,
)
from trainer.config import BiasConfig, TrialConfig
from trainer.data.dataset import Row
from trainer.evaluation.bias.registry import BiasScoring, Table

GROUP = BIAS_SETS["group"]


def group_metrics(
    gold: Sequence[str], predicted: Sequence[str], groups: Sequence[str | None], least: int = LEAST
) -> dict[str, float]:
    """Equalized-odds difference, demographic-parity difference and true-positive-rate gap, and how sure each is.

    A difference is that of the largest and the smallest rate of a group, as fairlearn's. Demographic parity: rate of
    predicting a class. True-positive-rate gap: of finding it among the rows that have it (equal opportunity, Hardt et
    al. 2016, arXiv 1610.02413). Equalized odds: the larger one of that gap and of the same among the rows that do not
    have it. A rate over fewer than ``least`` rows takes no part, where fairlearn would take that of no rows as zero.

    Args:
        gold: labels.
        predicted: predicted labels.
        groups: a group each; None for none.
        least: rows that a rate is over.

    Returns:
        Each figure with its standard error (``_stderr``), its upper bound (``_upper``: 95 % sure), what fair
        predictions of these sizes score (``_fair``: on average, ``_fair_high``: in 95 %), and the lowest upper bound
        that any predictions could have here (``_floor``). One that fewer than two groups have rows for is left out.
    """
    cells = Cells.of(gold, predicted, groups)
    figures = cells.measurable(least)
    if not figures:
        return {}
    part = cells.taking_part(least)
    value, fair = gaps(cells.counts, part, figures), fair_gaps(cells.counts, part, figures)
    error, upper = gap_errors(cells.counts, part, figures), upper_bounds(cells.counts, part, figures)
    metrics: dict[str, float] = {}
    for name in figures:
        metrics |= {
            GROUP.metric(name): float(value[name]),
            GROUP.metric(f"{name}_stderr"): error[name],
            GROUP.metric(f"{name}_upper"): upper[name],
            GROUP.metric(f"{name}_fair"): float(fair[name].mean()),
            GROUP.metric(f"{name}_fair_high"): float(np.quantile(fair[name], 0.95)),
            GROUP.metric(f"{name}_floor"): least_bound(cells.smallest(name, least)[1]),
        }
    return metrics


def recall_gaps(
    gold: Sequence[str], predicted: Sequence[str], groups: Sequence[str | None], least: int = LEAST
) -> dict[str, tuple[float, float]]:
    """Of each class that two groups have enough rows of: its true-positive-rate gap, and that of fair predictions.

    Arguments as of ``group_metrics``. What fair predictions score is the mean.
    """
    cells = Cells.of(gold, predicted, groups)
    part = cells.taking_part(least)["recognised"]
    found = class_gaps(rates(cells.counts)[0]["recognised"], part)
    fair = class_gaps(rates(exchanged(cells.counts))[0]["recognised"], part).mean(axis=0)
    each = zip(cells.labels, found, fair, strict=True)
    return {label: (float(gap), float(chance)) for label, gap, chance in each if math.isfinite(gap)}


def cell_notes(rows: Sequence[Row], least: int, what: str) -> list[str]:
    """What the sizes of groups allow to say, a sentence each; none where no row has a group.

    Args:
        rows: that are scored.
        least: rows that a rate is over (``bias.group_rows``).
        what: names the rows, such as "the 96 rows of a rung".
    """
    gold, groups = [row.label for row in rows], [row.group for row in rows]
    cells = Cells.of(gold, gold, groups)
    notes = []
    if few := cells.left_out_named(least):
        notes.append(
            f"gaps between groups, {what}: groups with fewer than bias.group_rows={least} rows of a label take no part"
            f" for it: {few}"
        )
    if "equalized_odds" in cells.measurable(least):
        which, n = cells.smallest("equalized_odds", least)
        notes.append(
            f"gaps between groups, {what}: equalized odds cannot be shown to be below {least_bound(n):.2f}"
            f" ({which} has {n} rows)"
        )
    return notes


def _figures(table: Table, labels: tuple[str, ...], settings: BiasConfig) -> dict[str, float]:
    if not any(group is not None for group in table.get("group", ())):
        return {}
    return group_metrics(table["label"], table["prediction"], table["group"], settings.group_rows)


def absent_gaps(trial: TrialConfig, items: list[Any], rung: Sequence[Row]) -> dict[str, str]:
    """The figures that the rows of a rung cannot give, and why. ``items`` are none."""
    if not trial.data.group:
        return {}
    gold, groups = [row.label for row in rung], [row.group for row in rung]
    least = trial.bias.group_rows
    cells = Cells.of(gold, gold, groups)
    measurable = cells.measurable(least)  # which there are depends on labels and groups alone
    absent: dict[str, str] = {}
    for name in FIGURES:
        if name in measurable:
            continue
        needed = "rows" if name == "demographic_parity" else "rows of the same label"
        why = (
            f"among the {len(rung)} rows of a rung, no two groups of data.group={trial.data.group} have {least}"
            f" {needed} each, which a rate is to be over (raise eval.rung_items, or lower bias.group_rows)"
        )
        absent |= {metric: why for metric in GROUP.metric_names if metric.startswith(GROUP.metric(name))}
    return absent


def group_notes(trial: TrialConfig, rung: Sequence[Row], rows: Sequence[Row]) -> list[str]:
    """What gaps can be measured on the rows of a rung, and on all of them.

    Args:
        trial: its group column and least rows.
        rung: rows that are scored at rungs.
        rows: all that are scored at the end.
    """
    if not trial.data.group:
        return []
    least = trial.bias.group_rows
    of_all = cell_notes(rows, least, f"all {len(rows):,} rows") if len(rows) > len(rung) else []
    return [*cell_notes(rung, least, f"the {len(rung)} rows of a rung"), *of_all]


SCORINGS = (BiasScoring("group", figures=_figures, absent=absent_gaps, notes=group_notes),)
