"""Reads the ``space`` group of the config, nested like the config itself, into the flat search space.

An entry is ``{choices: […]}`` or ``{low, high}`` with ``log`` or ``step``; ``when: {path: value or values}`` makes it
conditional on another searched key.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from graphlib import CycleError, TopologicalSorter
from typing import Any

from analysis.errors import ConfigError, did_you_mean
from sweeps.config import Leaf, schema
from sweeps.space.dimensions import Choices, Dimension, Scalar, Space, Uniform, flatten
from trainer.config import TrialConfig, check_value

Where = Callable[[str], str]  # dotted path below ``space`` → the file or override that holds it, for messages
ENTRY_KEYS = ("choices", "low", "high", "log", "step", "when")


@functools.cache
def searchable() -> dict[str, Leaf]:
    """Paths that a space may hold: a trial's scalars, less the base model and what decides how it is scored.

    Trials that differ in these could not be ranked against each other, or against the untuned model.
    """
    fixed = ("trial_id", "model.", "data.", "eval.", "bias.", "task.name")
    scalars = {path: leaf for path, leaf in schema(TrialConfig).items() if leaf.type in (bool, int, float, str)}
    return {path: leaf for path, leaf in scalars.items() if path == "data.max_length" or not path.startswith(fixed)}


def parse_space(group: Mapping[str, Any], where: Where = lambda path: "group space") -> Space:
    """The flat space of a nested ``space`` group, each key after the keys that its condition names.

    Args:
        group: plain nested mapping; an entry that is ``None`` is not searched.
        where: names the file or override that holds a path below ``space``, for messages.

    Raises:
        ConfigError: for an unknown path, a wrong entry, a value out of range, or a condition that cannot hold.
    """
    known, space = searchable(), {}
    for path, entry in _entries(group, "", known, where):
        space[path] = _dimension(path, entry, known[path], where)
    for path, dimension in space.items():
        _check_condition(path, dimension, space, where)
    order = TopologicalSorter({path: sorted(space[path].when) for path in sorted(space)})
    try:
        return {path: space[path] for path in order.static_order()}
    except CycleError as error:
        circle = " → ".join(error.args[1])
        raise ConfigError(
            f"space: conditions go in a circle: {circle}. Remove one `when`. ({where(error.args[1][0])})"
        ) from None


def _entries(
    group: Mapping[str, Any], prefix: str, known: Mapping[str, Leaf], where: Where
) -> Iterator[tuple[str, Any]]:
    for name, value in group.items():
        path = f"{prefix}{name}"
        if value is None:
            continue
        if path in known:
            yield path, value
        elif any(other.startswith(f"{path}.") for other in schema()):
            if not isinstance(value, Mapping):
                raise ConfigError(
                    f"space.{path}={value!r}: expected keys below it, such as space.{path}.KEY.choices. ({where(path)})"
                )
            yield from _entries(value, f"{path}.", known, where)
        elif path in schema():
            raise ConfigError(
                f"space: '{path}' cannot be searched: the trials of a sweep share one base model, and are scored"
                f" on the same items in the same way. Give it one value instead: {path}=… ({where(path)})"
            )
        else:
            raise ConfigError(f"space: '{path}' is not a config path. {did_you_mean(path, known)} ({where(path)})")


def _dimension(path: str, entry: Any, leaf: Leaf, where: Where) -> Dimension:
    def refuse(problem: str) -> ConfigError:
        return ConfigError(f"space.{path}: {problem} ({where(path)})")

    if not isinstance(entry, Mapping):
        raise refuse(f"expected choices: […], or low: and high:, but found {entry!r}.")
    for name in entry:
        if name not in ENTRY_KEYS:
            raise refuse(f"'{name}' is not a key of a space entry. {did_you_mean(str(name), ENTRY_KEYS)}")
    settings = {name: value for name, value in entry.items() if value is not None}
    when = _condition(settings.get("when", {}), refuse)
    bounds = [name for name in ("low", "high", "log", "step") if name in settings]
    if "choices" in settings:
        if bounds:
            raise refuse(
                f"it has choices and {bounds[0]}. Give one of the two; to replace what a file holds, write the values"
                f" on the command line as '{path}=choice(…)' or '{path}=interval(low,high)'."
            )
        values = settings["choices"]
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise refuse(f"choices={values!r}: expected a list with at least one value.")
        read = tuple(_value(path, value, leaf, refuse, where) for value in values)
        if len(set(read)) < len(read):
            raise refuse(f"choices={list(values)}: a value stands twice. Optuna would try it twice as often.")
        return Choices(read, when)
    if "low" not in settings or "high" not in settings:
        raise refuse("expected choices: […], or both low: and high:.")
    return _uniform(path, settings, leaf, when, refuse, where)


def _uniform(
    path: str,
    settings: Mapping[str, Any],
    leaf: Leaf,
    when: dict[str, tuple[Scalar, ...]],
    refuse: Callable[[str], ConfigError],
    where: Where,
) -> Uniform:
    if leaf.type not in (int, float):
        raise refuse("low and high are for numbers. Give choices: […].")
    low, high = (_value(path, settings[name], leaf, refuse, where) for name in ("low", "high"))
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    log, step, integer = settings.get("log", False), settings.get("step"), leaf.type is int
    if not isinstance(log, bool):
        raise refuse(f"log={log!r}: expected true or false.")
    if not low < high:
        raise refuse(f"low={low:g} is not below high={high:g}.")
    if log and low <= 0:
        raise refuse(f"log: true needs low above 0, but low={low:g}. Raise it, or remove log.")
    if step is not None:
        if log:
            raise refuse("log and step do not go together. Remove one, or give choices: […].")
        if isinstance(step, bool) or not isinstance(step, int if integer else int | float) or step <= 0:
            raise refuse(f"step={step!r}: expected a {'whole ' if integer else ''}number above 0.")
        if (Decimal(str(high)) - Decimal(str(low))) % Decimal(str(step)):
            raise refuse(f"high={high:g} is not reached from low={low:g} in steps of {step:g}.")
    return Uniform(low, high, log, step, integer, when)


def _value(path: str, value: Any, leaf: Leaf, refuse: Callable[[str], ConfigError], where: Where) -> Scalar:
    """One value as the key's own type: 1 is good for a float, but text is not a number, nor 1.5 a whole one."""
    if value is None and leaf.optional:
        return None
    if leaf.type is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not leaf.type:
        expected = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[leaf.type]
        raise refuse(f"{value!r} is not {expected}.")
    try:
        check_value(f"space.{path}", value, leaf.metadata)
    except ConfigError:
        check_value(f"space.{path}", value, leaf.metadata, where(path))  # reading where it came from takes time
        raise
    result: Scalar = value
    return result


def _condition(when: Any, refuse: Callable[[str], ConfigError]) -> dict[str, tuple[Scalar, ...]]:
    if not isinstance(when, Mapping):
        raise refuse(f"when={when!r}: expected a mapping, such as when: {{lora.alpha_rule: fixed}}.")
    flat = dict(flatten(when))
    return {path: tuple(value) if isinstance(value, list | tuple) else (value,) for path, value in flat.items()}


def _check_condition(path: str, dimension: Dimension, space: Space, where: Where) -> None:
    for other, values in dimension.when.items():
        if other not in space:
            raise ConfigError(
                f"space.{path}: its condition names '{other}', which this space does not search."
                f" {did_you_mean(other, space)} ({where(path)})"
            )
        for value in values:
            if not space[other].holds(value):
                raise ConfigError(
                    f"space.{path}: its condition asks {other}={value!r}, which never comes:"
                    f" {other} is {space[other]}. ({where(path)})"
                )


def to_group(space: Space) -> dict[str, Any]:
    """The nested ``space`` group that ``parse_space`` reads back."""
    group: dict[str, Any] = {}
    for path, dimension in space.items():
        *parents, leaf = path.split(".")
        inner = group
        for name in parents:
            inner = inner.setdefault(name, {})
        if isinstance(dimension, Choices):
            entry: dict[str, Any] = {"choices": list(dimension.values)}
        else:
            entry = {"low": dimension.low, "high": dimension.high}
            entry |= {"log": True} if dimension.log else {}
            entry |= {"step": dimension.step} if dimension.step else {}
        if dimension.when:
            entry["when"] = {other: list(values) for other, values in dimension.when.items()}
        inner[leaf] = entry
    return group
