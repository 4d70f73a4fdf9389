"""Metrics as functions of sums over items, so that thousands of resamples are one matrix product.

A resample is a count per item (a bootstrap), or an exchange of two rows' answers on some items (a permutation). Both
are linear in the items, and so are the sums that most metrics are made of: right answers, losses, tokens, bytes,
preferences. A metric without such a form stays at its measured value when others are resampled.

Each function here makes the ``Estimator`` of one kind of metric; ``analysis/metrics.py`` and ``analysis/bias_sets.py``
say which metric has which. numpy is imported when one is used: reading the metric table costs nothing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

TASK = "task"  # the item table of the task's own rows


class ItemColumns(Protocol):
    """Item tables of several leaderboard rows over the same items (``analysis/statistics/items.py``)."""

    def numbers(self, column: str) -> "Array":
        """(rows, items) of a numeric column."""

    def codes(self, column: str, names: Sequence[str]) -> "Array":
        """(rows, items) of a text column as places in ``names``; -1 for a text that is not among them."""

    def vectors(self, column: str) -> "Array":
        """(rows, items, width) of a column of equally long lists."""


@dataclass(frozen=True)
class Estimator:
    """How a metric is computed from sums over items.

    Attributes:
        dataset: the item table that it is computed from: ``task``, or the name of a bias set.
        columns: tables and the task's labels → (rows, items, k), what is summed over the items.
        value: (…, k) sums and the number of items that they are over → (…) values of the metric.
    """

    dataset: str
    columns: Callable[[ItemColumns, Sequence[str]], "Array"]
    value: Callable[["Array", "Array"], "Array"]


def ratio_of(above: str, below: str, unit: float = 1.0) -> Estimator:
    """The sum of one numeric column of the task's table over the sum of another, in units of ``unit``."""
    return Estimator(TASK, _columns(above, below), lambda sums, n: _ratio(sums) / unit)


def perplexity_of(nll: str, tokens: str) -> Estimator:
    """The exponential of a loss a token, from columns of the task's table: nats, and tokens that they are over."""

    def value(sums: "Array", n: "Array") -> "Array":
        import numpy as np

        return np.exp(_ratio(sums))

    return Estimator(TASK, _columns(nll, tokens), value)


def accuracy() -> Estimator:
    """The share of the task's rows whose ``prediction`` is their ``label``."""
    return Estimator(TASK, _hits, _mean)


def macro_f1() -> Estimator:
    """F1 averaged over all classes."""
    return Estimator(TASK, _confusions, _macro_f1)


def weighted_f1() -> Estimator:
    """F1 of each class, averaged by how many of the items have it (scikit-learn's ``average="weighted"``)."""

    def columns(items: ItemColumns, labels: Sequence[str]) -> "Array":
        import numpy as np

        is_gold = items.codes("label", labels)[..., None] == np.arange(len(labels))
        return np.concatenate([_confusions(items, labels), is_gold], axis=-1)

    def value(sums: "Array", n: "Array") -> "Array":
        import numpy as np

        right, both, gold = np.split(sums, 3, axis=-1)
        f1: Array = np.divide(2 * right, both, out=np.zeros_like(both), where=both > 0)
        return np.asarray((f1 * gold).sum(axis=-1) / gold.sum(axis=-1))

    return Estimator(TASK, columns, value)


def log_loss() -> Estimator:
    """Mean negative log-probability of the label, from the column ``logprobs``."""
    return Estimator(TASK, _label_nll, _mean)


def preference(dataset: str) -> Estimator:
    """Mean of the first minus the second value of ``logprobs``: how far the first of two sentences is likelier."""
    return Estimator(dataset, _differences, _mean)


def preferred_share(dataset: str, neutral: float | None = None) -> Estimator:
    """Percent of the items whose first value of ``logprobs`` is above the second.

    Args:
        dataset: name of the bias set.
        neutral: in percent; where given, the metric is the distance from it, in points.
    """

    def value(sums: "Array", n: "Array") -> "Array":
        percent: Array = 100 * _mean(sums, n)
        return percent if neutral is None else abs(percent - neutral)

    return Estimator(dataset, lambda items, labels: _differences(items, labels) > 0, value)


def _columns(*names: str) -> Callable[[ItemColumns, Sequence[str]], "Array"]:
    def read(items: ItemColumns, labels: Sequence[str]) -> "Array":
        import numpy as np

        return np.stack([items.numbers(name) for name in names], axis=-1)

    return read


def _hits(items: ItemColumns, labels: Sequence[str]) -> "Array":
    right: Array = items.codes("prediction", labels) == items.codes("label", labels)
    return right[..., None]


def _confusions(items: ItemColumns, labels: Sequence[str]) -> "Array":
    """(rows, items, 2 · classes). Per class: true positive, then predicted plus true."""
    import numpy as np

    gold, predicted = items.codes("label", labels), items.codes("prediction", labels)
    classes = np.arange(len(labels))
    is_gold, is_predicted = gold[..., None] == classes, predicted[..., None] == classes
    return np.concatenate([is_gold & is_predicted, is_gold.astype(np.int8) + is_predicted], axis=-1)


def _macro_f1(sums: "Array", n: "Array") -> "Array":
    """2·TP / (predicted + true), averaged over all classes; 0 for a class that is in neither (as scikit-learn)."""
    import numpy as np

    classes = sums.shape[-1] // 2
    both = sums[..., classes:]
    f1: Array = np.divide(2 * sums[..., :classes], both, out=np.zeros_like(both), where=both > 0)
    return f1.mean(axis=-1)


def _label_nll(items: ItemColumns, labels: Sequence[str]) -> "Array":
    import numpy as np

    gold = items.codes("label", labels)
    values = np.take_along_axis(items.vectors("logprobs"), gold[..., None], axis=-1)
    return -np.maximum(values, math.log(np.finfo(np.float64).eps))  # scikit-learn's log_loss clips there too


def _differences(items: ItemColumns, labels: Sequence[str]) -> "Array":
    pair = items.vectors("logprobs")
    return (pair[..., 0] - pair[..., 1])[..., None]


def _mean(sums: "Array", n: "Array") -> "Array":
    return sums[..., 0] / n


def _ratio(sums: "Array") -> "Array":
    import numpy as np

    with np.errstate(invalid="ignore"):  # a resample without such an item: NaN
        return np.asarray(sums[..., 0] / sums[..., 1])
