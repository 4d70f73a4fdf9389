"""How the driver, trials and final scores talk to device workers: the one typed way, and the only one that calls Ray.

``DeviceClient`` is one worker as its callers see it; a call gives a ``Reply``. ``TrialPlacement`` is a trial's slot on
one of them: it finds one, waits for the trial's events, and finds another where that one, or its worker, is lost.
``sweeps/driver/device_worker.py`` is the other end.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnschedulableError,
    GetTimeoutError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
)

from analysis.errors import LorasweepError
from analysis.folder import MetricsRow, State, TrialFolder
from sweeps.checks.simulate import Sizes
from sweeps.driver.device_facts import DataFacts, WorkerFacts
from trainer.config import Baseline, TrialConfig
from trainer.engine import Admission, Admitted, Ended, Event, Halted, Refused, RungResult

GONE = (ActorDiedError, ActorUnschedulableError)  # the worker will not come back, as its node will not
LOST = (RayActorError, ActorUnschedulableError)  # the same, or Ray starts it again
LIVES = 3  # device workers that a trial may lose between two rungs before it is taken for the cause
_ALONE_AFTER = 2  # losses: then the trial gets a device to itself, so that it takes no neighbour with it
_ASK_AGAIN = 0.2  # seconds between rounds where every worker is full
_DIE_SECONDS = 5.0  # for a worker that hangs to end itself

T = TypeVar("T")


class Reply(Generic[T]):
    """What a device worker will answer; the call runs meanwhile."""

    def __init__(self, reference: Any):
        self.reference = reference

    def get(self, timeout: float | None = None) -> T:
        """Wait for the answer.

        Args:
            timeout: seconds; None waits without limit.

        Raises:
            LorasweepError: the worker's own, not wrapped in Ray's.
            GetTimeoutError: no answer in time.
            RayActorError: one of ``LOST``, where the worker's process is gone.
        """
        try:
            answer: T = ray.get(self.reference, timeout=timeout)
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, LorasweepError):
                raise cause from None
            raise
        return answer


@dataclass(frozen=True)
class DeviceClient:
    """One device worker; can be sent to other processes. Each method is the worker's of the same name.

    Attributes:
        actor: Ray's handle.
        where: node and device, as a user reads it; empty until the worker has said so.
    """

    actor: Any
    where: str = ""

    def facts(self, folder: str, precisions: Sequence[str]) -> Reply[WorkerFacts]:
        return Reply(self.actor.facts.remote(folder, list(precisions)))

    def sizes(self, trial: TrialConfig, timed: bool) -> Reply[Sizes]:
        return Reply(self.actor.sizes.remote(trial, timed))

    def prepare(self, trial: TrialConfig) -> Reply[DataFacts]:
        return Reply(self.actor.prepare.remote(trial))

    def admit(self, trial: TrialConfig, folder: TrialFolder, alone: bool = False) -> Reply[Admission | Ended | Halted]:
        return Reply(self.actor.admit.remote(trial, str(folder.root), alone))

    def next_event(self, trial_id: str, proceed: bool) -> Reply[Event | Halted | None]:
        return Reply(self.actor.next_event.remote(trial_id, proceed))

    def take_over(self, trial: TrialConfig, donor: TrialFolder, step: int) -> Reply[str | None]:
        return Reply(self.actor.take_over.remote(trial, str(donor.root), step))

    def end(self, trial_id: str, state: State) -> Reply[None]:
        return Reply(self.actor.end.remote(trial_id, str(state)))

    def leave(self, seconds: float) -> Reply[list[str]]:
        return Reply(self.actor.leave.remote(seconds))

    def score_baseline(self, baseline: Baseline, folder: TrialFolder, test: bool = False) -> Reply[MetricsRow]:
        return Reply(self.actor.score_baseline.remote(baseline, str(folder.root), test))

    def score_on_test(self, trial: TrialConfig, folder: TrialFolder) -> Reply[MetricsRow]:
        return Reply(self.actor.score_on_test.remote(trial, str(folder.root)))

    def replace(self, trial_id: str) -> None:
        """End a worker that hangs; Ray starts it again. One that does not know the trial is a new one, and is left."""
        try:
            ray.get(self.actor.die.remote(trial_id), timeout=_DIE_SECONDS)
        except GetTimeoutError:  # it does not even answer
            ray.kill(self.actor, no_restart=False)
        except LOST:
            pass  # as was the intent

    def kill(self) -> None:
        """End the worker in the middle of whatever it does, for good."""
        with contextlib.suppress(Exception):
            ray.kill(self.actor)


class _Replaced(Exception):
    """The worker died and was started again while the trial rested: its new process does not know the trial."""


@dataclass
class TrialPlacement:
    """A trial's slot on one of the device workers, from the first one to the trial's end.

    A worker that dies, or that hangs for ``rung_timeout``, is started again by Ray, and the trial goes on from its last
    rung, on whichever worker has room. The trial may be the cause: one that loses a second worker before its next rung
    is recorded gets a device to itself, and ends with the third.

    Attributes:
        devices: the workers.
        trial: its configuration.
        folder: where it is recorded, and where its checkpoints are.
        first: index in ``devices`` of the worker that is asked first.
        rung_timeout: seconds from one event to the next after which a worker counts as hung; None: no limit.
        before_asking: called with the index of a worker before it is asked for a slot.
        device: the worker that has the trial; None where it has no slot.
        where: node and device of the last worker that had it.
        notes: what went wrong and was mended.
        losses: workers lost since the last recorded rung.
    """

    devices: Sequence[DeviceClient]
    trial: TrialConfig
    folder: TrialFolder
    first: int = 0
    rung_timeout: float | None = None
    before_asking: Callable[[int], None] = lambda index: None
    device: DeviceClient | None = None
    where: str = ""
    notes: list[str] = field(default_factory=list)
    losses: int = 0

    def next_event(self) -> RungResult | Ended | Halted:
        """Find a slot where the trial has none, train to its next rung or its end, and wait for that.

        Raises:
            RayActorError: one of ``GONE``, where every worker is gone for good.
        """
        while True:
            try:
                return self._next_event()
            except (*LOST, OutOfMemoryError, GetTimeoutError, _Replaced) as error:
                device, self.device = self.device, None
                if device is None:  # there was no worker to lose
                    raise
                ended = self._lost(device, error)
                if ended is not None:
                    return ended

    def rung_recorded(self) -> None:
        """The trial will not train to its last rung again: losses are counted from here."""
        self.losses = 0

    def leave(self) -> None:
        """Free the trial's slot, where it has one."""
        device, self.device = self.device, None
        if device is not None:
            with contextlib.suppress(*LOST, GetTimeoutError):  # a worker that is gone has no slots to free
                device.end(self.trial.trial_id, State.STOPPED_EARLY).get(self.rung_timeout)

    def _next_event(self) -> RungResult | Ended | Halted:
        rests = self.device is not None  # at a rung, until it is told to proceed
        while True:
            if self.device is None:
                admitted = self._find_slot()
                if not isinstance(admitted, DeviceClient):
                    return admitted
                self.device, self.where = admitted, admitted.where
            event = self.device.next_event(self.trial.trial_id, proceed=rests).get(self.rung_timeout)
            rests = False
            if event is None:
                raise _Replaced
            if isinstance(event, RungResult):
                return event
            self.device = None
            if isinstance(event, Ended | Halted):
                return event
            # Requeued: memory ran out, and the trial lost its slot

    def _find_slot(self) -> DeviceClient | Ended | Halted:
        """Ask one worker after the other until one has room. Ended or Halted: the trial can run nowhere."""
        while True:
            gone = 0
            for i in range(len(self.devices)):
                index = (self.first + i) % len(self.devices)
                device = self.devices[index]
                self.before_asking(index)
                try:
                    admission = device.admit(self.trial, self.folder, self.losses >= _ALONE_AFTER).get()
                except GONE:  # with its node, or because the sweep is over
                    gone += 1
                    if gone == len(self.devices):
                        raise
                    continue
                except LOST:  # it starts again
                    continue
                if isinstance(admission, Admitted):
                    self.notes += [admission.note] if admission.note else []
                    return device
                if isinstance(admission, Refused):
                    reason = f"{admission.reason} {admission.remedy}".strip()
                    return Ended(self.trial.trial_id, State.FAILED, reason, 0)
                if isinstance(admission, Ended | Halted):
                    return admission
            time.sleep(_ASK_AGAIN)

    def _lost(self, device: DeviceClient, error: Exception) -> Ended | None:
        """Count a worker that died or hangs. Returns how the trial ended where it is taken for the cause."""
        hung = isinstance(error, GetTimeoutError)
        if hung:
            device.replace(self.trial.trial_id)
        self.losses += 1
        how = f"hung for {self.rung_timeout:g} s" if hung else "died"
        if self.losses < LIVES:
            self.notes.append(f"its device worker ({self.where}) {how}: went on from its last rung")
            return None
        rows = self.folder.read_metrics()
        memory = isinstance(error, OutOfMemoryError) or "running low on memory" in str(error)
        how = "the node's memory ran out" if memory else f"it {how}"
        return Ended(
            self.trial.trial_id,
            State.OUT_OF_MEMORY if memory else State.FAILED,
            f"its device worker was lost {self.losses} times before the next rung, in the end alone: {how}",
            rows[-1].step if rows else 0,
        )
