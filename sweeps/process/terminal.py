"""What a command prints: wrapped for a terminal, and nothing that steers it. Imports nothing that takes time."""

import contextlib
import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import IO, Any

from analysis.text.visible import middle_out, visible

_LONGEST = 2_000  # characters of a word of a message; a longer one is no word, but a value that somebody gave


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
