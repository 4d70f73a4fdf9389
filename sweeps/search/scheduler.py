"""Sampler and Ray Tune scheduler from their config groups, and the guard around the scheduler.

``conf/sampler`` and ``conf/scheduler`` name a class in ``_target_``, with its keyword arguments beside it. Nothing
nested is instantiated: what a file says is exactly what the class gets.
"""

import importlib
import inspect
import math
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from optuna.samplers import BaseSampler, CmaEsSampler, QMCSampler
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    HyperBandScheduler,
    PopulationBasedTraining,
    ResourceChangingScheduler,
    TrialScheduler,
)

from analysis.errors import ConfigError, did_you_mean
from sweeps.config import milestones
from sweeps.search import pbt
from sweeps.search.pacing import keep_actors
from sweeps.search.pbt_exchange import Exchange
from sweeps.search.searcher import METRIC, names_one_class
from sweeps.space.dimensions import Space

_UNFIT: dict[type, str] = {
    HyperBandScheduler: "it pauses trials, but a slot that is left is given to the next trial. Use ASHAScheduler",
    PopulationBasedTraining: "it pauses trials, but a slot that is left is given to the next trial. Use scheduler=pbt",
    ResourceChangingScheduler: "trials share devices that belong to a worker. Use ASHAScheduler",
    CmaEsSampler: "it keeps its state as a pickle, which is never read from a sweep folder. Use TPESampler",
    QMCSampler: "its sequence would start again on resume. Use TPESampler or RandomSampler",
}

_KEEP_BEST = "keep_best"  # of our guard: the one keyword beside a scheduler's own
_STARTUP = "n_startup_trials"  # of TPE and GP: trials that end before the model is used


def build_sampler(config: Mapping[str, Any], seed: int, start_points: int = 0) -> BaseSampler:
    """The Optuna sampler of config group ``sampler``, seeded.

    Args:
        config: ``_target_`` and keyword arguments.
        seed: of its random numbers.
        start_points: points that are tried before the sampler is asked. Optuna counts them among
            ``n_startup_trials``, and a model of them alone would keep to where they lie.

    Raises:
        ConfigError: for an unknown class or keyword, or a value that the class refuses.
    """
    cls = _target("sampler", config, BaseSampler)
    given = dict(config)
    if given.get("seed") is None:
        given.pop("seed", None)
    taken = inspect.signature(cls).parameters
    if start_points and _STARTUP in taken:
        drawn = given.get(_STARTUP, taken[_STARTUP].default)
        if isinstance(drawn, int):  # anything else is refused by _make
            given[_STARTUP] = drawn + start_points
    fixed = {"seed": (seed, "the search is seeded by sweep.seed")}
    sampler: BaseSampler = _make("sampler", cls, given, fixed)
    return sampler


def build_scheduler(config: Mapping[str, Any], rungs: Sequence[int]) -> "GuardedScheduler":
    """The Ray Tune scheduler of config group ``scheduler``, guarded.

    Args:
        config: ``_target_`` and keyword arguments, and ``keep_best``, which is the guard's.
        rungs: ``train.rungs``, optimiser steps, ascending; the last one is ``train.max_steps``.

    Raises:
        ConfigError: for an unknown class or keyword, a value that the class refuses, or milestones that are no rungs.
    """
    keep_best = config.get(_KEEP_BEST, 0)
    if isinstance(keep_best, bool) or not isinstance(keep_best, int) or keep_best < 0:
        raise ConfigError(f"scheduler.{_KEEP_BEST}={keep_best!r}: expected a number of trials, 0 or more.")
    cls = _target("scheduler", config, TrialScheduler)
    if not issubclass(cls, pbt.PopulationBasedTraining):  # which stops none
        config = {name: value for name, value in config.items() if name != _KEEP_BEST}
    rungs_of(config, rungs)
    fixed = {
        "time_attr": ("step", "time is counted in optimiser steps"),
        "metric": (METRIC, "the one number to decide by comes from group objective"),
        "mode": ("max", "a higher objective is better"),
        "max_t": (rungs[-1], "it is train.max_steps"),
        "stop_last_trials": (True, "a trial at its last step always completes"),
        "hard_stop": (True, "a trial that pauses would give its slot away"),
        "min_time_slice": (math.inf, "a trial that pauses would give its slot away"),
    }
    return GuardedScheduler(_make("scheduler", cls, config, fixed), rungs[-1], keep_best)


def rungs_of(config: Mapping[str, Any], rungs: Sequence[int]) -> list[int]:
    """The rungs at which a scheduler like ASHA decides; none for one without milestones. Raises ConfigError."""
    cls = _target("scheduler", config, TrialScheduler)
    if not issubclass(cls, AsyncHyperBandScheduler):
        return []
    given = {name: it.default for name, it in inspect.signature(cls).parameters.items()} | dict(config)
    return milestones(rungs, given["grace_period"], given["reduction_factor"])


@dataclass(frozen=True)
class StandIn:
    """What a scheduler that only continues or stops needs to know of a trial."""

    trial_id: str
    status: str = "RUNNING"
    values: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def config(self) -> dict[str, Any]:
        return {"trial_id": self.trial_id, "values": dict(self.values)}


class GuardedScheduler(TrialScheduler):
    """A Ray Tune scheduler that knows trials by our ids and decides on finite objectives only.

    - A rung is decided once. After a retry or a resume Tune has a new id for the same trial; it must not stand in the
      scheduler's lists twice, and gets the same decision again.
    - A diverged, failed or out-of-memory trial leaves no NaN among the scores that others are compared with.
    - A trial at its last step is left to complete; ASHA would stop it as if early.
    - While every trial still names one class for all items, none is stopped: their scores say nothing of them yet.
    - A trial that is among the best few so far at a rung goes on. ASHA alone stops the second of two trials however
      near it is, and a small sweep ends with one completed trial and nothing to compare it with.

    Args:
        inner: decides.
        max_steps: optimiser steps of a trial that is not stopped.
        keep_best: how many are "the best few".
    """

    def __init__(self, inner: TrialScheduler, max_steps: int, keep_best: int = 0):
        super().__init__()
        self.inner: Any = inner  # gets a StandIn wherever Ray's annotations say Trial
        self.max_steps, self.keep_best = max_steps, keep_best
        self._objectives: dict[int, list[float]] = {}  # step → of the trials that have reached it
        self._learnt = False  # whether some trial has left the majority class
        self.concurrent: Callable[[], int] = lambda: 0  # trials at a time, whose actors Tune is to keep
        self._kept = 0  # actors that Tune was told to keep
        self._added: set[str] = set()
        self._live: set[str] = set()
        self._decided: dict[tuple[str, int], str] = {}  # (our trial id, step) → decision
        self._tune: dict[str, Any] = {}  # Tune's own object of a trial

    def populate(self, space: Space, exchange: Callable[[Exchange], bool]) -> bool:
        """Let a population's decisions be carried out. False for a scheduler that has none.

        Args:
            exchange: puts a trial in its parent's place; False where that cannot be done now.
        """

        def carry_out(decided: Exchange) -> bool:
            done = exchange(decided)
            if done:  # a retry starts with the new values, and trackers see them
                trial = self._tune[decided.trial_id]
                trial.config = {**trial.config, "values": dict(decided.new)}
            return done

        populated = isinstance(self.inner, pbt.PopulationBasedTraining)
        if populated:
            self.inner.space, self.inner.exchange = space, carry_out
        return populated

    def on_perturbed(self, trial_id: str, step: int, values: Mapping[str, Any]) -> None:
        """An exchange of the past, replayed."""
        if isinstance(self.inner, pbt.PopulationBasedTraining):
            self.inner.note_exchange(trial_id, step, values)

    @property
    def metric(self) -> str:
        return METRIC

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return metric in (None, METRIC) and mode in (None, "max")

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        if tune_controller is not None and (now := self.concurrent()) > self._kept:
            self._kept = now
            keep_actors(tune_controller, trial, self._kept)
        if _further_seed(trial):
            return
        own = _stand_in(trial)
        self._tune[own.trial_id] = trial
        if own.trial_id not in self._added:
            with _numpy_seeded(zlib.crc32(own.trial_id.encode())):
                self.inner.on_trial_add(tune_controller, own)
            self._added.add(own.trial_id)
            self._live.add(own.trial_id)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if _further_seed(trial):
            return str(TrialScheduler.CONTINUE)
        own, step = _stand_in(trial), result["step"]
        if (own.trial_id, step) in self._decided:
            return self._decided[own.trial_id, step]
        if own.trial_id not in self._live or step >= self.max_steps or not _scored(result):
            return TrialScheduler.CONTINUE
        self._learnt = self._learnt or not names_one_class(result)
        decision: str = self.inner.on_trial_result(tune_controller, own, _shifted(result))
        better = sum(other > result[METRIC] for other in self._objectives.setdefault(step, []))
        self._objectives[step].append(result[METRIC])
        if decision == TrialScheduler.STOP and (not self._learnt or better < self.keep_best):
            decision = str(TrialScheduler.CONTINUE)
            getattr(self.inner, "_stopped_trials", set()).discard(own)  # median stopping refuses to hear of it again
        self._decided[own.trial_id, step] = decision
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        own = StandIn(trial.config["trial_id"])
        if own.trial_id not in self._live:
            return
        self._live.discard(own.trial_id)
        if _scored(result):
            self.inner.on_trial_complete(tune_controller, own, _shifted(result))
        else:
            self.inner.on_trial_error(tune_controller, own)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self.inner.on_trial_error(tune_controller, StandIn(trial.config["trial_id"]))

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        own = StandIn(trial.config["trial_id"])
        if own.trial_id in self._live:
            self._live.discard(own.trial_id)
            self.inner.on_trial_remove(tune_controller, own)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        return self.inner.choose_trial_to_run(tune_controller)

    def debug_string(self) -> str:
        return str(self.inner.debug_string())


def replay_scheduler(scheduler: GuardedScheduler, records: Iterable[Mapping[str, Any]]) -> None:
    """Bring a fresh scheduler to where it was, from the lines of ``study/asks.jsonl`` in their order.

    Ray saves no scheduler state (ray #30838). Trials that never ended stay live: their next rung is decided among the
    recorded ones.
    """
    for record in records:
        if record.get("repeat"):
            continue
        trial, result = StandIn(str(record["trial_id"]), values=record.get("values", {})), dict(record)
        if record["event"] == "perturb":
            scheduler.on_perturbed(trial.trial_id, record["step"], record["values"])
        elif record["event"] == "ask":
            scheduler.on_trial_add(None, trial)
        elif record["event"] == "rung":
            scheduler.on_trial_result(None, trial, result)
        elif record["event"] == "tell":
            scheduler.on_trial_complete(None, trial, result)


def _further_seed(trial: Any) -> bool:
    """Whether it repeats a configuration that completed: the scheduler let that live, and has nothing more to say."""
    return bool(trial.config.get("repeat"))


def _stand_in(trial: Any) -> StandIn:
    return StandIn(trial.config["trial_id"], values=trial.config.get("values", {}))


def _scored(result: Mapping[str, Any]) -> bool:
    value = result.get(METRIC)
    return isinstance(value, int | float) and math.isfinite(value) and "step" in result


def _shifted(result: Mapping[str, Any]) -> dict[str, Any]:
    """A rounding error (factor 10 / 3) can put a milestone just above its rung, where it would be missed."""
    return {**result, "step": result["step"] * (1 + 1e-9)}


@contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """ASHA with several brackets draws a trial's bracket from NumPy's global generator."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


def _target(group: str, config: Mapping[str, Any], base: Any) -> Any:
    """The class that ``_target_`` names. Raises ConfigError unless it is a ``base`` that a sweep can use."""
    target = config.get("_target_")
    if not isinstance(target, str) or "." not in target:
        raise ConfigError(f"{group}._target_={target!r}: expected a dotted class, such as {_example(base)}.")
    module_name, _, name = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"{group}._target_={target}: {error}. Expected an importable class, such as {_example(base)}."
        ) from None
    cls = getattr(module, name, None)
    if not _usable(cls, base):
        known = {other for other, it in vars(module).items() if _usable(it, base) and not _unfit(it)}
        what = "is not there" if cls is None else f"is no {base.__name__} that can be made"
        raise ConfigError(f"{group}._target_={target}: it {what}. {did_you_mean(name, known)}")
    if why := _unfit(cls):
        raise ConfigError(f"{group}._target_={target} does not work in a sweep: {why}.")
    return cls


def _usable(cls: Any, base: type) -> bool:
    return inspect.isclass(cls) and issubclass(cls, base) and cls is not base and not inspect.isabstract(cls)


def _unfit(cls: Any) -> str:
    return next((why for unfit, why in _UNFIT.items() if issubclass(cls, unfit)), "")


def _example(base: type) -> str:
    return "optuna.samplers.TPESampler" if base is BaseSampler else "ray.tune.schedulers.ASHAScheduler"


def _make(group: str, cls: Any, config: Mapping[str, Any], fixed: Mapping[str, tuple[Any, str]]) -> Any:
    """Call the class with the given keywords and those that the sweep decides, where it takes them."""
    target, taken = config["_target_"], dict(inspect.signature(cls).parameters)
    anything = any(it.kind is inspect.Parameter.VAR_KEYWORD for it in taken.values())
    names = [n for n, it in taken.items() if it.kind not in (it.VAR_KEYWORD, it.VAR_POSITIONAL, it.POSITIONAL_ONLY)]
    given = {name: value for name, value in config.items() if name != "_target_"}
    for name, value in given.items():
        if name not in names and not anything:
            raise ConfigError(
                f"{group}: '{name}' is not a keyword of {target}. {_hint(name, names)}It takes: {', '.join(names)}."
            )
        if name in fixed and value != fixed[name][0]:
            raise ConfigError(f"{group}.{name}={value!r}: expected {fixed[name][0]!r}, because {fixed[name][1]}.")
        default = taken[name].default if name in taken else None
        if isinstance(default, int | float) and not isinstance(value, int | float):
            raise ConfigError(f"{group}.{name}={value!r}: expected a value like {default!r}, its default in {target}.")
    decided = {name: value for name, (value, _) in fixed.items() if name in names}
    try:
        with warnings.catch_warnings():  # Optuna calls TPE's group experimental at every start
            warnings.simplefilter("ignore")
            return cls(**{**given, **decided})
    except Exception as error:
        shown = ", ".join(f"{name}={value!r}" for name, value in given.items()) or "no arguments"
        raise ConfigError(f"{group}: {target} refuses {shown}: {str(error) or type(error).__name__}") from error


def _hint(given: str, names: Sequence[str]) -> str:
    near = did_you_mean(given, names)
    return f"{near} " if near.startswith("Did") else ""
