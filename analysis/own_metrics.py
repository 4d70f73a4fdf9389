"""The rows of a user's own metrics in the metric table, from what the config of a sweep says of them.

Nothing of the user's is imported: ``trainer/answers/own_metrics.py`` did that once, where the sweep was composed.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from analysis import item_sums as sums
from analysis.metric_types import Metric

PREFIX = "generate."


def columns(name: str, entry: Mapping[str, Any]) -> list[str]:
    """The columns that a metric has in the item table: its name, or one for each of its figures.

    Args:
        name: of the metric in ``eval.metrics``.
        entry: what stands there, completed.
    """
    return [f"{name}.{figure}" for figure in entry["figures"]] or [name]


def own_metrics(entries: Mapping[str, Any]) -> dict[str, Metric]:
    """``generate.<name>``, or ``generate.<name>.<figure>``, and its row of the metric table.

    Args:
        entries: ``eval.metrics`` as a sweep stores it; what is not completed yet has no row.
    """
    return {f"{PREFIX}{column}": _row(column, said) for column, said in _figures(entries)}


def bounds(given: Sequence[float | None] | None) -> tuple[float, float]:
    """Lowest and highest value, infinite where none is given."""
    low, high = given or (None, None)
    return (-math.inf if low is None else float(low), math.inf if high is None else float(high))


def _figures(entries: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, entry in entries.items():
        if isinstance(entry, Mapping) and "digest" in entry:
            figures = entry["figures"]
            yield from zip(columns(name, entry), figures.values() if figures else [entry], strict=True)


def _row(column: str, said: Mapping[str, Any]) -> Metric:
    better, ends = said["better"], bounds(said["range"])
    return Metric(
        column,
        better if isinstance(better, str) else float(better),
        range=ends,
        estimator=sums.mean_of(column, sums.GENERATED, ends),
        own=True,
    )
