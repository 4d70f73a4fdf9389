"""The search space: flat ``{dotted path: Choices | Uniform}``, and how Optuna draws a point from it.

``sweeps/space/parse.py`` reads it from the config; a key in the space replaces the config's value.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from analysis.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial

Scalar = bool | int | float | str | None


@dataclass(frozen=True)
class Choices:
    """One of some values, without order.

    Attributes:
        values: distinct.
        when: dotted path → values of that key at which this dimension is searched; empty: always.
    """

    values: tuple[Scalar, ...]
    when: Mapping[str, tuple[Scalar, ...]] = field(default_factory=dict)

    def holds(self, value: Any) -> bool:
        """Whether a value is one of the choices; true is not 1."""
        return any(value == own and isinstance(value, bool) == isinstance(own, bool) for own in self.values)

    def own(self, value: Any) -> Scalar:
        """The choice that equals a value, in the choice's own type: 1 becomes 1.0 where the choices are floats."""
        return next(own for own in self.values if own == value)

    def __str__(self) -> str:
        return "one of " + ", ".join(map(str, self.values))


@dataclass(frozen=True)
class Uniform:
    """A number between two ends.

    Attributes:
        low, high: the ends, both inclusive.
        log: whether it is uniform in the logarithm.
        step: distance between values, counted from ``low``; None: any value.
        integer: whether values are whole numbers.
        when: as of ``Choices``.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    integer: bool = False
    when: Mapping[str, tuple[Scalar, ...]] = field(default_factory=dict)

    def holds(self, value: Any) -> bool:
        """Whether a value lies in the interval, on its steps, with the right type."""
        if isinstance(value, bool) or not isinstance(value, int if self.integer else int | float):
            return False
        on_grid = not self.step or (Decimal(str(value)) - Decimal(str(self.low))) % Decimal(str(self.step)) == 0
        return self.low <= value <= self.high and on_grid

    def own(self, value: Any) -> Scalar:
        """A value of the interval in the dimension's own type."""
        return int(value) if self.integer else float(value)

    def __str__(self) -> str:
        step = f" in steps of {self.step:g}" if self.step else ""
        return f"from {self.low:g} to {self.high:g}{step}"


Dimension = Choices | Uniform
Space = dict[str, Dimension]  # dotted path → dimension; a key comes after those that its condition names


def flatten(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted paths and values of a nested mapping; keys may hold dots already."""
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def active(dimension: Dimension, values: Mapping[str, Scalar]) -> bool:
    """Whether a dimension's condition holds.

    Args:
        dimension: of the space.
        values: of the keys before it. A key that is not active has none; dimensions that depend on it are not active.
    """
    return all(path in values and values[path] in allowed for path, allowed in dimension.when.items())


def suggest(space: Space, trial: "BaseTrial") -> dict[str, Scalar]:
    """One point: dotted path → value, keys that are not active left out.

    Args:
        space: to draw from.
        trial: Optuna's, which is asked for each value.
    """
    values: dict[str, Scalar] = {}
    for path, dimension in space.items():
        if not active(dimension, values):
            continue
        if isinstance(dimension, Choices):
            values[path] = trial.suggest_categorical(path, dimension.values)
        elif dimension.integer:
            step = int(dimension.step or 1)
            values[path] = trial.suggest_int(
                path, int(dimension.low), int(dimension.high), log=dimension.log, step=step
            )
        else:
            values[path] = trial.suggest_float(
                path, dimension.low, dimension.high, log=dimension.log, step=dimension.step
            )
    return values


class DefineByRun:
    """The space as Ray Tune's ``OptunaSearch`` takes it: picklable, called with each Optuna trial."""

    def __init__(self, space: Space):
        self.space = space

    def __call__(self, trial: "BaseTrial") -> dict[str, Scalar]:
        return suggest(self.space, trial)


def distributions(space: Space) -> "dict[str, BaseDistribution]":
    """Dotted path → Optuna's distribution, for rebuilding trials with ``study.add_trial``."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    made: dict[str, BaseDistribution] = {}
    for path, dimension in space.items():
        if isinstance(dimension, Choices):
            made[path] = CategoricalDistribution(dimension.values)
        elif dimension.integer:
            step = int(dimension.step or 1)
            made[path] = IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log, step=step)
        else:
            made[path] = FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)
    return made


def validate_point(space: Space, point: Mapping[str, Any], where: str = "search.start_from") -> dict[str, Scalar]:
    """A point that the user gave, as flat values in the space's order. Keys that it leaves out are sampled.

    Args:
        space: that it must lie in.
        point: dotted or nested.
        where: what to call the point in messages.

    Raises:
        ConfigError: for a key that is not searched, a value outside its dimension, or a condition that does not hold.
    """
    read: dict[str, Scalar] = {}
    for path, value in flatten(point):
        if path not in space:
            near = did_you_mean(path, space)
            raise ConfigError(f"{where}: '{path}' is not in the search space. {near} Or remove it from the point.")
        if not space[path].holds(value):
            raise ConfigError(
                f"{where}: {path}={value!r} is outside the space: expected {space[path]}."
                " Change the point or the space, or start from none: search.start_from=[]"
            )
        read[path] = space[path].own(value)
    for path in read:
        unmet = [
            other for other, allowed in space[path].when.items() if other not in read or read[other] not in allowed
        ]
        if unmet:
            allowed = " or ".join(map(str, space[path].when[unmet[0]]))
            raise ConfigError(
                f"{where}: {path} is only searched when {unmet[0]} is {allowed}."
                f" Add that to the point, or remove {path}."
            )
    return {path: read[path] for path in space if path in read}
