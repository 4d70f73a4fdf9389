"""Pareto fronts and hypervolume of losses; lower is better in every column."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def fronts(losses: Sequence[Sequence[float]]) -> list[int]:
    """The front of each row: 1 where no other row is at least as good in all columns and better in one.

    Front 2 is the first of what remains without front 1, and so on (Deb et al. 2002, "A fast and elitist multiobjective
    genetic algorithm: NSGA-II", section III.A). A row with a loss that is not finite is on none: 0.
    """
    values = np.asarray(losses, dtype=np.float64)
    place = np.zeros(len(values), dtype=int)
    left = np.flatnonzero(np.isfinite(values).all(axis=1)) if len(values) else np.array([], dtype=int)
    number = 0
    while len(left):
        number += 1
        here = values[left]
        dominated = np.zeros(len(left), dtype=bool)
        for i, own in enumerate(here):
            dominated[i] = bool(((here <= own).all(axis=1) & (here < own).any(axis=1)).any())
        place[left[~dominated]] = number
        left = left[dominated]
    return place.tolist()


def hypervolume(losses: Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """The volume that the rows dominate up to a reference point (Zitzler and Thiele 1999), by slicing.

    Args:
        losses: rows that are not finite, or not better than the reference everywhere, count for nothing.
        reference: such as 1 in each column: the worse ends of the objective's ranges.
    """
    values, worst = np.asarray(losses, dtype=np.float64).reshape(-1, len(reference)), np.asarray(reference, float)
    inside = values[np.isfinite(values).all(axis=1) & (values < worst).all(axis=1)]
    return _volume(inside, worst)


def _volume(values: Array, worst: Array) -> float:
    if not len(values):
        return 0.0
    if values.shape[1] == 1:
        return float(worst[0] - values.min())
    order = np.argsort(values[:, 0], kind="stable")
    ends = np.append(values[order, 0], worst[0])
    total = 0.0
    for i in range(len(order)):
        if ends[i + 1] > ends[i]:  # a slice: what dominates it is all rows up to here
            total += (ends[i + 1] - ends[i]) * _volume(_front(values[order[: i + 1], 1:]), worst[1:])
    return total


def _front(values: Array) -> Array:
    """Without what another row dominates: slices stay small."""
    unique = np.unique(values, axis=0)
    return unique[np.array(fronts(unique)) == 1]  # type: ignore[arg-type]
