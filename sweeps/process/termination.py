"""How a process ends: on SIGTERM where its main thread is not ours, and where a library's own end would hang."""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable

from sweeps.process.scratch import outliving

_END_SECONDS = 3.0  # for the handler that was there before to end the process
_CHILD_SECONDS = 2.0  # for a child to end by itself
_at_once = threading.Event()


def on_sigterm(act: Callable[[], None]) -> None:
    """When this process gets SIGTERM, call ``act`` in a thread of its own; then end as without this function.

    ``signal.signal`` works in the main thread alone, and there Ray's own loop runs: all of an async actor's methods,
    ``__init__`` too, run in another one. ``faulthandler`` takes a signal from any thread, and writes to a pipe at once,
    whatever the main thread does. Afterwards the handler that was there gets the signal: Ray's answers the calls that
    are under way, and its message on the dead actor names SIGTERM. The process ends in any case.

    Args:
        act: what is to be done before the end.
    """
    reading, writing = os.pipe()
    faulthandler.register(signal.SIGTERM, file=writing, all_threads=False, chain=False)
    # a forked child must not write to the pipe of its parent
    os.register_at_fork(after_in_child=lambda: faulthandler.unregister(signal.SIGTERM))

    def wait() -> None:
        os.read(reading, 1)
        try:
            act()
        finally:
            faulthandler.unregister(signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(_END_SECONDS)
            os._exit(128 + signal.SIGTERM)

    threading.Thread(target=wait, name="sigterm", daemon=True).start()


def leave_nothing_to_libraries() -> None:
    """Some library's end hangs: let ``ending`` end this process without what libraries do in the end."""
    _at_once.set()


def ending(status: int) -> int:
    """The exit status, once all is done; the process may end right here.

    Args:
        status: of the command.
    """
    if _at_once.is_set():
        end_now(status)
    return status


def end_now(status: int, leftovers: Iterable[Callable[[], None]] = ()) -> None:
    """End this process without what libraries do at the interpreter's end; what was printed is written.

    What it started ends with it: W&B's service, which writes what it has, and whatever a signal left half begun.

    Args:
        status: of the process.
        leftovers: remove what would stay, once no process is left.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            stream.flush()
    _end_children()
    for remove in leftovers:
        with contextlib.suppress(Exception):
            remove()
    os._exit(status)


def _end_children() -> None:
    import psutil  # only here: each command imports this module

    below = [child for child in psutil.Process().children(recursive=True) if child.pid not in outliving]
    for child in below:
        with contextlib.suppress(psutil.Error):
            child.terminate()
    for child in psutil.wait_procs(below, _CHILD_SECONDS)[1]:
        with contextlib.suppress(psutil.Error):
            child.kill()
