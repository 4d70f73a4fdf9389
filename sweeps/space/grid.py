"""Grid search: every combination once, where the space may have conditions and constraints.

``gridded`` makes a space finite; ``sweeps.search.samplers.GridSampler`` goes through it.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any

from analysis.errors import ConfigError
from sweeps.space.dimensions import Choices, Scalar, Space, Uniform, active

GRID = "sweeps.search.samplers.GridSampler"
_COUNTED = 10_000  # combinations at most are counted


def gridded(space: Space, points: int) -> Space:
    """The space with evenly spaced values in place of every range that has no ``step``.

    Args:
        space: of the sweep.
        points: values of each such range, at least 2.

    Raises:
        ConfigError: where a condition asks for a value of a range that is not on the grid.
    """
    made: Space = {}
    for path, dimension in space.items():
        if isinstance(dimension, Uniform) and dimension.step is None:
            made[path] = Choices(tuple(dict.fromkeys(_values(dimension, points))), dimension.when)
        else:
            made[path] = dimension
    for path, dimension in made.items():
        for other, values in dimension.when.items():
            if not any(made[other].holds(value) for value in values):
                raise ConfigError(
                    f"sampler=grid: {path} is searched when {other} is {' or '.join(map(str, values))}, which is not on"
                    f" the grid. Give {other} choices: […], or another sampler."
                )
    return made


def _values(dimension: Uniform, points: int) -> Iterator[Scalar]:
    """Evenly spaced, rounded to six significant digits so that they can be read and typed."""
    for k in range(points):
        share = k / (points - 1)
        if dimension.log:
            value = math.exp(math.log(dimension.low) * (1 - share) + math.log(dimension.high) * share)
        else:
            value = dimension.low * (1 - share) + dimension.high * share
        value = min(max(float(f"{value:.6g}"), dimension.low), dimension.high)
        yield round(value) if dimension.integer else value


def combinations(space: Space) -> Iterator[dict[str, Scalar]]:
    """Every point of a finite space, keys whose condition does not hold left out."""
    yield from _from(list(space.items()), {})


def _from(rest: list[tuple[str, Any]], values: Mapping[str, Scalar]) -> Iterator[dict[str, Scalar]]:
    if not rest:
        yield dict(values)
        return
    (path, dimension), *others = rest
    if not active(dimension, values):
        yield from _from(others, values)
        return
    for value in _every(dimension):
        yield from _from(others, {**values, path: value})


def _every(dimension: Choices | Uniform) -> tuple[Scalar, ...]:
    if isinstance(dimension, Choices):
        return dimension.values
    low, high = Decimal(str(dimension.low)), Decimal(str(dimension.high))  # as floats, 3 · 0.1 is above 0.3
    step = Decimal(str(dimension.step or 1))  # whole numbers
    return tuple(dimension.own(low + k * step) for k in range(int((high - low) / step) + 1))


def on_grid(space: Space, sampler: Mapping[str, Any]) -> Space:
    """The space as the sampler needs it: finite for a grid, else unchanged.

    Args:
        space: of the sweep.
        sampler: its config, ``_target_`` and arguments.
    """
    if sampler.get("_target_") != GRID:
        return space
    points = sampler.get("points", 4)
    if not isinstance(points, int) or points < 2:
        points = 4  # a wrong number is refused when the sampler is made
    return gridded(space, points)


def size(space: Space) -> int | None:
    """How many points a space holds; None for one with a range, or with more than can be gone through."""
    if any(isinstance(it, Uniform) and not it.step and not it.integer for it in space.values()):
        return None
    if any(isinstance(it, Uniform) and (it.high - it.low) / (it.step or 1) > _COUNTED for it in space.values()):
        return None
    n = sum(1 for _ in itertools.islice(combinations(space), _COUNTED))
    return n if n < _COUNTED else None


def size_note(
    space: Space, sampler: Mapping[str, Any], allowed: Callable[[Mapping[str, Any]], bool], trials: int
) -> str:
    """A sentence on how many points of a finite space are tried, where the sweep's end or its order follows from it.

    Args:
        space: of the sweep.
        sampler: its config.
        allowed: whether a point keeps the space's constraints.
        trials: configurations that the sweep tries.
    """
    n, grid = points(space, allowed), sampler.get("_target_") == GRID
    if n is None:
        more = f"The grid holds {_COUNTED:,} combinations and more, of which search.trials={trials} are tried"
        return f"{more}, in random order." if grid else ""
    what = f"The grid holds {n:,} combinations" if grid else f"The space holds {n:,} point{'s' if n != 1 else ''}"
    if n < trials:
        return f"{what}: the sweep ends after them, before search.trials={trials}."
    if n > trials and grid:
        return f"{what}, of which search.trials={trials} are tried, in random order."
    return ""


def points(space: Space, allowed: Callable[[Mapping[str, Any]], bool]) -> int | None:
    """How many points of a space are allowed; None where it holds too many to count."""
    return None if size(space) is None else sum(map(allowed, combinations(space)))
