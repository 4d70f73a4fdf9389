"""Stand-ins for what talks to Ray: a dispatcher, and a cluster of nodes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from ray.exceptions import ActorDiedError

from sweeps.driver.cluster_nodes import Node, Seat
from sweeps.driver.device_client import Device, DeviceClient, Trials
from sweeps.driver.device_facts import DataFacts, WorkerFacts


class FakeDispatcher:
    """Gives the devices one after the other, beginning anew where all were given. Remembers what it was asked.

    Args:
        devices: to be given.
        by_themselves: whether processes that are lost died by themselves.
    """

    def __init__(self, *devices: DeviceClient, by_themselves: Callable[[str], bool] = lambda name: True):
        self.devices, self.by_themselves = devices, by_themselves
        self.asked: list[tuple[bool, str, list[str]]] = []
        self.released = 0
        self.moves: list[bool] = []  # whether the trial should move, rung by rung

    def acquire(
        self, trial_id: str, precision: str, alone: bool = False, full: str = "", gone: Sequence[str] = ()
    ) -> DeviceClient:
        self.asked.append((alone, full, list(gone)))
        return self.devices[(len(self.asked) - 1) % len(self.devices)]

    def better(self, trial_id: str, precision: str) -> bool:
        return self.moves.pop(0) if self.moves else False

    def release(self, trial_id: str) -> None:
        self.released += 1

    def died_by_themselves(self, lost: Sequence[str]) -> list[str]:
        return [name for name in lost if self.by_themselves(name)]


@dataclass
class FakeReply:
    """A reply that is there or not, and is an answer or an error."""

    answer: Any = None
    done: bool = False

    def get(self, timeout: float | None = None) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


DATA = DataFacts({"train": 1}, ("a",), "f" * 64, 1, 2, "label", {}, {}, None)


@dataclass
class FakeWorker:
    """A device worker as the fleet talks to it; its methods give replies at once, unless told otherwise."""

    name: str
    where: str
    seat: Seat
    data: Any = DATA
    dies: FakeReply = field(default_factory=FakeReply)
    agreed: list[float | None] = field(default_factory=list)
    left: float | None = None
    killed: bool = False

    def at(self, where: str) -> "FakeWorker":
        self.where = where
        return self

    def stay(self) -> FakeReply:
        return self.dies

    def leave(self, seconds: float) -> FakeReply:
        self.left = seconds
        return FakeReply([], done=True)

    def prepare(self, trial: Any, pass_cost: float | None = None) -> FakeReply:
        self.agreed.append(pass_cost)
        data = self.data
        if pass_cost is not None and isinstance(data, DataFacts):
            data = replace(data, pass_cost=pass_cost)
        return FakeReply(data, done=True)

    def kill(self) -> None:
        self.killed = True

    def die(self, error: Exception | None = None) -> None:
        self.dies.answer, self.dies.done = error or ActorDiedError(), True


class FakeCluster:
    """Nodes to be changed by the test; remembers what was started and announced."""

    def __init__(self, *nodes: Node):
        self.there = {node.node_id: node for node in nodes}
        self.started: list[Any] = []
        self.announced = 0
        self.told: list[tuple[list[str], dict[str, bool]]] = []
        self.trials = Trials({}, frozenset())
        self.data: dict[str, Any] = {}  # name of a node → what its workers find
        self.facts: dict[str, Any] = {}  # name of a node → what its workers say, or raise

    def join(self, name: str, **has: float) -> Node:
        node = Node(f"id-{name}", name, has, dict(has))
        self.there[node.node_id] = node
        return node

    def change(self, name: str, **changes: Any) -> None:
        self.there[f"id-{name}"] = replace(self.there[f"id-{name}"], **changes)

    def nodes(self) -> list[Node]:
        return list(self.there.values())

    def start(self, seat: Seat) -> Any:
        data = self.data.get(seat.node, DATA)
        worker = FakeWorker(f"{seat.node}/{len(self.started)}", seat.node, seat, data=data)
        self.started.append(worker)
        return worker

    def ask_facts(self, worker: Any) -> FakeReply:
        answer = self.facts.get(worker.seat.node, WorkerFacts(worker.seat.node, "CPU", {"fp32": "", "nf4": ""}))
        return FakeReply(answer, done=answer is not None)

    def is_pending(self, worker: Any) -> bool:
        return False

    def announce(self, seats_wanted: int, share: float) -> None:
        self.announced = seats_wanted

    def others(self) -> dict[str, int]:
        return {"first": 2}

    def dispatcher(self) -> Any:
        def update(devices: list[Device], verdicts: dict[str, bool], running: Any) -> FakeReply:
            self.told.append(([device.client.name for device in devices], dict(verdicts)))
            return FakeReply(self.trials, done=True)

        return SimpleNamespace(update=update, kill=lambda: None)

    @property
    def known(self) -> list[str]:
        """Names of the devices that the dispatcher was told of last."""
        return self.told[-1][0]

    @property
    def verdicts(self) -> dict[str, bool]:
        return self.told[-1][1]
