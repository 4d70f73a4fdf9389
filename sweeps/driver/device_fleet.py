"""The device workers of a sweep, which follow the live cluster.

A thread of the driver looks around twice a second: a node that joins gets device workers, as long as there is work for
them; those of a node that goes are let go of, and of one that is about to go asked to leave; a worker that dies by
itself is started again; one that has nothing to do is ended, so that its node can be given back. Where more workers are
wanted than there are nodes for, Ray is shown the demand, which its autoscaler answers.

Trials do not ask here: they ask the dispatcher, which is told what there is.
"""

import contextlib
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ray.exceptions import ActorDiedError, RayError

from analysis.errors import ClusterError, DataError, HardwareError, LorasweepError, last_line
from analysis.folder import SweepFolder
from sweeps.checks.folder_probe import probing
from sweeps.compose.compose import Composed
from sweeps.config import SweepConfig, limit_seconds
from sweeps.driver.cluster_nodes import Cluster, Node, Seat, gpu_share, seats
from sweeps.driver.device_client import LIVES, LOST, Device, DeviceClient, Reply, Trials
from sweeps.driver.device_facts import DataFacts, WorkerFacts
from sweeps.driver.device_worker import DeviceWorker
from sweeps.driver.ray_cluster import cluster_address
from sweeps.driver.start_check import Examination, could_not_start, start_check, together
from sweeps.process.memory_deaths import MemoryKills
from trainer.config import TrialConfig

TICK = 0.5  # seconds between two looks
_TICK_AT_FIRST = 0.1  # while somebody waits for the first trial
# Seconds after the loss of a worker when a node that still lives by Ray's health checks did not go: where its node
# told of the death, and where nothing is known but that it could not be reached, as where a cable is cut.
_CERTAIN, _CERTAIN_AT_LAST = 25.0, 90.0
_SAY_AGAIN = 60.0  # seconds between two lines on what is waited for
_CLAIMED = 5.0  # seconds after which a worker whose place somebody else took is not waited for
_SLOW_START = 60.0  # seconds; importing torch on a busy machine takes a part of it
_STARTS = 3  # deaths in a row of workers that start, after which their node is not used
_HEARD = 2.0  # seconds for trials to hear the last from a worker that has left: a rung that nobody heard of is lost
_CLOSE_SECONDS = 5.0  # for a look around that is under way when the sweep ends
_JOINING = 10.0  # seconds in which nodes that are being started may join, before none is called too small
_MARGIN = 5.0  # seconds before a node is taken away by which its worker has left

T = TypeVar("T")
Asked = Examination | Reply[DataFacts] | Reply[list[str]]
logger = logging.getLogger("sweeps.driver")


@dataclass(eq=False)
class _Member:
    """A device worker, from its start to its end.

    Attributes:
        seat: what it claims.
        client: to talk to it.
        began: when it was started, by the fleet's clock.
        dies: answered when its process is gone.
        facts: what it has, once it has said so.
        data: what data and model are there, once it is ready for trials.
        asked: what it is answering now.
        leaves: whether it is to end.
        ends_at: when it does, by the fleet's clock, once it has left.
        calls: pieces of work that it does besides trials.
        idle_since: by the fleet's clock.
    """

    seat: Seat
    client: DeviceClient
    began: float
    dies: Reply[None]
    asked: "Asked | None" = None
    facts: WorkerFacts | None = None
    data: DataFacts | None = None
    leaves: bool = False
    ends_at: float | None = None
    calls: int = 0
    idle_since: float | None = None

    @property
    def ready(self) -> bool:
        return self.data is not None and not self.leaves


class DeviceFleet:
    """Starts device workers and ends them; says what there is.

    Args:
        cluster: the live cluster.
        config: ``resources``, ``search``, and whether the Ray is one of our own.
        facts: asks a worker for what it has, and checks it.
        note: told in a sentence what happens.
        wanted: trials at a time that there is work for; see ``want``.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        cluster: Cluster,
        config: SweepConfig,
        facts: Callable[[DeviceClient], Examination],
        note: Callable[[str], None],
        wanted: int,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.cluster, self.config, self.note = cluster, config, note
        self.elastic = cluster_address(config) is not None
        self.dispatcher = cluster.dispatcher()
        self.expired = ""  # why the sweep cannot wait any longer for a device, in a sentence
        self._facts, self._clock = facts, clock
        self._wanted = wanted
        self._running: Collection[str] | None = None
        self._first: TrialConfig | None = None  # what workers are to get ready for
        self._data: DataFacts | None = None  # what those that are ready found
        self._members: list[_Member] = []
        self._devices: list[Device] = []  # of those that are ready
        self._nodes: dict[str, Node] = {}
        self._share: float | None = None
        self._refused: dict[str, LorasweepError] = {}  # id of a node that is not used → why
        self._began_work = False  # from then on a node that is refused is noted, and is no error
        self._deaths: Counter[str] = Counter()  # id of a node → workers that died while they started, in a row
        self._kills = MemoryKills()
        self._lost: dict[str, tuple[str, float]] = {}  # name of a lost worker → its node's id, until when to wait
        self._verdicts: dict[str, bool] = {}  # name of a worker that died → whether it died by itself
        self._last_words: dict[str, HardwareError] = {}  # name of a worker that ended itself → why
        self._trials = Trials({}, frozenset())
        self._told: Reply[Trials] | None = None
        self._without_since: float | None = None  # since when there is no device
        self._said = -math.inf
        self._fault = ""  # what went wrong at the last look that failed
        self._changed = threading.Condition(threading.RLock())
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._follow_cluster, name="fleet", daemon=True)

    # --- for the driver

    def start(self) -> None:
        """Begin to follow the cluster."""
        self._thread.start()

    def assemble(self) -> list[WorkerFacts]:
        """Wait until the nodes that there are have device workers. Returns what each has; at least one.

        Raises:
            LorasweepError: where some node cannot be used; it says which, and why.
            HardwareError: where ``resources.wait`` is over.
        """
        began = self._clock()
        slow_said = False
        while True:
            with self._changed:
                known = [member.facts for member in self._members if member.facts is not None]
                waiting = [member for member in self._members if member.facts is None]
                long, too_long = (self._clock() - began > times * _SLOW_START for times in (1, 3))
                if not waiting or (known and long) or too_long:
                    self._raise_refused()
                    if known:
                        return known
                if waiting and long and not slow_said:
                    slow_said = True
                    self.note(
                        f"{len(waiting)} of {len(self._members)} device workers have not started in"
                        f" {_SLOW_START:.0f} s. Waiting for them."
                    )
                self._changed.wait(TICK)

    def begin(self, first: TrialConfig) -> DataFacts:
        """Have all device workers load what trials need. Returns what they found, which is the same on all.

        Those that take over a minute longer than the first are not waited for: they take trials when they are ready.

        Args:
            first: a trial like all others.

        Raises:
            LorasweepError: a worker's own, or where they read different data.
        """
        began = self._clock()
        with self._changed:
            self._first = first
        while True:
            with self._changed:
                self._raise_refused()
                loading = any(member.data is None for member in self._members)
                if self._data is not None and (not loading or self._clock() - began > _SLOW_START):
                    self._began_work = True
                    return self._data
                self._changed.wait(TICK)

    def want(self, trials: int, running: Collection[str] | None = None) -> None:
        """Say how much work there is.

        Args:
            trials: that could run at a time, if there were devices without limit.
            running: their names; None: not known.
        """
        with self._changed:
            self._wanted, self._running = trials, running

    @property
    def devices(self) -> list[Device]:
        """Those that take trials now."""
        return self._devices

    @property
    def occupied(self) -> int:
        """Devices that the sweep holds now, ready or not."""
        with self._changed:
            return len(self._members)

    def call(self, work: Callable[[DeviceClient], Reply[T]], precision: str = "") -> T:
        """Have some device worker do a piece of work; where it is lost, another one.

        Args:
            work: the call.
            precision: that it needs.

        Raises:
            HardwareError: where the GPU failed under several workers.
            RayError: one of ``LOST``, where several workers died of it, or the sweep is over.
        """
        lost: list[str] = []
        while True:
            with self._calling(precision) as member:
                try:
                    return work(member.client).get()
                except LOST:
                    if self._closed.is_set():
                        raise
                    lost.append(member.client.name)
                    if len(lost) >= LIVES:
                        lost = self._died_by_themselves(lost)
                        if len(lost) >= LIVES:
                            if said := self._last_words.get(member.client.name):
                                raise said from None
                            raise
                    self._gone(member)

    def kill(self, seconds: float = 0.0) -> None:
        """End all device workers, in the middle of whatever they do.

        Args:
            seconds: that they may take to write checkpoints first.
        """
        self._closed.set()
        with self._changed:
            members = list(self._members)
        replies = [member.client.leave(seconds) for member in members if member.ready] if seconds else []
        until = time.monotonic() + seconds
        for reply in replies:
            with contextlib.suppress(Exception):
                reply.get(max(0.0, until - time.monotonic()))
        if replies:
            time.sleep(min(_HEARD, seconds))
        self.dispatcher.kill()
        for member in members:
            member.client.kill()

    def close(self, seconds: float = _CLOSE_SECONDS) -> None:
        """Stop following the cluster.

        Args:
            seconds: to wait for the look around that is under way.
        """
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(seconds)
        for member in self._members:
            _drop_question(member)

    # --- the thread that looks around

    def _follow_cluster(self) -> None:
        while not self._closed.is_set():
            try:
                with self._changed:
                    self.tick()
                    self._changed.notify_all()
            except Exception as error:
                if not self._closed.is_set():
                    logger.exception("the fleet could not look around")
                    if (fault := last_line(error)) != self._fault:
                        self._fault = fault
                        self.note(f"The cluster could not be looked at ({fault}). Trying again.")
            self._closed.wait(TICK if self._began_work else _TICK_AT_FIRST)

    def tick(self) -> None:
        """Look around once."""
        self._nodes = {node.node_id: node for node in self.cluster.nodes()}
        if self._share is None and any(node.has.get("CPU") for node in self._nodes.values()):
            self._share = gpu_share(list(self._nodes.values()), self.config)
        for member in list(self._members):
            self._follow(member)
        self._judge()
        self._release_idle()
        self._start_more()
        self._devices = [_device(member) for member in self._members if member.ready]
        self._tell_dispatcher()
        self._watch_waiting()

    def _follow(self, member: _Member) -> None:
        node = self._nodes.get(member.seat.node_id)
        if node is None or member.client.name in self._trials.gone or member.dies.done:
            self._gone(member)
            return
        if node.leaves_at is not None and not member.leaves:
            seconds = max(1.0, min(node.leaves_at - time.time() - _MARGIN, 3600.0))
            self.note(f"{member.client.where}: its node is about to go. Its trials are saved and go on elsewhere")
            self._let_go(member, seconds)
            return
        if member.ends_at is not None:
            if self._clock() >= member.ends_at:
                self._end(member)
        elif member.asked is None:
            if member.facts is None:
                member.asked = self._facts(member.client)
            elif member.data is None and self._first is not None and not member.leaves:
                member.asked = member.client.prepare(self._first, self._data.pass_cost if self._data else None)
        elif member.asked.done:
            self._answered(member, member.asked)

    def _answered(self, member: _Member, reply: "Asked") -> None:
        member.asked = None
        try:
            answer = reply.get()
            if isinstance(answer, WorkerFacts):
                member.facts = answer
                member.client = member.client.at(answer.where)
            elif isinstance(answer, DataFacts):
                self._require_same(member, answer)
                if self._first and self._data and self._data.pass_cost not in (None, answer.pass_cost):
                    # Both measured it at the same time: the first that was heard counts.
                    member.asked = member.client.prepare(self._first, self._data.pass_cost)
                    return
                member.data = answer
                self._data = self._data or answer
                self._deaths.pop(member.seat.node_id, None)
                if self._began_work:
                    self.note(f"{member.client.where} takes trials")
            else:  # it has left
                member.ends_at = self._clock() + _HEARD
        except LOST:
            self._gone(member)
        except LorasweepError as error:
            self._refuse(member, error)
        except RayError as error:
            self._refuse(member, could_not_start(member.seat.node, error, self.elastic))

    def _require_same(self, member: _Member, facts: DataFacts) -> None:
        """Raises DataError where a device reads other data than the others."""
        if self._data is not None and facts.fingerprint != self._data.fingerprint:
            others = next((m.client.where for m in self._members if m.data is not None), "the others")
            raise different_data(member.client.where, facts, others, self._data)

    def _gone(self, member: _Member) -> None:
        """Its process does not answer any more: another one takes its place, there or elsewhere."""
        with self._changed:
            if member not in self._members:
                return
            name, node_id = member.client.name, member.seat.node_id
            self._members.remove(member)
            _drop_question(member)
            if member.leaves:
                self._verdicts[name] = False
            else:
                error = _error_of(member.dies) if member.dies.done else None
                if isinstance(error, HardwareError):
                    self._last_words[name], self._verdicts[name] = error, True
                    if member.data is not None:
                        self.note(f"{error}. Another one takes its place")
                else:
                    told = isinstance(error, ActorDiedError)
                    self._lost[name] = node_id, self._clock() + (_CERTAIN if told else _CERTAIN_AT_LAST)
                if member.data is None and node_id in self._nodes:
                    self._died_early(member)
        member.client.kill()  # where it only could not be reached

    def _died_early(self, member: _Member) -> None:
        """A worker died while it started: it is started again, but not for ever."""
        node = member.seat.node
        error = _error_of(member.dies) if member.dies.done else None
        no_memory = self._kills.explain(error)
        again = not (isinstance(error, ActorDiedError) and error.actor_init_failed)  # it would fail in the same way
        self._deaths[member.seat.node_id] += 1
        if again and self._deaths[member.seat.node_id] < _STARTS:
            why = "memory ran out" if no_memory else last_line(error) if error else "it cannot be reached"
            self.note(f"{node}: a device worker died while it started ({why}). It is started again.")
            return
        if not isinstance(error, LorasweepError):
            error = could_not_start(node, error or RayError("it cannot be reached"), self.elastic, no_memory)
        self._refuse(member, error)

    def _refuse(self, member: _Member, error: LorasweepError) -> None:
        """Use its node no more."""
        self._refused[member.seat.node_id] = error
        if self._began_work:
            self.note(f"{member.seat.node} is not used: {error}")
        self._end(member)

    def _let_go(self, member: _Member, seconds: float) -> None:
        """Ask a worker to give its trials back, and end it then."""
        if not member.ready:
            self._end(member)
            return
        member.leaves = True
        member.asked = member.client.leave(seconds)

    def _end(self, member: _Member) -> None:
        """End a worker that nobody needs."""
        self._verdicts[member.client.name] = False
        _drop_question(member)
        if member in self._members:
            self._members.remove(member)
        member.client.kill()

    def _judge(self) -> None:
        """Find out who died by itself, and who with its node, which Ray knows only a while later."""
        for name, (node_id, certain_at) in list(self._lost.items()):
            node = self._nodes.get(node_id)
            if node is None or node.leaves_at is not None:
                self._verdicts[name] = False
            elif self._clock() > certain_at:
                self._verdicts[name] = True
            else:
                continue
            del self._lost[name]

    def _start_more(self) -> None:
        """Start workers where there are nodes for them; announce those that there is no node for."""
        if self._share is None:
            share = self.config.resources.gpus_per_trial or 0.0
            if self.elastic:
                self.cluster.announce(self._missing(), share)
            return
        taken = {(member.seat.node_id, member.seat.index) for member in self._members}
        for member in [it for it in self._members if it.facts is None]:
            if self._clock() - member.began > _CLAIMED and self.cluster.is_pending(member.client):
                self._end(member)  # somebody else was faster
        for node in self._nodes.values():
            if node.leaves_at is not None or node.node_id in self._refused:
                continue
            free = dict(node.free)
            for seat in seats(node, self._share, self.config):
                if not self._room_for_more():
                    break
                if (seat.node_id, seat.index) in taken or not seat.fits(free):
                    continue
                free["CPU"], free["GPU"] = free["CPU"] - seat.cpus, free.get("GPU", 0.0) - seat.gpus
                client = self.cluster.start(seat)
                self._members.append(_Member(seat, client, self._clock(), client.stay()))
        if self.elastic:
            self.cluster.announce(self._missing(), self._share)

    def _room_for_more(self) -> bool:
        """Whether another worker is to be started. At first one everywhere, so that every node is looked at."""
        most = self.config.resources.max_devices
        return self._missing() > 0 if self._began_work else most is None or len(self._members) < most

    def _missing(self) -> int:
        """Further device workers that there is work for."""
        known = [member.data.slots for member in self._members if member.data is not None]
        asked = self.config.resources.slots
        a_device = asked if isinstance(asked, int) else max(known, default=1)
        capacity = sum(
            member.data.slots if member.data is not None else a_device for member in self._members if not member.leaves
        )
        missing = math.ceil(max(0, self._wanted - capacity) / a_device)
        most = self.config.resources.max_devices
        return missing if most is None else min(missing, max(0, most - len(self._members)))

    def _tell_dispatcher(self) -> None:
        if self._told is not None:
            if not self._told.done:
                return
            with contextlib.suppress(*LOST):  # it starts again
                self._trials = self._told.get()
        self._told = self.dispatcher.update(self._devices, self._verdicts, self._running)

    def _release_idle(self) -> None:
        """End workers that have had nothing to do for a while, and for which there is nothing to come."""
        if not self.elastic:
            return
        now = self._clock()
        for member in self._members:
            if not member.ready or member.calls or self._trials.on.get(member.client.name):
                member.idle_since = None
                continue
            member.idle_since = now if member.idle_since is None else member.idle_since
            rest = sum(it.data.slots for it in self._members if it is not member and it.ready and it.data)
            if now - member.idle_since > self.config.resources.idle_seconds and rest >= self._wanted:
                self.note(f"{member.client.where} has nothing left to do: released")
                self._let_go(member, 1.0)

    def _watch_waiting(self) -> None:
        """Say what is waited for where there is no device, once a minute; and when to give up."""
        if any(not member.leaves for member in self._members) or not self._wanted:
            self._without_since, self._said = None, -math.inf
            return
        now = self._clock()
        self._without_since = now if self._without_since is None else self._without_since
        if now - self._said >= _SAY_AGAIN and now - self._without_since > 2 * TICK:
            self._said = now
            self.note(f"Waiting for a device: {self._why_none()}")
        limit = self.config.resources.wait
        if now - self._without_since > limit_seconds(limit):
            self.expired = f"resources.wait={limit} is over: there is no device. {self._why_none()}"
        if self.elastic and limit is None and not self._began_work and now - self._without_since > _JOINING:
            self.expired = self.expired or self._too_small()
        if not self.elastic and not self.expired:  # nothing will join
            self.expired = str(next(iter(self._refused.values()))) if self._refused else self._nothing_here()

    def _nothing_here(self) -> str:
        """Why this machine has no place for a device worker; empty where it has."""
        if not self._nodes or any(seats(node, self._share or 0.0, self.config) for node in self._nodes.values()):
            return ""
        if too_small := self._too_small():
            return too_small
        return (
            f"resources.gpus_per_trial={self._share:g}: Ray sees no GPU on this machine (`lorasweep doctor`)."
            " resources.gpus_per_trial=0 trains on its CPUs."
        )

    def _too_small(self) -> str:
        """Where nodes have GPUs, but none as many as a trial is to have: which has most, and what to do; else empty."""
        share = self._share or 0.0
        largest = max(self._nodes.values(), key=lambda node: node.has.get("GPU", 0.0), default=None)
        most = int(largest.has.get("GPU", 0.0)) if largest else 0
        if largest is None or not 0 < most < share:
            return ""
        wait = " To wait for a larger node to join: resources.wait=30m." if self.elastic else ""
        return (
            f"resources.gpus_per_trial={share:g}: no node has so many, and a trial trains on the GPUs of one node. The"
            f" largest, {largest.name}, has {most}: use resources.gpus_per_trial={most}; where the model does not fit"
            f" those, precision=nf4 or engine.activation_checkpointing=true.{wait}"
        )

    def _why_none(self) -> str:
        """Why no device worker can start, in a sentence or two."""
        usable = [node for node in self._nodes.values() if node.node_id not in self._refused and node.leaves_at is None]
        able = [node for node in usable if seats(node, self._share or 0.0, self.config)]
        if able:
            others = ", ".join(f"{sweep} ({n})" for sweep, n in sorted(self.cluster.others().items()))
            by = f"by device workers of other sweeps: {others}" if others else "by somebody else (`ray status`)"
            names = ", ".join(node.name for node in able[:4]) + (", …" if len(able) > 4 else "")
            return (
                f"what it needs of {names} is taken {by}. This sweep begins when something is free."
                " resources.max_devices=1 in another sweep would leave it the rest."
            )
        refused = "".join(f" {error}" for error in list(self._refused.values())[:2])
        gpus = self.config.resources.gpus_per_trial or 1
        needs = f"a node with {gpus:g} GPU{'s' if gpus > 1 else ''}" if self._share else "a node with a CPU"
        seen = f"{len(self._nodes)} node{'s' if len(self._nodes) > 1 else ''}"
        return f"none of the cluster's {seen} can take one. Demand for {needs} is announced (`ray status`).{refused}"

    # --- shared

    def _raise_refused(self) -> None:
        if self._refused:
            raise together(self._refused.values())
        if self.expired:
            raise HardwareError(self.expired)

    @contextlib.contextmanager
    def _calling(self, precision: str) -> Iterator[_Member]:
        """Wait for a device worker that is capable of a precision and does no other call; take one with few trials."""

        def able_now(it: _Member) -> bool:
            if it.leaves or it.calls or it.facts is None or (self._first is not None and it.data is None):
                return False
            return not it.facts.precisions.get(precision)

        with self._changed:
            while not (able := [it for it in self._members if able_now(it)]):
                if self._closed.is_set() or self.expired:
                    raise HardwareError(self.expired or "the sweep is over")
                self._changed.wait(TICK)
            member = min(able, key=lambda it: len(self._trials.on.get(it.client.name, ())))
            member.calls += 1
        try:
            yield member
        finally:
            with self._changed:
                member.calls -= 1
                self._changed.notify_all()

    def _died_by_themselves(self, lost: Sequence[str]) -> list[str]:
        with self._changed:
            while not all(name in self._verdicts for name in lost) and not self._closed.is_set():
                self._changed.wait(TICK)
            return [name for name in lost if self._verdicts.get(name)]


@contextlib.contextmanager
def following_cluster(
    composed: Composed, folder: SweepFolder, note: Callable[[str], None], kind: type[DeviceWorker] = DeviceWorker
) -> Iterator[DeviceFleet]:
    """The device workers of a sweep, from now on to the end of the block.

    Args:
        composed: the sweep.
        folder: which all workers must see.
        note: told in a sentence what happens.
        kind: what owns a device.
    """
    config = composed.config
    with probing(str(folder.root)) as probe:
        check = start_check(config, probe, composed.precisions)

    def facts(device: DeviceClient) -> Examination:
        return Examination(device, check, str(folder.root), note)

    most = config.ray.max_concurrent_trials or math.inf
    wanted = int(min(config.search.trials * config.search.repeats, most))
    fleet = DeviceFleet(Cluster(config, composed.objective, kind), config, facts, note, wanted)
    fleet.start()
    seconds = _CLOSE_SECONDS
    try:
        yield fleet
    except ClusterError:  # Ray died: a look around may wait for it until the process ends
        seconds = 0.0
        raise
    finally:
        fleet.close(seconds)


def _error_of(reply: Reply[None]) -> RayError | LorasweepError | None:
    try:
        reply.get()
    except (RayError, LorasweepError) as error:
        return error
    return None


def _drop_question(member: _Member) -> None:
    if isinstance(member.asked, Examination):
        member.asked.drop()


def different_data(where: str, facts: DataFacts, other: str, others: DataFacts) -> DataError:
    return DataError(
        f"{where} reads other data than {other} (fingerprint {facts.fingerprint[:12]}…, there"
        f" {others.fingerprint[:12]}…). Put the same files at the same place on every node."
    )


def _device(member: _Member) -> Device:
    assert member.facts is not None
    assert member.data is not None
    unfit = frozenset(name for name, why in member.facts.precisions.items() if why)
    return Device(member.client, member.data.slots, unfit, member.facts.speed)
