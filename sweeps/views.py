"""How a running sweep is shown: a live table on a terminal, plain lines in a pipe, or nothing."""

import math
from collections.abc import Callable, Mapping
from typing import IO, Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from analysis.folder import State
from sweeps.standing import SweepState, TrialState

_STATES = {State.STOPPED_EARLY: "stopped", State.OUT_OF_MEMORY: "no memory"}
_STYLES = {State.COMPLETED: "green", State.RUNNING: "bold", State.STOPPED_EARLY: "dim"}  # others: red


class View(Protocol):
    """Shows events of a sweep as they happen. Called from any thread, never while the state is being changed."""

    def event(self, line: str) -> None:
        """A trial started, reached a rung or ended; ``line`` says so."""
        ...

    def say(self, line: str) -> None:
        """Something that stays on the terminal."""
        ...

    def close(self) -> None: ...


class Quiet:
    def event(self, line: str) -> None:
        pass

    def say(self, line: str) -> None:
        pass

    def close(self) -> None:
        pass


class PlainLines:
    """One line per event, for pipes and logs."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream: IO[str] | None = stream

    def event(self, line: str) -> None:
        self.say(line)

    def say(self, line: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # the reader is gone (`| head`): no reason to end the sweep
            self._stream = None
        except RuntimeError:  # a signal handler spoke in the middle of a line
            pass

    def close(self) -> None:
        pass


class LiveTable:
    """A table that is redrawn in place, and gone when the sweep is over. ``table`` makes it for a width and height."""

    def __init__(self, console: Console, table: Callable[[int, int], RenderableType]) -> None:
        self._console = console
        self._live = Live(
            console=console,
            get_renderable=lambda: table(console.width, console.height),
            refresh_per_second=2,
            transient=True,
            vertical_overflow="crop",
        )
        self._live.start(refresh=True)

    def event(self, line: str) -> None:
        self._live.refresh()

    def say(self, line: str) -> None:
        self._console.print(Text(line))

    def close(self) -> None:
        self._live.stop()


def table(state: SweepState, width: int, height: int) -> RenderableType:
    """The sweep at a glance in ``width`` (80 or more) by ``height``: running trials first, then the latest to end."""
    grid = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", expand=False)
    grid.add_column("trial", no_wrap=True)
    grid.add_column("values", no_wrap=True, overflow="ellipsis", max_width=max(width - 52, 10))
    for title in ("step", "acc.", "F1", "obj."):
        grid.add_column(title, no_wrap=True, justify="right")
    grid.add_column("state", no_wrap=True)
    grid.add_column("time", no_wrap=True, justify="right")
    ended = sorted(
        (t for t in state.trials.values() if t.ended is not None), key=lambda t: t.ended or 0.0, reverse=True
    )
    rows = [*state.running, *ended]
    room = max(height - 4, 1)  # the summary, the phase, the heading, and how many are not shown
    for trial in rows[:room]:
        style = _STYLES.get(trial.state, "red")
        cells = (
            trial.trial_id,
            short_values(trial.values),
            f"{trial.step}/{trial.max_steps}",
            _score(trial.metrics.get("accuracy")),
            _score(trial.metrics.get("macro_f1")),
            _score(trial.objective),
            _STATES.get(trial.state, str(trial.state)),
            duration(state.elapsed(trial.trial_id)),
        )
        grid.add_row(*(Text(cell) for cell in cells), style=style)
    lines: list[RenderableType] = [Text(_summary(state), style="bold", overflow="ellipsis", no_wrap=True)]
    if state.phase:
        lines.append(Text(state.phase, overflow="ellipsis", no_wrap=True))
    if rows:
        lines.append(grid)
    if len(rows) > room:
        lines.append(Text(f"… and {len(rows) - room} more", style="dim"))
    return Group(*lines)


def _summary(state: SweepState) -> str:
    parts = [state.name, f"{state.ended}/{state.total} done"]
    if state.running:
        parts.append(f"{len(state.running)} running")
    parts.append(duration(state.elapsed()))
    if state.ended < state.total:
        parts.append(time_left(state.seconds_left()))
    return " · ".join(parts)


def duration(seconds: float) -> str:
    """``0:07``, ``12:34`` or ``1:02:03``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def time_left(seconds: float | None) -> str:
    """``~40 s left``, ``~3 min left``, ``~2 h 10 min left``, or ``…``; no more precise than an estimate is."""
    if seconds is None:
        return "…"
    if seconds < 55:
        return f"~{max(10, math.ceil(seconds / 10) * 10)} s left"
    minutes = math.ceil(seconds / 60 - 0.25)
    if minutes < 90:
        return f"~{minutes} min left"
    hours, minutes = divmod(math.ceil(minutes / 10) * 10, 60)
    return f"~{hours} h {minutes} min left" if minutes else f"~{hours} h left"


def short_values(values: Mapping[str, Any]) -> str:
    """``rank=8 lr=3e-4 nf4``: the last part of each path; a precision explains itself."""
    return " ".join(
        _short(value) if path == "precision" else f"{path.rsplit('.', 1)[-1]}={_short(value)}"
        for path, value in values.items()
    )


def _short(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    if value and not 0.01 <= abs(value) < 1000:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.3g}"


def _score(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


def scores(trial: TrialState) -> str:
    shown = {
        "accuracy": trial.metrics.get("accuracy"),
        "F1": trial.metrics.get("macro_f1"),
        "objective": trial.objective,
    }
    return "".join(f"  {name} {_score(value)}" for name, value in shown.items() if _score(value) != "–")
