"""A process that has imported what Ray's workers import, and forks them, so that each starts at once.

On a CPU, a device worker imports for four to eight seconds, and a trial's proxy for two. The fork server imports all of
it beside Ray's start, once, and its memory is shared. The driver starts it (``forking``), Ray asks it for workers by
``sweeps/process/forked_worker.py``, and it ends with the driver. Without one, Ray starts workers as it always does.

CUDA cannot be used in a process whose parent has looked at it, so there is none where a GPU may be used, and none
outside of Linux, whose libraries alone are made to be forked.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps.process import gc_pause
from sweeps.process.forked_worker import VARIABLE
from sweeps.process.scratch import socket_folder
from sweeps.process.worker_variables import without_trackers_keys

_GPUS = ("nvidia[0-9]*", "nvidiactl", "kfd", "dxg", "accel/*")  # below /dev
_SERVER = "import sys; sys.path[:] = {}; from sweeps.process.fork_server import main; main(sys.argv[1:])"
_LISTEN = 64
_ANSWER_SECONDS = 5.0


@dataclass(frozen=True)
class ForkServer:
    """A fork server that is starting, or has started.

    Attributes:
        pid: of its process; the workers are its children.
        address: path of its socket.
    """

    pid: int
    address: str

    @property
    def variables(self) -> dict[str, str]:
        """What the environment of Ray's processes must name."""
        return {VARIABLE: self.address}

    @property
    def script(self) -> str:
        """What Ray runs to start a worker."""
        return str(Path(__file__).with_name("forked_worker.py"))


def can_fork() -> bool:
    """Whether workers may be forked on this machine: on Linux, where no GPU is to be seen."""
    return sys.platform == "linux" and not any(any(Path("/dev").glob(pattern)) for pattern in _GPUS)


@contextlib.contextmanager
def forking(imports: Sequence[str], variables: Mapping[str, str]) -> Iterator[ForkServer]:
    """A fork server for the length of the block. It is not waited for: it imports beside what comes next.

    Args:
        imports: modules, or functions to call as ``module:function``.
        variables: environment variables that libraries read when they are loaded, such as numbers of threads.

    Raises:
        OSError: where there is no place for its socket, such as in a folder for temporary files with a long name.
    """
    folder = tempfile.mkdtemp(prefix="fork-", dir=socket_folder())
    address = f"{folder}/socket"
    with socket.socket(socket.AF_UNIX) as listening:
        try:
            listening.bind(address)
        except OSError:
            os.rmdir(folder)
            raise
        listening.listen(_LISTEN)
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _SERVER.format(sys.path), str(listening.fileno()), *imports],
            stdin=subprocess.PIPE,  # its end is the driver's, however that comes
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**without_trackers_keys(os.environ), **variables},
            pass_fds=[listening.fileno()],
            start_new_session=True,  # Ctrl-C is the driver's
        )
    try:
        yield ForkServer(process.pid, address)
    finally:
        process.kill()
        process.communicate()
        shutil.rmtree(folder, ignore_errors=True)


def main(arguments: Sequence[str]) -> None:
    """The server's process, and from a fork on a worker's.

    Args:
        arguments: number of the socket that listens, and what to import.
    """
    listening = socket.socket(fileno=int(arguments[0]))
    with gc_pause.paused():
        for name in arguments[1:]:
            module, _, function = name.partition(":")
            with contextlib.suppress(ImportError):  # what is missing is told by whoever needs it
                imported = importlib.import_module(module)
                if function:
                    getattr(imported, function)()
    gc.collect()
    gc.freeze()  # a collection in a worker need not look at what is imported, which would copy its memory
    _work(_next_worker(listening))


def _next_worker(listening: socket.socket) -> dict[str, Any]:
    """Fork a process for each request. Returns in those alone, with what was asked for; ends with the driver."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    with selectors.DefaultSelector() as waiting:
        waiting.register(listening, selectors.EVENT_READ)
        waiting.register(0, selectors.EVENT_READ)
        while True:
            if any(key.fileobj == 0 for key, _ in waiting.select()):  # the driver has ended
                shutil.rmtree(Path(listening.getsockname()).parent, ignore_errors=True)
                os._exit(0)
            asking, _ = listening.accept()
            with asking:
                asking.settimeout(_ANSWER_SECONDS)
                try:
                    _, streams, _, _ = socket.recv_fds(asking, 1, 3)
                    request = json.loads(b"".join(iter(lambda: asking.recv(1 << 16), b"")))  # noqa: B023
                except (OSError, ValueError):  # who asks has ended
                    continue
                if os.fork() == 0:
                    listening.close()
                    _take_over(asking, streams)
                    return dict(request)
                for stream in streams:
                    os.close(stream)


def _take_over(asking: socket.socket, streams: Sequence[int]) -> None:
    """In a new process: answer who asked, which ends then, and have its standard streams."""
    os.setpgid(0, 0)  # Ray ends the process group of a worker with it
    try:
        asking.sendall(b"f")
        if asking.recv(1):
            raise OSError("an answer that nobody gives")
        for target, stream in enumerate(streams):
            os.dup2(stream, target)
            os.close(stream)
    except OSError:  # Ray has started another one meanwhile
        os._exit(1)


def _work(request: Mapping[str, Any]) -> None:
    """Be the worker that Ray asked for, in its environment.

    Args:
        request: as ``sweeps/process/forked_worker.py`` sends it.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(request["oom_score"])
    os.environ.clear()
    os.environ.update(request["environment"])
    from ray._private.utils import update_envs

    update_envs(request["more"])
    os.chdir(request["folder"])
    sys.argv = list(request["command"])
    runpy.run_path(sys.argv[0], run_name="__main__")
