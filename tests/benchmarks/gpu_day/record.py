"""The figures of a part of the day, in a JSON file that is whole at any time, whatever ends the part."""

import json
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NOT_MEASURED = "not measured"
COMPLETE, FAILED, STOPPED, LEFT_OUT = "complete", "failed", "stopped", "left out"
_LAST_LINES = 12  # of a traceback


def last_lines(error: BaseException) -> str:
    """The end of an error's traceback, where it says what went wrong."""
    return "\n".join("".join(traceback.format_exception(error)).splitlines()[-_LAST_LINES:])


class Record:
    """What a part found so far.

    Args:
        path: the JSON file.
        part: its number.
        title: what it measures.
        minutes: that it may take.
        dry: whether this is the dry run, with tiny shapes.
        models: folder of models with random weights, made where they are not there yet.
    """

    def __init__(self, path: Path, part: int, title: str, minutes: float, dry: bool, models: Path):
        self.path, self.dry, self.models = path, dry, models
        self._began = time.monotonic()
        self._end = self._began + 60 * minutes
        self.content: dict[str, Any] = {
            "part": part,
            "title": title,
            "dry": dry,
            "state": STOPPED,  # until it says otherwise
            "minutes": minutes,
            "seconds": 0.0,
            "machine": {},
            "figures": {},
            "errors": [],
            "left_out": [],
        }

    @property
    def figures(self) -> dict[str, Any]:
        figures: dict[str, Any] = self.content["figures"]
        return figures

    @property
    def seconds_left(self) -> float:
        """Of the part's own budget."""
        return self._end - time.monotonic()

    def add(self, name: str, value: Any) -> None:
        """Put a figure down."""
        self.figures[name] = value
        self.save()

    def leave_out(self, what: str, why: str) -> None:
        """Say that something was not measured, and why."""
        print(f"left out: {what}: {why}", flush=True)
        self.content["left_out"].append({"what": what, "why": why})
        self.save()

    def fail(self, what: str, error: str) -> None:
        """Put an error down."""
        print(f"failed: {what}\n{error}", flush=True)
        self.content["errors"].append({"what": what, "error": error})
        self.save()

    @contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """A block whose error is put down; what follows it goes on. What begins too late is left out by its caller."""
        try:
            yield
        except Exception as error:
            self.fail(what, last_lines(error))
        self.save()

    def end(self, state: str) -> None:
        self.content["state"] = state
        self.save()

    def save(self) -> None:
        self.content["seconds"] = round(time.monotonic() - self._began, 1)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f"{self.path.name}.part")
        part.write_text(json.dumps(self.content, indent=1, default=str))
        part.replace(self.path)


def markdown(headings: list[str], rows: list[list[Any]]) -> list[str]:
    """A table; None is shown as not measured."""
    shown = [[NOT_MEASURED if cell is None else str(cell) for cell in row] for row in rows]
    return [f"| {' | '.join(line)} |" for line in (headings, ["---"] * len(headings), *shown)]


def number(value: float | None, form: str, unit: str = "") -> str | None:
    """A number as a table shows it; None stays None."""
    return None if value is None else f"{value:{form}}{unit}"
