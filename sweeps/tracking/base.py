"""What a tracker is: the one interface by which a sweep tells W&B, MLflow or another of its trials.

A tracker is simple code: ``start_run``, ``log_point``, ``finish_run``. All that it does, waiting for a server included,
happens in one thread of its own (``tune_callback.py``): a sweep neither waits for it nor fails because of it.
``conf/tracking/<name>.yaml`` names its class and keywords below ``trackers``; nothing else has to know it.
"""

# ruff: noqa: B027 (a tracker overrides what it needs)

import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from analysis.errors import ConfigError, did_you_mean
from analysis.folder import State, SweepFolder
from sweeps.config import TrackingConfig

SWEEP_RUN = "sweep"  # the name of the run that stands for the whole sweep

Table = tuple[Sequence[str], Sequence[Sequence[Any]]]  # column names, rows
Point = tuple[int, Mapping[str, Any]]  # step, values: as of ``Tracker.log_point``


@dataclass(frozen=True)
class TrackedSweep:
    """The sweep that a tracker is made for.

    Attributes:
        folder: its folder; a tracker keeps its files in one of its own there.
        uid: tells two sweeps of one name apart.
        note: shows one line to the user; may be called from any thread.
    """

    folder: SweepFolder
    uid: str
    note: Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """What is tracked as one run.

    Attributes:
        name: a trial's id, a baseline's name, or ``SWEEP_RUN``. A resumed sweep starts a run of the same name again.
        kind: ``trial``, ``baseline`` or ``sweep``.
        config: nested, resolved.
        values: of a trial: dotted path → what the search gave it.
        earlier: points that the sweep folder has already, in order. Of an earlier process, whose tracker had them all
            unless it was killed; or all points, of a run that is written after it ended.
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    values: Mapping[str, Any] = field(default_factory=dict)
    earlier: tuple[Point, ...] = ()


@dataclass(frozen=True)
class Adapter:
    """A trained adapter on disk: ``folder`` may be gone by the time it is looked at (``search.keep_adapters``)."""

    trial_id: str
    folder: Path
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a run ended, and what belongs to it.

    Attributes:
        state: RUNNING where the sweep was interrupted: the run is started again when it is resumed.
        facts: numbers and texts: ``state``, ``reason``, ``where``, ``step``, ``tokens``, …; of the sweep, counts.
        metrics: the scores that rank it; of the sweep, those of the best trial (``best.accuracy``).
        tables: by name; each is read when called, with the rows that are wanted at most (None: all).
        charts: Plotly figures as JSON, by name.
        adapter: of a completed trial; of the sweep, the best one.
    """

    state: State
    facts: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tables: Mapping[str, Callable[[int | None], Table]] = field(default_factory=dict)
    charts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    adapter: Adapter | None = None


class Hint(NamedTuple):
    """A command that the user can run when the sweep is over, and what it does."""

    command: str
    purpose: str


class Tracker(ABC):
    """A place where runs are logged. Every method but ``hint`` is called from one thread, in order.

    Any method may raise: that is noted once and logged. A run whose start raised gets no further calls.

    Args:
        sweep: what is tracked. The keywords of a subclass's ``__init__`` are what its config file may set.
    """

    title: ClassVar[str] = ""  # what messages call it; by default the class's name
    off: bool = False  # made, but switched off by its settings: it is never called
    key: str = ""  # its name in the config, by which its complete runs are recorded
    # ``start_run`` brings a run up to ``run.earlier``. Else those points are logged where a whole run is written.
    writes_earlier: ClassVar[bool] = False

    def __init__(self, sweep: TrackedSweep) -> None:
        self.sweep = sweep

    @classmethod
    def check(cls, **keywords: Any) -> None:
        """Called before anything is started. Raises ConfigError for keywords, or a library, that cannot work."""

    def connect(self) -> None:
        """Called first, while the trials start, and again where calls come after ``close``."""

    @abstractmethod
    def start_run(self, run: Run) -> None:
        """A run begins, or goes on where an earlier process began it."""

    @abstractmethod
    def log_point(self, name: str, step: int, values: Mapping[str, Any]) -> None:
        """A point of a run's curves.

        Args:
            name: of the run.
            step: optimiser steps. Each rung comes once; an exchange of a population adds a point at a rung's step.
            values: metric → value, NaN where it could not be computed; an exchange's ``parent`` is text.
        """

    @abstractmethod
    def finish_run(self, name: str, outcome: Outcome) -> None:
        """A run has ended, or is left to be gone on with. The last call for it."""

    def kept(self, name: str) -> str | None:
        """Where a run that was finished is now complete, in words for ``holds``; None where some of it may be lost.

        Asked after each call, until it is: then the run is recorded as complete.
        """
        return ""

    def holds(self, name: str, place: str) -> bool:
        """Whether a run that is complete at ``place`` need not be written again. Nobody is to be asked for it."""
        return True

    def cut_off(self, name: str) -> bool:
        """Whether a run that was finished here was not written to its end, and should be written again."""
        return False

    def close(self) -> None:
        """All runs are finished: write or send what is left. Whoever waits for this does so for a bounded time."""

    def hint(self, cut_short: bool = False) -> Hint | None:
        """What the user can do afterwards.

        Args:
            cut_short: ``close`` took too long, and is not waited for.
        """


def check_trackers(tracking: TrackingConfig, raw: Mapping[str, Any], explicit: Sequence[str]) -> None:
    """Whether every tracker of a sweep can be made, before anything is started.

    Args:
        tracking: resolved.
        raw: the same with its interpolations, nested: ``${tracking.mode}`` tells who reads a key.
        explicit: paths that the command line set.

    Raises:
        ConfigError: for a class or keyword that is not there, a library that is not installed, or a key of the command
            line that switches something on that no tracker of this sweep has.
    """
    for cls, keywords in _classes(tracking):
        cls.check(**keywords)
    for key, value, example in (("mode", tracking.mode, "wandb"), ("uri", tracking.uri, "mlflow")):
        read = f"${{tracking.{key}}}" in str(raw.get("trackers"))
        if f"tracking.{key}" in explicit and value not in (None, "disabled") and not read:
            names = ", ".join(tracking.trackers) or "none"
            raise ConfigError(
                f"tracking.{key}={value}: no tracker of this sweep reads it (its trackers: {names})."
                f" Choose one that does, such as tracking={example}, or leave it out."
            )


def build_trackers(tracking: TrackingConfig, sweep: TrackedSweep) -> list[Tracker]:
    """The trackers of a sweep. Raises ConfigError, as ``check_trackers``."""
    made = [cls(sweep, **keywords) for cls, keywords in _classes(tracking)]
    for tracker, name in zip(made, tracking.trackers, strict=True):
        tracker.key = name
    return [tracker for tracker in made if not tracker.off]


def _classes(tracking: TrackingConfig) -> Iterator[tuple[type[Tracker], dict[str, Any]]]:
    """Each tracker's class and its keywords. Raises ConfigError."""
    for name, entry in tracking.trackers.items():
        path = f"tracking.trackers.{name}"
        cls = _tracker_class(path, entry.get("_target_"))
        keywords = {key: value for key, value in entry.items() if key != "_target_"}
        parameters = list(inspect.signature(cls).parameters.values())[1:]  # the first is the sweep
        names = [it.name for it in parameters if it.kind is not it.VAR_KEYWORD]
        anything = len(names) < len(parameters)
        for key in keywords:
            if key not in names and not anything:
                near = did_you_mean(key, names)
                raise ConfigError(f"{path}: '{key}' is not a keyword of {entry['_target_']}. {near}")
        needed = [it.name for it in parameters if it.default is it.empty and it.name in names]
        lacking = [name for name in needed if name not in keywords]
        if lacking:
            raise ConfigError(f"{path}: {entry['_target_']} needs {', '.join(lacking)}. Add {path}.{lacking[0]}=…")
        yield cls, keywords


def _tracker_class(path: str, target: Any) -> type[Tracker]:
    example = "such as sweeps.tracking.mlflow_tracker.MlflowTracker"
    if not isinstance(target, str) or "." not in target:
        raise ConfigError(f"{path}._target_={target!r}: expected a dotted class, {example}.")
    module_name, _, name = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{path}._target_={target}: {error}. Expected an importable class, {example}.") from None
    cls: Any = getattr(module, name, None)
    if not _is_tracker(cls):
        known = [other for other, it in vars(module).items() if _is_tracker(it)]
        lacking = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
        what = "is no Tracker (sweeps/tracking/base.py)"
        what = "is not there" if cls is None else f"lacks {lacking}" if lacking else what
        near = f" {did_you_mean(name, known)}" if known else ""
        raise ConfigError(f"{path}._target_={target}: it {what}.{near}")
    tracker: type[Tracker] = cls
    return tracker


def _is_tracker(cls: Any) -> bool:
    return inspect.isclass(cls) and issubclass(cls, Tracker) and not inspect.isabstract(cls)
