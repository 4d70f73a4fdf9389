"""A scored row broken down, from its item tables: each class and its confusions, each category of the bias sets."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.metric_types import in_order
from trainer.config import BiasConfig
from trainer.evaluation.bias.group_gaps import recall_gaps
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
        tpr_gap: largest difference of recall between groups; NaN without two groups that have enough rows of it.
        fair_gap: that of fair predictions of the same sizes, on average.
    """

    label: str
    n: int
    precision: float
    recall: float
    f1: float
    predicted_as: dict[str, int]
    tpr_gap: float
    fair_gap: float


def classes(task: Table, settings: BiasConfig) -> list[ClassRow]:
    """The classes of a task, in their order.

    Args:
        task: its item table, with columns ``label``, ``prediction`` and ``group``.
        settings: config of bias: how many rows a rate of a group is over.
    """
    from sklearn.metrics import precision_recall_fscore_support

    gold, predicted = list(task["label"]), list(task["prediction"])
    labels = in_order([*gold, *predicted])
    counts = Counter(zip(gold, predicted, strict=True))  # scikit-learn's matrix warns of a single class
    scores = precision_recall_fscore_support(gold, predicted, labels=labels, zero_division=0)
    gaps = recall_gaps(gold, predicted, task["group"], settings.group_rows)
    rows = []
    for i, label in enumerate(labels):
        precision, recall, f1 = (float(scores[part][i]) for part in range(3))
        predicted_as = {other: counts[label, other] for other in labels}
        apart, fair = gaps.get(label, (math.nan, math.nan))
        rows.append(ClassRow(label, int(scores[3][i]), precision, recall, f1, predicted_as, apart, fair))
    return rows


def categories(name: str, table: Table, settings: BiasConfig) -> dict[str, tuple[int, dict[str, Figure]]]:
    """Category of a bias set → items in it, and each figure that has a standard error.

    Args:
        name: of a set that has categories.
        table: its item table.
        settings: config of bias.
    """
    scoring = scorings()[name]
    column = table[scoring.declared.category]
    parts = {}
    for category in sorted(set(column)):
        rows = [i for i, other in enumerate(column) if other == category]
        part = {name: [values[i] for i in rows] for name, values in table.items()}
        values = scoring.figures(part, (), settings)
        figures = {
            figure: (values[scoring.declared.metric(figure)], values[scoring.declared.metric(metric.error)])
            for figure, metric in scoring.declared.metrics.items()
            if metric.error
        }
        parts[category] = (len(rows), figures)
    return parts
