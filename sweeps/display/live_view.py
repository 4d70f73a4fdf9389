"""How a running sweep is shown: a live table on a terminal, plain lines in a pipe, or nothing."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, Protocol

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live as RichLive
from rich.table import Table
from rich.text import Text

from analysis.folder import State
from analysis.metrics import METRICS
from analysis.rows import configuration_id
from analysis.text.visible import single_line
from sweeps.display.sweep_state import SweepState, TrialState

_STATES = {State.STOPPED_EARLY: "stopped", State.OUT_OF_MEMORY: "no memory"}
_STYLES = {State.COMPLETED: "green", State.RUNNING: "bold", State.STOPPED_EARLY: "dim"}  # others: red

# Metrics that are shown beside those of the objective, as far as there is room, in this order: name → title.
_MORE = {
    "accuracy": "acc.",
    "macro_f1": "F1",
    "log_loss": "loss",
    "perplexity": "ppl",
    "bits_per_byte": "bits/B",
    "bias.crows_pairs.pct": "CrowS",
}
_FEW = 2  # metrics that any terminal has room for
_SPEAKING = ("precision", "lora.alpha_rule", "lora.targets", "optim.schedule")  # in the table, where room is scarce
_WITH_LEFT = 90  # columns of a terminal with room for the time left of each trial
_METRIC_WIDTH = 8  # columns
_ROOMY = 104  # columns of a terminal with room for more metrics
_WIDE = 140  # columns of a terminal with room for reasons
_REASON_WIDTH = 30  # columns
VIEWS = ("auto", "table", "line", "plain", "quiet", "verbose")


class View(Protocol):
    """Shows events of a sweep as they happen. Called from any thread, never while the state is being changed."""

    def event(self, line: str) -> None:
        """Show an event: a trial started, reached a rung or ended, as ``line`` says."""
        ...

    def say(self, line: str) -> None:
        """Show a line that stays on the terminal."""
        ...

        """End the view and leave the terminal as it was."""

    def close(self) -> None: ...


class Quiet:
    """A view that shows nothing."""

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


class Live:
    """A view that is redrawn in place, and gone when the sweep is over.

    Args:
        console: Rich's.
        draw: (width, height in terminal cells) → what to show now.
    """

    def __init__(self, console: Console, draw: Callable[[int, int], RenderableType]) -> None:
        self._console = console
        self._live = RichLive(
            console=console,
            get_renderable=lambda: draw(console.width, console.height),
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
    """The sweep as a table: running trials first, then the latest to end. A wide one has more metrics, and reasons.

    Args:
        state: of the sweep.
        width: in terminal cells, 80 or more.
        height: in lines.
    """
    ended = sorted(
        (t for t in state.trials.values() if t.ended is not None), key=lambda t: t.ended or 0.0, reverse=True
    )
    rows = [*state.running, *ended]
    metrics = _metrics(state, rows, width)
    wide = width >= _WIDE
    with_left = width >= _WITH_LEFT
    heads = ["trial", "values", "step", *metrics.values(), "obj.", "outcome", "time"]
    heads += [*(["left"] if with_left else []), *(["reason"] if wide else [])]
    room = max(height - 4, 1)  # the summary, the phase, the heading, and how many are not shown
    best = state.best[0] if state.best else ""
    lines = []
    for trial in rows[:room]:
        left = state.trial_seconds_left(trial.trial_id)
        cells = [
            trial.trial_id + ("*" if best and configuration_id(trial.trial_id) == best else ""),
            short_values(trial.values, _SPEAKING),
            f"{trial.step}/{trial.max_steps}",
            *(_figure(name, trial.metrics.get(name)) for name in metrics),
            _score(trial.objective),
            _outcome(trial),
            duration(state.elapsed(trial.trial_id)),
            *(["" if trial.ended is not None else "…" if left is None else duration(left)] if with_left else []),
            *([trial.reason] if wide else []),
        ]
        cells = [*map(single_line, cells)]
        stuck = trial.one_class and trial.state is State.RUNNING
        lines.append((cells, "yellow" if stuck else _STYLES.get(trial.state, "red")))
    grid = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", expand=False)
    widths = [max([len(head), *(cell_len(cells[i]) for cells, _ in lines)]) for i, head in enumerate(heads)]
    taken = sum(min(w, _REASON_WIDTH) + 1 for head, w in zip(heads, widths, strict=True) if head != "values")
    for head in heads:
        widest = {"values": max(width - taken - 1, 10), "reason": _REASON_WIDTH}.get(head)
        left_aligned = head in ("trial", "values", "outcome", "reason")
        grid.add_column(
            head,
            no_wrap=True,
            justify="left" if left_aligned else "right",
            overflow="ellipsis",
            max_width=widest,
        )
    for cells, style in lines:
        grid.add_row(*(Text(cell) for cell in cells), style=style)
    shown: list[RenderableType] = [Text(_summary(state), style="bold", overflow="ellipsis", no_wrap=True)]
    if state.phase:
        shown.append(Text(single_line(state.phase), overflow="ellipsis", no_wrap=True))
    if rows:
        shown.append(grid)
    if len(rows) > room:
        shown.append(Text(f"… and {len(rows) - room} more", style="dim"))
    return Group(*shown)


def _outcome(trial: TrialState) -> str:
    """How it ended; of a running one, whether it learns at all."""
    if trial.state is State.RUNNING and trial.one_class:
        return "one class"
    return _STATES.get(trial.state, str(trial.state))


def _metrics(state: SweepState, rows: list[TrialState], width: int) -> dict[str, str]:
    """The metrics for which there is room, those of the objective first, and their titles."""
    known = {name for trial in rows for name in trial.metrics} or {*state.terms, "accuracy", "macro_f1"}
    room = _FEW + max(0, (width - _ROOMY) // _METRIC_WIDTH)
    names = [name for name in dict.fromkeys([*state.terms, *_MORE]) if name in known][:room]
    return {name: _MORE.get(name) or METRICS[name].head for name in names}


def _leading(state: SweepState) -> TrialState | None:
    """While none has completed: what has the highest objective at its last rung."""
    shown = (State.RUNNING, State.STOPPED_EARLY)
    scored = [it for it in state.trials.values() if it.state in shown and math.isfinite(it.objective)]
    return max(scored, key=lambda trial: trial.objective, default=None)


def one_line(state: SweepState, width: int) -> RenderableType:
    """The sweep in one line: how many trials are done, the best so far, the time left, and what happens now.

    While none has completed it names the one that leads at its last rung, and says so.

    Args:
        state: of the sweep.
        width: in terminal cells; a longer line is cut.
    """
    parts = [_summary(state)]
    leading = None if state.best else _leading(state)
    if state.best:
        parts.append(f"best {state.best[0]} {_score(state.best[1])}")
    elif leading is not None:
        stuck = " (one class)" if leading.one_class else ""
        parts.append(f"leads at its last rung: {leading.trial_id} {_score(leading.objective)}{stuck}")
    parts += [single_line(state.phase)] if state.phase else []
    return Group(Text(" · ".join(parts), overflow="ellipsis", no_wrap=True))  # print() alone would wrap a Text


def _summary(state: SweepState) -> str:
    parts = [single_line(state.name), f"{state.ended}/{state.total} done"]
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


def short_values(values: Mapping[str, Any], speaking: tuple[str, ...] = ("precision",)) -> str:
    """Sampled values in short, such as ``rank=8 lr=3e-4 nf4``: the last part of each path, and the value.

    Args:
        values: dotted path → value.
        speaking: paths whose values explain themselves and are shown without the path.
    """
    return " ".join(
        _short(value) if path in speaking else f"{path.rsplit('.', 1)[-1]}={_short(value)}"
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


def all_scores(trial: TrialState) -> str:
    """Every metric of a trial's last rung, and its objective, for a line of text."""
    shown = {**trial.metrics, "objective": trial.objective}
    return "".join(f"  {name} {_number(value)}" for name, value in shown.items())


def _figure(name: str, value: float | None) -> str:
    """A metric: shares with three decimals, others with four significant digits."""
    return _score(value) if METRICS[name].decimals == 3 else _number(value)


def _number(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.4g}"


def scores(trial: TrialState, terms: Sequence[str] = ()) -> str:
    """The first metrics and the objective of a trial's last rung, as far as they are known, for a line of text.

    They are followed by a remark where the trial has not begun to learn.

    Args:
        trial: running, or ended.
        terms: metrics of the objective; accuracy and macro-F1 follow them.
    """
    names = [name for name in dict.fromkeys([*terms, "accuracy", "macro_f1"]) if name in trial.metrics][:_FEW]
    shown = {"F1" if name == "macro_f1" else name: _figure(name, trial.metrics[name]) for name in names}
    shown["objective"] = _score(trial.objective)
    figures = "".join(f"  {name} {text}" for name, text in shown.items() if text != "–")
    return figures + ("  still one class for all rows" if trial.one_class else "")


def main_figures(metrics: Mapping[str, float]) -> str:
    """Accuracy and F1 for a line of progress, each after two spaces; empty where a row has neither."""
    names = {"accuracy": "accuracy", "macro_f1": "F1"}
    return "".join(f"  {head} {metrics[name]:.3f}" for name, head in names.items() if name in metrics)
