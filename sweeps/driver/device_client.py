"""How the driver, trials and final scores talk to device workers: the one typed way, and the only one that calls Ray.

``DeviceClient`` is one worker as its callers see it; a call gives a ``Reply``. ``TrialPlacement`` is a trial's slot on
one of them: it asks the dispatcher for one, waits for the trial's events, and asks for another where that one, or its
worker, is lost. ``sweeps/driver/device_worker.py`` and ``sweeps/driver/dispatcher.py`` are the other ends.
"""

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import ActorUnschedulableError, GetTimeoutError, OutOfMemoryError, RayActorError, RayTaskError

from analysis.errors import LorasweepError
from analysis.folder import MetricsRow, State, TrialFolder
from sweeps.checks.simulate import Sizes
from sweeps.driver.device_facts import DataFacts, NodeFaults, StartCheck, WorkerFacts
from sweeps.process.memory_deaths import MemoryKills
from trainer.config import Baseline, TrialConfig
from trainer.engine import Admission, Admitted, DeviceFailed, Ended, Event, Full, Halted, Refused, RungResult

LOST = (RayActorError, ActorUnschedulableError, OutOfMemoryError)  # the worker's process is gone, or cannot be reached
LIVES = 3  # device workers that may die by themselves under a trial, between two rungs, before it counts as the cause
_ALONE_AFTER = 2  # losses: then the trial gets a device to itself, so that it takes no neighbour with it
_DEVICE_FAILURES = 2  # times that a GPU may fail under a trial that is alone there, between two rungs, likewise
_DIE_SECONDS = 5.0  # for a worker that hangs to end itself

T = TypeVar("T")


def device_named(name: str) -> "DeviceClient | None":
    """A device worker of this sweep by its name; None where its process is gone."""
    try:
        return DeviceClient(ray.get_actor(name), name=name)
    except ValueError:
        return None


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
            RayError: one of ``LOST``, where the worker's process is gone.
        """
        try:
            answer: T = ray.get(self.reference, timeout=timeout)
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, LorasweepError):
                raise cause from None
            raise
        return answer

    @property
    def done(self) -> bool:
        """Whether ``get`` would answer, or raise, at once."""
        return bool(ray.wait([self.reference], timeout=0)[0])


@dataclass(frozen=True)
class DeviceClient:
    """One device worker; can be sent to other processes. Each method is the worker's of the same name.

    Attributes:
        actor: Ray's handle.
        where: node and device, as a user reads it; the node alone until the worker has said more.
        name: of this one process; the worker that takes its place has another.
    """

    actor: Any
    where: str = ""
    name: str = ""

    def at(self, where: str) -> "DeviceClient":
        return replace(self, where=where)

    def stay(self) -> Reply[None]:
        return Reply(self.actor.stay.remote())

    def leave(self, seconds: float) -> Reply[list[str]]:
        return Reply(self.actor.leave.remote(seconds))

    def facts(self, check: StartCheck) -> Reply[WorkerFacts]:
        return Reply(self.actor.facts.remote(check))

    def examine(self, check: StartCheck) -> Reply[tuple[WorkerFacts | None, NodeFaults]]:
        return Reply(self.actor.examine.remote(check))

    def now(self) -> Reply[float]:
        return Reply(self.actor.now.remote())

    def sizes(self, trial: TrialConfig, timed: bool) -> Reply[Sizes]:
        return Reply(self.actor.sizes.remote(trial, timed))

    def prepare(self, trial: TrialConfig, pass_cost: float | None = None) -> Reply[DataFacts]:
        return Reply(self.actor.prepare.remote(trial, pass_cost))

    def admit(
        self, trial: TrialConfig, folder: TrialFolder, alone: bool = False, heard: int = 0
    ) -> Reply[Admission | Ended | Halted | DeviceFailed]:
        return Reply(self.actor.admit.remote(trial, str(folder.root), alone, heard))

    def next_event(self, trial_id: str, proceed: bool) -> Reply[Event | Halted | DeviceFailed | None]:
        return Reply(self.actor.next_event.remote(trial_id, proceed))

    def take_over(self, trial: TrialConfig, donor: TrialFolder, step: int) -> Reply[str | None]:
        return Reply(self.actor.take_over.remote(trial, str(donor.root), step))

    def end(self, trial_id: str, state: State) -> Reply[None]:
        return Reply(self.actor.end.remote(trial_id, str(state)))

    def score_baseline(self, baseline: Baseline, folder: TrialFolder, test: bool = False) -> Reply[MetricsRow]:
        return Reply(self.actor.score_baseline.remote(baseline, str(folder.root), test))

    def score_on_test(self, trial: TrialConfig, folder: TrialFolder) -> Reply[MetricsRow]:
        return Reply(self.actor.score_on_test.remote(trial, str(folder.root)))

    def end_hanging(self) -> None:
        """End a worker that hangs, so that it counts as one that died by itself."""
        try:
            ray.get(self.actor.die.remote(), timeout=_DIE_SECONDS)
        except GetTimeoutError:  # it does not even answer
            self.kill()
        except LOST:
            pass  # as was the intent

    def kill(self) -> None:
        """End the worker in the middle of whatever it does, for good."""
        with contextlib.suppress(Exception):
            ray.kill(self.actor)


@dataclass(frozen=True)
class Device:
    """A device worker that takes trials.

    Attributes:
        client: to talk to it.
        slots: trials that it takes side by side.
        unfit: precisions that do not work there.
        speed: of arithmetic, in any unit, to compare devices by; 0: not known.
    """

    client: DeviceClient
    slots: int
    unfit: frozenset[str] = frozenset()
    speed: float = 0.0


@dataclass(frozen=True)
class Trials:
    """Where the trials are.

    Attributes:
        on: name of a device → trials that it was given to.
        gone: names of devices that trials found dead.
    """

    on: Mapping[str, Sequence[str]]
    gone: frozenset[str]


@dataclass(frozen=True)
class DispatcherClient:
    """The dispatcher (``sweeps/driver/dispatcher.py``); can be sent to other processes.

    Where its process dies, Ray starts it again, and repeats the calls that wait there.
    """

    actor: Any

    def acquire(
        self, trial_id: str, precision: str, alone: bool = False, full: str = "", gone: Sequence[str] = ()
    ) -> DeviceClient:
        """Wait for a device with a free slot, however long that takes."""
        return Reply[DeviceClient](self.actor.acquire.remote(trial_id, precision, alone, full, list(gone))).get()

    def better(self, trial_id: str, precision: str) -> bool:
        return Reply[bool](self.actor.better.remote(trial_id, precision)).get()

    def release(self, trial_id: str) -> None:
        Reply[None](self.actor.release.remote(trial_id)).get()

    def died_by_themselves(self, lost: Sequence[str]) -> list[str]:
        return Reply[list[str]](self.actor.died_by_themselves.remote(list(lost))).get()

    def update(
        self, devices: Sequence[Device], verdicts: Mapping[str, bool], running: Collection[str] | None
    ) -> Reply[Trials]:
        return Reply(self.actor.update.remote(devices, verdicts, running))

    def kill(self) -> None:
        """End it for good: whoever waits there gets an error."""
        with contextlib.suppress(Exception):
            ray.kill(self.actor)


@dataclass
class TrialPlacement:
    """A trial's slot on one of the device workers, from the first one to the trial's end.

    At each rung it moves where another device has become the better place, such as one that has just joined.
    Where a worker is lost, or hangs for ``rung_timeout``, the trial goes on from its last checkpoint, on whichever
    worker has room, or waits until one has. A node that goes is nobody's fault. But a worker's process that dies by
    itself may die of the trial: one that loses two workers before its next rung is recorded gets a device to itself,
    and it ends where three died by themselves. A worker whose GPU failed says so before it ends: then the trial ends
    where that happened twice while it was alone there.

    Attributes:
        dispatcher: gives it a worker.
        trial: its configuration.
        folder: where it is recorded, and where its checkpoints are.
        rung_timeout: seconds from one event to the next after which a worker counts as hung; None: no limit.
        before_asking: called with a worker before it is asked for a slot.
        device: the worker that has the trial; None where it has no slot.
        where: node and device of the last worker that had it.
        notes: what went wrong and was mended.
        lost: names of workers lost since the last recorded rung.
        failed_alone: how many of them lost their GPU while no other trial was there.
    """

    dispatcher: DispatcherClient
    trial: TrialConfig
    folder: TrialFolder
    rung_timeout: float | None = None
    before_asking: Callable[[DeviceClient], None] = lambda device: None
    device: DeviceClient | None = None
    where: str = ""
    notes: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    failed_alone: int = 0

    def next_event(self) -> RungResult | Ended | Halted:
        """Find a slot where the trial has none, train to its next rung or its end, and wait for that.

        Raises:
            RayActorError: where the dispatcher is gone, as the sweep is over.
        """
        while True:
            if self.device is None:
                wanted = self.trial.trial_id, self.trial.precision, self._alone
                device = self.dispatcher.acquire(*wanted, self._full, self.lost)
            else:
                device = self.device
            try:
                event = self._on(device)
            except (*LOST, GetTimeoutError) as error:
                self.device = None
                event = self._lost(device, error)
            if event is not None:
                return event

    def rung_recorded(self) -> None:
        """The trial will not train to its last rung again: losses are counted from here."""
        self.lost.clear()
        self.failed_alone = 0

    def leave(self) -> None:
        """Free the trial's slot, where it has one."""
        device, self.device = self.device, None
        if device is not None:
            with contextlib.suppress(*LOST, GetTimeoutError):  # a worker that is gone has no slots to free
                device.end(self.trial.trial_id, State.STOPPED_EARLY).get(self.rung_timeout)
            self.dispatcher.release(self.trial.trial_id)

    _heard: int = 0  # step of the last rung that was returned
    _full: str = ""  # name of the worker that refused it last for want of room
    _kills: MemoryKills = field(default_factory=MemoryKills)

    @property
    def _alone(self) -> bool:
        """Whether the trial gets a device to itself, because it may be what workers die of."""
        return len(self.lost) >= _ALONE_AFTER

    def _on(self, device: DeviceClient) -> RungResult | Ended | Halted | None:
        """The trial's next event on a worker; None where it has no slot there."""
        rests = self.device is not None  # at a rung, until it is told to proceed
        self._full = ""
        if rests and self.dispatcher.better(self.trial.trial_id, self.trial.precision):
            self.leave()
            return None
        if not rests:
            self.before_asking(device)
            admission = device.admit(self.trial, self.folder, self._alone, self._heard).get()
            if isinstance(admission, Full):
                self._full = device.name
                return None
            if isinstance(admission, DeviceFailed):
                return self._device_failed(device, admission)
            if not isinstance(admission, Admitted):
                self.dispatcher.release(self.trial.trial_id)
                if isinstance(admission, Refused):
                    reason = f"{admission.reason} {admission.remedy}".strip()
                    return Ended(self.trial.trial_id, State.FAILED, reason, 0)
                return admission
            self.notes += [admission.note] if admission.note else []
            self.device, self.where = device, device.where
        event = device.next_event(self.trial.trial_id, proceed=rests).get(self.rung_timeout)
        if isinstance(event, RungResult):
            self._heard = event.row.step
            return event
        self.device = None
        if isinstance(event, DeviceFailed):
            return self._device_failed(device, event)
        if isinstance(event, Ended | Halted):
            self.dispatcher.release(self.trial.trial_id)
            return event
        return None  # Requeued: it lost its slot, for want of memory or because the worker leaves

    def _lost(self, device: DeviceClient, error: Exception) -> Ended | None:
        """Note a worker that died or hangs. Returns how the trial ended where it is taken for the cause."""
        hung = isinstance(error, GetTimeoutError)
        if hung:
            device.end_hanging()
        self.lost.append(device.name)
        memory = self._kills.explain(error)
        how = f"hung for {self.rung_timeout:g} s" if hung else "died, as memory ran out" if memory else "died"
        if len(self.lost) >= LIVES:  # which takes a moment to be known
            self.lost = self.dispatcher.died_by_themselves(self.lost)
        if len(self.lost) < LIVES:
            self.notes.append(f"its device worker ({device.where}) {how}: went on from its last checkpoint")
            return None
        how = "the node's memory ran out" if memory else f"it {how}"
        return self._taken_for_cause(
            State.OUT_OF_MEMORY if memory else State.FAILED,
            f"its device worker was lost {len(self.lost)} times before the next rung, in the end alone: {how}",
        )

    def _device_failed(self, device: DeviceClient, event: DeviceFailed) -> Ended | None:
        """Note a worker whose GPU failed. Returns how the trial ended where it is taken for the cause."""
        self.lost.append(device.name)
        self.failed_alone += event.alone
        if self.failed_alone < _DEVICE_FAILURES:
            self.notes.append(f"its GPU ({device.where}) failed: {event.reason}. Went on from its last checkpoint")
            return None
        reason = f"its GPU failed {self.failed_alone} times before the next rung, with no other trial on it"
        return self._taken_for_cause(State.FAILED, f"{reason}: {event.reason}")

    def _taken_for_cause(self, state: State, reason: str) -> Ended:
        self.dispatcher.release(self.trial.trial_id)
        rows = self.folder.read_metrics()
        return Ended(self.trial.trial_id, state, reason, rows[-1].step if rows else 0)
