"""Sentences wrapped for a terminal. Imports nothing that takes time."""

import shutil
import textwrap
from typing import IO


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
