"""Makes a nested mapping with interpolations into a ``SweepConfig``; OmegaConf's errors become one sentence each."""

import functools
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_origin

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, InterpolationResolutionError, OmegaConfBaseException

from analysis.buckets.bucket import Bucket, is_uri
from analysis.errors import ConfigError, did_you_mean, masked, refuse_uri
from analysis.objective import term_defaults
from sweeps.compose import resolvers
from sweeps.compose.provenance import Origins
from sweeps.config import SweepConfig, ranged, schema
from trainer.config import LARGEST, brief, check_rungs, check_value

_PASSED_ON = ("sampler.", "scheduler.", "tracking.", "baselines")  # to classes that check less
_ENVIRONMENT = "${oc.env:"
_FILES = ("data.train", "data.validation", "data.test")
_SWEEPS = ("sweep.dir", "search.warm_start", "search.transfer_from")
_PATHS = ("bias.pairs_file", "model.path", "eval.json_schema", "eval.judge.path", "eval.judge.calibration")


def paths(config: SweepConfig) -> tuple[str, ...]:
    """Dotted paths of the keys that hold files or folders of this machine.

    Args:
        config: with ``data.source`` hub or package, ``data.train`` and the like name splits or files of the package.
    """
    files = () if config.data.source in ("hub", "package") else _FILES
    uri = config.tracking.uri or ""
    folder = ("tracking.uri",) if "/" in uri and "://" not in uri else ()
    sweeps = () if is_uri(config.sweep.dir) else ("sweep.dir",)
    return (*files, *_PATHS, *sweeps, *folder)


def refuse_uris(raw: Mapping[str, Any], origins: Origins) -> None:
    """Refuse ``s3://…`` and the like for every key that holds files or folders, before any of them is looked at.

    Where sweep folders are named, a bucket may be, by a URI that holds no key.

    Args:
        raw: nested.
        origins: for messages.

    Raises:
        ConfigError: with key and value.
    """
    files = () if get(raw, "data.source") in ("hub", "package") else _FILES
    for path in (*files, *_PATHS, *_SWEEPS):
        value = get(raw, path)
        for one in value if isinstance(value, list) else [value]:
            try:
                if path in _SWEEPS and is_uri(one):
                    Bucket(str(one))
                else:
                    refuse_uri(f"{path}=", one)
            except ConfigError as error:
                raise ConfigError(f"{error} ({masked(origins.of(path))})") from None


def put(raw: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a dotted path of a nested mapping, in place; mappings on the way are made where they lack."""
    *parents, leaf = path.split(".")
    for name in parents:
        inner = raw.get(name)
        if not isinstance(inner, dict):
            inner = raw[name] = {}
        raw = inner
    raw[leaf] = value


def get(raw: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path of a nested mapping, or None."""
    value: Any = raw
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def read_environment(raw: dict[str, Any], origins: Origins) -> dict[str, Any]:
    """The mapping with each ``${oc.env:…}`` replaced by its value.

    This is done once, where the command is run: a worker's environment is another one.

    Args:
        raw: nested, interpolations unresolved.
        origins: for messages.

    Raises:
        ConfigError: for a variable that is not set and has no default.
    """

    def read(value: Any, path: str) -> Any:
        if isinstance(value, dict):
            return {key: read(inner, f"{path}.{key}" if path else str(key)) for key, inner in value.items()}
        if isinstance(value, list):
            return [read(inner, path) for inner in value]
        return in_text(value, path) if isinstance(value, str) else value

    def in_text(text: str, path: str) -> str:
        begin = text.find(_ENVIRONMENT)
        end = _closing(text, begin + len(_ENVIRONMENT)) if begin >= 0 else -1
        if end < 0:
            return text
        inner = text[begin + len(_ENVIRONMENT) : end]
        return text[:begin] + variable(inner, path) + in_text(text[end + 1 :], path)

    def variable(arguments: str, path: str) -> str:
        name, comma, default = arguments.partition(",")
        if name.strip() in os.environ:
            return os.environ[name.strip()]
        if not comma:
            raise ConfigError(f"{path}: the environment variable {name.strip()} is not set. ({origins.of(path)})")
        return in_text(default.strip(), path)

    result: dict[str, Any] = read(raw, "")
    return result


def _closing(text: str, begin: int) -> int:
    """The place of the bracket that closes one that is open at ``begin``; -1 where there is none."""
    depth = 1
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if not depth:
            return place
    return -1


def to_dataclass(raw: dict[str, Any], origins: Origins) -> tuple[SweepConfig, dict[str, Any]]:
    """The config, resolved and checked, and the nested mapping with its interpolations kept and defaults filled in.

    Each key's type and range are checked, and paths become absolute. Terms of the objective get what their metric says
    and they do not; those without weight, and constraints that are not enabled, are left out.

    Args:
        raw: nested, interpolations unresolved.
        origins: for messages.

    Raises:
        ConfigError: with key, value, what was expected, and the file or override that holds it.
    """
    merged = typed(raw, origins)
    try:
        config, unresolved = OmegaConf.to_object(merged), OmegaConf.to_container(merged, resolve=False)
    except OmegaConfBaseException as error:
        raise _explained(error, raw, origins) from None
    assert isinstance(config, SweepConfig)
    assert isinstance(unresolved, dict)
    whole = {str(key): value for key, value in unresolved.items()}
    for path, value, metadata in ranged(config):
        try:
            check_value(path, value, metadata)
        except ConfigError:
            check_value(path, value, metadata, origins.of(path))  # reading where it came from takes time
            raise
    for name, term in config.objective.terms.items():
        for key, value in term_defaults(term.metric, term.direction).items():
            if value is not None and getattr(term, key) is None:
                setattr(term, key, value)
                whole["objective"]["terms"][name][key] = value  # a term's name may hold dots
    config.objective.terms = {name: term for name, term in config.objective.terms.items() if term.weight}
    constraints = config.objective.constraints
    config.objective.constraints = {name: item for name, item in constraints.items() if item.enabled}
    for path in paths(config):
        *sections, name = path.split(".")
        part: Any = functools.reduce(getattr, sections, config)
        if getattr(part, name):
            setattr(part, name, str(Path(getattr(part, name)).expanduser().absolute()))
    for entry in config.baselines:
        if isinstance(entry, dict) and isinstance(entry.get("answers"), str):
            entry["answers"] = str(Path(entry["answers"]).expanduser().absolute())
    if any(isinstance(entry, dict) for entry in config.baselines):
        whole["baselines"] = list(config.baselines)
    data_set = config.data.name
    if config.data.source == "hub" and data_set and Path(data_set).expanduser().exists():
        config.data.name = str(Path(data_set).expanduser().absolute())
        whole["data"]["name"] = config.data.name
    return config, whole


def typed(raw: Mapping[str, Any], origins: Origins) -> DictConfig:
    """The config's keys with their types, defaults filled in and interpolations unresolved. Raises ConfigError."""
    resolvers.register()
    _check_plain(raw, origins)
    try:
        merged = OmegaConf.merge(_types(), OmegaConf.create(dict(raw)))
    except OmegaConfBaseException as error:
        raise _explained(error, raw, origins) from None
    assert isinstance(merged, DictConfig)
    return merged


@functools.cache
def _types() -> DictConfig:
    types = OmegaConf.structured(SweepConfig)
    assert isinstance(types, DictConfig)
    return types


def section_with(merged: DictConfig, section: str, values: Mapping[str, Any], raw: Mapping[str, Any]) -> Any:
    """One section's dataclass where other values stand at some paths; no other section is resolved.

    Args:
        merged: as ``typed`` makes it of ``raw``; it is as before at the end.
        section: its name.
        values: dotted path → value.
        raw: nested, with every key; interpolations unresolved.

    Raises:
        ConfigError: for a value of a wrong type.
    """
    try:
        for path, value in values.items():
            OmegaConf.update(merged, path, value, merge=False)
        return OmegaConf.to_object(merged[section])
    except OmegaConfBaseException as error:
        raise _explained(error, raw, Origins(tuple, ())) from None
    finally:
        for path in values:
            OmegaConf.update(merged, path, get(raw, path), merge=False)


def _check_plain(raw: Mapping[str, Any], origins: Origins) -> None:
    """Check what is no interpolation before what follows from it is resolved, which would name the key that follows.

    Raises:
        ConfigError: with the key that is wrong.
    """
    for path, number in _numbers("", raw):
        finite = abs(number) <= LARGEST if isinstance(number, int) else math.isfinite(number)
        if not finite and (isinstance(number, int) or path.startswith(_PASSED_ON)):
            raise ConfigError(
                f"{path}={brief(number)}: expected a finite number of at most {LARGEST:g}. ({origins.of(path)})"
            )
    for path, leaf in schema().items():
        value = get(raw, path)
        if get_origin(leaf.type) is list and isinstance(value, dict):
            raise ConfigError(f"{path}={brief(value)}: expected a list, such as [a, b]. ({origins.of(path)})")
        if leaf.metadata.get("choices") and value is not None and "${" not in str(value):
            _check_choice(path, value, leaf.metadata, origins)
    rungs = get(raw, "train.rungs")
    if isinstance(rungs, list) and all(isinstance(it, int) and not isinstance(it, bool) for it in rungs):
        try:
            check_rungs(rungs)
        except ConfigError:
            check_rungs(rungs, origins.of("train.rungs"))
            raise


def _check_choice(path: str, value: Any, metadata: Mapping[str, Any], origins: Origins) -> None:
    try:
        check_value(path, value, metadata)
    except ConfigError:
        check_value(path, value, metadata, origins.of(path))  # reading where it came from takes time
        raise


def _numbers(path: str, value: Any) -> Iterator[tuple[str, int | float]]:
    """Every number of a nested value, with its dotted path."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _numbers(f"{path}.{name}" if path else str(name), inner)
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _numbers(f"{path}[{i}]", inner)
    elif isinstance(value, int | float):
        yield path, value


def _explained(error: OmegaConfBaseException, raw: Mapping[str, Any], origins: Origins) -> ConfigError:
    """OmegaConf's error as one sentence with key, value and origin."""
    full = str(error.full_key or "")
    path = full.split("[", 1)[0]
    at, first = origins.of(path), str(error).splitlines()[0]
    if isinstance(error, InterpolationKeyError):
        missing = re.search(r"'([^']+)' not found", first)
        near = did_you_mean(missing[1], schema()) if missing else ""
        return ConfigError(f"{path}: {first}. {near} ({at})")
    if isinstance(error, InterpolationResolutionError):
        return ConfigError(f"{path}: {first} ({at})")
    leaf = schema().get(path)
    kinds = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        list[int]: "a list of whole numbers",
    }
    if leaf is None:
        return ConfigError(f"{full}: {first}. ({at})")
    expected = kinds.get(leaf.type, str(leaf.type).replace("typing.", "")) + (" or null" if leaf.optional else "")
    value = "null" if get(raw, path) is None else brief(get(raw, path))
    return ConfigError(f"{full}={value}: expected {expected}. ({at})")
