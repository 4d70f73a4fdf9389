"""Shows a sweep that another process runs as that one shows it itself, from the sweep folder alone."""

import math
import time
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from analysis.errors import LorasweepError
from analysis.folder import MetricsRow, State, SweepFolder, read_lines
from analysis.leaderboard.leaderboard import build
from analysis.objective import Objective
from analysis.rows import best_trial, configuration_id
from sweeps.display.live_view import main_figures
from sweeps.display.progress import Progress
from sweeps.display.sweep_state import SweepState
from sweeps.process.throttle import Throttle
from sweeps.store.control import Driver

_SHOWN = ("ask", "rung", "tell")  # events of study/asks.jsonl that a view shows


class Follower:
    """Tells a view what happens in a sweep, as Ray Tune tells it in the sweep's own process.

    What happened is in ``study/asks.jsonl``, with times; the metrics are in the folders of trials and baselines.

    Args:
        folder: of the sweep.
        manifest: of the sweep.
        process: that runs it.
    """

    def __init__(self, folder: SweepFolder, manifest: Mapping[str, Any], process: Driver):
        self.folder, self._process, self._config = folder, process, manifest["config"]
        self._objective = Objective.from_config(self._config["objective"])
        self._at: float | None = None  # what the view takes for now, while it catches up
        self._known = 0  # lines of asks.jsonl
        self._scored: set[str] = set()  # baselines
        self._best = Throttle(self._rank)
        self._over, seeds = self._before()
        search = self._config["search"]
        self.state = SweepState(
            manifest["name"],
            search["trials"],
            self._config["train"]["max_steps"] or 0,
            len(self._over),
            lambda: time.time() if self._at is None else self._at,
            search.get("repeats", 1),
            seeds,
        )
        self.state.began = process.started
        self.state.terms = tuple(term.metric for term in self._objective.terms)
        self._catch_up()

    def look(self, progress: Progress) -> None:
        """Tell what has happened since the last look."""
        for name, row in self._baselines():
            progress.note(f"{name}  scored{main_figures(row.metrics)}")
        for event in self._events():
            self._tell(progress, event)
            if event["event"] == "tell":
                self._ranked_by = progress
                self._best()

    def _catch_up(self) -> None:
        """Bring the state to what it is now: each event at the time when it was."""
        quiet = Progress(self.state, view="quiet")
        for event in self._events():
            self._at = max(event.get("time", 0.0), self._process.started)
            self._tell(quiet, event)
        self._at = None
        list(self._baselines())
        self._ranked_by = quiet
        self._rank()
        if not self.state.trials:
            self.state.phase = "before the first trial"

    def _before(self) -> tuple[set[str], dict[str, int]]:
        """Configurations that were over when the process started, and of each other one how many seeds had ended."""
        told: dict[str, dict[str, str]] = {}
        for record in read_lines(self.folder.asks_file):
            if record.get("event") == "tell" and record.get("time", 0.0) < self._process.started:
                trial_id = str(record["trial_id"])
                told.setdefault(configuration_id(trial_id), {})[trial_id] = record["state"]
        repeats = self._config["search"].get("repeats", 1)
        over = {
            name
            for name, seeds in told.items()
            if len(seeds) >= repeats or seeds.get(name, State.COMPLETED) != State.COMPLETED
        }
        return over, {name: len(seeds) for name, seeds in told.items() if name not in over}

    def _events(self) -> Iterator[dict[str, Any]]:
        """Those that are new, of trials that this process runs."""
        records = list(read_lines(self.folder.asks_file))
        new, self._known = records[self._known :], len(records)
        started = self._process.started
        for record in new:
            kind, trial_id = record.get("event"), str(record.get("trial_id"))
            if kind not in _SHOWN or configuration_id(trial_id) in self._over:
                continue
            if kind == "ask" or record.get("time", 0.0) >= started:
                yield record

    def _tell(self, progress: Progress, event: Mapping[str, Any]) -> None:
        trial_id, ended = str(event["trial_id"]), event["event"] == "tell"
        trial = SimpleNamespace(config={"trial_id": trial_id, "values": event["values"]})
        if event["event"] == "ask":
            progress.on_trial_start(0, [], trial)
            return
        rows = self.folder.trial(trial_id).read_metrics()
        row = next((it for it in reversed(rows) if it.final == ended and it.step == event.get("step")), None)
        progress.on_trial_result(0, [], trial, self._result(event, row))
        if ended:
            progress.on_trial_complete(0, [], trial)

    def _result(self, event: Mapping[str, Any], row: MetricsRow | None) -> dict[str, Any]:
        """A report as a trial makes it."""
        metrics = row.metrics if row is not None else {}
        objective = event.get("objective") if not metrics else self._objective.score(metrics)
        return {
            "step": event.get("step", 0),
            "metrics": metrics,
            "objective": math.nan if objective is None else objective,
            "seconds": row.seconds if row is not None else 0.0,
            "state": State(event["state"]),
            "reason": str(event.get("reason") or ""),
        }

    def _baselines(self) -> Iterator[tuple[str, MetricsRow]]:
        for files in self.folder.baselines():
            if files.trial_id not in self._scored and (rows := files.read_metrics()):
                self._scored.add(files.trial_id)
                yield files.trial_id, rows[-1]

    def _rank(self) -> None:
        try:
            self._ranked_by.best(best_trial([row for row in build(self.folder) if row.kind == "trial"]))
        except LorasweepError:  # its files are being written
            return
