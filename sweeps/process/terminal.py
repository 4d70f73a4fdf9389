"""What a command prints: wrapped for a terminal, which may be closed, in characters that it has, that do not steer it.

Imports nothing that takes time.
"""

import codecs
import contextlib
import errno
import io
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import IO, Any, TextIO

from analysis.text.visible import middle_out, visible

_LONGEST = 2_000  # characters of a word of a message; a longer one is no word, but a value that somebody gave
_ERRORS = 2  # the descriptor of standard error
_GONE = (errno.EIO, errno.ENXIO)  # of a terminal that was closed


class Terminal(io.FileIO):
    """Writes to a terminal. Once that is closed, what is written is lost, and whoever writes has no error from it.

    Args:
        descriptor: stays open.
    """

    def __init__(self, descriptor: int):
        super().__init__(descriptor, "wb", closefd=False)

    def write(self, data) -> int:  # type: ignore[no-untyped-def,override]  # any buffer, named differently by version
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return memoryview(data).nbytes


def _stream(descriptor: int, like: TextIO) -> io.TextIOWrapper:
    """A stream of text to a terminal."""
    buffer = io.BufferedWriter(Terminal(descriptor))
    return io.TextIOWrapper(buffer, like.encoding, like.errors, line_buffering=True)


@contextlib.contextmanager
def may_be_closed() -> Iterator[None]:
    """While the block lasts, the terminal may be closed, and nothing fails because of it."""
    before = sys.stdout, sys.stderr
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if before[0].isatty():
            before[0].flush()
            sys.stdout = _stream(before[0].fileno(), before[0])
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if before[1].fileno() == _ERRORS:  # a descriptor of its own: libraries can be silenced without Python
            before[1].flush()
            sys.stderr = _stream(os.dup(_ERRORS), before[1])
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        sys.stdout, sys.stderr = before


def only_python_speaks() -> TextIO:
    """Leave standard error to Python's own prints: what libraries' C++ code says from now on helps nobody.

    Returns:
        What they print to.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):  # it is no file, or closed
        sys.stderr.flush()
        if sys.stderr.fileno() == _ERRORS:
            sys.stderr = _stream(os.dup(_ERRORS), sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), _ERRORS)
    return sys.stderr


_PLAIN = {"–": "-", "—": "-", "…": "...", "·": "|", "×": "x", "→": "->", "≥": ">=", "≤": "<=", "✓": "+", "✗": "x"}


def show_anything(*streams: IO[str]) -> None:
    """From now on, write what a stream's encoding lacks, such as of ``LC_ALL=C``, in its nearest form, or as "?".

    Without this, a command ends with an error at the first character that the terminal cannot show.

    Args:
        streams: standard output and error; such that are no text files of Python's own are left alone.
    """
    codecs.register_error("lorasweep", _nearest)
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="lorasweep")


def _nearest(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(character, "?") for character in error.object[error.start : error.end]), error.end


def wrapped(text: str, stream: IO[str]) -> str:
    """Text in lines of whole words where the stream is a terminal; unchanged for a pipe.

    Args:
        text: sentences; its own line breaks stay.
        stream: where it will be printed.
    """
    if not stream.isatty():
        return text
    width = shutil.get_terminal_size((120, 24)).columns
    return "\n".join(
        textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False) for line in text.split("\n")
    )


def message(text: str) -> str:
    """What an error says, safe to show: what it quotes may hold anything, and be of any length."""
    lines = visible(text).split("\n")
    return "\n".join(" ".join(middle_out(word, _LONGEST) for word in line.split(" ")) for line in lines)


class SafeStream:
    """A text stream that writes control characters as signs. All else is the stream's own.

    Rich writes past it (``rich_proxied_file``): its escapes are its own, and ``SafeConsole`` sees to the texts.

    Args:
        stream: such as standard output.
    """

    def __init__(self, stream: IO[str]) -> None:
        self.rich_proxied_file = stream

    def write(self, text: str) -> int:
        if not text.isprintable() and not _of_progress_bar():
            text = visible(text)
        return self.rich_proxied_file.write(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __iter__(self) -> Iterator[str]:
        return iter(self.rich_proxied_file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


def _of_progress_bar() -> bool:
    """Whether the caller's caller is tqdm, which moves the cursor while the hub's files are fetched."""
    return str(sys._getframe(2).f_globals.get("__name__")).startswith("tqdm.")


@contextlib.contextmanager
def safe_streams() -> Iterator[None]:
    """Standard output and standard error as ``SafeStream`` for as long as this lasts."""
    before = sys.stdout, sys.stderr
    safe = [stream if stream is None or isinstance(stream, SafeStream) else SafeStream(stream) for stream in before]
    sys.stdout, sys.stderr = safe  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
