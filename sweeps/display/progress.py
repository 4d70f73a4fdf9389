"""Shows the progress of a sweep: takes Ray Tune's trial events, updates ``SweepState``, and redraws a view."""

import sys
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import IO, Any

from rich.console import Console, RenderableType

from analysis.folder import ENDED, State
from analysis.rows import Row
from analysis.text.visible import visible
from sweeps.display.live_view import (
    Live,
    PlainLines,
    Quiet,
    View,
    all_scores,
    duration,
    one_line,
    scores,
    short_values,
    table,
    time_left,
)
from sweeps.display.sweep_state import SweepState
from sweeps.process.console import SafeConsole
from sweeps.store.tune_results import outcome_of, trial_key


class Progress:
    """Shows a sweep while it runs; a context manager that leaves the terminal as it was.

    Args:
        state: what is shown.
        stream: where to; a live table on a terminal, else one line per event.
        view: one of ``VIEWS``.
    """

    def __init__(self, state: SweepState, stream: IO[str] | None = None, view: str = "auto") -> None:
        stream = stream or sys.stdout
        self._state = state
        self._last: dict[str, Mapping[str, Any]] = {}  # trial id → what it reported last
        self._stopping = False
        # Never held while the view draws: a live view's own thread takes it to read the state.
        self._lock = threading.RLock()
        self.verbose = view == "verbose"
        plain = view in ("quiet", "plain", "verbose") or not stream.isatty() or Console(file=stream).is_dumb_terminal
        self._live: Callable[[int, int], RenderableType] | None = None
        if not plain:  # only a terminal can be redrawn
            self._live = self._line if view == "line" else self._table
        self._view: View = Quiet() if view == "quiet" else PlainLines(stream)
        self._stream = stream

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles what it is given into its scratch folder, and a sweep is never restored from there

    def __enter__(self) -> "Progress":
        if self._live is not None:
            self._view = Live(SafeConsole(file=self._stream), self._live)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End a live view. Later messages come as plain lines. May be called more than once."""
        view = self._view
        if isinstance(view, Live):
            self._view = PlainLines(self._stream)
            view.close()

    def phase(self, text: str) -> None:
        """Say what happens outside trials, such as ``loading model …``; it holds until the next phase or trial."""
        with self._lock:
            self._state.phase = text
            line = self._stamp(text)
        self._view.event(line)

    def planned(self, trials: int, max_steps: int) -> None:
        """How many trials there will be, and how long they are: where the config leaves that open, known only now."""
        with self._lock:
            self._state.total, self._state.max_steps = trials, max_steps

    def best(self, row: Row | None) -> None:
        """Which trial is best now, by the ranking; None while none has completed."""
        with self._lock:
            self._state.best = (row.trial_id, row.objective) if row is not None else None

    def event(self, text: str) -> None:
        """Print a line where events are lines; in a view that is redrawn it stands anyway."""
        with self._lock:
            line = self._stamp(text)
        self._view.event(line)

    def note(self, text: str) -> None:
        """Print a line that stays on the terminal. May be called from any thread."""
        with self._lock:
            line = self._stamp(text)
        self._view.say(line)

    def stopping(self, text: str) -> None:
        """``note``; from now on, trials that lose their process or are stopped are not shown as ended."""
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
            figures = all_scores(shown) if self.verbose else scores(shown, self._state.terms)
            line = self._stamp(f"{trial_id}  step {shown.step}/{shown.max_steps}{figures}  ({self._done_text()})")
        self._view.event(line)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        trial_id = trial_key(trial)[0]
        self._end(trial_id, *outcome_of(self._last.get(trial_id)))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial_key(trial)[0], State.FAILED, "its process raised an error or was lost")

    def _end(self, trial_id: str, state: State, reason: str) -> None:
        with self._lock:
            shown = self._state.trials.get(trial_id)
            if shown is None or shown.state in ENDED:
                return
            if self._stopping and state in (State.STOPPED_EARLY, State.FAILED):
                return  # it has not ended: a resume goes on with it
            self._state.end(trial_id, state, reason)
            why = f": {reason}" if reason and state is not State.STOPPED_EARLY else ""
            label = str(state).replace("_", " ")
            figures = all_scores(shown) if self.verbose else scores(shown, self._state.terms)
            line = f"{trial_id}  {label} at step {shown.step}{figures}  ({self._done_text()}){why}"
            line = self._stamp(line)
        self._view.event(line)

    def _done_text(self) -> str:
        """Such as ``3/8 done, ~3 min left``."""
        state = self._state
        done = f"{state.ended}/{state.total} done"
        return done if state.ended >= state.total else f"{done}, {time_left(state.seconds_left())}"

    def _stamp(self, text: str) -> str:
        return f"[{duration(self._state.elapsed()):>7}] {visible(text)}"

    def _table(self, width: int, height: int) -> RenderableType:
        with self._lock:
            return table(self._state, width, height)

    def _line(self, width: int, height: int) -> RenderableType:
        with self._lock:
            return one_line(self._state, width)
