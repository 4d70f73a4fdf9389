"""A process that is spoken to by lines, with time limits, and that does not outlive the process that started it.

What is run may hang, in C code too, write without end, crash, or leave processes of its own behind. So it runs in a
group of processes that is killed as one: on request, or by ``trainer/answers/guard.py`` where this process ends.
"""

import collections
import contextlib
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_MOST = 64 * 2**20  # bytes of an answer
_SECRETS = ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_SECRET_BEGINS = ("AWS_", "MLFLOW_TRACKING_", "AZURE_", "GOOGLE_")


class Hangs(Exception):
    """Nothing came within the time limit; the process is killed."""


class Ended(Exception):
    """The process ended before it answered. ``args[0]`` says how, as part of a sentence."""


class GuardedProcess:
    """A command that runs beside this process.

    Args:
        command: the program and its arguments.
        folder: that it runs in.
        without: further environment variables that it does not get, beside the keys that lorasweep itself uses.

    Raises:
        OSError: for a folder that is not there.
    """

    def __init__(self, command: Sequence[str], folder: str | None = None, without: Sequence[str] = ()):
        lifeline, self._lifeline = os.pipe()
        guard = [sys.executable, "-I", "-S", str(Path(__file__).with_name("guard.py")), str(lifeline)]
        try:
            self._process = subprocess.Popen(
                [*guard, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=folder,
                env=_environment(os.environ, without),
                pass_fds=[lifeline],
                start_new_session=True,  # Ctrl-C is not its own, and one signal ends all of it
            )
        except OSError:
            os.close(self._lifeline)
            raise
        finally:
            os.close(lifeline)
        assert self._process.stdin
        assert self._process.stdout
        self._heard = bytearray()
        self._said: collections.deque[str] = collections.deque(maxlen=20)
        self._streams = self._process.stdin, self._process.stdout
        for stream in self._streams:
            os.set_blocking(stream.fileno(), False)
        self._errors = threading.Thread(target=self._read_errors, name="errors of a metric", daemon=True)
        self._errors.start()

    def line(self, text: str, seconds: float) -> str:
        """Say a line (nothing, where ``text`` is empty), and return the next line that comes.

        Raises:
            Hangs: after ``seconds``.
            Ended: where it has ended without it.
        """
        self._exchange(f"{text}\n".encode() if text else b"", lambda: b"\n" in self._heard, seconds)
        heard, _, rest = bytes(self._heard).partition(b"\n")
        self._heard = bytearray(rest)
        return heard.decode("utf-8", "replace")

    def lines(self, texts: Sequence[str], seconds: float) -> list[str]:
        """Say lines and that there are no more, wait for its end, and return all lines that came.

        Raises:
            Hangs: after ``seconds``.
            Ended: where its exit status is not 0.
        """
        try:
            self._exchange("".join(f"{text}\n" for text in texts).encode(), lambda: False, seconds, close=True)
        except Ended:
            if status := self._status():
                raise Ended(self._how(status)) from None
        return bytes(self._heard).decode("utf-8", "replace").splitlines()

    def end(self) -> None:
        """Kill it, with all that it started."""
        if self._lifeline < 0:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # it is not reaped yet, so the number is its own
        self._process.wait()
        for stream in self._streams:
            with contextlib.suppress(OSError):
                stream.close()
        os.close(self._lifeline)
        self._lifeline = -1

    def _exchange(self, data: bytes, done: Callable[[], bool], seconds: float, close: bool = False) -> None:
        """Write and read beside each other until ``done``, so that neither side waits for the other with full pipes."""
        until = time.monotonic() + seconds
        writing, reading = self._streams
        left = memoryview(data)
        with selectors.DefaultSelector() as waiting:
            waiting.register(reading, selectors.EVENT_READ)
            if data:
                waiting.register(writing, selectors.EVENT_WRITE)
            while not done():
                ready = waiting.select(max(until - time.monotonic(), 0.0))
                if not ready:
                    self.end()
                    raise Hangs
                for chosen, _ in ready:
                    if chosen.fileobj is writing:
                        try:
                            left = left[os.write(writing.fileno(), left[: 1 << 16]) :]
                        except BrokenPipeError:  # it does not read to the end: what it says by then is what counts
                            left = left[:0]
                        if not left:
                            waiting.unregister(writing)
                            if close:
                                writing.close()
                        continue
                    part = os.read(reading.fileno(), 1 << 16)
                    self._heard += part
                    if not part:
                        raise Ended(self._how(self._status()))
                    if len(self._heard) > _MOST:
                        self.end()
                        raise Ended(f"wrote more than {_MOST >> 20} MB")

    def _status(self) -> int:
        """The exit status, once it has closed its output; what it may have left running is killed."""
        try:  # looked at without reaping, so that its group's number stays its own until that is killed
            until = time.monotonic() + 5.0
            while os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
                if time.monotonic() > until:
                    break
                time.sleep(0.005)
        except ChildProcessError:
            pass
        self.end()
        return self._process.returncode or 0

    def _how(self, status: int) -> str:
        self._errors.join(1.0)
        last = next((line for line in reversed(self._said) if line.strip()), "")
        signalled = signal.Signals(status - 128).name if 128 < status < 160 else ""
        what = f"ended by {signalled}" if signalled else f"ended with status {status}"
        return f"{what}{': ' if last else ''}{last.strip()[:200]}"

    def _read_errors(self) -> None:
        """Keep the last lines of standard error, for what is said of its end."""
        assert self._process.stderr
        with self._process.stderr as stream, contextlib.suppress(OSError, ValueError):
            for line in iter(lambda: stream.readline(4096), b""):
                self._said.append(line.decode("utf-8", "replace"))


def _environment(given: Mapping[str, str], without: Sequence[str]) -> dict[str, str]:
    """The environment without keys to what lorasweep itself uses: a metric has no need of them."""
    return {
        name: value
        for name, value in given.items()
        if name not in (*_SECRETS, *without) and not name.startswith(_SECRET_BEGINS)
    }
