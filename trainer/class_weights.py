"""The weight of each row in the training loss by how often its label occurs: ``train.class_weight``."""

import math
from collections import Counter
from collections.abc import Sequence

BETA = 0.999  # of the effective number of samples: labels of many more than 1 / (1 - BETA) rows weigh alike


def class_weights(labels: Sequence[str], rule: str) -> list[float]:
    """A weight for each row, normalised to a mean of 1.

    ``balanced``: 1 / n of a label with n rows, so that all labels count alike (scikit-learn's ``class_weight``).
    ``effective``: 1 / effective number of its rows, (1 - β^n) / (1 - β) (Cui et al. 2019, arXiv 1901.05555, equation
    2): like ``balanced`` for rare labels, and milder between frequent ones.

    Args:
        labels: one of each row.
        rule: ``none``, ``balanced`` or ``effective``.
    """
    counts = Counter(labels)
    of_label = {label: 1.0 if rule == "none" else 1.0 / _rows(n, rule) for label, n in counts.items()}
    mean = sum(n * of_label[label] for label, n in counts.items()) / len(labels)
    return [of_label[label] / mean for label in labels]


def _rows(n: int, rule: str) -> float:
    """How many rows n rows of a label count for."""
    return n if rule == "balanced" else -math.expm1(n * math.log(BETA)) / (1.0 - BETA)
