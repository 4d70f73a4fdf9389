"""The interface between trials and whatever trains them. Engines know neither Ray nor Tune.

A trial is admitted to a slot, trained to its next rung, and rests there until it is told to proceed or to end. Between
any two optimiser steps it can be checkpointed and released, to go on elsewhere as if nothing had happened. One thread
owns an engine; what it took for a checkpoint, any thread may write. ``trainer/engines/packed_engine.py`` has many slots
on one base model; ``trainer/engines/hf_engine.py`` is the reference: one slot, Hugging Face Trainer and PEFT.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from analysis.folder import MetricsRow, State, TrialFolder
from trainer.config import TrialConfig


@dataclass(frozen=True)
class Admitted:
    """The trial has a slot and starts, or goes on, at ``step``. ``note``: what was mended for that; may be empty."""

    step: int = 0
    note: str = ""


@dataclass(frozen=True)
class Full:
    """No slot is free now: ask again later, or another device worker."""


@dataclass(frozen=True)
class Refused:
    """This engine can never run the trial."""

    reason: str
    remedy: str


Admission = Admitted | Full | Refused


@dataclass(frozen=True)
class RungResult:
    """A trial reached a rung and was scored on the rung subset; it rests until ``proceed`` or ``end``."""

    trial_id: str
    row: MetricsRow


@dataclass(frozen=True)
class Ended:
    """A trial ended by itself.

    Attributes:
        state: completed, diverged, out_of_memory or failed.
        reason: a sentence; empty for completed.
        row: for completed: the best rung's checkpoint scored on all validation items (``final``); else None.
    """

    trial_id: str
    state: State
    reason: str
    step: int
    row: MetricsRow | None = None


@dataclass(frozen=True)
class Requeued:
    """A trial lost its slot because memory ran out or its device worker leaves: admit it again, to go on from its last
    checkpoint."""

    trial_id: str
    reason: str


@dataclass(frozen=True)
class Halted:
    """The device worker cannot go on with a trial through no fault of the trial's, such as on a full disk."""

    trial_id: str
    reason: str


@dataclass(frozen=True)
class DeviceFailed:
    """The GPU answers its device worker's process no more, which ends: admit the trial again, on another worker, to go
    on from its last checkpoint.

    Attributes:
        reason: what the GPU's library said, in a line.
        alone: whether no other trial was on the worker, so that it may be this one's doing.
    """

    trial_id: str
    reason: str
    alone: bool


class DeviceFault(Exception):
    """The GPU answers this process no more: every further call fails, whatever trial it is for. No trial is blamed."""


class RankLost(Exception):
    """Another process of a trial that several train does not answer any more: no fault of the trial's is known."""


Event = RungResult | Ended | Requeued


def never() -> bool:
    return False


def written() -> None:
    """What ``Engine.snapshot`` returns where all is written already."""


class Engine(Protocol):
    """What a device worker drives. No method may be called from a second thread.

    Attributes:
        patience: seconds that are well spent waiting until all slots that rest have been told to go on or to end: in
            a pack, a step's time, since slots that go on together are trained and scored together.
        pass_cost: what one more pass was measured to cost, in tokens that take as long; None: not yet, or it is not
            used. It decides the last bits of results: where others have measured something else, it is set to that
            before a trial is admitted.
    """

    patience: float
    pass_cost: float | None

    def capacity(self, trial: TrialConfig) -> int:
        """Trials like this one that the device takes side by side."""
        ...

    def admit(self, trial: TrialConfig, folder: TrialFolder, checkpoint: Path | None) -> Admission:
        """Give the trial a slot, from its checkpoint where one is given.

        Raises LorasweepError for a configuration, data set or model that cannot be used.
        """
        ...

    def advance(self, until: Callable[[], bool] = never, leaving: Callable[[], bool] = never) -> list[Event]:
        """Train until some slot reaches a rung or ends. Empty where every slot rests or is free.

        Args:
            until: asked between steps; where it is true, return what there is.
            leaving: asked before each forward pass of a scoring; where it is true, the scoring is broken off, to be
                begun anew by a later call. Threads other than the engine's may ask both.
        """
        ...

    def proceed(self, trial_id: str) -> None:
        """Let a slot that rests after its rung train on."""
        ...

    def steps(self, trial_id: str) -> int:
        """Optimiser steps that the trial has done."""
        ...

    def snapshot(self, trial_id: str, to: Path) -> Callable[[], None]:
        """Take what a checkpoint holds as of ``steps``; training may go on while it is written.

        Of a slot that rests or trains, at a rung or between two. Not of one whose trial is done: after its last rung
        it holds the best rung's adapter. An engine with one slot may write at once, since none waits for it.

        Returns:
            A call that writes adapter and optimiser state (safetensors) and counters (JSON) to ``to``, and flushes
            them to the disk. The counters come last: without them it is no checkpoint. Any thread may make the call,
            once; it raises OSError and what else writing raises.
        """
        ...

    def release(self, trial_id: str) -> None:
        """Free the slot of a trial that goes on elsewhere; nothing is written."""
        ...

    def end(self, trial_id: str, state: State) -> None:
        """Free the slot. The adapter of the trial's best rung is written to its folder."""
        ...
