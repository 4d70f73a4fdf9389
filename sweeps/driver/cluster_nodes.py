"""The Ray cluster as a sweep sees it: nodes that come and go, device workers on them, and demand for more."""

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from analysis.objective import Objective
from sweeps.config import SweepConfig
from sweeps.driver.device_client import DeviceClient, DispatcherClient
from sweeps.driver.device_worker import DeviceWorker
from sweeps.driver.dispatcher import DispatcherActor
from sweeps.driver.trial_ranks import RanksWorker
from sweeps.process.visible_gpus import visible_gpus
from sweeps.process.worker_variables import training_environment

_WORKER = "device of "  # how the name of a device worker begins; then the sweep's


@dataclass(frozen=True)
class Node:
    """A living node.

    Attributes:
        node_id: Ray's.
        name: as a user knows it: the address unless ``ray start --node-name`` gave another.
        has: resource → how much of it there is.
        free: resource → how much nobody claims.
        leaves_at: when it will be taken away, in seconds since 1970; None: not announced.
        address: IP address.
    """

    node_id: str
    name: str
    has: Mapping[str, float]
    free: Mapping[str, float]
    leaves_at: float | None = None
    address: str = ""


@dataclass(frozen=True)
class Seat:
    """What one device worker claims: on which node, as which of its workers, how much of it, and its threads.

    Attributes:
        node_id, node: Ray's id, and the name.
        index: of the worker on the node.
        cpus, gpus: claimed; of several ranks, all together.
        threads: of each process that trains.
        ranks: processes that train a trial together; each has its part of ``cpus`` and ``gpus``.
    """

    node_id: str
    node: str
    index: int
    cpus: float
    gpus: float
    threads: int
    ranks: int = 1

    def fits(self, free: Mapping[str, float]) -> bool:
        """Whether so much is free that a worker gets what it claims."""
        return free.get("CPU", 0.0) >= self.cpus - 1e-6 and free.get("GPU", 0.0) >= self.gpus - 1e-6


def gpu_share(nodes: Sequence[Node], config: SweepConfig) -> float:
    """GPUs of a device worker: as ``resources.gpus_per_trial`` says, else one where some node has one."""
    asked = config.resources.gpus_per_trial
    return asked if asked is not None else float(any(node.has.get("GPU") for node in nodes))


def seats(node: Node, share: float, config: SweepConfig) -> list[Seat]:
    """One seat for each share of its GPUs; where the share is 0, one for the node. None where it has too little.

    Args:
        node: of the cluster.
        share: GPUs of a worker.
        config: ``resources.threads``, and how many processes train a trial.
    """
    cpus, ranks = node.has.get("CPU", 0.0), config.resources.ranks
    count = math.floor(node.has.get("GPU", 0.0) / share + 1e-9) if share else 1
    if not cpus or not count:
        return []
    claim = min(cpus / (count * ranks), 1.0 if share else math.inf)
    claim = float(int(claim)) if claim >= 1 else claim  # above 1, Ray takes whole CPUs only
    threads = config.resources.threads or max(1, int(cpus) // (count * ranks))
    return [Seat(node.node_id, node.name, index, claim * ranks, share, threads, ranks) for index in range(count)]


class Cluster:
    """The cluster that this process is connected to.

    Args:
        config: of the sweep.
        objective: picks each trial's best rung.
        kind: what owns a device.
    """

    def __init__(self, config: SweepConfig, objective: Objective, kind: type[DeviceWorker] = DeviceWorker):
        self.config, self.objective, self.kind = config, objective, kind
        self._demand: list[PlacementGroup] = []
        self._own: set[str] = set()  # names of workers

    def nodes(self) -> list[Node]:
        """The living nodes."""
        state = ray._private.state.state
        leaving, free = state.get_draining_nodes(), state.available_resources_per_node()
        return [
            Node(
                node["NodeID"],
                node.get("NodeName") or node.get("NodeManagerAddress") or "",
                node["Resources"],
                free.get(node["NodeID"], {}),
                _deadline(leaving.get(node["NodeID"])),
                node.get("NodeManagerAddress") or "",
            )
            for node in ray.nodes()
            if node["Alive"]
        ]

    def start(self, seat: Seat) -> DeviceClient:
        """Start a device worker; it answers once its node has given it what it claims."""
        name = f"{_WORKER}{self.config.sweep.name}: {uuid.uuid4().hex[:8]}"
        several = seat.ranks > 1  # then the worker claims nothing: its ranks do, in a placement group of Ray Train's
        make = ray.remote(RanksWorker if several else self.kind).options(
            num_cpus=0 if several else seat.cpus,
            num_gpus=0 if several else seat.gpus,
            max_concurrency=64,
            scheduling_strategy=NodeAffinitySchedulingStrategy(seat.node_id, soft=False),
            runtime_env={"env_vars": {**training_environment(seat.threads), **visible_gpus(seat.gpus)}},
            name=name,
        )
        self._own.add(name)
        slots = self.config.resources.slots if isinstance(self.config.resources.slots, int) else None
        arguments: tuple[Any, ...] = (self.config.engine, slots, self.objective, seat.threads, seat.node, seat.gpus)
        arguments += (seat.ranks, seat.cpus / seat.ranks) if several else ()
        return DeviceClient(make.remote(*arguments), seat.node, name)

    def is_pending(self, device: DeviceClient) -> bool:
        """Whether a worker has not got its place yet."""
        found = ray._private.state.state.actor_table(device.actor._actor_id.hex())
        return bool(found) and found.get("State") in ("DEPENDENCIES_UNREADY", "PENDING_CREATION")

    def dispatcher(self) -> DispatcherClient:
        """Start the dispatcher, beside this process."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        make = ray.remote(DispatcherActor).options(
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            max_concurrency=10_000,
            scheduling_strategy=here,
            runtime_env={"env_vars": visible_gpus(0)},
        )
        return DispatcherClient(make.remote())

    def announce(self, seats_wanted: int, share: float) -> None:
        """Show Ray's autoscaler, and ``ray status``, that so many more device workers are wanted."""
        placed = [group for group in self._demand if placement_group_table(group)["state"] != "PENDING"]
        too_many = [group for group in self._demand if group not in placed][seats_wanted:]
        for group in [*placed, *too_many]:  # one that found a place has shown that there is one: it makes room
            remove_placement_group(group)
            self._demand.remove(group)
        if placed:  # a new one would take that place again, before a worker can
            return
        ranks = self.config.resources.ranks
        while len(self._demand) < seats_wanted:
            claim = {"CPU": 1.0} | ({"GPU": share / ranks} if share else {})
            self._demand.append(placement_group([claim] * ranks, strategy="STRICT_PACK" if ranks > 1 else "PACK"))

    def others(self) -> dict[str, int]:
        """Sweep → its device workers, of the other sweeps on this cluster."""
        found: dict[str, int] = {}
        for actor in ray.util.list_named_actors(all_namespaces=True):
            if actor["name"].startswith(_WORKER) and actor["name"] not in self._own:
                sweep = actor["name"].removeprefix(_WORKER).rpartition(": ")[0]
                found[sweep] = found.get(sweep, 0) + 1
        return found


def _deadline(milliseconds: int | None) -> float | None:
    """Of a node that is drained. Ray gives 0 where there is none."""
    return None if milliseconds is None else (milliseconds / 1000 if milliseconds else math.inf)
