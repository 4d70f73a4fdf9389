"""Ray nodes that come and go, all on this machine: real ``ray start`` processes of a cluster that asks for a token.

Each node has an address of its own on the loopback (127.0.0.2 and on; the head has the machine's), so that Ray's
``node:ADDRESS`` resources tell them apart as on several machines. No port is a fixed one.

Run as a script, this is the process through which a test looks at a cluster: it must not connect by itself, because
Ray keeps one token a process.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

START_SECONDS = 90  # with patience for a busy machine: about 5 are usual
# That a node is gone is known after about 15 s in Ray's own configuration, with this after 3.
QUICK = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}
DEVICE_WORKER = re.compile(rb"ray::\w*Worker\b")  # the title of its process


@dataclass(frozen=True)
class Node:
    """A node as the cluster knows it: total and unclaimed resources; ``draining``: after a notice that it will go."""

    name: str
    node_id: str
    alive: bool
    resources: dict[str, float]
    free: dict[str, float]
    draining: bool


class RayCluster:
    """A head, called ``head`` unless told otherwise, and the nodes that join it.

    Args:
        cpus: of the head; KubeRay's sample has none.
        head: the head's name.
        system_config: Ray's own, such as ``QUICK``; {} for what users have.
        dashboard: whether the head serves it, and jobs, at ``dashboard``.
        more: further variables for the head alone.
        mounts: as of ``join``, for the head.

    Attributes:
        address: HOST:PORT.
        environment: what a process needs that is to connect.
        dashboard: its URL; "" where there is none.
    """

    def __init__(
        self,
        cpus: float = 0,
        head: str = "head",
        system_config: Mapping[str, Any] = QUICK,
        dashboard: bool = False,
        more: Mapping[str, str] | None = None,
        mounts: str = "",
    ):
        self.scratch = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # the path of a socket must be short
        (self.scratch / "token").write_text("a-token-of-this-test-0123456789abcdef")
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.scratch / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": str(Path(__file__).parents[3]),
        }
        port, dashboard_port = free_port(), free_port()
        self.address = f"127.0.0.1:{port}"
        self.dashboard = f"http://127.0.0.1:{dashboard_port}" if dashboard else ""
        self._hosts = (f"127.0.{n // 250}.{n % 250 + 2}" for n in count())
        self._numbers = count()
        self._starts: dict[str, tuple[subprocess.Popen[bytes], str]] = {}  # with its mark, by the node's name
        self._timers: list[threading.Timer] = []
        self._looking = threading.Lock()
        self._observer: subprocess.Popen[str] | None = None
        options = ["--head", f"--port={port}", f"--num-cpus={cpus:g}"]
        options += [f"--ray-client-server-port={free_port()}", f"--dashboard-port={dashboard_port}"]
        options += [
            f"--include-dashboard={str(dashboard).lower()}",
            f"--system-config={json.dumps(dict(system_config))}",
        ]
        try:
            self._wait(self._start(head, options, more or {}, mounts))
        except BaseException:
            self.close()
            raise

    def join(
        self,
        *names: str,
        cpus: float = 2,
        gpus: float = 0,
        resources: Mapping[str, float] | None = None,
        environment: Mapping[str, str] | None = None,
        mounts: str = "",
        python: str = "",
    ) -> None:
        """Start nodes side by side, and wait until they are up. A name may be used again once its node is gone.

        Args:
            environment: further variables, for these nodes alone.
            mounts: commands of a shell that change which files these nodes alone see.
            python: another interpreter, which finds Ray.
        """
        started = []
        for name in names:
            options = [f"--address={self.address}", f"--node-ip-address={next(self._hosts)}", f"--num-cpus={cpus:g}"]
            options += [f"--num-gpus={gpus:g}"] if gpus else []
            options += [f"--resources={json.dumps(dict(resources))}"] if resources else []
            started.append(self._start(name, options, environment or {}, mounts, python))
        for name in started:
            self._wait(name)

    def lose(self, name: str) -> None:
        """End all that runs on a node at once, as when its power goes."""
        self._end(*self._starts[name])

    def lose_worker(self, name: str) -> None:
        """End the device worker on a node, and nothing else: as where its code crashes."""
        assert self.signal_workers(name, signal.SIGKILL), f"no device worker runs on {name}"

    def drain(self, name: str, seconds: float) -> None:
        """Say, as a cloud does, that a node will be taken away; take it after so many seconds, where it still runs.

        A node that is told so, and on which nothing runs or will, ends by itself before: that is Ray's way.
        """
        node = next(node for node in self.nodes() if node.name == name and node.alive)
        assert self._ask("drain", node.node_id, int(time.time() * 1000 + seconds * 1000)) == "accepted"
        timer = threading.Timer(seconds, self._end, self._starts[name])
        self._timers.append(timer)
        timer.start()

    def signal_workers(self, name: str, number: int) -> int:
        """Send a signal to the device workers on a node. Returns how many there are; the signal 0 only counts."""
        workers = [it for it in _marked(self._starts[name][1]) if DEVICE_WORKER.match(_command(it))]
        return sum(_send(worker, number) for worker in workers)

    def nodes(self) -> list[Node]:
        """All that ever joined, in the order of their names."""
        return sorted((Node(**node) for node in self._ask("nodes")), key=lambda node: node.name)

    def alive(self) -> list[str]:
        """Names of the nodes that the cluster takes for living."""
        return [node.name for node in self.nodes() if node.alive]

    def free(self, resource: str = "CPU") -> float:
        """What nobody claims in the whole cluster."""
        return sum(node.free.get(resource, 0.0) for node in self.nodes() if node.alive)

    def status(self) -> str:
        """What ``ray status`` prints: nodes, usage, and demand that waits."""
        text: str = self._ask("status")
        return text

    def running(self) -> list[str]:
        """Names of the nodes whose ``ray start`` runs."""
        return sorted(name for name, (process, _) in self._starts.items() if process.poll() is None)

    def log(self, name: str) -> str:
        """What ``ray start`` of a node printed."""
        return (self.scratch / f"{name}.log").read_text()

    def close(self) -> None:
        """End all nodes and all that runs on them."""
        for timer in self._timers:
            timer.cancel()
        for timer in self._timers:
            timer.join()
        if self._observer is not None:
            self._observer.kill()
            self._observer.wait()
        for start, mark in self._starts.values():
            self._end(start, mark)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def process(self, name: str) -> "subprocess.Popen[bytes]":
        """The ``ray start`` of a node; the processes of its Ray are its children."""
        return self._starts[name][0]

    def _start(self, name: str, options: list[str], more: Mapping[str, str], mounts: str = "", python: str = "") -> str:
        assert name not in self.running(), f"{name} is there already"
        host = next((option.partition("=")[2] for option in options if option.startswith("--node-ip")), "")
        ray = [python, "-m", "ray.scripts.scripts"] if python else [str(Path(sys.executable).with_name("ray"))]
        command = [*ray, "start", "--block", f"--node-name={name}", *options]
        command += ["--object-store-memory=80000000", "--min-worker-port=0", "--max-worker-port=0"]
        command += [f"--dashboard-agent-listen-port={free_port(host)}"]
        number = next(self._numbers)
        command += [f"--temp-dir={self.scratch}/{number}"]  # its own: names of sockets in it are chosen without a lock
        if mounts:
            command = ["unshare", "--mount", "sh", "-ec", f'{mounts}\nexec "$@"', "sh", *command]
        mark = f"{name} {number} of {self.scratch}"
        environment = {**os.environ, **self.environment, **more, "LORASWEEP_NODE": mark}
        with (self.scratch / f"{name}.log").open("wb") as out:
            self._starts[name] = subprocess.Popen(command, env=environment, stdout=out, stderr=out), mark
        return name

    def _wait(self, name: str) -> None:
        gives_up = time.monotonic() + START_SECONDS
        while "Ray runtime started" not in self.log(name):
            assert self._starts[name][0].poll() is None, self.log(name)
            assert time.monotonic() < gives_up, self.log(name)
            time.sleep(0.05)

    @staticmethod
    def _end(start: "subprocess.Popen[bytes]", mark: str) -> None:
        while sum(_send(process, signal.SIGKILL) for process in _marked(mark)):
            time.sleep(0.02)  # then look for what was being started meanwhile
        start.wait(10)

    def _ask(self, *question: object) -> Any:
        with self._looking:
            if self._observer is None:
                self._observer = subprocess.Popen(
                    [sys.executable, __file__, self.address],
                    env={**os.environ, **self.environment},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=(self.scratch / "observer.log").open("w"),
                    text=True,
                )
            assert self._observer.stdin is not None
            assert self._observer.stdout is not None
            self._observer.stdin.write(json.dumps(question) + "\n")
            self._observer.stdin.flush()
            answer = self._observer.stdout.readline()
            assert answer, (self.scratch / "observer.log").read_text()
            return json.loads(answer)


def free_port(host: str = "") -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def wait_until(holds: Callable[[], object], seconds: float = 60, every: float = 0.1) -> None:
    """Fails where something does not come to hold in time."""
    gives_up = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < gives_up, f"not within {seconds:g} s"
        time.sleep(every)


@contextlib.contextmanager
def ray_cluster(**options: Any) -> Iterator[RayCluster]:
    """A cluster that is ended whatever happens. Arguments: those of ``RayCluster``."""
    running = RayCluster(**options)
    try:
        yield running
    finally:
        running.close()


def _marked(mark: str) -> list[int]:
    """The processes of a node, by a variable in their environment: Ray's workers are no children of the raylet."""
    variable, found = f"LORASWEEP_NODE={mark}".encode(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if variable in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def _send(process: int, number: int) -> bool:
    """Whether the process was still there to get the signal."""
    with contextlib.suppress(OSError):
        os.kill(process, number)
        return True
    return False


def _command(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def _observe(address: str) -> None:
    """Answer questions about a cluster, a line of JSON each, from stdin to stdout."""
    from ray._private import ray_constants, services, state
    from ray._raylet import GcsClient
    from ray.autoscaler._private.commands import debug_status
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason
    from ray.experimental.internal_kv import _initialize_internal_kv

    seen = state.GlobalState()
    seen._initialize_global_state(services._get_gcs_client_options(address))
    gcs = GcsClient(address=address)
    _initialize_internal_kv(gcs)

    def nodes() -> list[dict[str, Any]]:
        free, draining = seen.available_resources_per_node(), seen.get_draining_nodes()
        return [
            {
                "name": node["NodeName"],
                "node_id": node["NodeID"],
                "alive": node["Alive"],
                "resources": node["Resources"],
                "free": free.get(node["NodeID"], {}),
                "draining": node["NodeID"] in draining,
            }
            for node in seen.node_table()
        ]

    def drain(node_id: str, deadline: int) -> str:
        """``deadline`` in milliseconds of Unix time."""
        accepted, why = gcs.drain_node(
            node_id, DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"), "taken back by the cloud", deadline
        )
        return "accepted" if accepted else str(why)

    def status() -> str:
        keys = (ray_constants.DEBUG_AUTOSCALING_STATUS, ray_constants.DEBUG_AUTOSCALING_ERROR)
        return str(debug_status(*(gcs.internal_kv_get(key.encode()) for key in keys), address=address))

    answers: dict[str, Callable[..., object]] = {"nodes": nodes, "drain": drain, "status": status}
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(answers[name](*arguments)), flush=True)


if __name__ == "__main__":
    _observe(sys.argv[1])
