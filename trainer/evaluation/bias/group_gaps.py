"""Do predictions differ between the groups of ``data.group``? Gaps by fairlearn, over the task's own rows.

For more than two classes each is compared with the rest, and a figure is the largest over classes. Rows without a
group are left out. A gap says nothing about why: groups may differ in how hard their texts are.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from analysis.bias_sets import BIAS_SETS
from trainer.config import TrialConfig
from trainer.data.dataset import Row
from trainer.evaluation.bias.registry import BiasScoring, Table

GROUP = BIAS_SETS["group"].metric_names


def group_metrics(gold: Sequence[str], predicted: Sequence[str], groups: Sequence[str | None]) -> dict[str, float]:
    """Equalized-odds difference, demographic-parity difference and true-positive-rate gap, with standard errors.

    A difference is that of the largest and the smallest rate of a group. Demographic parity: rate of predicting a
    class. True-positive-rate gap: of finding it among the rows that have it (equal opportunity, Hardt et al. 2016,
    arXiv 1610.02413); a group without such rows is left out, where fairlearn by itself would take its rate as zero.
    Equalized odds: the larger one of that gap and of the same among the rows that do not have it. The standard error
    is that of the difference of the two groups' rates, taken as known which two.

    Args:
        gold: labels.
        predicted: predicted labels.
        groups: a group each; None for none.

    Returns:
        A figure that fewer than two groups have rows for is left out.
    """
    have = np.array([group is not None for group in groups], dtype=bool)
    of = np.array([group for group in groups if group is not None])
    if len(set(of.tolist())) < 2:
        return {}
    labels, answers = np.asarray(gold)[have], np.asarray(predicted)[have]
    gaps = _gaps(labels, answers, of)
    tpr_gap = _largest(gaps["recognised"].values())
    figures = {
        "equalized_odds": _largest([*gaps["recognised"].values(), *gaps["mistaken"].values()]) if tpr_gap else None,
        "demographic_parity": _largest(gaps["predicted"].values()),
        "tpr_gap": tpr_gap,
    }
    values = {
        f"bias.group.{name}{end}": x
        for name, gap in figures.items()
        if gap is not None
        for end, x in zip(("", "_stderr"), gap, strict=True)
    }
    return {name: values[name] for name in GROUP if name in values}


def class_gaps(gold: Sequence[str], predicted: Sequence[str], groups: Sequence[str | None]) -> dict[str, float]:
    """True-positive-rate gap of each class that two groups have rows of."""
    have = [i for i, group in enumerate(groups) if group is not None]
    if len({groups[i] for i in have}) < 2:
        return {}
    rows = [np.array([column[i] for i in have]) for column in (gold, predicted, groups)]
    return {label: gap for label, (gap, _) in _gaps(*rows)["recognised"].items()}


def _gaps(labels: np.ndarray, answers: np.ndarray, groups: np.ndarray) -> dict[str, dict[str, tuple[float, float]]]:
    """For each kind of rate: class → gap and its standard error, where two groups have rows for it.

    Kinds: ``predicted`` among all rows, ``recognised`` among those of the class, ``mistaken`` among the others.
    """
    from fairlearn.metrics import MetricFrame

    classes = sorted(set(labels.tolist()))
    among = {
        "predicted": lambda y, label: np.ones(len(y), dtype=bool),
        "recognised": lambda y, label: y == label,
        "mistaken": lambda y, label: y != label,
    }

    def rate(kind: str, label: str) -> Callable[[np.ndarray, np.ndarray], float]:
        def of_rows(y_true: np.ndarray, y_pred: np.ndarray) -> float:
            rows = among[kind](np.asarray(y_true), label)
            return float((np.asarray(y_pred)[rows] == label).mean()) if rows.any() else math.nan

        return of_rows

    rates_of = [(kind, label) for kind in among for label in classes]
    metrics = {f"rate {i}": rate(kind, label) for i, (kind, label) in enumerate(rates_of)}
    frame = MetricFrame(metrics=metrics, y_true=labels, y_pred=answers, sensitive_features=groups)
    differences = frame.difference()
    gaps: dict[str, dict[str, tuple[float, float]]] = {kind: {} for kind in among}
    members = [groups == group for group in frame.by_group.index]
    for i, (kind, label) in enumerate(rates_of):
        rates = frame.by_group[f"rate {i}"].to_numpy(dtype=float)
        counted = among[kind](labels, label)
        sizes = np.array([float((counted & member).sum()) for member in members])
        there = np.isfinite(rates)
        if there.sum() < 2:
            continue
        variance = np.where(there, rates * (1.0 - rates) / np.maximum(sizes, 1.0), 0.0)
        ends = variance[np.nanargmax(rates)] + variance[np.nanargmin(rates)]
        gaps[kind][label] = (float(differences[f"rate {i}"]), math.sqrt(ends))
    return gaps


def _largest(gaps: Iterable[tuple[float, float]]) -> tuple[float, float] | None:
    return max(gaps, default=None)


def _figures(table: Table, labels: tuple[str, ...]) -> dict[str, float]:
    if not any(group is not None for group in table.get("group", ())):
        return {}
    return group_metrics(table["label"], table["prediction"], table["group"])


def _absent(trial: TrialConfig, items: list[Any], rung: Sequence[Row]) -> dict[str, str]:
    if not trial.data.group:
        return {}
    gold, groups = [row.label for row in rung], [row.group for row in rung]
    measurable = group_metrics(gold, gold, groups)  # which there are depends on labels and groups alone
    why = (
        f"among the {len(rung)} rows of a rung, two groups of data.group={trial.data.group} must share a label"
        " (raise eval.rung_items, or see whether groups and labels go together)"
    )
    return {name: why for name in GROUP if name not in measurable}


SCORINGS = (BiasScoring("group", figures=_figures, absent=_absent),)
