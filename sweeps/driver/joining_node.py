"""A Ray node that joins the cluster of a sweep by the file in its folder, and leaves by itself.

On SIGTERM or SIGUSR1, as a job gets them before it is preempted or its time is over, and on SIGHUP, when its terminal
is closed, it tells Ray that this node is about to go: the sweep's trials here write checkpoints between two steps and
go on elsewhere. When the head is gone for good, it ends.

Every node has a folder, a token file and ports of its own, and ends no process but its own Ray's: on a shared machine
others may run one too.
"""

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from analysis.errors import INTERRUPTED, HardwareError
from analysis.folder import SweepFolder
from sweeps.process.scratch import private_scratch, socket_folder
from sweeps.store.cluster_file import ClusterHead, NoHead, is_announced, read_head

# Seconds from a signal to the end. SLURM sends SIGKILL 30 s after SIGTERM by default; USR1 is what a job asks for by
# --signal, here 120 s before its end.
_GRACE = {signal.SIGTERM: 25.0, signal.SIGINT: 25.0, signal.SIGHUP: 25.0, signal.SIGUSR1: 90.0}
_EVERY = 0.5
_SAY_AGAIN = 60.0
_START_SECONDS = 90.0
_RPC_SECONDS = 5.0
_LOOK_EVERY, _HEAD_GONE = 2.0, 3  # seconds between two looks at the head; how many in a row that find nothing
_OBJECTS = 500_000_000  # bytes of Ray's object store: a sweep passes small things only
_numbers = itertools.count()  # of the folders of this process's nodes


def join_sweep(folder: SweepFolder, cpus: int, name: str, wait: float, say: Callable[[str], None]) -> int:
    """Be a node of a sweep's cluster until the sweep is over, or a signal comes. Returns the exit status.

    Args:
        folder: of the sweep.
        cpus: that the node offers; its GPUs are those that it sees.
        name: of the node, for the user.
        wait: seconds to wait for a head, at first and where it is gone but its file is there.
        say: told in a sentence what happens.

    Raises:
        NoHead: where no head came in time.
        FolderError: where its file cannot be used.
        HardwareError: where Ray does not start here.
    """
    with _signals() as came, private_scratch():
        joined = False
        while not came:
            head = _head(folder, wait, came, say, joined)
            if came:
                break
            if head is None:
                say("the sweep is over")
                return 0
            joined, watch = True, _HeadWatch(folder, head)  # from now on the file's end is the sweep's
            with _Node(head, cpus, name) as node:
                if not node.start(lambda: bool(came) or watch.is_gone()):  # noqa: B023 (called in this turn only)
                    continue
                say(f"joined {head.address} as {name}, with {cpus} CPUs")
                while not came and node.is_up() and not watch.is_gone():
                    time.sleep(_EVERY)
                if came:
                    node.leave(_GRACE[came[0]], say)
        return INTERRUPTED


def _head(
    folder: SweepFolder, wait: float, came: list[signal.Signals], say: Callable[[str], None], joined: bool
) -> ClusterHead | None:
    """The head, once there is one; None where it has gone for good. Raises NoHead."""
    gives_up, said = time.monotonic() + wait, -_SAY_AGAIN
    while True:
        if joined and not is_announced(folder):
            return None
        try:
            return read_head(folder)
        except NoHead as error:
            now = time.monotonic()
            if now >= gives_up or came:
                if came:
                    return None
                raise
            if now - said >= _SAY_AGAIN:
                said = now
                say(f"waiting for a head, {gives_up - now:.0f} s more: {error}")
        time.sleep(min(_EVERY, max(0.0, gives_up - time.monotonic())))


class _HeadWatch:
    """Looks every two seconds whether a head is still there: the file names it, and something listens."""

    def __init__(self, folder: SweepFolder, head: ClusterHead):
        self._folder, self._head = folder, head
        self._failures, self._looked = 0, time.monotonic()

    def is_gone(self) -> bool:
        if time.monotonic() - self._looked >= _LOOK_EVERY:
            self._looked = time.monotonic()
            if not is_announced(self._folder, self._head):
                self._failures = _HEAD_GONE
            elif self._failures < _HEAD_GONE:
                self._failures = 0 if _answers(self._head.address) else self._failures + 1
        return self._failures >= _HEAD_GONE


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError):
        socket.create_connection((host, int(port)), timeout=_RPC_SECONDS).close()
        return True
    return False


class _Node:
    """A ``ray start --block`` and all that it started."""

    def __init__(self, head: ClusterHead, cpus: int, name: str):
        self.scratch = socket_folder() / f"n{next(_numbers)}"
        self.scratch.mkdir(0o700)
        self.head, self.name = head, name
        token = self.scratch / "token"
        token.touch(0o600)
        token.write_text(head.token)
        self._log = self.scratch / "ray.log"
        self._variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
        self._command = [
            *(str(Path(sys.executable).with_name("ray")), "start", "--block", f"--address={head.address}"),
            *(f"--node-name={name}", f"--num-cpus={cpus}", f"--object-store-memory={_OBJECTS}"),
            # 0: the kernel gives free ones
            *("--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"),
            f"--temp-dir={self.scratch}/r",  # which Ray opens to everybody; the folders above it are not
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._raylet: psutil.Process | None = None
        self._seen: set[psutil.Process] = set()

    def __enter__(self) -> "_Node":
        return self

    def __exit__(self, *error: object) -> None:
        """End what is of this Ray.

        Its workers are no children of ``ray start``: they are told by their environment. Its agents overwrite theirs
        with their title, and would outlive a lost head by a minute: they are told by their parents, while those live.
        """
        self._look()
        mark = f"{self.scratch}/token"
        while True:
            marked = (it for it in psutil.process_iter() if it.pid != os.getpid() and _variable(it) == mark)
            ours = [it for it in {*self._seen, *marked} if _status(it) not in ("", psutil.STATUS_ZOMBIE)]
            if not ours:
                break
            for process in ours:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(ours, timeout=1)
        if self._process is not None:
            self._process.wait()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def start(self, gives_up: Callable[[], bool]) -> bool:
        """Whether it is up; False where it was given up. Raises HardwareError where it does not start."""
        environment = {key: value for key, value in os.environ.items() if key not in ("RAY_AUTH_TOKEN", "RAY_ADDRESS")}
        # A batch system sends SIGTERM to all processes of a job at once. A raylet that gets it ends its workers before
        # they can write checkpoints: so all of Ray's processes have it blocked, which is inherited.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, set(_GRACE))
        try:
            with self._log.open("wb") as out:
                self._process = subprocess.Popen(
                    self._command,
                    env={**environment, **self._variables},
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        until = time.monotonic() + _START_SECONDS
        while "Ray runtime started" not in self._printed():
            if gives_up():
                return False
            if self._process.poll() is not None or time.monotonic() > until:
                said = " ".join(self._printed().split()[-60:])
                raise HardwareError(f"No Ray could be started here that joins {self.head.address}. It said: {said}")
            time.sleep(0.1)
        self._raylet = next((it for it in psutil.Process(self._process.pid).children() if it.name() == "raylet"), None)
        return True

    def is_up(self) -> bool:
        """Whether its raylet runs."""
        self._look()
        return self._raylet is not None and _status(self._raylet) not in ("", psutil.STATUS_ZOMBIE)

    def _look(self) -> None:
        """Remember the processes below ``ray start``, as long as it can be told that they are."""
        if self._process is not None:
            with contextlib.suppress(psutil.Error):
                self._seen.update(psutil.Process(self._process.pid).children(recursive=True))

    def leave(self, seconds: float, say: Callable[[str], None]) -> None:
        """Tell Ray that the node is about to go, and wait until nothing of the sweep is here any more.

        Args:
            seconds: after which it goes, whatever runs here.
        """
        say(f"about to go: trials here are saved and go on elsewhere, within {seconds:.0f} s")
        until = time.monotonic() + seconds
        try:
            self._drain(seconds)
        except Exception as error:  # Ray's own, of many kinds: the head may be gone too
            say(f"the head was not told ({error})")
            return
        while self.is_up() and time.monotonic() < until:
            time.sleep(_EVERY / 5)  # a node that was told so, and on which nothing runs, ends by itself

    def _drain(self, seconds: float) -> None:
        os.environ.update(self._variables)
        os.environ.pop("RAY_AUTH_TOKEN", None)
        import ray._raylet
        from ray.core.generated import autoscaler_pb2, gcs_pb2

        tokens: Any = ray._raylet.AuthenticationTokenLoader.instance()  # type: ignore[attr-defined]
        tokens.reset_cache()  # of an earlier head
        reason = getattr(autoscaler_pb2, "DRAIN_NODE_REASON_PREEMPTION")  # noqa: B009 (generated)
        alive = getattr(gcs_pb2, "GcsNodeInfo").ALIVE  # noqa: B009
        gcs: Any = ray._raylet.GcsClient(address=self.head.address)  # type: ignore[attr-defined]
        for node_id, node in gcs.get_all_node_info(timeout=_RPC_SECONDS).items():
            if node.node_name == self.name and node.state == alive:
                why, deadline = "its job is about to end", int((time.time() + seconds) * 1000)
                gcs.drain_node(node_id.hex(), reason, why, deadline, timeout=_RPC_SECONDS)

    def _printed(self) -> str:
        return self._log.read_text(errors="replace")


def _variable(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return process.environ().get("RAY_AUTH_TOKEN_PATH", "")
    return ""


def _status(process: psutil.Process) -> str:
    """Empty where it is gone."""
    with contextlib.suppress(psutil.Error):
        return process.status() if process.is_running() else ""
    return ""


@contextlib.contextmanager
def _signals() -> Iterator[list[signal.Signals]]:
    """The signals that came, the first one first, instead of what they do otherwise."""
    came: list[signal.Signals] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(signal.Signals(number))

    before = {it: signal.signal(it, note) for it in _GRACE if signal.getsignal(it) is not signal.SIG_IGN}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
