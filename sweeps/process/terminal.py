"""Sentences for a terminal. Imports nothing that takes time."""

import shutil
import textwrap
from typing import IO


def wrapped(text: str, stream: IO[str]) -> str:
    """Text in lines of whole words where the stream is a terminal; a pipe gets it as it is."""
    if not stream.isatty():
        return text
    width = shutil.get_terminal_size((120, 24)).columns
    return "\n".join(
        textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False) for line in text.split("\n")
    )
