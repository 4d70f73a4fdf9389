"""A command that goes on without a terminal: in a session of its own, where no closed terminal reaches it.

The process that the user started passes on what the command prints until its work has begun or has failed, and ends.
From then on what it prints goes into a file.
"""

import os
import select
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sweeps.process.scratch import leave_to_janitor, take_over

_EVERY = 0.2  # seconds between two looks at what was printed
_CHUNK = 1 << 16


class _Waiting:
    """A detached process somebody waits for: what it printed so far, and the pipe that tells of its beginning."""

    def __init__(self, printed: tuple[IO[bytes], IO[bytes]], pipe: int):
        self.printed, self.pipe = printed, pipe


class Started:
    """A command that was detached, as the process sees it that started it.

    Args:
        pid: of the detached process.
        printed: what it writes to standard output and error.
        pipe: says where its work is, once that has begun.
    """

    def __init__(self, pid: int, printed: tuple[IO[bytes], IO[bytes]], pipe: int):
        self.pid = pid
        self._printed, self._pipe, self._passed_on = printed, pipe, [0, 0]

    def wait(self) -> int | str:
        """Pass on what it prints until its work has begun. Returns where that is, or the exit status without one."""
        try:
            while not select.select([self._pipe], [], [], _EVERY)[0]:
                self._pass_on()
            where = os.read(self._pipe, _CHUNK).decode()
        except KeyboardInterrupt:
            os.kill(self.pid, signal.SIGTERM)
            os.waitpid(self.pid, 0)
            raise
        status = 0 if where else os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self._pass_on()
        return where or (status if status >= 0 else 128 - status)

    def _pass_on(self) -> None:
        for i, (file, stream) in enumerate(zip(self._printed, (sys.stdout, sys.stderr), strict=True)):
            for chunk in _content(file, self._passed_on[i]):
                self._passed_on[i] += len(chunk)
                stream.write(chunk.decode(errors="replace"))
            stream.flush()


_waiting: _Waiting | None = None  # in a detached process whose work has not begun


def detach() -> Started | None:
    """Go on in a process without a terminal. Returns None in that one, and in this one what waits for it."""
    global _waiting
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    printed = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
    reading, writing = os.pipe()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal may be closed from here on
    pid = os.fork()
    if pid:
        os.close(writing)
        leave_to_janitor()
        return Started(pid, printed, reading)
    os.close(reading)
    os.setsid()
    take_over()
    others = [stream.fileno() for stream in (sys.stdout, sys.stderr)]  # may be copies of 1 and 2 (`may_be_closed`)
    for target, source in enumerate((os.open(os.devnull, os.O_RDONLY), *(file.fileno() for file in printed))):
        os.dup2(source, target)
    for target, file in zip(others, printed, strict=True):  # else whoever reads the pipe waits for the whole sweep
        os.dup2(file.fileno(), target)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    _waiting = _Waiting(printed, writing)
    return None


def begun(output: Path, where: str) -> None:
    """The work has begun: whoever waits for that is told so. In a process that is not detached, do nothing.

    Args:
        output: what this process prints from now on is appended to it, after what it has printed.
        where: the work is, for the user.
    """
    global _waiting
    if _waiting is None:
        return
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for target, (stream, printed) in enumerate(zip((sys.stdout, sys.stderr), _waiting.printed, strict=True), 1):
        stream.flush()
        for chunk in _content(printed, 0):
            os.write(file, chunk)
        os.dup2(file, target)
    os.close(file)
    os.write(_waiting.pipe, where.encode())
    os.close(_waiting.pipe)
    _waiting = None


def _content(file: IO[bytes], offset: int) -> Iterator[bytes]:
    """What was written from an offset on; the other process's place in the file stays what it is."""
    while chunk := os.pread(file.fileno(), _CHUNK, offset):
        offset += len(chunk)
        yield chunk
