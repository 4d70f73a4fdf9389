"""Several Ray nodes on this machine, to try out what is meant for many: nodes that join, get notice, and are lost.

    python cluster/local/nodes.py start                 # a head without CPUs, and two nodes with one CPU each
    python cluster/local/nodes.py join NAME             # another node
    python cluster/local/nodes.py leave NAME            # SIGTERM, as where a cloud takes a spot instance back
    python cluster/local/nodes.py lose NAME             # as where its power goes
    python cluster/local/nodes.py stop

Ports are free ones, the token is of this cluster alone, and all files are in one folder: another Ray on the machine is
neither used nor disturbed. For Linux: each node has an address of its own on the loopback.
"""

import argparse
import contextlib
import getpass
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

MARK = "LORASWEEP_LOCAL_NODE"  # in the environment of all that belongs to a node: FOLDER NAME
ATTEMPTS = 3  # to start a node
RAY = str(Path(sys.executable).with_name("ray"))


class NodesError(Exception):
    """What was given, what was expected, and what to do."""


class Nodes:
    """The nodes whose files are in a folder.

    Args:
        folder: short, since paths of sockets in it may have 107 characters.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.token, self._facts = folder / "ray_token", folder / "cluster.json"

    @property
    def facts(self) -> dict[str, str]:
        """Its ``address`` and ``dashboard``."""
        try:
            return dict(json.loads(self._facts.read_text()))
        except FileNotFoundError:
            raise NodesError(
                f"no nodes run in {self.folder}. Start some: python cluster/local/nodes.py start"
            ) from None

    def start(self, workers: int, cpus: float) -> None:
        """Start a head without CPUs, and nodes ``node1``, ``node2``, … with so many each."""
        if self.processes():
            raise NodesError(f"nodes run in {self.folder} already. End them (… stop), or name another folder: --folder")
        self._remove_folder()
        if self.folder.exists():
            raise NodesError(f"{self.folder} is there, and not of nodes like these. Name another folder: --folder")
        self.folder.mkdir(mode=0o700, parents=True)
        with os.fdopen(os.open(self.token, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        port, dashboard = free_port("127.0.0.1"), free_port("127.0.0.1")
        options = ["--head", f"--port={port}", "--num-cpus=0", "--num-gpus=0", f"--dashboard-port={dashboard}"]
        options += [f"--ray-client-server-port={free_port('127.0.0.1')}", "--node-ip-address=127.0.0.1"]
        self._start("head", options)
        facts = {"address": f"127.0.0.1:{port}", "dashboard": f"http://127.0.0.1:{dashboard}"}
        self._facts.write_text(json.dumps(facts))
        for number in range(1, workers + 1):
            self.join(f"node{number}", cpus)

    def join(self, name: str, cpus: float) -> None:
        """Start another node."""
        address = self.facts["address"]
        if self.processes(name):
            raise NodesError(f"a node called {name} runs already. There are: {', '.join(self.names())}. Name another.")
        taken = [int(it.name) for it in self.folder.iterdir() if it.name.isdigit()]
        self._start(name, [f"--address={address}", f"--num-cpus={cpus:g}", "--num-gpus=0"], max(taken, default=0) + 1)

    def end(self, name: str = "") -> None:
        """End all that runs on a node, or on all nodes. The folder goes with the last."""
        while processes := self.processes(name):
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(processes, 1)  # then look for what was being started meanwhile
        if not name:
            self._remove_folder()

    def _remove_folder(self) -> None:
        if self.token.exists():  # else it is somebody else's
            shutil.rmtree(self.folder)

    def lose(self, name: str) -> None:
        """End all that runs on a node at once."""
        self._require(name)
        self.end(name)

    def leave(self, name: str) -> None:
        """Give a node notice that it is about to go; it answers by going."""
        self._require(name)
        for process in self.processes(name):
            with contextlib.suppress(psutil.Error):
                if process.cmdline()[1:3] == [RAY, "start"]:
                    process.send_signal(signal.SIGTERM)

    def _require(self, name: str) -> None:
        if name not in (names := self.names()):
            raise NodesError(f"no node called {name} runs here. There are: {', '.join(names) or 'none'}.")

    def names(self) -> list[str]:
        """Of the nodes that run."""
        return sorted({name for it in psutil.process_iter() if (name := self._node_of(it))})

    def processes(self, name: str = "") -> list[psutil.Process]:
        """What runs on a node, or on all: Ray's workers are no children of the process that started it."""
        return [it for it in psutil.process_iter() if (node := self._node_of(it)) and name in ("", node)]

    def _node_of(self, process: psutil.Process) -> str:
        """The name of the node that a process belongs to; empty where it is none of these."""
        try:
            mark = process.environ().get(MARK, "") if process.status() != psutil.STATUS_ZOMBIE else ""
        except psutil.Error:  # it has ended meanwhile, or is somebody else's
            return ""
        return mark.removeprefix(f"{self.folder} ") if mark.startswith(f"{self.folder} ") else ""

    def _start(self, name: str, options: list[str], number: int = 0) -> None:
        host = f"127.0.{number // 250}.{number % 250 + 1}"  # the head's is 127.0.0.1
        place = self.folder / str(number)
        command = [RAY, "start", "--block", f"--node-name={name}", *options, f"--temp-dir={place}"]
        command += ["--object-store-memory=100000000", "--min-worker-port=0", "--max-worker-port=0"]
        command += [f"--dashboard-agent-listen-port={free_port(host)}"]
        command += [f"--node-ip-address={host}"] if number else []
        others = ("RAY_ADDRESS", "RAY_AUTH_TOKEN")  # of another cluster
        environment = {variable: value for variable, value in os.environ.items() if variable not in others}
        environment |= self.variables() | {MARK: f"{self.folder} {name}", "RAY_USAGE_STATS_ENABLED": "0"}
        log = self.folder / f"{name}.log"
        for left in reversed(range(ATTEMPTS)):
            place.mkdir(exist_ok=True)
            with log.open("w") as out:
                start = [sys.executable, *command]
                started = subprocess.Popen(start, env=environment, stdout=out, stderr=out, start_new_session=True)
            while "Ray runtime started" not in log.read_text() and started.poll() is None:
                time.sleep(0.1)
            if started.poll() is None:
                return
            said = (log.read_text().strip().splitlines() or ["it said nothing"])[-1]
            self.end(name)
            if not left or "timed out during startup" not in said:  # within the 30 s that Ray gives a busy machine
                raise NodesError(f"{name} did not start ({said}). Look into {log}.")

    def variables(self) -> dict[str, str]:
        """What a process needs that is to use this cluster."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}

    def advice(self) -> str:
        """What to type next."""
        facts, own = self.facts, "" if self.folder == default_folder() else f" --folder {shlex.quote(str(self.folder))}"
        exports = " ".join(f"{name}={shlex.quote(value)}" for name, value in self.variables().items())
        script = f"python cluster/local/nodes.py{own}"
        return f"""\
{len(self.names())} nodes run: {", ".join(self.names())}. In another terminal:

  export {exports}
  lorasweep cluster check {facts["address"]}
  lorasweep run experiment=quickstart ray.address={facts["address"]}
  ray job submit --address {facts["dashboard"]} -- lorasweep run experiment=quickstart sweep.dir=$PWD/runs

Meanwhile, {script}: join node9, leave node1, lose node2; and {script} stop
"""


def free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def default_folder() -> Path:
    return Path("/tmp") / f"lorasweep-nodes-{getpass.getuser()}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=default_folder(), help="for their files; %(default)s")
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("start", help="start nodes, and wait; Ctrl-C ends them")
    start.add_argument("--workers", type=int, default=2, help="nodes that train; %(default)s")
    join = commands.add_parser("join", help="start another node")
    for parsed in (start, join):
        parsed.add_argument("--cpus", type=float, default=1, help="that Ray counts on each; %(default)s")
    for name, what in (("leave", "give a node notice"), ("lose", "end all on a node at once")):
        commands.add_parser(name, help=what).add_argument("name")
    join.add_argument("name")
    commands.add_parser("stop", help="end all nodes of the folder")
    options = parser.parse_args()
    nodes = Nodes(options.folder.absolute())
    try:
        if options.command == "start":
            wait_for_the_end(nodes, options.workers, options.cpus)
        elif options.command == "join":
            nodes.join(options.name, options.cpus)
        elif options.command == "leave":
            nodes.leave(options.name)
        elif options.command == "lose":
            nodes.lose(options.name)
        else:
            nodes.end()
    except (NodesError, OSError) as error:
        print(f"nodes.py: {error}", file=sys.stderr)
        return 2
    return 0


def wait_for_the_end(nodes: Nodes, workers: int, cpus: float) -> None:
    """Start nodes, and end them when somebody says so, here or by ``stop``."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    running = nodes.processes()
    try:
        nodes.start(workers, cpus)
        print(nodes.advice(), flush=True)
        while nodes.names():
            time.sleep(1)
    except KeyboardInterrupt:
        print("ending the nodes", flush=True)
    finally:
        if not running:
            nodes.end()


if __name__ == "__main__":
    sys.exit(main())
