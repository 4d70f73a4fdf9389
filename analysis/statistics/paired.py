"""Statistics over per-item scores."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.errors import DataError

MANY = 5_000  # items


@dataclass(frozen=True)
class Difference:
    """A difference of two means over the same items, with its interval.

    Attributes:
        mean: of the first minus the second.
        low: lower end of the interval; NaN for a single item.
        high: upper end.
        n: items that both have.
    """

    mean: float
    low: float
    high: float
    n: int


def item_scores(items: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    """Item id → a score of an item table, higher is better.

    1 where the prediction is the label, else 0; of rows without labels minus the loss in nats a token: of the
    completion, or of schema text of the whole text.

    Raises:
        KeyError: for a table without such columns.
    """
    if "prediction" in items:
        scored = zip(items["item_id"], items["prediction"], items["label"], strict=True)
        return {str(item): float(prediction == label) for item, prediction, label in scored}
    loss, tokens = ("completion_nll", "completion_tokens") if "completion_nll" in items else ("nll", "n_tokens")
    return {str(i): -nll / n for i, nll, n in zip(items["item_id"], items[loss], items[tokens], strict=True)}


def paired_difference(
    first: Mapping[str, float],
    second: Mapping[str, float],
    confidence: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Paired bootstrap interval of the difference of mean scores, over the items that both have.

    The interval is BCa (Efron 1987, "Better bootstrap confidence intervals", JASA 82, 171-185) from 9,999 resamples, by
    ``scipy``. With more than 5,000 items it is the percentile interval from 1,999: BCa's jackknife takes time in the
    square of the items, and what it corrects is gone by then. Where every item has the same difference, resampling
    shows no spread and BCa is not defined: both ends are that difference then.

    Args:
        first: item id → score; a score that is not finite counts as absent.
        second: the same for what it is compared with.
        confidence: coverage of the interval.
        seed: of the resampling: the same input gives the same interval.

    Raises:
        DataError: where they have no item in common.
    """
    import numpy as np
    from scipy.stats import bootstrap

    items = [i for i in sorted(first.keys() & second.keys()) if math.isfinite(first[i]) and math.isfinite(second[i])]
    if not items:
        raise DataError("The two have no scored item in common. Score both on the same validation items.")
    a, b = np.array([first[i] for i in items], dtype=float), np.array([second[i] for i in items], dtype=float)
    difference = a - b
    mean = float(difference.mean())
    if len(items) == 1:
        return Difference(mean, math.nan, math.nan, 1)
    if np.allclose(difference, difference[0], rtol=0.0, atol=1e-12):
        return Difference(mean, mean, mean, len(items))
    many = len(items) > MANY
    interval = bootstrap(
        (a, b),
        lambda x, y, axis: (x - y).mean(axis=axis),
        paired=True,
        method="percentile" if many else "BCa",
        confidence_level=confidence,
        n_resamples=1999 if many else 9999,
        batch=max(1, 1_000_000 // len(items)),  # bounds memory: resamples held at a time × items
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Difference(mean, float(interval.low), float(interval.high), len(items))
