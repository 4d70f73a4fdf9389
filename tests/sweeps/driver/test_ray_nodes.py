"""The test bed itself: real Ray nodes that join, get notice, and are lost."""

import subprocess
import sys
import time

import pytest

from tests.sweeps.driver.ray_nodes import QUICK, RayCluster, wait_until

ACTOR = """
import ray, sys
ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")

@ray.remote(num_cpus=1)
class ToyWorker:
    def node(self):
        return ray.get_runtime_context().get_node_id()

toy = ToyWorker.remote()
print(ray.get(toy.node.remote()), flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def actor():
    """Starts a process that puts an actor ``ToyWorker`` on a cluster, and gives the node it is on."""
    started = []

    def start(cluster):
        command = [sys.executable, "-c", ACTOR, cluster.address]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=cluster.environment, **pipes))
        return started[-1].stdout.readline().strip()

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.heavy
@pytest.mark.parametrize("config", [QUICK, {}])
def test_nodes_join_and_are_lost_with_all_that_runs_on_them(start_cluster, actor, config):
    cluster = start_cluster(system_config=config)
    assert cluster.alive() == ["head"]
    assert cluster.free() == 0
    cluster.join("one", "two", cpus=3, gpus=1, resources={"spot": 1})
    one = cluster.nodes()[1]
    assert (one.name, one.resources["CPU"], one.resources["GPU"], one.resources["spot"]) == ("one", 3, 1, 1)
    addresses = [name for node in cluster.nodes() for name in node.resources if name.startswith("node:1")]
    assert len(set(addresses)) == 3
    names = {node.node_id: node.name for node in cluster.nodes()}
    name = names[actor(cluster)]
    wait_until(lambda: cluster.free() == 5)
    assert (cluster.signal_workers(name, 0), cluster.running()) == (1, ["head", "one", "two"])
    cluster.lose(name)
    assert (cluster.signal_workers(name, 0), name in cluster.running()) == (0, False)
    wait_until(lambda: name not in cluster.alive())
    cluster.join(name)
    assert cluster.alive() == ["head", "one", "two"]


@pytest.mark.heavy
def test_a_worker_can_be_lost_by_itself_and_a_node_with_notice(start_cluster, actor):
    cluster = start_cluster()
    cluster.join("one")
    assert actor(cluster)
    cluster.lose_worker("one")
    wait_until(lambda: cluster.free() == 2)
    assert cluster.alive() == ["head", "one"]
    assert actor(cluster)
    cluster.drain("one", 4)
    noticed = time.monotonic()
    assert [node.draining for node in cluster.nodes()] == [False, True]
    wait_until(lambda: cluster.running() == ["head"])
    assert time.monotonic() - noticed > 3.5
    wait_until(lambda: cluster.alive() == ["head"])


def test_demand_that_nobody_can_meet_is_seen_and_nothing_is_left_afterwards(actor):
    cluster = RayCluster()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", ACTOR, cluster.address], env=cluster.environment, stdin=subprocess.PIPE
        )
        wait_until(lambda: "{'CPU': 1.0}: 1+ pending tasks/actors" in cluster.status())
        process.kill()
        process.communicate()
    finally:
        cluster.close()
    assert cluster.running() == []
    assert not cluster.scratch.exists()
