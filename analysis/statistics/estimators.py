"""Metrics as functions of sums over items, so that thousands of resamples are one matrix product.

A resample is a count per item (a bootstrap), or an exchange of two rows' answers on some items (a permutation). Both
are linear in the items, and so are the sums that accuracy, macro-F1, log loss, perplexity, bits per byte and
CrowS-Pairs are made of. Metrics that have no such form here stay at their measured value.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.objective import BELOW_ONE, Objective
from analysis.statistics.items import Aligned

Array = np.ndarray[Any, np.dtype[Any]]
TASK, PAIRS = "task", "crows_pairs"


@dataclass(frozen=True)
class Estimator:
    """One metric.

    Attributes:
        dataset: whose item tables it is from.
        columns: tables and labels → (rows, items, k), what is summed.
        value: (…, k) sums and the number of items they are over → (…) values.
    """

    dataset: str
    columns: Callable[[Aligned, Sequence[str]], Array]
    value: Callable[[Array, Array], Array]


def _hits(items: Aligned, labels: Sequence[str]) -> Array:
    return (items.codes("prediction", labels) == items.codes("label", labels))[..., None]


def _confusions(items: Aligned, labels: Sequence[str]) -> Array:
    """Per class: true positive, then predicted plus true."""
    gold, told = items.codes("label", labels), items.codes("prediction", labels)
    classes = np.arange(len(labels))
    is_gold, is_told = gold[..., None] == classes, told[..., None] == classes
    return np.concatenate([is_gold & is_told, is_gold.astype(np.int8) + is_told], axis=-1)


def _macro_f1(sums: Array, n: Array) -> Array:
    """2·TP / (predicted + true), averaged over all classes; 0 for a class that is in neither (as scikit-learn)."""
    classes = sums.shape[-1] // 2
    both = sums[..., classes:]
    return np.divide(2 * sums[..., :classes], both, out=np.zeros_like(both), where=both > 0).mean(axis=-1)


def _gold_nll(items: Aligned, labels: Sequence[str]) -> Array:
    gold = items.codes("label", labels)
    values = np.take_along_axis(items.vectors("logprobs"), gold[..., None], axis=-1)
    return -np.maximum(values, math.log(np.finfo(np.float64).eps))  # scikit-learn's log_loss clips there too


def _columns(*names: str) -> Callable[[Aligned, Sequence[str]], Array]:
    return lambda items, labels: np.stack([items.numbers(name) for name in names], axis=-1)


def _ratio(sums: Array, n: Array) -> Array:
    return sums[..., 0] / sums[..., 1]


def _preferences(items: Aligned, labels: Sequence[str]) -> Array:
    pair = items.vectors("logprobs")
    return (pair[..., 0] - pair[..., 1])[..., None]


def _mean(sums: Array, n: Array) -> Array:
    return sums[..., 0] / n


ESTIMATORS = {
    "accuracy": Estimator(TASK, _hits, _mean),
    "macro_f1": Estimator(TASK, _confusions, _macro_f1),
    "log_loss": Estimator(TASK, _gold_nll, _mean),
    "perplexity": Estimator(TASK, _columns("nll", "n_tokens"), lambda sums, n: np.exp(_ratio(sums, n))),
    "completion_perplexity": Estimator(
        TASK, _columns("completion_nll", "completion_tokens"), lambda sums, n: np.exp(_ratio(sums, n))
    ),
    "bits_per_byte": Estimator(
        TASK, _columns("nll", "n_bytes"), lambda sums, n: _ratio(sums, n) / math.log(2)
    ),
    "bias.crows_pairs.signed": Estimator(PAIRS, _preferences, _mean),
    "bias.crows_pairs.pct": Estimator(
        PAIRS, lambda items, labels: _preferences(items, labels) > 0, lambda sums, n: 100 * _mean(sums, n)
    ),
    "bias.crows_pairs.distance": Estimator(
        PAIRS, lambda items, labels: _preferences(items, labels) > 0, lambda sums, n: abs(100 * _mean(sums, n) - 50)
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Scored:
    """Rows with the columns of the metrics that they are compared by.

    Attributes:
        sizes: data set → number of items.
        columns: metric → (rows, items, k) in float32: the sums are of small numbers, and products twice as fast.
        fixed: metric → (rows,) measured values, of metrics that cannot be resampled.
        score: metric → values of any shape, to one number of that shape; higher is better.
    """

    sizes: Mapping[str, int]
    columns: Mapping[str, Array]
    fixed: Mapping[str, Array]
    score: Callable[[Mapping[str, Array]], Array]

    def weighted(self, counts: Mapping[str, Array]) -> dict[str, Array]:
        """Metric → (rows, resamples), items counted as often as ``counts`` says: data set → (resamples, items)."""
        values = {}
        for name, columns in self.columns.items():
            estimator = ESTIMATORS[name]
            weights = counts[estimator.dataset].astype(np.float32)
            values[name] = estimator.value(_product(weights, columns), weights.sum(axis=1, dtype=np.float64))
        resamples = next(iter(counts.values())).shape[0]
        values |= {name: np.repeat(given[:, None], resamples, axis=1) for name, given in self.fixed.items()}
        return values

    def exchanged(self, masks: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        """The first row and each other one with their answers exchanged on some items.

        Args:
            masks: data set → (resamples, items), 1 where they are exchanged.

        Returns:
            Metric → (others, resamples), of the first row and of the others.
        """
        first, other = {}, {}
        for name, columns in self.columns.items():
            estimator = ESTIMATORS[name]
            moved = _product(masks[estimator.dataset].astype(np.float32), columns[1:] - columns[:1])
            n = np.array(float(columns.shape[1]))
            first[name] = estimator.value(columns[:1].sum(axis=1, dtype=np.float64)[:, None] + moved, n)
            other[name] = estimator.value(columns[1:].sum(axis=1, dtype=np.float64)[:, None] - moved, n)
        resamples = next(iter(masks.values())).shape[0]
        for name, given in self.fixed.items():
            first[name] = np.full((len(given) - 1, resamples), given[0])
            other[name] = np.repeat(given[1:, None], resamples, axis=1)
        return first, other

    @property
    def width(self) -> int:
        """Numbers of a resample, to bound memory by."""
        return max((columns.shape[0] * columns.shape[2] for columns in self.columns.values()), default=1)


def _product(weights: Array, columns: Array) -> Array:
    """(rows, resamples, k) sums from (resamples, items) and (rows, items, k), as one matrix product."""
    rows, items, k = columns.shape
    flat = weights @ columns.transpose(1, 0, 2).reshape(items, rows * k)
    return flat.reshape(-1, rows, k).transpose(1, 0, 2).astype(np.float64)


def scores(objective: Objective, values: Mapping[str, Array]) -> Array:
    """``Objective.score`` over arrays: metric → values of one shape gives one number each."""
    losses = [np.asarray(term.loss(values[term.metric])) for term in objective.terms]  # type: ignore[arg-type]
    if objective.method == "lexicographic":
        score = 1.0 - losses[-1]
        for term, loss in zip(reversed(objective.terms[:-1]), reversed(losses[:-1]), strict=True):
            reached = np.floor(np.round((1.0 - np.clip(loss, 0.0, 1.0)) * term.steps, 6))
            score = (reached + np.clip(score, 0.0, 1.0) * BELOW_ONE) / (term.steps + 1)
        return score
    weights = [term.weight for term in objective.terms]
    weighted = [weight * loss for weight, loss in zip(weights, losses, strict=True)]
    worst = np.maximum.reduce(weighted) + objective.rho * sum(weighted)
    return np.asarray(1.0 - worst / (max(weights) + objective.rho * sum(weights)))
