"""`cluster/local/nodes.py`: nodes on this machine, of which a sweep is the guest, and which end without a trace.

What takes minutes is marked heavy:

    pytest -m heavy tests/cluster/test_local_nodes.py
"""

import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from analysis.folder import SweepFolder
from tests.cluster.kubernetes_schemas import ROOT
from tests.sweeps.driver.ray_nodes import ray_cluster, wait_until

pytestmark = pytest.mark.timeout(600)


@dataclass
class Script:
    """The script with a folder of its own."""

    folder: Path = field(default_factory=lambda: Path("/tmp") / f"nodes-{uuid.uuid4().hex[:8]}")

    def start(self, *words: str) -> "subprocess.Popen[str]":
        command = [sys.executable, str(ROOT / "cluster" / "local" / "nodes.py"), "--folder", str(self.folder), *words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "127.0.0.1:1", "PYTHONUNBUFFERED": "1"}
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def __call__(self, *words: str) -> "subprocess.CompletedProcess[str]":
        process = self.start(*words)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def processes(self) -> list[str]:
        found = []
        for it in psutil.process_iter():
            try:
                if f"{self.folder}" in it.environ().get("LORASWEEP_LOCAL_NODE", ""):
                    found.append(it.name())
            except psutil.Error:
                continue
        return found

    def advice(self, process: "subprocess.Popen[str]") -> str:
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if "stop" in line:
                return "".join(lines)
        raise AssertionError("".join(lines) + process.communicate()[1])


@pytest.fixture
def nodes() -> Iterator[Script]:
    script = Script()
    yield script
    script("stop")
    assert script.processes() == []


def variables(advice: str) -> dict[str, str]:
    """Those that a user is told to export."""
    return dict(re.findall(r"(RAY_\w+)=(\S+)", advice))


@pytest.mark.heavy
def test_a_sweep_joins_and_ctrl_c_ends_these_nodes_and_no_other(
    nodes: Script, tiny: Any, lorasweep: Any, tmp_path: Path
) -> None:
    with ray_cluster() as other:
        process = nodes.start("start", "--workers", "1")
        advice = nodes.advice(process)
        assert "2 nodes run: head, node1." in advice
        assert (nodes.folder / "ray_token").stat().st_mode & 0o077 == 0
        (address,) = re.findall(r"lorasweep run .* ray\.address=(\S+)", advice)
        overrides = tiny(
            "llama", "search.trials=2", "tracking=none", "baselines=[]", "resources.threads=1", "sweep.name=n"
        )
        done = lorasweep(tmp_path, variables(advice))("run", *overrides, f"ray.address={address}")
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        where = {it.read_status().where for it in SweepFolder(tmp_path / "runs" / "n").trials()}
        assert where == {"node1: CPU, 1 thread"}

        refused = nodes("start")
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr == (
            f"nodes.py: nodes run in {nodes.folder} already. End them (… stop), or name another folder: --folder\n"
        )
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out.strip(), err) == (0, "ending the nodes", "")
        assert nodes.processes() == []
        assert not nodes.folder.exists()
        assert other.alive() == other.running() == ["head"]


@pytest.mark.heavy
def test_nodes_join_leave_and_are_lost_by_name_and_stop_ends_the_rest(nodes: Script) -> None:
    process = nodes.start("start", "--workers", "2")
    nodes.advice(process)
    assert nodes("join", "more", "--cpus", "2").returncode == 0
    again = nodes("join", "more")
    assert again.returncode == 2
    assert "a node called more runs already. There are: head, more, node1, node2." in again.stderr
    assert nodes("lose", "node1").returncode == 0
    assert nodes("leave", "node2").returncode == 0
    wait_until(lambda: "There are: head, more." in nodes("lose", "nobody").stderr, 60)
    assert nodes("stop").returncode == 0
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert nodes.processes() == []


def test_what_cannot_be_done_without_nodes_is_said(nodes: Script) -> None:
    done = nodes("join", "more")
    assert done.returncode == 2
    assert f"no nodes run in {nodes.folder}. Start some: python cluster/local/nodes.py start" in done.stderr
    assert "no node called node1 runs here. There are: none." in nodes("leave", "node1").stderr


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    script = Script(tmp_path)
    done = script("start")
    assert done.returncode == 2
    assert f"{tmp_path} is there, and not of nodes like these. Name another folder: --folder" in done.stderr
    assert script("stop").returncode == 0
    assert [it.name for it in tmp_path.iterdir()] == ["thesis.tex"]
