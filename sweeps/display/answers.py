"""Written answers in the terminal: reference and answers side by side where there is room, else one below the other."""

import math
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from analysis.answers import (
    ADDED,
    MISSING,
    PREFIX,
    Answers,
    Item,
    Piece,
    better_or_worse,
    differences,
    shortened,
)
from analysis.metrics import METRICS, as_shown
from analysis.text.visible import json_text, visible
from sweeps.process.console import SafeConsole

_COLUMN = 34  # characters that a column is to have, so that texts stand side by side
_PROMPT = 400  # characters of a prompt that are shown without --full
_STYLES = {MISSING: "yellow underline", ADDED: "bold red"}
_MARKS = {MISSING: ("[-", "-]"), ADDED: ("{+", "+}")}  # in a pipe: as `git diff --word-diff` has them


def show(shown: Answers, beside: Sequence[Answers], items: Sequence[Item], figure: str, full: bool) -> None:
    """Print items with what was written to them.

    Args:
        shown: whose answers they are.
        beside: other answers to the same items.
        items: in their order.
        figure: by which they are ordered.
        full: prompts as a whole.
    """
    colours = sys.stdout.isatty()
    width = shutil.get_terminal_size((120, 24)).columns
    console = SafeConsole(width=width, no_color=None if colours else True)
    for line in summary(shown, beside, figure):
        console.print(Text(visible(line)))
    said = "missing words underlined, added ones in red" if colours else "[-missing-] and {+added+} words"
    console.print(Text(f"The worst {len(items)} of {len(shown)}; {said}."))
    if not any(item.prompt for item in items):
        console.print(Text("The folder has no prompts: another version of lorasweep wrote it."))
    for number, item in enumerate(items, 1):
        console.print()
        console.rule(Text(f"{number}. {visible(item.item_id)}", style="bold"), align="left", characters="─")
        if item.prompt:
            prompt = visible(item.prompt if full else shortened(item.prompt, _PROMPT))
            console.print(Text(prompt, style="dim" if colours else ""))
            console.print()
        console.print(_texts([shown, *beside], item, width, colours))


def summary(shown: Answers, beside: Sequence[Answers], figure: str) -> list[str]:
    """Who is shown, and how it compares over all items: a sentence each."""
    rows = "test" if shown.split == "test" else "validation"
    mean = shown.mean(figure, list(shown.places))
    lines = [f"{shown.name}, step {shown.step}, {len(shown)} {rows} items: {figure} {_number(figure, mean)}."]
    for other in beside:
        common = [item for item in shown.places if item in other.places]
        if figure not in other.figures:
            lines.append(f"{other.name}: has no {figure}.")
            continue
        better, alike, worse = better_or_worse(shown, other, figure)
        items = "the same items" if len(common) == len(shown) else f"the {len(common)} items of both"
        lines.append(
            f"{other.name}: {figure} {_number(figure, other.mean(figure, common))} on {items};"
            f" {shown.name} is better on {better}, alike on {alike}, worse on {worse}."
        )
    return lines


def _texts(tables: Sequence[Answers], item: Item, width: int, colours: bool) -> RenderableType:
    """Reference and answers of an item, each under its name."""
    parts = [(_head("reference", colours), Text())]
    told: list[Piece] = [("", item.reference)]
    for n, (table, place) in enumerate(zip(tables, item.places, strict=True)):
        if place is None:
            parts.append((_head(table.name, colours), Text("(did not answer this item)", style="italic")))
            continue
        of_reference, pieces = differences(item.reference, table.text(place))
        if n == 0:
            told = of_reference
        text = _marked(pieces, colours) if table.text(place) else Text("(nothing)", style="italic")
        parts.append((_head(table.name, colours), Text("\n").join([text, _values(table, place, colours)])))
    parts[0] = (parts[0][0], _marked(told, colours))
    if width // len(parts) < _COLUMN:
        return Group(*(Group(head, Padding(text, (0, 0, 0, 2))) for head, text in parts))
    columns = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, expand=True, pad_edge=False)
    for head, _ in parts:
        columns.add_column(head, ratio=1, overflow="fold", vertical="top")
    columns.add_row(*(text for _, text in parts))
    return columns


def _head(name: str, colours: bool) -> Text:
    return Text(visible(name) + ("" if colours else ":"), style="bold cyan")


def _marked(pieces: Sequence[Piece], colours: bool) -> Text:
    text = Text(overflow="fold")
    for kind, part in pieces:
        opened, closed = ("", "") if colours else _MARKS.get(kind, ("", ""))
        text.append(opened + visible(part) + closed, style=_STYLES.get(kind, ""))
    return text


def _values(answers: Answers, i: int, colours: bool) -> Text:
    """The figures of an item, and how long its answer is."""
    parts = [f"{visible(name)} {_number(name, value)}" for name, value in answers.values(i).items()]
    if "prediction" in answers.columns and answers.get("prediction", i) is None:
        parts.append("none of the labels")
    tokens = answers.get("n_tokens", i)
    if tokens is not None:
        parts.append(f"{tokens} token{'s' * (tokens != 1)}")
    if answers.get("finished", i) is False:
        parts.append("cut off at eval.max_new_tokens")
    return Text(" · ".join(parts), style="dim" if colours else "")


def _number(figure: str, value: float) -> str:
    if PREFIX + figure in METRICS:
        return as_shown(PREFIX + figure, value)
    return f"{value:.3g}" if math.isfinite(value) else "-"


def as_json(shown: Answers, beside: Sequence[Answers], items: Sequence[Item], figure: str) -> str:
    """The same for programs, texts whole and as they were written; control characters are escaped."""
    records = []
    for item in items:
        answers: dict[str, Any] = {}
        for table, place in zip([shown, *beside], item.places, strict=True):
            if place is not None:
                kept = {name: table.get(name, place) for name in ("n_tokens", "finished", "prediction", "constrained")}
                answers[table.name] = {
                    "text": table.text(place),
                    **{name: value for name, value in kept.items() if name in table.columns},
                    "values": table.values(place),
                }
        records.append(
            {"item_id": item.item_id, "prompt": item.prompt, "reference": item.reference, "answers": answers}
        )
    content = {"trial": shown.name, "step": shown.step, "split": shown.split, "by": figure, "items": records}
    return json_text(content)
