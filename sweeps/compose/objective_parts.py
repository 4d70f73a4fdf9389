"""The terms and constraints of an objective whose metric was changed: figures in its unit belong to the metric before.

A file says ``metric: macro_f1`` with ``tolerance: 0.01``, and the command line, or a file composed after it, says
``objective.terms.quality.metric=log_loss`` and no more. Direction, target and range are then those of the new metric
(``analysis/metrics.py``); a tolerance stays the same part of the range. A bound has no such rule: it is asked for.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from analysis.errors import ConfigError
from analysis.metrics import METRICS, direction, scale
from analysis.objective import against_metric
from sweeps.compose import resolvers
from sweeps.compose.overrides import Setting
from sweeps.compose.provenance import Origins, Source
from sweeps.compose.to_dataclass import get, put
from sweeps.config import SweepConfig

_OF_TERM = ("direction", "target", "range", "tolerance")
_BOUNDS = ("at_least", "at_most", "margin")

Layer = Mapping[str, Any]  # the section ``objective`` of one file, or of the command line; later ones go over earlier


@dataclass(frozen=True)
class _Written:
    """A value of a term or constraint, and the metric that it was written for, with the range that this had."""

    value: Any
    metric: str
    range: Any


def layers_of_files(sources: Sequence[Source]) -> list[Layer]:
    """What each config file says of the objective, in the order in which later ones go over earlier ones."""
    layers: list[Layer] = []
    for source in sources:
        content = yaml.safe_load(source.file.read_text(encoding="utf-8"))
        nested: dict[str, Any] = {}
        if source.package:
            put(nested, source.package, content)
        elif isinstance(content, dict):
            nested = content
        if isinstance(objective := get(nested, "objective"), dict):
            layers.append(objective)
    return layers


def layer_of_overrides(settings: Sequence[Setting]) -> Layer:
    """What the command line says of the objective, whatever the order of its overrides."""
    nested: dict[str, Any] = {}
    for setting in settings:
        if not setting.delete and f"{setting.path}.".startswith("objective."):
            put(nested, setting.path, setting.value)
    objective = nested.get("objective")
    return objective if isinstance(objective, dict) else {}


def follow_metrics(raw: dict[str, Any], layers: Sequence[Layer], origins: Origins) -> list[str]:
    """Take out, or convert, what terms have from another metric than the one they have now.

    Args:
        raw: the nested config, changed in place; interpolations unresolved.
        layers: what it was composed from, the command line last.
        origins: for messages.

    Returns:
        A sentence on each term that changed.

    Raises:
        ConfigError: for a constraint whose bound was written for another metric.
    """
    notes = []
    for name, term in _entries(raw, "terms"):
        stale = _stale(raw, name, term, layers, "terms", _OF_TERM)
        if stale:
            notes.append(_follow(raw, f"objective.terms.{name}", term, stale))
    for name, constraint in _entries(raw, "constraints"):
        stale = _stale(raw, name, constraint, layers, "constraints", _BOUNDS)
        if not stale or _resolved(raw, constraint.get("enabled", True)) is False:
            continue
        where, metric = f"objective.constraints.{name}", _resolved(raw, constraint["metric"])
        if all(constraint.get(key) is None or key in stale for key in _BOUNDS):
            key, written = next(iter(stale.items()))
            raise ConfigError(
                f"{where}.metric={metric}: its {key}={written.value} was written for {written.metric}. Give"
                f" {where}.{key} too, in the unit of {metric}. ({origins.of(f'{where}.metric')})"
            )
        for key in stale:
            constraint[key] = 0.0 if key == "margin" else None
    return notes


def given_directions(raw: Mapping[str, Any]) -> set[str]:
    """Names of the terms whose config says which way is better."""
    return {name for name, term in _entries(raw, "terms") if term.get("direction") is not None}


def check_directions(config: SweepConfig, given: set[str], origins: Origins) -> None:
    """Raises ConfigError for a direction against its metric's own, and for none where the metric has none.

    Args:
        config: complete.
        given: names of the terms whose config says which way is better.
        origins: for messages.
    """
    for name, term in config.objective.terms.items():
        where = f"objective.terms.{name}"
        if name in given and (better := against_metric(term.metric, str(term.direction))):
            raise ConfigError(
                f"{where}.direction={term.direction}: {term.metric} is {better}. Leave the direction out, or set it to"
                f" null: it comes from the metric. To come near to a value: {where}.direction=target with"
                f" {where}.target. ({origins.of(f'{where}.direction')})"
            )
        if name not in given and term.metric in METRICS and direction(term.metric) is None:
            raise ConfigError(
                f"{where}.metric={term.metric}: neither more nor less of it is better by itself. Choose another metric,"
                f" or say what you want: {where}.direction=max, or min. ({origins.of(f'{where}.metric')})"
            )


def against_their_metrics(config: SweepConfig) -> list[str]:
    """A sentence on each term of a stored sweep whose direction is against its metric's own: versions before 0.2 kept
    the direction where only the metric was changed."""
    return [
        f"objective.terms.{name} of this sweep takes {term.metric} the wrong way: it is {better}, and the sweep's"
        f" direction is {term.direction}. It goes on as it began; start a new sweep to put it right."
        for name, term in config.objective.terms.items()
        if (better := against_metric(term.metric, str(term.direction)))
    ]


def _entries(raw: Mapping[str, Any], part: str) -> Iterator[tuple[str, dict[str, Any]]]:
    entries = get(raw, f"objective.{part}")
    for name, entry in entries.items() if isinstance(entries, dict) else ():
        if isinstance(entry, dict) and entry.get("metric"):
            yield str(name), entry


def _stale(
    raw: Mapping[str, Any],
    name: str,
    entry: Mapping[str, Any],
    layers: Sequence[Layer],
    part: str,
    keys: Sequence[str],
) -> dict[str, _Written]:
    """The keys of a term or constraint that were written for another metric than it has now."""
    metric, written, ranges = "", dict[str, tuple[Any, str]](), dict[str, Any]()
    for layer in layers:
        said = (layer.get(part) or {}).get(name)
        if isinstance(said, Mapping):
            metric = str(said.get("metric", metric))
            ranges[metric] = said.get("range", ranges.get(metric))
            written |= {key: (said[key], metric) for key in keys if said.get(key) is not None}
    now, stale = _resolved(raw, entry["metric"]), {}
    for key, (value, metric) in written.items():
        if entry.get(key) is not None and metric and metric != str(entry["metric"]):
            of = str(_resolved(raw, metric))
            if of != now:
                stale[key] = _Written(_resolved(raw, value), of, _resolved(raw, ranges[metric]))
    return stale


def _follow(raw: Mapping[str, Any], where: str, term: dict[str, Any], stale: Mapping[str, _Written]) -> str:
    """Drop what is another metric's, convert its tolerance, and say so."""
    metric = str(_resolved(raw, term["metric"]))
    before = next(iter(stale.values())).metric
    for key in ("direction", "target", "range"):
        if key in stale:
            term[key] = None
    low, high = _ends(_resolved(raw, term.get("range")), metric)
    way, target = direction(metric) or ("", None)
    way = str(_resolved(raw, term.get("direction")) or way)
    better = {"max": "higher is better, ", "min": "lower is better, "}.get(
        way, f"best at {target:g}, " if target is not None else ""
    )
    note = f"{where}.metric={metric}: {better}over [{low:g}, {high:g}]"
    old = stale.get("tolerance")
    if old is not None and isinstance(old.value, int | float):
        ends = _ends(old.range, old.metric)
        term["tolerance"] = float(f"{old.value * (high - low) / (ends[1] - ends[0]):.6g}")
        note += f"; tolerance={term['tolerance']:g}, the same part of it"
    return f"{note}. What the config has for {before} does not hold for it."


def _ends(given: Any, metric: str) -> tuple[float, float]:
    """The ends of a term's range: as given, where they are two numbers in order; else of the metric's scale."""
    if isinstance(given, list) and len(given) == 2 and all(isinstance(end, int | float) for end in given):
        low, high = given
        if low < high:
            return low, high
    return scale(metric)


def _resolved(raw: Mapping[str, Any], value: Any) -> Any:
    """A value of the config, its interpolations resolved where it has any."""
    if "${" not in str(value):
        return value
    resolvers.register()
    try:
        resolved = OmegaConf.select(OmegaConf.create({**raw, "_": value}), "_")
    except OmegaConfBaseException:
        return value  # said where the config as a whole is resolved
    return OmegaConf.to_container(resolved) if OmegaConf.is_config(resolved) else resolved
