"""What device workers claim of a node."""

from typing import Any

from sweeps.config import RayConfig, ResourcesConfig, SweepConfig
from sweeps.driver.cluster_nodes import Node, gpu_share, seats


def node(name: str, **has: float) -> Node:
    return Node(f"id-{name}", name, has, has)


def config(address: str | None = "head:6379", **resources: Any) -> SweepConfig:
    return SweepConfig(ray=RayConfig(address=address), resources=ResourcesConfig(**resources))


def claims(share: float, *nodes: Node, **resources: Any) -> list[tuple[str, int, float, float, int]]:
    found = [seat for it in nodes for seat in seats(it, share, config(**resources))]
    return [(seat.node, seat.index, seat.cpus, seat.gpus, seat.threads) for seat in found]


def test_a_node_without_a_gpu_gets_one_worker_and_one_without_cpus_none() -> None:
    nodes = [node("big", CPU=8), node("tiny", CPU=0.5), node("head", memory=1)]
    assert gpu_share(nodes, config()) == 0
    assert claims(0, *nodes) == [("big", 0, 8, 0, 8), ("tiny", 0, 0.5, 0, 1)]


def test_every_gpu_gets_a_worker_and_nodes_without_one_get_none() -> None:
    nodes = [node("two", CPU=16, GPU=2), node("poor", CPU=1, GPU=2), node("head", CPU=4)]
    assert gpu_share(nodes, config()) == 1
    assert claims(1, *nodes) == [
        ("two", 0, 1, 1, 8),
        ("two", 1, 1, 1, 8),
        ("poor", 0, 0.5, 1, 1),
        ("poor", 1, 0.5, 1, 1),
    ]


def test_a_gpu_can_be_shared_and_no_gpu_can_be_asked_for() -> None:
    one = node("one", CPU=16, GPU=1)
    assert [claim[3] for claim in claims(1 / 3, one)] == [1 / 3] * 3
    assert gpu_share([one], config(gpus_per_trial=0)) == 0
    assert claims(0, one, threads=3) == [("one", 0, 16, 0, 3)]
