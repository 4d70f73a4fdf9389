"""From config files and overrides to a typed config, with Hydra's compose API. No ``DictConfig`` leaves this room.

Interpolations are resolved after sampling: ``Composed.trial`` puts a trial's values into the unresolved config first,
so that ``alpha_value: ${mul:2,${lora.rank}}`` follows the sampled rank.
"""

import copy
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from analysis.errors import ConfigError, HardwareError, did_you_mean
from analysis.objective import Objective
from sweeps.compose import conf_tree, resolvers
from sweeps.compose.foreign import JUDGE, not_given_again, refuse_code, refuse_environment, take_addresses_out
from sweeps.compose.infer_schema import check_read
from sweeps.compose.inferred import fill_in, refuse_encoder
from sweeps.compose.objective_parts import (
    against_their_metrics,
    check_directions,
    follow_metrics,
    given_directions,
    layer_of_overrides,
    layers_of_files,
)
from sweeps.compose.overrides import Overrides, Setting, read_overrides
from sweeps.compose.own_metrics import complete_metrics
from sweeps.compose.provenance import Origins, Source, shown
from sweeps.compose.searched_needs import check_searched_needs
from sweeps.compose.stored import normalised, with_trackers
from sweeps.compose.to_dataclass import get, paths, put, read_environment, refuse_uris, to_dataclass
from sweeps.compose.trial_template import TrialTemplate
from sweeps.config import SweepConfig, check_sweep, misfits, schema, stand_ins, trial_part, wants_answers
from sweeps.search.pbt_exchange import check_population
from sweeps.space.base_model import base_model
from sweeps.space.constraints import Constraints
from sweeps.space.dimensions import Choices, Scalar, Space
from sweeps.space.grid import on_grid, size_note
from sweeps.space.known_points import BaseModel, expand, placed, portfolio
from sweeps.space.parse import parse_space, searchable, to_group
from sweeps.space.restrict import fix, restrict_precisions, slowness
from sweeps.space.start_points import start_points
from trainer.config import LoraSettings, TrialConfig, brief, check_trial

LONGEST_NAME = 200  # bytes of a sweep's name: a file's has 255 at most, and some are named after the sweep
RESUMABLE = ("search", "tracking", "ray", "resources")  # what a resumed sweep may change


@dataclass(frozen=True)
class Composed:
    """A composed sweep: plain data, so that it can be sent to Ray workers.

    Attributes:
        config: resolved, with the values that stand where nothing is sampled.
        space: what is searched, flat.
        start: points to try first, flat and checked.
        notes: sentences for the user about what was adapted.
        explicit: paths that the command line set, such as ``space.precision``.
        raw: the whole config, nested, its interpolations unresolved.
    """

    config: SweepConfig
    space: Space
    start: list[dict[str, Scalar]]
    notes: list[str]
    explicit: tuple[str, ...]
    raw: dict[str, Any]

    def trial(self, trial_id: str, values: Mapping[str, Scalar]) -> TrialConfig:
        """The config of one trial; see ``TrialTemplate``."""
        return self.template.trial(trial_id, values)

    @cached_property
    def template(self) -> TrialTemplate:
        """What trials' configs are made from."""
        return TrialTemplate(self.config, self.raw)

    @cached_property
    def objective(self) -> Objective:
        """What trials are compared by."""
        return Objective.from_config(self.resolved()["objective"])

    def constraints(self) -> Constraints:
        """``space_constraints``, read. Raises ConfigError."""
        return Constraints(self.config.space_constraints, searchable(), self._whole)

    def _whole(self, values: Mapping[str, Scalar], paths: Sequence[str]) -> dict[str, Any]:
        """The values of paths in the config of the trial that has these sampled values."""
        if not any("${" in str(get(self.raw, path)) for path in paths):
            config = asdict(self.config)
            return {path: get(config, path) for path in paths}
        raw = copy.deepcopy(self.raw)  # what depends on a sampled key follows it
        for path, value in values.items():
            put(raw, path, value)
        whole = OmegaConf.create(raw)
        return {path: OmegaConf.select(whole, path) for path in paths}

    @property
    def precisions(self) -> list[str]:
        """Those that trials may have."""
        dimension = self.space.get("precision")
        if isinstance(dimension, Choices):
            return [str(it) for it in dimension.values]
        return ["fp32", "bf16"] if self.config.precision == "auto" else [self.config.precision]

    def on_machine(self, available: Sequence[str], slow: Mapping[str, float] = MappingProxyType({})) -> "Composed":
        """The same sweep with only the precisions that this machine can do; ``notes`` says what was left out.

        Args:
            available: precisions that work here.
            slow: those of them that take so many times as long as fp32: only an explicit wish brings them into a sweep.

        Raises:
            HardwareError: for a precision that the command line asked for, or where none is left.
        """
        if not available:
            raise HardwareError("This machine can do none of the precisions: fp32, bf16, int8, nf4.")
        if self.config.precision == "auto":
            wanted = self.precisions if "precision" in self.space else ["bf16", "fp32"]
            best = next((name for name in wanted if name in available and name not in slow), available[0])
            return self.with_values({"precision": best}).on_machine(available, slow)
        explicit = any(path.startswith("space.precision") for path in self.explicit)
        space, note = restrict_precisions(self.space, available, explicit, slow)
        if "precision" not in space and self.config.precision not in available:
            raise HardwareError(
                f"precision={self.config.precision}: this machine cannot do it. It can do {', '.join(available)}:"
                f" precision={available[0]}"
            )
        searched = replace(self, space=space).precisions
        warned = [f"precision={name} {slowness(slow[name])}." for name in searched if name in slow]
        if not note:
            return replace(self, notes=[*self.notes, *warned]) if warned else self
        raw = {**self.raw, "space": to_group(space)}
        start = [point for point in self.start if point.get("precision", searched[0]) in searched]
        raw["search"] = {**raw["search"], "start_from": start}
        config = replace(self.config, space=raw["space"], search=replace(self.config.search, start_from=list(start)))
        return replace(self, config=config, space=space, start=start, notes=[*self.notes, note, *warned], raw=raw)

    def with_values(self, values: Mapping[str, Any], note: str = "") -> "Composed":
        """The same sweep with other values of config keys, and what follows from them.

        Args:
            values: dotted path → value.
            note: for the user.

        Raises:
            ConfigError: where they do not go together.
        """
        raw = copy.deepcopy(self.raw)
        for path, value in values.items():
            put(raw, path, value)
        start = self.start[: raw["search"]["trials"]]
        put(raw, "search.start_from", start)
        config, whole = to_dataclass(raw, Origins(tuple, ()))
        check_sweep(config)
        check_trial(trial_part(stand_ins(config), "check"))
        return replace(self, config=config, start=start, raw=whole, notes=[*self.notes, *([note] if note else [])])

    def resolved(self) -> dict[str, Any]:
        """The config as nested plain values, for ``sweep.yaml`` and trackers."""
        return asdict(self.config)

    def unresolved(self) -> dict[str, Any]:
        """The config as nested plain values with its interpolations, for ``from_stored``."""
        return copy.deepcopy(self.raw)

    def yaml(self, resolve: bool = False) -> str:
        """The config as YAML text, with its interpolations or resolved."""
        return OmegaConf.to_yaml(OmegaConf.create(self.resolved() if resolve else self.raw))

    @classmethod
    def from_stored(
        cls,
        stored: Mapping[str, Any],
        overrides: Sequence[str] = (),
        changeable: Sequence[str] = RESUMABLE,
        when: str = "when a sweep is resumed",
        remedy: str = "For other values start a new sweep; search.warm_start=RUN has it learn from this one.",
        *,
        own_code: bool = False,
        addresses: bool = False,
    ) -> "Composed":
        """A sweep again from what ``unresolved`` (or ``resolved``) gave, for resume.

        Args:
            overrides: may change what is ``changeable``.
            changeable: sections (``search``) and keys (``data.test``).
            when: for the error about others.
            remedy: what to do instead, for that error.
            own_code: take code that the stored config names; else only what comes with lorasweep, or overrides name.
            addresses: keep the addresses in it, for a caller that contacts nobody or got them from its command. Else
                they are left out, and ``notes`` says so.

        Raises:
            ConfigError: for any other override, for what is not taken from a stored config
                (``sweeps/compose/foreign.py``), and as ``compose``.
        """
        read = read_overrides(overrides, conf_tree.groups())
        for name in [*read.choices, *(setting.path for setting in read.settings)]:
            if name.split(".", 1)[0] not in changeable and name not in (*changeable, *JUDGE):
                can = ", ".join(part if "." in part else f"{part}.*" for part in changeable)
                raise ConfigError(
                    f"'{name}' cannot change {when}: {_why_fixed(name)}. What can: {can}. {remedy}".rstrip()
                )
        raw = copy.deepcopy(dict(stored))
        raw["tracking"] = with_trackers(raw.get("tracking", {}))
        refuse_environment(raw)
        if not own_code:
            refuse_code(raw, read)
        left_out = [] if addresses else not_given_again(take_addresses_out(raw), read)
        for group, option in read.choices.items():
            raw[group] = _group(group, option)
        again = _build(raw, Origins(tuple, read.typed()), read, {}, stored=True)
        return replace(again, notes=[*left_out, *again.notes])


def _why_fixed(name: str) -> str:
    """Why a key or group cannot change once trials have been run."""
    part = name.split(".", 1)[0]
    reasons = {
        "sampler": "all trials of a sweep are suggested by one sampler, which sweep.yaml records",
        "scheduler": "all trials of a sweep are stopped by one rule, which sweep.yaml records",
        "objective": "the trials so far were stopped and suggested by the recorded one",
        "space": "the trials so far were drawn from the recorded one",
        "space_constraints": "the trials so far were drawn within the recorded ones",
        "sweep": "it says which sweep this is, and where",
        "experiment": "it says what the sweep is",
    }
    return reasons.get(part, "its trials would not be comparable")


def compose(overrides: Sequence[str], config_dir: str | None = None) -> Composed:
    """Compose ``conf/`` (and ``config_dir``) with overrides into a checked, typed sweep.

    Raises:
        ConfigError: naming the file or override, the key, and the nearest valid name.
    """
    extra = conf_tree.extra_folder(config_dir)
    read = read_overrides(overrides, conf_tree.groups(extra))
    raw, choices = _compose_files(read.groups, "config", extra)
    origins = Origins(lambda: _sources(read.groups, extra), read.typed())
    return _build(raw, origins, read, choices, own_files=extra is not None)


def transfer_target(
    composed: Composed,
) -> tuple[Space, BaseModel, Objective, Callable[[Mapping[str, Scalar]], LoraSettings]]:
    """What trials of a sweep over another model are placed in (``sweeps/search/transfer.py``)."""
    config = composed.config
    model = base_model(config.model)
    return composed.space, model, composed.objective, composed.template.lora


def _group(name: str, options: str | list[str]) -> dict[str, Any]:
    """A group's section as its options say, later ones over earlier ones."""
    files = [options] if isinstance(options, str) else options
    parts = [_compose_files([], f"{name}/{option}", None)[0][name] for option in files]
    merged = OmegaConf.to_container(OmegaConf.merge(*parts), resolve=False)
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items()}


def _searched(extra: Path | None) -> list[str]:
    return [f'hydra.searchpath=["file://{extra}"]'] if extra else []


def _compose_files(lines: Sequence[str], name: str, extra: Path | None) -> tuple[dict[str, Any], dict[str, str]]:
    """What Hydra makes of the files: the nested config, and the option of each group."""
    if extra:
        return _read_files(lines, name, extra)
    return copy.deepcopy(_shipped_files(tuple(lines), name))


@functools.lru_cache(maxsize=256)
def _shipped_files(lines: tuple[str, ...], name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Shipped files do not change while a process lives, which composes several times."""
    return _read_files(lines, name, None)


def _read_files(lines: Sequence[str], name: str, extra: Path | None) -> tuple[dict[str, Any], dict[str, str]]:
    resolvers.let_read_environment()
    try:
        with initialize_config_module("conf", version_base="1.3"):
            composed = hydra_compose(name, [*lines, *_searched(extra)], return_hydra_config=True)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        at = f" ({shown(Path(mark.name), conf_tree.SHIPPED)}, line {mark.line + 1})" if mark else ""
        raise ConfigError(f"A config file is not valid YAML: {error.problem}.{at}") from None
    except MissingConfigException as error:
        group, _, option = (error.missing_cfg_file or "").partition("/")
        near, by = did_you_mean(option, error.options or ()), ", ".join(lines) or name
        raise ConfigError(
            f"{group}={option}: there is no such option. {near} (a defaults list, by way of {by})"
        ) from None
    except (HydraException, OmegaConfBaseException, ValueError, RecursionError) as error:
        text = " ".join((str(error) or str(error.__cause__)).split("Search path:")[0].split())
        raise ConfigError(f"The config files do not compose: {text}") from None
    choices = {group: option for group, option in composed.hydra.runtime.choices.items() if option}
    raw = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(raw, dict)
    return {str(key): value for key, value in raw.items() if key != "hydra"}, choices


def _sources(lines: Sequence[str], extra: Path | None) -> list[Source]:
    """The files that Hydra composes, in the order in which later ones replace earlier ones."""
    resolvers.let_read_environment()
    with initialize_config_module("conf", version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        files = loader.compute_defaults_list("config", [*lines, *_searched(extra)], RunMode.RUN).defaults
    sources = []
    for item in files:
        for folder in (conf_tree.SHIPPED, extra):
            file = folder / f"{item.config_path}.yaml" if folder else None
            if file and file.is_file():
                sources.append(Source(file, shown(file, conf_tree.SHIPPED), item.package or ""))
    return sources


def _build(
    raw: dict[str, Any],
    origins: Origins,
    read: Overrides,
    choices: Mapping[str, str],
    stored: bool = False,
    own_files: bool = False,
) -> Composed:
    """Apply the settings, then check everything and make it typed.

    Args:
        stored: it has been filled in before, and is left as it is.
        own_files: whether files of the user were composed too, which may change a term's metric in a shipped file.
    """
    layers = layers_of_files(origins.sources) if own_files else [copy.deepcopy(raw.get("objective") or {})]
    raw = _with_settings(raw, origins, read.settings)
    complete_metrics(raw, origins, stored)
    explicit = tuple(setting.path for setting in read.settings)
    inferred = [] if stored else fill_in(raw, origins, explicit)
    if not stored:
        inferred += follow_metrics(raw, [*layers, layer_of_overrides(read.settings)], origins)
    given = given_directions(raw)
    config, whole = to_dataclass(raw, origins)
    if stored:
        inferred += against_their_metrics(config)
    else:
        check_directions(config, given, origins)
    if config.train.rungs and not config.train.max_steps and not config.train.epochs:
        put(raw, "train.max_steps", config.train.rungs[-1])
        config, whole = to_dataclass(raw, origins)
    if config.eval.generate == "auto":
        config.eval.generate = "rung" if wants_answers(config) else False
        put(whole, "eval.generate", config.eval.generate)
    check_read(str(config.data.schema), config.task.name, explicit)
    refuse_encoder(config, origins)
    space, fixed = _space(config, origins, read.settings)
    changed = "space" in read.choices or bool(fixed) or any(it.path.startswith("space") for it in read.settings)
    known = placed(
        portfolio(base_model(config.model)),
        space,
        TrialTemplate(config, whole).lora,
    )
    allows = Composed(config, space, [], [], (), whole).constraints().allows
    known = [point for point in known if allows(point)]
    start, dropped = _start(config, space, known, read.settings, space_changed=changed)
    check_sweep(config)
    check_trial(trial_part(stand_ins(config), "check"))
    check_searched_needs(config, space)

    name = config.sweep.name or _name(config, choices)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ConfigError(
            f"sweep.name={brief(name)}: expected letters, digits, '-', '_' and '.', the first a letter or digit."
            f" ({origins.of('sweep.name')})"
        )
    if len(name) > LONGEST_NAME:
        raise ConfigError(
            f"sweep.name={brief(name)}: it has {len(name)} bytes, and a folder's name {LONGEST_NAME} at most. Give a"
            f" shorter one. ({origins.of('sweep.name')})"
        )
    config = replace(config, space=to_group(space), sweep=replace(config.sweep, name=name))
    config.search.start_from = [dict(point) for point in start]
    put(whole, "space", config.space)
    put(whole, "sweep.name", name)
    put(whole, "search.start_from", config.search.start_from)
    for path in paths(config):  # trials run in other working directories
        if "${" not in str(get(whole, path)):
            put(whole, path, get(asdict(config), path))
    notes = [*inferred, *fixed, *dropped]
    composed = Composed(config, space, start, notes, explicit, whole)
    constraints = composed.constraints()
    constraints.require_some(space, start)
    if note := size_note(space, config.sampler, constraints.allows, config.search.trials):
        composed.notes.append(note)
    return composed


def _with_settings(raw: dict[str, Any], origins: Origins, settings: Sequence[Setting]) -> dict[str, Any]:
    """The config with the command line's values, environment variables read. Raises ConfigError for unknown keys."""
    for setting in settings:
        _apply(raw, setting)
    groups = {key.split(".")[0] for key in schema()}
    for path, problem in misfits(raw):
        if path not in groups and any(source.package == path for source in origins.sources):
            problem = f"A file of group {path} changes other groups' keys: begin it with '# @package _global_'."
        raise ConfigError(f"{problem} ({origins.of(path)})")
    raw = normalised(read_environment(raw, origins))
    for name in ("start_from", "warm_start", "transfer_from"):  # one name needs no brackets
        if isinstance(get(raw, f"search.{name}"), str):
            put(raw, f"search.{name}", [get(raw, f"search.{name}")])
    refuse_uris(raw, origins)
    return raw


def _space(config: SweepConfig, origins: Origins, settings: Sequence[Setting]) -> tuple[Space, list[str]]:
    """What is searched, and notes on what the command line fixed. Raises ConfigError."""
    space = parse_space(config.space, lambda path: origins.of(f"space.{path}"))
    if config.data.schema == "text" and "data.max_length" in space:
        raise ConfigError(
            "space.data.max_length: with data.schema=text the validation texts are scored in windows of that length, so"
            f" trials could not be compared. Set it to one value. ({origins.of('space.data.max_length')})"
        )
    space, notes = _fixed(space, config, settings)
    space = on_grid(space, config.sampler)
    check_population(space, config.scheduler, config.search.repeats)
    if config.search.repeats > 1 and "seed" in space:
        raise ConfigError(
            f"search.repeats={config.search.repeats} trains every configuration with several seeds, and space.seed"
            f" searches over them. Keep one of the two. ({origins.of('space.seed')})"
        )
    return space, notes


def _start(
    config: SweepConfig,
    space: Space,
    known: Sequence[Mapping[str, Scalar]],
    settings: Sequence[Setting],
    space_changed: bool,
) -> tuple[list[dict[str, Scalar]], list[str]]:
    """The points to try first, and notes on shipped ones that a changed space has no place for.

    Points that came by name fill the trials that are left.

    Args:
        known: what the name ``portfolio`` stands for.

    Raises:
        ConfigError: for a point that is none of the space.
    """
    explicit = any(setting.path.startswith("search.start_from") for setting in settings)
    entries = list(expand(config.search.start_from, known))
    left = config.search.trials - sum(not named for _, named in entries)
    if left < 0:
        raise ConfigError(
            f"search.start_from holds {config.search.trials - left} points, but search.trials={config.search.trials}"
            " counts them too. Ask for more trials, or fewer points."
        )
    surplus = [point for point, named in entries if named][left:]
    points = [point for point, _ in entries if point not in surplus]
    return start_points(space, points, lenient=space_changed and not explicit)


def _apply(raw: dict[str, Any], setting: Setting) -> None:
    """Set a value; a mapping replaces. ``~path`` removes; below ``space``, null and ``~`` both mean: not searched."""
    if setting.delete and not setting.path.startswith("space."):
        parent, _, leaf = setting.path.rpartition(".")
        inner = get(raw, parent)
        if not isinstance(inner, dict) or leaf not in inner:
            there = [f"{parent}.{name}" for name in inner] if isinstance(inner, dict) else []
            raise ConfigError(f"'{setting.typed}': there is no '{setting.path}'. {did_you_mean(setting.path, there)}")
        del inner[leaf]
    else:
        put(raw, setting.path, setting.value)


def _fixed(space: Space, config: SweepConfig, settings: Sequence[Setting]) -> tuple[Space, list[str]]:
    """A key that the command line sets to one value is not searched."""
    fixed: dict[str, Scalar] = {}
    for setting in settings:
        if setting.path not in space:
            continue
        for other in settings:
            if f"{other.path}.".startswith(f"space.{setting.path}.") and other.value is not None:
                raise ConfigError(
                    f"'{setting.typed}' sets one value and '{other.typed}' searches several. Keep one of the two."
                )
        fixed[setting.path] = get(asdict(config), setting.path)
    notes = [f"Not searched, because the command line sets it: {path}={value}." for path, value in fixed.items()]
    return fix(space, fixed), notes


def _name(config: SweepConfig, choices: Mapping[str, str]) -> str:
    """The experiment's name, or ``<task>-<model>-<data>``; for own models and data the name of the folder or file."""
    if choices.get("experiment"):
        return choices["experiment"]
    model = {"local": config.model.path, "hub": config.model.name}.get(config.model.source) or choices["model"]
    of_file = config.data.source not in ("newsgroups", "package")
    data = (config.data.name or config.data.train) if of_file else choices["data"]
    parts = (config.task.name, Path(model).name, Path(data or "").stem)
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", "-".join(parts))[:LONGEST_NAME]
