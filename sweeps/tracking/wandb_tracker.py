"""One Weights & Biases run per trial, all held by the driver in one service process.

A sweep never waits for W&B and never fails because of it: Tune's callbacks only queue what happened, and one thread of
its own does everything that imports, calls or waits for ``wandb``. What goes wrong there is noted once and logged.
Without a login or a network the runs are written offline, into the sweep folder; ``wandb sync`` uploads them later.
"""

import logging
import math
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any

from ray.tune.logger import LoggerCallback

from analysis.folder import State, SweepFolder
from analysis.rows import Row
from sweeps.search.pbt_exchange import Exchange
from sweeps.store.tune_results import outcome_of, rung_rows, trial_key
from sweeps.tracking.wandb_runs import WandbRuns
from sweeps.tracking.wandb_tables import leaderboard_table, predictions

log = logging.getLogger(__name__)

SWEEP_RUN = "sweep"  # the run that stands for the whole sweep
ARTIFACT_NAME = re.compile(r"[^A-Za-z0-9_.-]")  # what W&B refuses in an artifact's name
CLOSE_SECONDS = 30.0  # for everything still queued when the sweep is over

# W&B shows 0 as finished, 255 as killed, and 1 (all other states) as failed.
_EXIT_CODES = {State.COMPLETED: 0, State.STOPPED_EARLY: 0, State.RUNNING: 255}


class WandbTracker(LoggerCallback):
    """Tells W&B about every trial of a sweep; a Tune callback, to be used in the driver.

    Runs are named by trial id and found again by ``<uid>-<trial id>``, so a sweep that is run again goes on in the same
    runs. ``WANDB_MODE`` (online, offline, disabled) in the environment wins over ``mode``; no API key is handled here.

    Args:
        folder: the sweep folder; W&B writes to its ``wandb/``.
        uid: of the sweep: keeps the run ids of two sweeps of one name apart.
        project, entity: where the runs belong; an entity of None is the account's default.
        mode: ``online`` or ``offline``.
        trial_config: the resolved, nested config of a trial from its id and its sampled values.
        note: shows one line to the user; called from another thread.
        interrupted: whether the user stopped the sweep: what ends then has not ended, and is gone on with later.
        predictions: rows of each completed trial's table of validation predictions; 0 leaves the tables out.
    """

    def __init__(
        self,
        folder: SweepFolder,
        uid: str,
        project: str,
        entity: str | None,
        tags: list[str],
        mode: str,
        trial_config: Callable[[str, dict[str, Any]], dict[str, Any]],
        note: Callable[[str], None],
        interrupted: Callable[[], bool] = lambda: False,
        predictions: int = 0,
    ) -> None:
        asked = os.environ.get("WANDB_MODE", "").strip().lower() or mode
        mode = {"run": "online", "dryrun": "offline"}.get(asked, asked)
        fixed = {"project": project, "entity": entity, "group": folder.name, "tags": tuple(tags)}
        self._runs = WandbRuns(folder, uid, mode, fixed, note)
        self._folder, self._predictions = folder, predictions
        self._trial_config, self._interrupted = trial_config, interrupted
        self._logged: dict[str, set[int]] = {}  # trial id → steps of the rungs that its run has
        self._last: dict[str, Mapping[str, Any]] = {}  # trial id → what it reported last
        self._open: set[str] = set()
        self._lock = threading.Lock()  # the driver may close while Tune's thread still reports
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._off = mode == "disabled"

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray pickles callbacks into its scratch folder, and a sweep is never restored from there."""
        return {}

    def setup(self, *args: Any, **info: Any) -> None:
        self._post(self._runs.connect)  # while the workers start

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        trial_id, values = trial_key(trial)
        if trial_id not in self._logged:  # of a trial that is gone on with, the earlier rungs are in its run
            before = self._folder.trial(trial_id).read_metrics()
            self._logged[trial_id] = {row.step for row in before if not row.final}
        self._begin(trial_id, values)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        trial_id, values = trial_key(trial)
        self._begin(trial_id, values)
        self._last[trial_id] = dict(result)
        logged = self._logged.setdefault(trial_id, set())
        for row in rung_rows(result):
            if row["step"] in logged:
                continue  # a trial that was retried reports a rung again
            logged.add(row["step"])
            point = _counts(row) | _floats(row["metrics"])
            if result["state"] == State.RUNNING:  # later, the objective is the trial's and not this rung's
                point["objective"] = float(result["objective"])
            self._post(self._runs.log, trial_id, point)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        trial_id, _ = trial_key(trial)
        state, reason = outcome_of(self._last.get(trial_id))
        if state is not State.STOPPED_EARLY or not self._interrupted():
            self._end(trial_id, state, reason)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if not self._interrupted():
            self._end(trial_key(trial)[0], State.FAILED, "the trial's process raised an error or was lost")

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Trials that have not ended are left to be gone on with when the sweep is run again."""
        for trial_id in sorted(self._open):
            self._end(trial_id, State.RUNNING, "the sweep was interrupted; run it again to go on")

    def log_exchange(self, exchange: Exchange) -> None:
        """A trial of a population goes on from another one's weights: its parent, and its new values as a curve."""
        point: dict[str, Any] = {"step": exchange.step, "parent": exchange.parent}
        point |= {f"old.{path}": value for path, value in exchange.old.items()}
        point |= {f"new.{path}": value for path, value in exchange.new.items()}
        self._post(self._runs.log, exchange.trial_id, point)

    def log_baseline(self, name: str, metrics: Mapping[str, float], config: Mapping[str, Any]) -> None:
        """One run of job type ``baseline``, at step 0."""
        self._post(self._runs.start, name, "baseline", dict(config))
        self._post(self._runs.log, name, {"step": 0} | _floats(metrics))
        self._post(self._runs.finish, name, {"state": str(State.COMPLETED)}, 0)

    def log_sweep(
        self, rows: Sequence[Row], config: Mapping[str, Any], charts: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """One run of job type ``sweep``: the leaderboard, charts, counts, and the best trial's adapter as an artifact.

        Args:
            rows: the leaderboard, ranked.
            config: of the whole sweep, resolved.
            charts: Plotly figures as JSON, by key.
        """
        trials = [row for row in rows if row.kind == "trial"]
        best = next((row for row in trials if row.status == State.COMPLETED and row.final), None)
        summary: dict[str, Any] = {f"trials.{state}": n for state, n in Counter(str(r.status) for r in trials).items()}
        if best is not None:
            summary |= {"best.trial": best.trial_id, "best.objective": best.objective}
            summary |= {f"best.{name}": value for name, value in _floats(best.metrics).items()}
        self._post(self._runs.start, SWEEP_RUN, "sweep", dict(config))
        self._post(self._runs.table, SWEEP_RUN, "leaderboard", *leaderboard_table(rows))
        self._post(self._runs.charts, SWEEP_RUN, charts)
        if best is not None and self._folder.trial(best.trial_id).adapter_dir.is_dir():
            self._post(
                self._runs.artifact,
                SWEEP_RUN,
                f"{ARTIFACT_NAME.sub('-', self._folder.name)}-adapter",
                "model",
                self._folder.trial(best.trial_id).adapter_dir,
                {"trial": best.trial_id, "objective": best.objective, "values": best.config, "metrics": best.metrics},
                ["best", best.trial_id],
            )
        self._post(self._runs.finish, SWEEP_RUN, summary, 0)

    def close(self, timeout: float = CLOSE_SECONDS) -> None:
        """Finish every run and wait, at most ``timeout`` seconds, until all is on disk or uploaded.

        To be called by the driver in the end, whatever happened. May be called more than once.
        """
        self.on_experiment_end([])
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is None:
                return
            self._queue.put(self._runs.disconnect)
            self._queue.put(None)
        thread.join(timeout)
        if thread.is_alive():
            self._off = True
            self._runs.say(f"W&B is still busy after {timeout:.0f} s: not waiting for it. {self._runs.later()}")

    def sync_hint(self) -> str:
        """The command that uploads what is not uploaded yet; empty where there is nothing to upload."""
        return self._runs.sync_command() if self._runs.waiting() else ""

    def _begin(self, trial_id: str, values: dict[str, Any]) -> None:
        if self._off or trial_id in self._open:
            return  # a retried trial goes on in its run
        self._open.add(trial_id)
        try:
            config = self._trial_config(trial_id, values)
        except Exception as error:  # the trial itself meets the same error, and says so
            log.warning("W&B: no resolved config for %s: %s", trial_id, error)
            config = dict(values)
        self._post(self._runs.start, trial_id, "trial", config, _tags(config))

    def _end(self, trial_id: str, state: State, reason: str) -> None:
        if trial_id not in self._open:
            return
        self._open.discard(trial_id)
        last = self._last.pop(trial_id, {})
        summary = {"state": str(state), "reason": reason, "objective": float(last.get("objective", math.nan))}
        summary |= {"where": last["where"]} if last.get("where") else {}
        summary |= _counts(last) | _floats(last.get("metrics", {}))
        scored = [row["step"] for row in last.get("rows", []) if row["final"]]
        if state is State.COMPLETED and scored and self._predictions:
            self._post(self._log_predictions, trial_id, scored[-1])
        self._post(self._runs.finish, trial_id, summary, _EXIT_CODES.get(state, 1))

    def _log_predictions(self, trial_id: str, step: int) -> None:
        columns, cells = predictions(self._folder.trial(trial_id), step, self._predictions)
        self._runs.table(trial_id, "predictions", columns, cells)

    def _post(self, work: Callable[..., None], *args: Any) -> None:
        if self._off:
            return
        with self._lock:
            if self._thread is None:
                self._queue = SimpleQueue()
                # A daemon: a W&B call that hangs must not keep the process alive.
                self._thread = threading.Thread(target=_work, args=(self._queue,), name="lorasweep-wandb", daemon=True)
                self._thread.start()
            self._queue.put(partial(work, *args))


def _work(queue: "SimpleQueue[Callable[[], None] | None]") -> None:
    while (work := queue.get()) is not None:
        work()


def _tags(config: Mapping[str, Any]) -> list[str]:
    """What W&B's run list can be filtered by at a click."""
    return [str(config[name]) for name in ("precision",) if config.get(name)]


def _counts(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("step", "tokens", "seconds", "n_items") if key in row}


def _floats(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: float(value) for name, value in metrics.items()}
