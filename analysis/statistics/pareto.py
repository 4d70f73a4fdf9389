"""Pareto fronts and hypervolume of losses; lower is better in every column."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def fronts(losses: Sequence[Sequence[float]]) -> list[int]:
    """The front of each row: 1 where no other row is at least as good in all columns and better in one.

    Front 2 is the first of what remains without front 1, and so on (Deb et al. 2002, "A fast and elitist multiobjective
    genetic algorithm: NSGA-II", section III.A). A row with a loss that is not finite is on none: 0.

    Rows are placed one after the other, the smallest first (Zhang et al. 2015, "An efficient approach to nondominated
    sorting for evolutionary multiobjective optimization", IEEE Transactions on Evolutionary Computation 19, 201-213):
    only earlier ones can dominate a row, and where front k has one that does, so has each front before it.
    """
    values = np.asarray(losses, dtype=np.float64)
    place = [0] * len(values)
    finite = np.flatnonzero(np.isfinite(values).all(axis=1)) if len(values) else np.array([], dtype=int)
    found: list[list[int]] = []
    for row in finite[np.lexsort(values[finite].T[::-1])] if len(finite) else ():
        number = bisect_left(found, True, key=lambda front, row=row: not _dominated(values, front, row))  # type: ignore[misc]
        if number == len(found):
            found.append([])
        found[number].append(row)
        place[row] = number + 1
    return place


def _dominated(values: Array, front: list[int], row: int) -> bool:
    """Whether one of a front is better than a row that is not before any of them in lexicographic order."""
    if values.shape[1] <= 2:
        front = front[-1:]  # the later in such a front, the better in the last column
    here = values[front]
    return bool(((here <= values[row]).all(axis=1) & (here < values[row]).any(axis=1)).any())


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
