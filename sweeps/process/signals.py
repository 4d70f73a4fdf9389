"""What Ctrl-C, SIGTERM and SIGHUP do to a command: it stops, once, and cleans up behind itself.

The first of them raises KeyboardInterrupt in the main thread, or does what a part of the command asks for instead
(``handled_by``). Those that follow are not heard, so that nothing breaks a clean-up; a second Ctrl-C alone leaves at
once. A command that has not come to its end seconds after an interrupt is ended here, with all that it started.

A signal that was ignored when the command was started stays so: ``nohup``, and ``&`` in a script, ask for that.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

from analysis.errors import INTERRUPTED
from sweeps.process.terminal import only_python_speaks
from sweeps.process.termination import end_now, leave_nothing_to_libraries

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_CLEAN_SECONDS = 12.0  # from an interrupt on, for the command to come to its end
_AGAIN_SECONDS = 0.1  # after which an interrupt that was lost in a library is raised once more

Act = Callable[[signal.Signals], None]


class _Signals:
    """The state of this process."""

    def __init__(self) -> None:
        self.acts: list[Act | None] = [_interrupt]
        self.hurries: list[Callable[[], None]] = [_end_hard]
        self.leftovers: list[Callable[[], None]] = []
        self.taken: list[signal.Signals] = []
        self.installed = self.patient = False
        self.begin()

    def begin(self) -> None:
        """No signal has come yet; what blocks around this have asked for stays."""
        self.first: signal.Signals | None = None
        self.unheard = False  # the first came where signals are held
        self.interrupted = self.said = self.hung_up = False

    def serve(self) -> None:
        """Do what is asked for at the first signal, unless signals are held."""
        act, first = self.acts[-1], self.first
        self.unheard = act is None
        if act is not None and first is not None:
            act(first)


def came() -> signal.Signals | None:
    """The first signal that asked this command to stop."""
    return _state.first


def interrupted() -> bool:
    """Whether the signal raised KeyboardInterrupt; a sweep that was told to stop by it comes to its end instead."""
    return _state.interrupted


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Take the signals while the block lasts. Outside of the main thread, and inside itself, it does nothing."""
    if _state.installed or threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.begin()
    _state.installed = True
    hooks = threading.excepthook, sys.unraisablehook
    before = {it: signal.signal(it, _caught) for it in STOPPING if signal.getsignal(it) is not signal.SIG_IGN}
    _state.taken = list(before)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        threading.excepthook, sys.unraisablehook = hooks
        _state.installed = False


def take_again() -> None:
    """Take the signals from a library that took them: Ray's C++ code prints the stack first, whoever comes after it."""
    if _state.installed and threading.current_thread() is threading.main_thread():
        for number in _state.taken:
            signal.signal(number, _caught)


@contextlib.contextmanager
def handled_by(act: Act | None, hurry: Callable[[], None] | None = None) -> Iterator[None]:
    """While the block lasts, the first signal calls ``act`` instead of raising KeyboardInterrupt.

    Args:
        act: called in the main thread; None holds the signal until the block is done, or a block in it takes it.
        hurry: called for a Ctrl-C that follows; None: as outside of the block.
    """
    _state.acts.append(act)
    _state.hurries.append(hurry or _state.hurries[-1])
    try:
        if _state.unheard:
            _state.serve()
        yield
    finally:
        _state.acts.pop()
        _state.hurries.pop()
    if _state.unheard:
        _state.serve()


@contextlib.contextmanager
def left_behind(remove: Callable[[], None]) -> Iterator[None]:
    """While the block lasts: what is to be removed where the command has to be ended without coming to its end."""
    _state.leftovers.append(remove)
    try:
        yield
    finally:
        _state.leftovers.remove(remove)


@contextlib.contextmanager
def patient() -> Iterator[None]:
    """While the block lasts, an interrupted command is given the time that it takes, such as for an upload."""
    before, _state.patient = _state.patient, True
    try:
        yield
    finally:
        _state.patient = before


@contextlib.contextmanager
def hangups_kept_from_children() -> Iterator[None]:
    """What is started in the block does not hear of a closed terminal, which tells all processes of a command.

    The others learn from us what is to be done before they end. A signal that is blocked stays so in children; here,
    a thread of its own takes it, and wakes the main thread up.
    """
    if not _state.installed or signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    done = threading.Event()
    threading.Thread(target=_take_hangups, args=(done,), name="hangups", daemon=True).start()
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        done.set()


def said_stopped() -> None:
    """Print ``Stopped.``, once."""
    if not _state.said:
        _state.said = True
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            print("Stopped.", file=sys.stderr, flush=True)


def _take_hangups(done: threading.Event) -> None:
    while not done.is_set():
        if signal.sigtimedwait({signal.SIGHUP}, _AGAIN_SECONDS) is not None:
            _state.hung_up = True
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def _caught(number: int, frame: FrameType | None) -> None:
    if _state.first is None:
        _state.first = signal.SIGHUP if _state.hung_up else signal.Signals(number)
        _leave_quietly()
        _state.serve()
    elif number == signal.SIGINT:
        _state.hurries[-1]()


def _leave_quietly() -> None:
    """From now on libraries that find a part of them gone say so to nobody, and their ends are not waited for."""
    leave_nothing_to_libraries()
    only_python_speaks()
    threading.excepthook = lambda told: _log(told.exc_type, told.exc_value, told.exc_traceback)
    sys.unraisablehook = _unraisable


def _unraisable(told: Any) -> None:
    if isinstance(told.exc_value, KeyboardInterrupt):  # raised where Python cannot pass it on: in a callback, such as
        threading.Timer(_AGAIN_SECONDS, _raise_again).start()  # of the garbage collector
    else:
        _log(told.exc_type, told.exc_value, told.exc_traceback)


def _raise_again() -> None:
    first, _state.first = _state.first, None
    os.kill(os.getpid(), first or signal.SIGTERM)


def _log(kind: Any, error: Any, trace: Any) -> None:
    logging.getLogger("sweeps.driver").warning("while stopping", exc_info=(kind, error, trace))


def _interrupt(number: signal.Signals) -> NoReturn:
    if not _state.interrupted:
        threading.Thread(target=_end_late, name="end of a stopped command", daemon=True).start()
    _state.interrupted = True
    raise KeyboardInterrupt


def _end_late() -> None:
    time.sleep(_CLEAN_SECONDS)
    while _state.patient:
        time.sleep(_AGAIN_SECONDS)
    _end_hard()


def _end_hard() -> None:
    """End the command here and now, and all that it started."""
    said_stopped()
    end_now(INTERRUPTED, _state.leftovers)


_state = _Signals()
