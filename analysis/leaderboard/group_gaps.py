"""Sentences on the best trial's gaps between groups: beside each, what fair predictions would score."""

import math

from analysis.bias_sets import BIAS_SETS
from analysis.errors import LorasweepError
from analysis.folder import SweepFolder
from analysis.metrics import METRICS
from analysis.rows import Row, row_files, sweep_yaml

_TITLES = {"equalized_odds": "equalized odds", "demographic_parity": "demographic parity"}  # the first holds TPR gaps


def gap_sentences(folder: SweepFolder, row: Row) -> list[str]:
    """Each gap with its bound and what chance alone would show, and which groups have too few rows to take part.

    Args:
        folder: of the sweep; its item table has the groups' sizes.
        row: completed, and scored on all validation items.
    """
    lines = []
    for figure, title in _TITLES.items():
        name = BIAS_SETS["group"].metric(figure)
        metric = METRICS[name]
        needed = [row.metrics.get(other, math.nan) for other in (name, metric.upper, *metric.fair)]
        if not all(map(math.isfinite, needed)):
            continue
        gap, upper, fair, fair_high = needed
        verdict = "this may be chance" if gap <= fair_high else "this is more than chance"
        lines.append(
            f"Gap between groups of {row.trial_id}, {title}: {gap:.2f} (95 % sure: at most {upper:.2f}). Fair"
            f" predictions of these group sizes would score {fair:.2f} on average, up to {fair_high:.2f}: {verdict}."
        )
    return [*lines, *_left_out(folder, row)] if lines else []


def _left_out(folder: SweepFolder, row: Row) -> list[str]:
    from analysis.group_cells import LEAST, Cells  # numpy, which a sweep without groups does not need here

    try:
        items = row_files(folder, row).read_items("task", "validation", row.step)
        least = int(sweep_yaml(folder).get("config", {}).get("bias", {}).get("group_rows", LEAST))
        few = Cells.of(items["label"], items["prediction"], items["group"]).left_out_named(least)
    except (LorasweepError, OSError, KeyError, TypeError, ValueError):
        return []
    return [f"Groups with fewer than {least} rows of a label take no part for it: {few}."] if few else []
