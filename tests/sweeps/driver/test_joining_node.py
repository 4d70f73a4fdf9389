"""Nodes that join a sweep by ``lorasweep cluster join``: real Ray nodes, simulated trials."""

import contextlib
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from sweeps.store.cluster_file import ClusterHead, write_head
from tests.sweeps.driver import test_elastic as elastic
from tests.sweeps.driver.ray_nodes import wait_until

pytestmark = pytest.mark.timeout(600)
simulate = elastic.simulate


class Joining:
    """Starts nodes, and knows what runs for each."""

    def __init__(self, folder, lorasweep, root: Path):
        self.folder, self.lorasweep = folder, lorasweep(root, {"LORASWEEP_TMP": "/tmp"})

    def join(self, name: str) -> "subprocess.Popen[str]":
        return self.lorasweep.start(
            "cluster", "join", str(self.folder.root), "--name", name, "--cpus", "1", "--wait", "60s"
        )

    def processes(self, node: "subprocess.Popen[str]") -> list[psutil.Process]:
        """All of its Ray, workers included."""
        below = psutil.Process(node.pid).children(recursive=True)
        tokens = {it for process in below if (it := _variable(process))}
        return list({*below, *(process for process in psutil.process_iter() if _variable(process) in tokens)})


def _variable(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return process.environ().get("RAY_AUTH_TOKEN_PATH", "")
    return ""


def _is_titled(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.name().startswith("ray::")
    return False


@pytest.fixture
def joining(lorasweep, tmp_path):
    return lambda folder: Joining(folder, lorasweep, tmp_path)


def announce(cluster, folder) -> None:
    write_head(folder, ClusterHead(cluster.address, Path(cluster.environment["RAY_AUTH_TOKEN_PATH"]).read_text()))


def scratch_of(processes) -> Path:
    return Path(next(filter(None, map(_variable, processes)))).parent


def test_a_node_leaves_when_the_head_is_gone_for_good(start_cluster, joining, tmp_path):
    from analysis.folder import SweepFolder

    folder = SweepFolder(tmp_path / "sweep")
    cluster = start_cluster()
    announce(cluster, folder)
    cluster.join("other")  # as of another sweep on this machine
    nodes = joining(folder)
    one = nodes.join("one")
    wait_until(lambda: "one" in cluster.alive())
    assert {node.name: node.resources.get("CPU") for node in cluster.nodes()}["one"] == 1
    wait_until(lambda: sum(map(_is_titled, nodes.processes(one))) >= 2)  # Ray's agents
    processes = nodes.processes(one)
    scratch = scratch_of(processes)
    assert len(processes) >= 3
    assert (scratch / "token").stat().st_mode & 0o77 == scratch.stat().st_mode & 0o77 == 0
    cluster.lose("head")  # agents that cannot say that they end try for a minute
    folder.cluster_file.unlink()
    out, err = one.communicate(timeout=60)
    assert (one.returncode, err) == (0, "")
    assert "one: the sweep is over" in out
    assert not scratch.exists()
    assert not psutil.wait_procs(processes, timeout=5)[1]
    assert cluster.running() == ["other"]


@pytest.mark.heavy
def test_a_node_waits_for_a_head_that_comes_again(start_cluster, joining, tmp_path):
    from analysis.folder import SweepFolder

    folder = SweepFolder(tmp_path / "sweep")
    first = start_cluster()
    announce(first, folder)
    one = joining(folder).join("one")
    wait_until(lambda: "one" in first.alive())
    first.lose("head")
    time.sleep(5)
    second = start_cluster()
    announce(second, folder)
    wait_until(lambda: "one" in second.alive())
    one.send_signal(signal.SIGUSR1)
    out, err = one.communicate(timeout=60)
    assert (one.returncode, err) == (130, "")
    assert "waiting for a head" in out
    wait_until(lambda: "one" not in second.alive())


@pytest.mark.heavy
def test_sigterm_to_everything_on_a_node_moves_its_trials_and_no_step_is_trained_twice(
    start_cluster, simulate, joining
):
    settings = ("search.trials=3", "resources.slots=1", "scheduler=fifo", "sampler=random")
    cluster = start_cluster()
    sweep = simulate("disturbed", cluster)
    announce(cluster, sweep.folder)
    nodes = joining(sweep.folder)
    first = nodes.join("first")
    elastic.start(sweep, cluster, *settings, seconds=2)
    sweep.until(lambda: sweep.rungs() >= 1)
    second = nodes.join("second")
    wait_until(lambda: "second" in cluster.alive())
    steps = len(sweep.lines("steps"))
    sweep.until(lambda: len(sweep.lines("steps")) > steps + 1)
    for process in [*nodes.processes(first), psutil.Process(first.pid)]:  # as SLURM does
        process.send_signal(signal.SIGTERM)
    out, err = first.communicate(timeout=60)
    assert (first.returncode, err) == (130, "")
    assert "trials here are saved and go on elsewhere" in out
    elastic.ended_well(sweep)
    assert elastic.admitted(sweep, "first")
    assert elastic.admitted(sweep, "second")
    assert not elastic.repeated(sweep)
    assert elastic.left(sweep) == elastic.undisturbed(simulate("undisturbed"), *settings)
    second.terminate()
    assert second.wait(60) == 130
