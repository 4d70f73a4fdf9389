"""The interpolations that config files may use, beside OmegaConf's own. They are resolved after sampling.

============================  =====================================================================
``${mul:a,b}``                a · b, such as ``${mul:2,${lora.rank}}``
``${div:a,b}``                a / b, whole where it comes out whole
``${pick:key,{k: v, …}}``     the value that stands under ``key``
``${halvings:n}``             ``[n/4, n/2, n]`` as far as they are whole: rungs for ``n`` steps
``${first:list}``             the first of a list, such as the first rung; 1 of an empty one
``${population:class}``       whether a scheduler's class lets trials take up each other's weights
``${startup:n}``              how many of n trials are drawn at random first: a quarter, at least 4, at most 10
``${conditional:${space}}``   whether a key of the space is searched only ``when`` another one has some value
``${growth:list}``            by which factor a list of rungs grows; 2 for a single rung
``${oc.env:NAME}``            an environment variable, read once, where the command is run; never a stored one
============================  =====================================================================
"""

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf
from omegaconf.resolvers import oc

_ENVIRONMENT = "oc.env"  # the only interpolation, of OmegaConf's and these, that reads the machine


def register() -> None:
    """Make the interpolations known in this process (the driver's or a worker's); calling it again is harmless.

    From then on none reads the environment: ``read_environment`` has done that with what the user wrote, and what is
    resolved may have been stored by somebody else.
    """
    for function in (mul, div, pick, halvings, first, growth, startup, conditional, population):
        OmegaConf.register_new_resolver(function.__name__, function, replace=True)
    OmegaConf.register_new_resolver(_ENVIRONMENT, _refused, replace=True)


def let_read_environment() -> None:
    """Let ``${oc.env:…}`` be resolved until ``register``: by Hydra, in the defaults lists of config files."""
    OmegaConf.register_new_resolver(_ENVIRONMENT, oc.env, replace=True)


def _refused(*arguments: Any) -> Any:
    raise ValueError("an environment variable is read where a sweep begins, by a name that is written out: ${oc.env:X}")


def mul(a: float, b: float) -> float:
    """a · b."""
    return a * b


def div(a: float, b: float) -> float:
    """a / b, as a whole number where it is one."""
    quotient = a / b
    return int(quotient) if quotient == int(quotient) else quotient


def pick(key: Any, options: Mapping[Any, Any]) -> Any:
    """The value under ``key`` in ``options``. Raises ValueError where there is none."""
    if key not in options:
        raise ValueError(f"{key!r} is none of {', '.join(map(str, options))}")
    return options[key]


def halvings(steps: int) -> list[int]:
    """A quarter, a half and the whole of a number of steps, those that are whole numbers; none of 0 steps."""
    return [steps // part for part in (4, 2, 1) if steps and steps % part == 0]


def first(values: Sequence[Any]) -> Any:
    """The first of a list; 1 where it is empty, as rungs are that the data are still to give."""
    return values[0] if values else 1


def growth(rungs: Sequence[int]) -> float:
    """By which factor a list of rungs grows; 2 for a single rung."""
    return div(rungs[1], rungs[0]) if len(rungs) > 1 else 2


def startup(trials: int) -> int:
    """How many of a number of trials are drawn at random first: a quarter, at least 4, at most 10."""
    return min(max(trials // 4, 4), 10)


def conditional(space: Mapping[str, Any] | None) -> bool:
    """Whether some key of the space is searched only ``when`` another one has a certain value."""
    inside = [part for part in (space or {}).values() if isinstance(part, Mapping)]
    return any("when" in part or conditional(part) for part in inside)


def population(target: str) -> bool:
    """Whether a scheduler's class lets trials take up each other's weights."""
    return target.endswith(".PopulationBasedTraining")
