"""Watches over the Ray that a sweep runs on, and ends the driver with a sentence of ours where Ray itself dies.

Ray's own way out comes after a minute without its control store: its C++ code aborts the driver with a dump of its
state, from which nobody learns what to do. Where a process of Ray's hangs, nothing ends at all.
"""

import atexit
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import grpc
from ray._private.grpc_utils import init_grpc_channel  # with the cluster's TLS and token
from rich.console import Console

from analysis.errors import INTERRUPTED, ClusterError
from analysis.text.visible import visible
from sweeps.process.terminal import only_python_speaks, wrapped
from sweeps.process.termination import end_now

_EVERY = 0.25  # seconds between two questions
_ANSWER_SECONDS = 3.0  # for which an answer is waited for
_FAILURES = 4  # in a row, and a part of Ray is taken for dead: 1 s where it is gone, 13 s where it hangs
_CLOSE_SECONDS = 5.0  # for the driver to close its records; afterwards it is ended as it is
_SAY_SECONDS = 5.0  # for the one of the two threads whose turn it is to say it and to end the process
# What wakes the main thread up. By default it is ignored, so one that comes late does no harm.
_WAKE = signal.SIGURG


@dataclass(frozen=True)
class Part:
    """A process of Ray's that a sweep cannot do without.

    Attributes:
        name: for the user.
        address: HOST:PORT of its gRPC server.
        patience: seconds for which it may be gone, at least.
    """

    name: str
    address: str
    patience: float = 0.0


class Health:
    """What a part of Ray says of itself, by gRPC's own health check, which all of them have."""

    def __init__(self, part: Part):
        self.part = part
        self.failures, self._answered = 0, 0.0  # in a row; when the last answer came, by time.monotonic, 0: never
        # A proxy for the web is none for a cluster; and a control store that is started again is found at once.
        options = [("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 1000)]
        self._channel = init_grpc_channel(part.address, options)
        self._check = self._channel.unary_unary("/grpc.health.v1.Health/Check")

    def ask(self) -> Any:
        """A question that is under way."""
        return self._check.future(b"", timeout=_ANSWER_SECONDS)  # an empty message asks for the whole server

    def take(self, question: Any) -> None:
        """Wait for its answer. That it may not ask is one too."""
        if question.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            self.failures += 1
        else:
            self.failures, self._answered = 0, time.monotonic()

    def close(self) -> None:
        self._channel.close()

    def is_dead(self) -> bool:
        return (
            self._answered > 0 and self.failures >= _FAILURES and time.monotonic() - self._answered > self.part.patience
        )


class RayWatch:
    """Asks the parts of Ray four times a second whether they are well; a thread of the driver.

    Where one is dead, the main thread gets a ClusterError, wherever it is, and has five seconds to close records and
    trackers. If it does not come out of Ray's code by then, the process ends here, with the same message and status.

    Args:
        parts: what is watched. Each counts from its first answer on.
        go_on: says how the sweep is gone on with, as a sentence.
        clean: ends the processes that Ray started for this sweep, where their raylet no longer does it.
    """

    def __init__(self, parts: Sequence[Part], go_on: Callable[[], str], clean: Callable[[], None]):
        self._health = [Health(part) for part in parts]
        self._go_on, self._clean = go_on, clean
        self.error: ClusterError | None = None
        self._stopped, self._closed = threading.Event(), threading.Event()
        self._turn = threading.Lock()  # to say it: who gets it, the main thread or the watch, says it alone
        self._leaving = False
        self._well = False  # the block is done, and Ray was alive

    def leave(self) -> None:
        """The sweep is being stopped: if Ray dies on the way, as where a signal goes to all processes, that is all."""
        self._leaving = True

    def stop(self) -> None:
        """Ray is about to be ended: from now on nothing is said of it."""
        self._stopped.set()
        for health in self._health:
            health.close()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch while the block runs. Raises ClusterError in it, and in the place of errors that come from Ray's death.

        Outside the main thread nothing can be raised: there the process ends as where it hangs in Ray's code.
        """
        in_main = threading.current_thread() is threading.main_thread()
        before = signal.signal(_WAKE, self._raise) if in_main else None
        thread = threading.Thread(target=self._watch, name="Ray watch", daemon=True)
        thread.start()
        try:
            yield
            self._well = self.error is None  # from here on a death comes too late
            if self.error is not None and not self._leaving:
                raise self.error
        except ClusterError:
            raise
        except Exception as error:
            if self._died(thread) and not self._leaving:
                raise self.error or error from error
            raise
        finally:
            mine = self._turn.acquire(blocking=False)  # before the watch learns that the block is done
            self._closed.set()
            self.stop()
            if in_main:
                signal.signal(_WAKE, before)
            if self.error is not None and not self._well:
                if not mine:
                    time.sleep(_SAY_SECONDS)  # the watch is saying it, and ends the process
                atexit.register(self._exit)  # Ray's own end would take 15 s, and may abort

    def _died(self, thread: threading.Thread) -> bool:
        """Whether an error that came up now comes from Ray's death; where it does not answer, wait for certainty."""
        time.sleep(2 * _EVERY)  # somebody must have asked since
        while thread.is_alive() and self.error is None and any(it.failures for it in self._health):
            time.sleep(_EVERY)
        return self.error is not None

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if self.error is not None and not self._well and not self._turn.locked():
            raise self.error

    def _watch(self) -> None:
        while not self._stopped.wait(_EVERY):
            try:
                questions = [health.ask() for health in self._health]  # all at once
            except ValueError:  # they are closed: stopped meanwhile
                return
            for health, question in zip(self._health, questions, strict=True):
                health.take(question)
            dead = [health.part for health in self._health if health.is_dead()]
            if dead and not self._stopped.is_set():
                self._end(dead)

    def _end(self, dead: Sequence[Part]) -> None:
        names = " and ".join(f"{part.name} ({part.address})" for part in dead)
        message = f"Ray died: no answer from {names}. Everything recorded so far is kept. {self._go_on()}"
        errors = only_python_speaks()
        self.error = ClusterError(message)
        if not self._leaving:
            signal.pthread_kill(threading.main_thread().ident or 0, _WAKE)
        self._clean()
        self._closed.wait(_CLOSE_SECONDS)
        if self._well:
            return  # the sweep does without Ray by now
        if not self._leaving and self._turn.acquire(blocking=False):
            if sys.stdout.isatty():
                Console(file=sys.stdout).show_cursor()  # a live view hides it
            print(wrapped(visible(f"lorasweep: {message}"), errors), file=errors)
        else:
            time.sleep(_SAY_SECONDS)  # the main thread says it, and is gone by then
        self._exit()

    def _exit(self) -> None:
        end_now(INTERRUPTED if self._leaving else ClusterError.exit_code)
