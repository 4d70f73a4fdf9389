"""A scored row broken down, from its item tables: each class and its confusions, each category of the bias sets."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.metric_types import in_order
from trainer.evaluation.bias.group_gaps import class_gaps
from trainer.evaluation.bias.registry import scorings

Table = Mapping[str, Sequence[Any]]
Figure = tuple[float, float]  # value and standard error


@dataclass(frozen=True)
class ClassRow:
    """One class.

    Attributes:
        label: its name.
        n: items that have it.
        precision, recall, f1: 0 where there is nothing to divide by.
        predicted_as: label → how many of its items were predicted so: its row of the confusion matrix.
        tpr_gap: largest difference of recall between groups; NaN without two groups that have it.
    """

    label: str
    n: int
    precision: float
    recall: float
    f1: float
    predicted_as: dict[str, int]
    tpr_gap: float


def classes(task: Table) -> list[ClassRow]:
    """The classes of a task, in their order.

    Args:
        task: its item table, with columns ``label``, ``prediction`` and ``group``.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    gold, predicted = list(task["label"]), list(task["prediction"])
    labels = in_order([*gold, *predicted])
    matrix = confusion_matrix(gold, predicted, labels=labels)
    scores = precision_recall_fscore_support(gold, predicted, labels=labels, zero_division=0)
    gaps = class_gaps(gold, predicted, task["group"])
    rows = []
    for i, label in enumerate(labels):
        precision, recall, f1 = (float(scores[part][i]) for part in range(3))
        predicted_as = dict(zip(labels, map(int, matrix[i]), strict=True))
        rows.append(ClassRow(label, int(scores[3][i]), precision, recall, f1, predicted_as, gaps.get(label, math.nan)))
    return rows


def categories(name: str, table: Table) -> dict[str, tuple[int, dict[str, Figure]]]:
    """Category of a bias set → items in it, and each figure that has a standard error.

    Args:
        name: of a set that has categories.
        table: its item table.
    """
    scoring = scorings()[name]
    column = table[scoring.declared.category]
    parts = {}
    for category in sorted(set(column)):
        rows = [i for i, other in enumerate(column) if other == category]
        part = {name: [values[i] for i in rows] for name, values in table.items()}
        values = scoring.figures(part, ())
        figures = {
            figure: (values[scoring.declared.metric(figure)], values[scoring.declared.metric(metric.error)])
            for figure, metric in scoring.declared.metrics.items()
            if metric.error
        }
        parts[category] = (len(rows), figures)
    return parts
