"""From a sweep's config and a trial's sampled values to the config of that trial."""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from omegaconf import DictConfig

from analysis.errors import ConfigError, did_you_mean
from sweeps.compose.provenance import Origins
from sweeps.compose.to_dataclass import put, section_with, to_dataclass, typed
from sweeps.config import SweepConfig, trial_part
from sweeps.space.dimensions import Scalar
from sweeps.space.parse import searchable
from trainer.config import LoraSettings, TrialConfig, check_trial, check_value

_KEPT = 64  # resolved configs


@dataclass(frozen=True)
class TrialTemplate:
    """What every trial of a sweep is made from: plain data, so that it can be sent to Ray workers.

    Attributes:
        config: resolved, with the values that stand where nothing is sampled.
        raw: the whole config, nested, its interpolations unresolved.
    """

    config: SweepConfig
    raw: dict[str, Any]

    def trial(self, trial_id: str, values: Mapping[str, Scalar]) -> TrialConfig:
        """The config of one trial: sampled values first, interpolations after, then every check.

        Args:
            values: dotted path → value, as sampled.

        Raises:
            ConfigError: for a path that cannot be searched, or values that do not go together.
        """
        for path in values:
            if path not in searchable():
                raise ConfigError(
                    f"trial {trial_id}: '{path}' is not a config path. {did_you_mean(path, searchable())}"
                )
        trial = trial_part(self._with(trial_id, values), trial_id)
        check_trial(trial)
        return trial

    def lora(self, values: Mapping[str, Scalar]) -> LoraSettings:
        """The adapter's settings in a trial with these values of its keys, unchecked. Raises ConfigError."""
        plain, sampled = self._split(values)
        key = tuple(sorted(sampled.items()))
        if key not in self._adapters:
            self._adapters[key] = section_with(self._typed, "lora", sampled, self.raw)
        settings = self._adapters[key]
        for path, value in plain.items():
            settings = _put_in(settings, path.split(".")[1:], value)
        return settings

    def _with(self, trial_id: str, values: Mapping[str, Scalar]) -> SweepConfig:
        """The config with sampled values.

        Resolving it takes a tenth of a second, so that is done once for all values of keys that others follow, such as
        ``lora.alpha_rule``; the rest is put in. Raises ConfigError.
        """
        plain, sampled = self._split(values)
        key = tuple(sorted(sampled.items()))
        if not sampled:
            config = self.config
        elif key in self._resolved:
            config = self._resolved[key]
        else:
            raw = copy.deepcopy(self.raw)
            for path, value in sampled.items():
                put(raw, path, value)
            given = [(path, f"{path}={value}, sampled for {trial_id}") for path, value in sampled.items()]
            config = to_dataclass(raw, Origins(tuple, given))[0]
            if len(self._resolved) < _KEPT:
                self._resolved[key] = config
        for path, value in plain.items():
            config = _put_in(config, path.split("."), value)
        return config

    def _split(self, values: Mapping[str, Scalar]) -> tuple[dict[str, Scalar], dict[str, Scalar]]:
        """Values that can be put in where all else is resolved, and those that others follow."""
        plain = {path: value for path, value in values.items() if path not in self._followed}
        if any(not _fits(path, value) for path, value in plain.items()):
            plain = {}  # the long way converts it, or says where it came from
        return plain, {path: value for path, value in values.items() if path not in plain}

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config, "raw": self.raw}  # the rest is made again where it is needed

    @cached_property
    def _typed(self) -> DictConfig:
        return typed(self.raw, Origins(tuple, ()))

    @cached_property
    def _adapters(self) -> dict[tuple[tuple[str, Scalar], ...], LoraSettings]:
        return {}

    @cached_property
    def _resolved(self) -> dict[tuple[tuple[str, Scalar], ...], SweepConfig]:
        return {}

    @cached_property
    def _followed(self) -> frozenset[str]:
        """Searchable paths that an interpolation names, itself or by its group; all where one is relative."""
        texts = [text for text in _strings(self.raw) if "${" in text]
        named = {name for text in texts for name in re.findall(r"[\w.]+", text)}
        every = any("${." in text for text in texts)
        return frozenset(path for path in searchable() if every or path in named or path.rpartition(".")[0] in named)


def _fits(path: str, value: Scalar) -> bool:
    """Whether a value has its key's very type, and is in its range."""
    leaf = searchable()[path]
    if type(value) is not leaf.type:
        return False
    try:
        check_value(path, value, leaf.metadata)
    except ConfigError:
        return False
    return True


def _put_in(part: Any, path: Sequence[str], value: Scalar) -> Any:
    """A dataclass with another value at the end of a path."""
    name, rest = path[0], path[1:]
    return replace(part, **{name: _put_in(getattr(part, name), rest, value) if rest else value})


def _strings(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, Mapping):
        for inner in content.values():
            yield from _strings(inner)
    elif isinstance(content, list | tuple):
        for inner in content:
            yield from _strings(inner)
