"""A scored row broken down, from its item tables: each class and its confusions, each category of the bias sets."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.evaluation.bias.bbq import bbq_metrics
from trainer.evaluation.bias.crows_pairs import pair_metrics
from trainer.evaluation.bias.group_gaps import class_gaps
from trainer.evaluation.bias.stereoset import stereoset_metrics

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
    """The classes of a task, by name.

    Args:
        task: its item table, with columns ``label``, ``prediction`` and ``group``.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    gold, predicted = list(task["label"]), list(task["prediction"])
    labels = sorted({*gold, *predicted})
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
    """Category of a bias set → items in it, and its figures by name.

    Args:
        name: of the set: crows_pairs, pairs, stereoset or bbq.
        table: its item table.
    """
    by_category = {}
    for category in sorted(set(table["group"])):
        rows = [i for i, group in enumerate(table["group"]) if group == category]
        part = {column: [values[i] for i in rows] for column, values in table.items()}
        by_category[category] = (len(rows), _figures(name, part))
    return by_category


def _figures(name: str, part: Table) -> dict[str, Figure]:
    if name == "stereoset":
        figures = stereoset_metrics(part["target"], part["logprobs"])
    elif name == "bbq":
        answers = [int(np.argmax(values)) for values in part["logprobs"]]
        figures = bbq_metrics(part["condition"], answers, part["label"], part["biased"], part["unknown"])
    else:
        pairs = pair_metrics([list(values) for values in part["logprobs"]])
        return {"pct": (pairs["bias.crows_pairs.pct"], pairs["bias.crows_pairs.stderr"])}
    values = {key.rsplit(".", 1)[-1]: value for key, value in figures.items()}
    return {key: (value, values[f"{key}_stderr"]) for key, value in values.items() if not key.endswith("_stderr")}
