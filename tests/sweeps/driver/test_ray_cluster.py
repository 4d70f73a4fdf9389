"""Which device workers a sweep starts on which nodes, and what they claim there."""

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from analysis.errors import ConfigError, HardwareError
from sweeps.config import RayConfig, ResourcesConfig, SweepConfig
from sweeps.driver import ray_cluster
from sweeps.driver.ray_cluster import end_ray, ray_running


def config(address: str | None = "head:6379", **resources: Any) -> SweepConfig:
    return SweepConfig(ray=RayConfig(address=address), resources=ResourcesConfig(**resources))


def test_what_a_local_ray_leaves_running_is_ended_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "raylet"
    shutil.copy(str(shutil.which("bash")), binary)
    raylets = []

    def start(**options: Any) -> list[psutil.Process]:
        raylets.append(subprocess.Popen([binary, "-c", "sleep 600 & wait"]))
        while not (below := psutil.Process(raylets[-1].pid).children()):
            time.sleep(0.05)
        return below

    (of_another,) = start()
    monkeypatch.setattr(ray_cluster.ray, "init", start)
    monkeypatch.setattr(ray_cluster.ray, "shutdown", lambda: raylets[-1].kill())  # and the agent below it lives on
    try:
        with ray_running(config(address=None)):
            agents = psutil.Process(raylets[-1].pid).children()
        assert psutil.wait_procs(agents, timeout=10)[1] == []
        assert of_another.is_running(), "a Ray that this sweep did not start is left alone"
    finally:
        of_another.kill()
        for raylet in raylets:
            raylet.kill()
            raylet.wait()


def test_a_second_end_in_the_middle_of_the_first_leaves_nothing_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary, go_on = tmp_path / "raylet", threading.Event()
    shutil.copy(str(shutil.which("bash")), binary)
    raylet = subprocess.Popen([binary, "-c", "sleep 600 & wait"])
    while not (agents := psutil.Process(raylet.pid).children()):
        time.sleep(0.05)

    def shutdown() -> None:
        raylet.kill()
        raylet.wait()
        go_on.wait(30)

    monkeypatch.setattr(ray_cluster.ray, "shutdown", shutdown)
    monkeypatch.setattr(ray_cluster, "_started", [psutil.Process(raylet.pid)])
    hangs: list[bool] = []
    monkeypatch.setattr(ray_cluster, "leave_nothing_to_libraries", lambda: hangs.append(True))
    first = threading.Thread(target=end_ray)
    first.start()
    raylet.wait()
    end_ray(0.1)
    assert psutil.wait_procs(agents, timeout=10)[1] == []
    assert hangs == [True], "what does not end here would not at the end of the interpreter"
    go_on.set()
    first.join()


def test_a_ray_that_is_slow_to_start_is_tried_again_and_told_as_an_overloaded_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers: list[Exception | None] = [Exception("The current node timed out during startup. …"), None]
    tried = []

    def start(**options: Any) -> None:
        tried.append(options["address"])
        if (error := answers.pop(0)) is not None:
            raise error

    monkeypatch.setattr("ray.init", start)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    with ray_running(config(None)):
        assert tried == ["local", "local"]
    answers[:] = [None]
    ended: list[str] = []
    monkeypatch.setattr("ray.shutdown", lambda: ended.append("ended"))
    with ray_running(config(None)) as let_go:
        let_go()
    assert ended == ["ended"], "once, and not again at the end"
    answers[:] = [Exception("The current node timed out during startup. …")] * 3
    with pytest.raises(HardwareError, match="overloaded"), ray_running(config(None)):
        pass


OWN_RAY = """
import os, psutil, ray
from sweeps.config import ResourcesConfig, SweepConfig
from sweeps.driver.ray_cluster import ray_running
from sweeps.process.fork_server import forking
import contextlib, sys

@ray.remote
class Worker:
    def told(self):
        return psutil.Process().nice(), os.getppid()

with contextlib.ExitStack() as running:
    forks = running.enter_context(forking(["json"], {})) if sys.argv[1] == "forked" else None
    running.enter_context(ray_running(SweepConfig(resources=ResourcesConfig(niceness=int(sys.argv[2]))), forks=forks))
    nice, parent = ray.get(Worker.remote().told.remote())
    print(nice - psutil.Process().nice(), forks is not None and parent == forks.pid)
    below = [" ".join(it.cmdline()) for it in psutil.Process().children(recursive=True)]
    print([name for name in ("gcs_server", "raylet/raylet", "dashboard.py", "monitor.py") if name in " ".join(below)])
print(len(psutil.Process().children(recursive=True)))
"""


@pytest.mark.parametrize(("workers", "niceness"), [("forked", 0), ("plain", 3)])
def test_a_ray_of_our_own_has_few_processes_and_workers_of_the_niceness_that_the_config_says(
    workers: str, niceness: int
) -> None:
    command = [sys.executable, "-c", OWN_RAY, workers, str(niceness)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    said = done.stdout.splitlines()
    assert said[0] == f"{niceness} {workers == 'forked'}", done.stdout + done.stderr
    assert said[1] == "['gcs_server', 'raylet/raylet']"
    assert said[2] == "0", "nothing outlives it"


def test_a_niceness_that_another_ray_would_not_follow_is_refused() -> None:
    refused = pytest.raises(ConfigError, match=r"(?s)resources\.niceness=5 .*RAY_worker_niceness=5")
    with refused, ray_running(config("head:6379", niceness=5)):
        pass
