"""A sweep on a running Ray cluster: two nodes, both on this machine, that ask for a token."""

import contextlib
import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from analysis.folder import SweepFolder
from sweeps.process.installation import package_root

LOOK = """
import json, ray, sys, time
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
nodes = sorted(node["NodeName"] for node in ray.nodes() if node["Alive"])
gives_up = time.monotonic() + 30
while (free := ray.available_resources().get("CPU")) != 4 and time.monotonic() < gives_up:
    time.sleep(0.2)  # Ray takes a moment to see that the driver is gone
print(json.dumps([nodes, free]))
"""


@dataclass
class RayCluster:
    address: str
    environment: dict[str, str]
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def start_node(self, name: str, log: Path, *options: str) -> None:
        command = [Path(sys.executable).with_name("ray"), "start", "--block", f"--node-name={name}", "--num-cpus=2"]
        # Two nodes on one machine: no port may be a fixed one.
        command += ["--object-store-memory=80000000", "--min-worker-port=0", "--max-worker-port=0", *options]
        environment = {**os.environ, **self.environment, "LORASWEEP_NODE": f"{name} of {self.address}"}
        with log.open("wb") as out:
            process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
        self.processes.append(process)
        gives_up = time.monotonic() + 60
        while b"Ray runtime started" not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < gives_up, log.read_text()
            time.sleep(0.1)

    def lose_node(self, name: str) -> None:
        """End all that runs on a node at once, as when its power goes."""
        mark = f"LORASWEEP_NODE={name} of {self.address}".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if mark in (entry / "environ").read_bytes().split(b"\0"):
                        os.kill(int(entry.name), signal.SIGKILL)

    def look(self) -> tuple[list[str], float]:
        """Names of the living nodes, and CPUs that nobody claims."""
        command, environment = [sys.executable, "-c", LOOK, self.address], {**os.environ, **self.environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90, check=False)
        assert done.returncode == 0, done.stderr
        nodes, free = json.loads(done.stdout.splitlines()[-1])  # Ray may say before that a node is gone
        return nodes, free


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def cluster() -> Iterator[RayCluster]:
    """Nodes ``alpha`` and ``beta`` with two CPUs each."""
    scratch = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # the path of a socket must be short
    (scratch / "token").write_text("a-token-of-this-test-0123456789abcdef")
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(scratch / "token")}
    environment |= {"PYTHONPATH": package_root(), "RAY_USAGE_STATS_ENABLED": "0"}
    port = free_port()
    running = RayCluster(f"127.0.0.1:{port}", environment)
    try:
        head = ("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={scratch}/s")
        running.start_node("alpha", scratch / "alpha.log", *head)
        running.start_node("beta", scratch / "beta.log", f"--address={running.address}")
        yield running
    finally:
        for process in reversed(running.processes):
            process.terminate()
            process.wait(60)
        shutil.rmtree(scratch, ignore_errors=True)


def test_a_sweep_uses_all_nodes_of_a_cluster_and_leaves_it_running(cluster, lorasweep, tiny, tmp_path):
    command = lorasweep(tmp_path, cluster.environment)
    done = command(
        "run", *tiny("llama", "search.trials=3", "sweep.name=two", "resources.threads=1", "tracking=none"),
        f"ray.address={cluster.address}",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    folder = SweepFolder(tmp_path / "runs" / "two")
    statuses = [trial.read_status() for trial in folder.trials()]
    assert {status.where for status in statuses} == {"alpha: CPU, 1 thread", "beta: CPU, 1 thread"}
    assert {status.state for status in statuses} <= {"completed", "stopped_early"}
    for trial in folder.trials():
        assert trial.read_items("task", "validation", trial.read_metrics()[-1].step)["item_id"]
        assert (trial.adapter_dir / "adapter_config.json").exists()
    with folder.leaderboard_file.open(newline="") as file:
        kinds = [row["kind"] for row in csv.DictReader(file)]
    assert kinds.count("trial") == 3
    assert "baseline" in kinds
    assert command.processes() == []
    assert cluster.look() == (["alpha", "beta"], 4)
    assert [process.poll() for process in cluster.processes] == [None, None]


@pytest.mark.heavy
def test_the_trials_of_a_node_that_is_lost_go_on_elsewhere(cluster, lorasweep, tiny, tmp_path, reading):
    settings = ("search.trials=4", "resources.threads=1", "resources.slots=1", "tracking=none", "baselines=[]",
                "scheduler=fifo", "sampler=random", "train.max_steps=120", "train.rungs=[4,8,12,60,120]")  # fmt: skip
    command = lorasweep(tmp_path, cluster.environment)
    process = command.start("run", *tiny("llama", *settings, "sweep.name=two"), f"ray.address={cluster.address}")
    folder = SweepFolder(tmp_path / "runs" / "two")
    gives_up = time.monotonic() + 120
    while not (there := [trial for trial in folder.trials() if lives_on(trial, "beta")]):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < gives_up
        time.sleep(0.05)
    cluster.lose_node("beta")
    out, err = process.communicate(timeout=240)
    assert (process.returncode, err) == (0, ""), out
    assert folder.trial(there[0].trial_id).read_status().where == "alpha: CPU, 1 thread"
    assert {trial.read_status().state for trial in folder.trials()} == {"completed"}
    assert sorted(reading.tells(folder)) == [f"t{n:04}" for n in range(4)]
    gives_up = time.monotonic() + 60  # that its processes are gone is known before Ray gives the node up
    while cluster.look()[0] != ["alpha"]:
        assert time.monotonic() < gives_up

    whole = lorasweep(tmp_path)("run", *tiny("llama", *settings, "sweep.name=whole"))
    assert whole.returncode == 0, whole.stderr
    expected = reading.curves(SweepFolder(tmp_path / "runs" / "whole"))
    for trial_id, rows in reading.curves(folder).items():
        assert [row[:2] for row in rows] == [row[:2] for row in expected[trial_id]]
        for (*_, metrics), (*_, wanted) in zip(rows, expected[trial_id], strict=True):
            assert metrics == pytest.approx(wanted, rel=1e-4)


def lives_on(trial, node):
    status = trial.read_status() if trial.status_file.exists() else None
    return status and status.state == "running" and status.where.startswith(node) and len(trial.read_metrics()) == 2
