"""Progress and time left while a sweep runs: a live table on a terminal, plain lines in a pipe, or nothing.

``SweepState`` is told what happened and computes; ``PlainLines`` and ``LiveTable`` show it; ``Progress`` is the Tune
callback between them.
"""

import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO, Any, Protocol

from ray.tune import Callback
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from analysis.folder import ENDED, State

# What Tune's callbacks are given.


def trial_key(trial: Any) -> tuple[str, dict[str, Any]]:
    """Our trial id and the sampled values. (``trial.trial_id``, and ``trial_id`` in a result, are Tune's own.)"""
    return str(trial.config["trial_id"]), dict(trial.config["values"])


def outcome_of(last: Mapping[str, Any] | None) -> tuple[State, str]:
    """How a trial that Tune calls complete ended, and why, from its last report.

    A trial that ends by itself says so in its last report; one that a scheduler or stopper ends does not.
    """
    if last is None:
        return State.STOPPED_EARLY, "stopped before its first rung"
    state = State(last["state"])
    if state is State.RUNNING:
        return State.STOPPED_EARLY, f"stopped at step {last['step']}"
    return state, str(last["reason"])


def rung_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rung evaluations that a report carries, each with step, tokens, seconds, n_items and metrics.

    A trial reports its last rung together with its end; ``rows`` holds both where the two are to be told apart.
    """
    if "rows" in result:
        return [row for row in result["rows"] if not row["final"]]
    return [dict(result)] if result["state"] == State.RUNNING else []


# What is known, and what follows from it.


@dataclass
class TrialState:
    """One trial as shown. Times are the clock's; ``metrics`` and ``objective`` are the last reported."""

    trial_id: str
    values: dict[str, Any]
    max_steps: int
    started: float
    step: int = 0
    state: State = State.RUNNING
    reason: str = ""
    ended: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    objective: float = math.nan


class SweepState:
    """Where a sweep is, and how long it will take.

    Args:
        name: of the sweep.
        trials: how many there will be in all.
        max_steps: optimiser steps of a whole trial, where its values do not say otherwise.
        ended_before: trials that ended before this process started (of a sweep that goes on).
        clock: seconds, never going back.
    """

    def __init__(
        self, name: str, trials: int, max_steps: int, ended_before: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name, self.total, self.max_steps, self.ended_before, self._clock = (
            name,
            trials,
            max_steps,
            ended_before,
            clock,
        )
        self.began = clock()
        self.phase = ""
        self.trials: dict[str, TrialState] = {}
        self._training_since: float | None = None
        self._last_report: float | None = None

    def start(self, trial_id: str, values: Mapping[str, Any]) -> bool:
        """False where the trial was known: a retry goes on in its row."""
        if trial_id in self.trials:
            return False
        steps = int(values.get("train.max_steps", self.max_steps))
        self.trials[trial_id] = TrialState(trial_id, dict(values), steps, self._clock())
        return True

    def report(
        self, trial_id: str, step: int, metrics: Mapping[str, float], objective: float, seconds: float = 0.0
    ) -> None:
        """A trial was evaluated, ``seconds`` after it was admitted to its slot."""
        trial, now = self.trials[trial_id], self._clock()
        trial.step, trial.metrics, trial.objective = max(trial.step, step), dict(metrics), objective
        if self._training_since is None:
            # Loading the model and waiting for a slot happen once, and would make the rest look slow.
            self._training_since = max(trial.started, now - seconds)
        self._last_report = now

    def end(self, trial_id: str, state: State, reason: str) -> None:
        trial = self.trials[trial_id]
        trial.state, trial.reason, trial.ended = state, reason, self._clock()

    @property
    def running(self) -> list[TrialState]:
        return [trial for trial in self.trials.values() if trial.ended is None]

    @property
    def ended(self) -> int:
        return self.ended_before + len(self.trials) - len(self.running)

    def elapsed(self, trial_id: str | None = None) -> float:
        """Seconds since the start of the sweep, or of a trial (until its end)."""
        if trial_id is None:
            return self._clock() - self.began
        trial = self.trials[trial_id]
        return (self._clock() if trial.ended is None else trial.ended) - trial.started

    def seconds_left(self) -> float | None:
        """From the steps per second that all trials made together; None where that cannot be known.

        Running trials are taken to go to their last step, those to come to need as many steps as the ones so far:
        the estimate errs on the long side where a scheduler stops many. None before the first rung, and once the time
        that was estimated is over.
        """
        if self._training_since is None or self._last_report is None:
            return None
        done = sum(trial.step for trial in self.trials.values())
        spent = self._last_report - self._training_since
        if not done or spent <= 0:
            return None
        needed = [trial.max_steps if trial.ended is None else trial.step for trial in self.trials.values()]
        to_come = max(self.total - self.ended_before - len(self.trials), 0)
        steps = sum(needed) - done + to_come * sum(needed) / len(needed)
        left = steps * spent / done - (self._clock() - self._last_report)
        return left if left > 0 else None


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


_STATES = {State.STOPPED_EARLY: "stopped", State.OUT_OF_MEMORY: "no memory"}
_STYLES = {State.COMPLETED: "green", State.RUNNING: "bold", State.STOPPED_EARLY: "dim"}  # others: red


# How it is shown.


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


class Progress(Callback):
    """Shows a sweep while it runs; a Tune callback, and a context manager that leaves the terminal as it was.

    Args:
        state: what is shown.
        stream: where to; a live table on a terminal, else one line per event.
        quiet: shows nothing at all.
    """

    def __init__(self, state: SweepState, stream: IO[str] | None = None, quiet: bool = False) -> None:
        stream = stream or sys.stdout
        self._state = state
        self._last: dict[str, Mapping[str, Any]] = {}  # trial id → what it reported last
        self._stopping = False
        # Never held while the view draws: a live view's own thread takes it to read the state.
        self._lock = threading.RLock()
        self._lines = quiet or not stream.isatty() or Console(file=stream).is_dumb_terminal
        self._view: View = Quiet() if quiet else PlainLines(stream)
        self._stream = stream

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray pickles callbacks into its scratch folder, and a sweep is never restored from there."""
        return {}

    def __enter__(self) -> "Progress":
        if not self._lines:
            self._view = LiveTable(Console(file=self._stream), self._table)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End a live view; what is said afterwards comes as plain lines. May be called more than once."""
        view = self._view
        if isinstance(view, LiveTable):
            self._view = PlainLines(self._stream)
            view.close()

    def phase(self, text: str) -> None:
        """What happens outside trials, such as ``loading model …``; it holds until the next phase or trial."""
        with self._lock:
            self._state.phase = text
            line = self._stamp(text)
        self._view.event(line)

    def note(self, text: str) -> None:
        """A line for the user that stays on the terminal. May be called from any thread."""
        with self._lock:
            line = self._stamp(text)
        self._view.say(line)

    def stopping(self, text: str) -> None:
        """``note``, and from now on trials that lose their process or are stopped are not shown as ended."""
        self._stopping = True
        self.note(text)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        trial_id, values = trial_key(trial)
        with self._lock:
            if not self._state.start(trial_id, values):
                return
            self._state.phase = ""
            line = self._stamp(f"{trial_id}  started  {short_values(values)}")
        self._view.event(line)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        trial_id, values = trial_key(trial)
        with self._lock:
            self._state.start(trial_id, values)
            self._last[trial_id] = dict(result)
            shown = self._state.trials[trial_id]
            metrics = result["metrics"] or shown.metrics  # a trial that diverged keeps what it had
            self._state.report(trial_id, result["step"], metrics, result["objective"], result["seconds"])
            if result["state"] != State.RUNNING:
                return  # its end says it all
            line = self._stamp(f"{trial_id}  step {shown.step}/{shown.max_steps}{_scores(shown)}  ({self._standing()})")
        self._view.event(line)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        trial_id = trial_key(trial)[0]
        self._end(trial_id, *outcome_of(self._last.get(trial_id)))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial_key(trial)[0], State.FAILED, "its process raised an error or was lost")

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        self.close()

    def _end(self, trial_id: str, state: State, reason: str) -> None:
        with self._lock:
            shown = self._state.trials.get(trial_id)
            if shown is None or shown.state in ENDED:
                return
            if self._stopping and state in (State.STOPPED_EARLY, State.FAILED):
                return  # it goes on when the sweep does
            self._state.end(trial_id, state, reason)
            why = f": {reason}" if reason and state is not State.STOPPED_EARLY else ""
            label = str(state).replace("_", " ")
            line = f"{trial_id}  {label} at step {shown.step}{_scores(shown)}  ({self._standing()}){why}"
            line = self._stamp(line)
        self._view.event(line)

    def _standing(self) -> str:
        state = self._state
        done = f"{state.ended}/{state.total} done"
        return done if state.ended >= state.total else f"{done}, {time_left(state.seconds_left())}"

    def _stamp(self, text: str) -> str:
        return f"[{duration(self._state.elapsed()):>7}] {text}"

    def _table(self, width: int, height: int) -> RenderableType:
        with self._lock:
            return table(self._state, width, height)


def _scores(trial: TrialState) -> str:
    shown = {
        "accuracy": trial.metrics.get("accuracy"),
        "F1": trial.metrics.get("macro_f1"),
        "objective": trial.objective,
    }
    return "".join(f"  {name} {_score(value)}" for name, value in shown.items() if _score(value) != "–")
