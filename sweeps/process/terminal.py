"""Sentences wrapped for a terminal, in characters that it has. Imports nothing that takes time."""

import codecs
import io
import shutil
import textwrap
from typing import IO

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
