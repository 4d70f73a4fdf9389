"""Command-line overrides: Hydra's grammar, read with Hydra's own parser, with messages for the usual slips.

Group choices (``model=minilm``) go to Hydra. Values (``lora.rank=8``) and searched values (``lora.rank=choice(4,8)``)
are applied to what it composed, so that a mapping replaces instead of being merged and no ``+`` is needed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.errors import ConfigError, did_you_mean, nearest_names
from analysis.text.visible import middle_out
from sweeps.config import schema

_REMOVABLE = ("space.", "data.topics.", "objective.terms.", "sampler.", "scheduler.", "tracking.trackers.")
# Values that name a file, a folder or a place on the hub: taken as the shell gives them, whatever signs they hold.
_PLACES = frozenset(
    [
        "bias.pairs_file",
        "data.name",
        "data.test",
        "data.train",
        "data.validation",
        "model.name",
        "model.path",
        "search.transfer_from",
        "search.warm_start",
        "sweep.dir",
        "tracking.uri",
    ]
)
_DEEPEST = 30  # levels of brackets in a value
_SEVERAL = ("search.transfer_from", "search.warm_start")  # places that may be a list, whose names are quoted each
COMBINED = ("tracking",)  # groups of which several options can be chosen: tracking=[wandb,mlflow]


@dataclass(frozen=True)
class Setting:
    """One override of a value.

    Attributes:
        path: dotted path; of a searched value, ``space.<path>``.
        value: as Hydra read it; None with ``delete``.
        typed: the override as the user wrote it, for messages.
        delete: whether it was written ``~path``.
    """

    path: str
    value: Any
    typed: str
    delete: bool = False


@dataclass
class Overrides:
    """What the command line asks for.

    Attributes:
        groups: ``group=option`` lines for Hydra.
        settings: values to set, in order; a searched value is a setting of ``space.<path>``.
        choices: group → option, or options, as given.
    """

    groups: list[str] = field(default_factory=list)
    settings: list[Setting] = field(default_factory=list)
    choices: dict[str, str | list[str]] = field(default_factory=dict)

    def typed(self) -> list[tuple[str, str]]:
        """Dotted path of each setting, and the override as the user wrote it."""
        return [(setting.path, setting.typed) for setting in self.settings]


def read_overrides(arguments: Sequence[str], groups: Mapping[str, Sequence[str]]) -> Overrides:
    """Read overrides.

    Args:
        arguments: as the user wrote them.
        groups: every config group → its options.

    Raises:
        ConfigError: for what cannot be read, a key or group that does not exist, an option that a group does not have.
    """
    result = Overrides()
    _refuse_spaces(arguments)
    for typed in arguments:
        key, _, place = typed.partition("=")
        if key in _PLACES and _as_it_stands(typed, place):
            result.settings.append(Setting(key, place, typed))
            continue
        override = _parse(typed)
        name, value = override.key_or_group, override.value()
        if override.package is not None or name.startswith(("hydra.", "hydra/")) or name == "hydra":
            raise ConfigError(
                f"'{typed}': Hydra's own settings and packages (@) are not used here."
                " Set config keys, choose groups, or give another config folder with --config-dir DIR."
            )
        if override.is_delete():
            _read_delete(typed, name, groups, result)
        elif name in groups:
            _read_group(typed, name, value, groups, result)
        else:
            _check_key(typed, name, groups)
            result.settings.append(_read_value(typed, name, override))
    return result


def _refuse_spaces(arguments: Sequence[str]) -> None:
    """Raises ConfigError where the shell split ``key = value``, or a key or its value is missing."""
    for before, typed, after in zip(["", *arguments], arguments, [*arguments[1:], ""], strict=False):
        key, sign, value = typed.partition("=")
        if sign and not key:
            raise _spaced(before.rstrip("="), value or after)
        if sign and not value:
            if after and "=" not in after:
                raise _spaced(key, after)
            raise ConfigError(f"'{typed}' has no value. Write {typed}VALUE; null sets nothing.")
        if sign and key != key.strip():
            raise _spaced(key.strip(), value.strip())
        if not typed.strip():
            raise ConfigError("An override is empty: expected KEY=VALUE. Is a shell variable unset?")
        if not sign and not typed.startswith("~") and not after.startswith("="):
            raise ConfigError(f"'{typed}' has no value. Write {typed}=VALUE. See lorasweep run --help.")


def _spaced(key: str, value: str) -> ConfigError:
    return ConfigError(f"'{key} = {value}': write it without spaces around '=': {key}={value}")


def _parse(typed: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, _, value = typed.partition("=")
    if _depth(value) > _DEEPEST:
        raise ConfigError(
            f"'{middle_out(typed, 80)}': its brackets are nested more than {_DEEPEST} levels deep. Check that they are"
            " closed."
        )
    try:
        return OverridesParser.create().parse_override(typed)
    except HydraException:
        if "'" in value or '"' in value or not value:
            advice = "Check that quotes and brackets are closed."
        else:
            quoted = f"'{middle_out(key, 80)}=\"{middle_out(value, 80)}\"'"
            advice = f"Quote a value with special characters, for the shell and for the config: {quoted}."
        raise ConfigError(f"'{middle_out(typed, 200)}' cannot be read as KEY=VALUE. {advice}") from None


def _depth(value: str) -> int:
    """How deep the brackets of a value are nested; Hydra's parser takes minutes where they are very deep."""
    depth = deepest = 0
    for sign in value:
        depth += (sign in "[{(") - (sign in "]})")
        deepest = max(deepest, depth)
    return deepest


def _as_it_stands(typed: str, place: str) -> bool:
    """Whether the value of an override is a place as it is written, not what Hydra's grammar reads in it.

    Its grammar knows quotes, brackets, commas, ``=`` and backslashes, and takes blanks from the ends. It is followed
    where it gives a search, an interpolation or nothing, and where it gives a name and nothing is called as written.
    """
    if "${" in place:
        return False
    if typed.startswith(_SEVERAL) and place.startswith("["):
        return Path(place).exists()
    try:
        override = _parse(typed)
    except ConfigError:
        return True
    if override.is_sweep_override():
        return bool(override.value_type.name == "SIMPLE_CHOICE_SWEEP") and Path(place).exists()
    read = override.value()
    if read is None or read == place:
        return False
    return not isinstance(read, str) or Path(place).exists()


def _read_delete(typed: str, name: str, groups: Mapping[str, Sequence[str]], result: Overrides) -> None:
    if name in groups:
        raise ConfigError(
            f"'{typed}': a group cannot be removed. Choose one of its options: {', '.join(groups[name])}."
        )
    if not name.startswith(_REMOVABLE):
        _check_key(typed, name, groups)
        raise ConfigError(f"'{typed}': a key cannot be removed. Set a value: {name}=VALUE")
    result.settings.append(Setting(name, None, typed, delete=True))


def _read_group(typed: str, name: str, value: Any, groups: Mapping[str, Sequence[str]], result: Overrides) -> None:
    options = [*groups[name], "null"] if name == "experiment" else list(groups[name])
    if value is None and name == "experiment":
        result.groups.append(f"{name}=null")
        return
    if name in COMBINED and isinstance(value, list) and value:
        for option in value:
            _read_group(f"{name}={option}", name, option, groups, Overrides())  # refuses what is no option
        result.groups.append(f"{name}=[{','.join(value)}]")
        result.choices[name] = list(value)
        return
    if not isinstance(value, str) or value not in groups[name]:
        shown = typed.split("=", 1)[1]
        near = nearest_names(shown, options)
        near = f"{near} " if near else ""
        keys = [path for path in schema() if path.startswith(f"{name}.")]
        below = f" To set one of its keys: {keys[0]}=…" if keys and not isinstance(value, str) else ""
        below = f" Several: '{name}=[{shown}]'." if name in COMBINED and "," in shown.strip("[]") else below
        raise ConfigError(
            f"{name}={shown}: there is no such option. {near}Options of {name}: {', '.join(options)}.{below}"
        )
    result.groups.append(f"{name}={value}")
    result.choices[name] = value


def _check_key(typed: str, name: str, groups: Mapping[str, Sequence[str]]) -> None:
    known = schema()
    if name in known or any(path.startswith(f"{name}.") for path in known):
        return
    if any(name.startswith(f"{path}.") and str(leaf.type).startswith("dict") for path, leaf in known.items()):
        return
    if "/" in name or ("." not in name and "=" in typed):
        near = did_you_mean(name, {*groups, *(path.split(".")[0] for path in known)})
        raise ConfigError(f"'{name}' is neither a config group nor a key. {near} (override '{typed}')")
    if name.endswith("device_map"):
        raise ConfigError(
            f"'{name}' is not a config key: a model that is spread over GPUs by layers keeps one GPU at a time busy."
            " Over several GPUs a trial trains with engine=hf resources.gpus_per_trial=2 (or more), each with a part of"
            f" the rows, and of the weights where they do not fit one (engine.sharding). (override '{typed}')"
        )
    raise ConfigError(f"'{name}' is not a config key. {did_you_mean(name, known)} (override '{typed}')")


def _read_value(typed: str, name: str, override: Any) -> Setting:
    if not override.is_sweep_override():
        return Setting(name, override.value(), typed)
    text = typed.split("=", 1)[1]
    if override.value_type.name == "SIMPLE_CHOICE_SWEEP":
        raise ConfigError(
            f"'{typed}' could mean three things. To search over the values: '{name}=choice({text})';"
            f" a list: '{name}=[{text}]'; text with a comma: '{name}=\"{text}\"'"
        )
    return Setting(f"space.{name}", _entry(typed, override), typed)


def _entry(typed: str, override: Any) -> dict[str, Any]:
    """The space entry for ``choice(…)``, ``interval(…)``, ``tag(log,interval(…))`` or ``range(start,stop,step)``."""
    sweep = override.value()
    kind = override.value_type.name
    tags: set[str] = getattr(sweep, "tags", set())
    if tags - {"log"} or (tags and kind != "INTERVAL_SWEEP"):
        raise ConfigError(f"'{typed}': the only tag known here is log, on an interval: tag(log,interval(1e-5,1e-2)).")
    if kind == "CHOICE_SWEEP":
        return {"choices": [override._convert_value(value) for value in sweep.list]}
    if kind == "INTERVAL_SWEEP":
        low, high = (int(end) if float(end).is_integer() else end for end in (sweep.start, sweep.end))
        return {"low": low, "high": high} | ({"log": True} if "log" in tags else {})
    if kind == "RANGE_SWEEP":
        values = list(sweep.range())
        if len(values) < 2:
            raise ConfigError(
                f"'{typed}': expected at least two values; the end is not included: range(start,stop,step)."
            )
        return {"low": min(values[0], values[-1]), "high": max(values[0], values[-1]), "step": abs(sweep.step)}
    raise ConfigError(f"'{typed}': glob is not known here. Name the values: choice(a,b).")
