"""Workers that are forked from a process with all imports, as Ray asks for them."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from sweeps.config import RayConfig, ResourcesConfig, SweepConfig
from sweeps.driver import worker_forks
from sweeps.process import fork_server
from sweeps.process.fork_server import ForkServer, can_fork, forking

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")

# stands in for Ray's default_worker.py: says what it is, and stays
WORKER = """
import json, os, sys, time
import counted
print(json.dumps({
    "pid": os.getpid(), "parent": os.getppid(), "group": os.getpgid(0), "arguments": sys.argv[1:],
    "folder": os.getcwd(),
    "own": os.environ.get("OWN"), "more": os.environ.get("MORE"), "server": os.environ.get("SERVER_ONLY"),
    "name": __name__, "imported": counted.BY,
}), flush=True)
time.sleep(20)  # no longer: nobody ends it
"""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ForkServer]:
    (tmp_path / "counted.py").write_text("import os\nBY = os.getpid()\n")
    (tmp_path / "default_worker.py").write_text(WORKER)
    (tmp_path / "setup_worker.py").write_text("import sys\nprint('plain', *sys.argv[1:])\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with forking(["counted", "no_such_library"], {"SERVER_ONLY": "1"}) as server:
        yield server


def asked(server: ForkServer, folder: Path, context: dict[str, Any] | None = None, **variables: str) -> str:
    """What a worker says first, started as Ray starts one."""
    command = [sys.executable, server.script, str(folder / "default_worker.py"), "--port=1", "--language=PYTHON"]
    command += [f"--serialized-runtime-env-context={json.dumps(context or {})}"]
    environment = {"PATH": os.environ["PATH"], **server.variables, **variables}
    started = subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    line = started.stdout.readline()
    assert started.wait(30) == 0
    return line


def test_a_forked_worker_is_what_ray_asked_for_with_all_imports_done(server: ForkServer, tmp_path: Path) -> None:
    context = {"env_vars": {"MORE": "2"}, "py_executable": sys.executable, "command_prefix": []}
    first, second = (json.loads(asked(server, tmp_path, context, OWN="1")) for _ in range(2))
    assert first["imported"] == second["imported"] == first["parent"] == server.pid
    assert first["pid"] != second["pid"]
    assert first["arguments"] == ["--port=1"]
    assert first["name"] == "__main__"
    assert first["folder"] == str(tmp_path)
    assert (first["own"], first["more"], first["server"]) == ("1", "2", None)
    assert first["group"] == first["pid"], "Ray ends a worker's process group: it must not be the server's"


def test_workers_that_cannot_be_forked_are_started_by_rays_own_script(server: ForkServer, tmp_path: Path) -> None:
    for context in ({"command_prefix": ["nice"]}, {"py_executable": "python9"}, {"override_worker_entrypoint": "x.py"}):
        assert asked(server, tmp_path, context).startswith("plain ")
    nobody = ForkServer(server.pid, str(tmp_path / "nobody"))
    said = asked(nobody, tmp_path).split()
    assert said[:3] == ["plain", str(tmp_path / "default_worker.py"), "--port=1"]


def test_the_server_ends_with_the_block_and_with_a_driver_that_is_killed(server: ForkServer, tmp_path: Path) -> None:
    with forking(["counted"], {}) as short:
        asked(short, tmp_path)
    assert not psutil.pid_exists(short.pid)
    assert not Path(short.address).parent.exists()
    code = """
import os, time
from sweeps.process.fork_server import forking
with forking(["json"], {}) as server:
    print(server.pid, server.address, flush=True)
    time.sleep(600)
"""
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    pid, address = driver.stdout.readline().split()
    of_driver = psutil.Process(int(pid))
    driver.kill()
    driver.wait()
    assert psutil.wait_procs([of_driver], timeout=30)[1] == []
    assert not Path(address).parent.exists()


def test_nothing_is_forked_beside_a_gpu_or_for_another_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork_server, "_GPUS", ())
    assert can_fork()
    monkeypatch.setattr(fork_server, "_GPUS", ("nul[l]",))
    assert not can_fork()
    threads = worker_forks._threads
    monkeypatch.setattr(worker_forks, "can_fork", lambda: True)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert threads(SweepConfig()) == os.cpu_count()
    assert threads(SweepConfig(resources=ResourcesConfig(threads=5))) == 5
    assert threads(SweepConfig(ray=RayConfig(address="auto"))) is None
    assert threads(SweepConfig(resources=ResourcesConfig(workers_per_trial=2))) is None
    assert threads(SweepConfig(resources=ResourcesConfig(gpus_per_trial=1))) is None
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert threads(SweepConfig()) is None


def test_a_server_started_ahead_gives_way_to_one_that_the_config_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_forks, "can_fork", lambda: True)
    monkeypatch.setattr(worker_forks, "_IMPORTS", ("json",))

    def counted(pid: int) -> str:
        until = time.monotonic() + 30
        while "OMP_NUM_THREADS" not in (known := psutil.Process(pid).environ()) and time.monotonic() < until:
            time.sleep(0.05)
        return known["OMP_NUM_THREADS"]

    with worker_forks.forked_ahead() as of_sweep:
        usual = of_sweep(SweepConfig())
        assert usual is not None
        assert counted(usual.pid) == str(os.cpu_count())
        other = of_sweep(SweepConfig(resources=ResourcesConfig(threads=7)))
        assert other is not None
        assert counted(other.pid) == "7"
        assert not psutil.pid_exists(usual.pid)
        assert of_sweep(SweepConfig(ray=RayConfig(address="auto"))) is None
        assert not psutil.pid_exists(other.pid)


def test_a_sweep_whose_socket_has_no_place_goes_on_without_forks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_forks, "can_fork", lambda: True)
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with worker_forks.workers_forked(SweepConfig()) as server:
        assert server is None
    assert list(long.iterdir()) == []
