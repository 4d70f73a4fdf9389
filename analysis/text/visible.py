"""Texts from outside, safe to show: reasons, names, answers may hold what steers a terminal or a spreadsheet.

Whatever prints such a text, or writes it into a table, takes it through here. Standard library only.
"""

import json
import unicodedata
from typing import Any

_FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # what begins a formula: OWASP, "CSV Injection"
_BREAKS = str.maketrans({"\u2028": "\n", "\u2029": "\n"})


def visible(text: str) -> str:
    """A text of which nothing can steer a terminal: control characters and marks of direction become visible signs.

    Line breaks and tabs stay. ESC becomes ␛; a character of C1, half of a surrogate pair, or one that turns the
    direction of writing ``<U+202E>``.
    """
    if text.isprintable():
        return text
    lines = text.replace("\r\n", "\n").translate(_BREAKS).split("\n")
    return "\n".join(line if line.isprintable() else "".join(map(_sign, line)) for line in lines)


def single_line(text: object) -> str:
    """``visible``, in one line: line breaks and tabs become spaces. For cells of a table, names and notes."""
    shown = str(text)
    return shown if shown.isprintable() else visible(shown).replace("\n", " ").replace("\t", " ")


def _sign(char: str) -> str:
    if char == "\t" or char.isprintable():
        return char
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    joins = code in (0x200C, 0x200D, 0xFE0F) or unicodedata.category(char) == "Zs"  # of emoji and Persian; spaces
    return char if joins else f"<U+{code:04X}>"


def middle_out(text: str, most: int) -> str:
    """A text of at most so many characters; a longer one has an ellipsis in the place of its middle."""
    if len(text) <= most:
        return text
    tail = (most - 1) // 3
    return f"{text[: most - 1 - tail]}…{text[len(text) - tail :]}"


def csv_cell(value: Any) -> Any:
    """A cell of a CSV file: numbers as they are; a text is ``visible``, and never a formula to a spreadsheet.

    A text that would be one has an apostrophe before it, as OWASP advises ("CSV Injection"). A text that is a number,
    such as ``-0.5``, is none.
    """
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if value.startswith(_FORMULA) and not _number(value) else text


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.isascii() and text.isprintable()


def json_text(content: Any, indent: int | None = 2) -> str:
    """JSON for other programs: texts whole, what is not printable escaped.

    Args:
        content: plain values; numbers that are not finite are null.
        indent: of a level; None for one line.
    """
    text = json.dumps(finite(content), indent=indent, ensure_ascii=False, allow_nan=False)
    if text.isascii() and "\x7f" not in text:
        return text
    return "".join(
        char if char == "\n" or char.isprintable() else json.dumps(char)[1:-1] if ord(char) > 0x7F else "\\u007f"
        for char in text
    )


def finite(value: Any) -> Any:
    """Plain values with None in the place of numbers that are not finite."""
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and value - value != 0 else value
