"""From what Ray Tune says of trials to calls of every tracker of the sweep, each in a thread of its own.

A sweep never waits for a tracker and never fails because of one: here a call is only put into the tracker's queue. What
goes wrong in its thread is noted once and logged, and closing waits for a bounded time.
"""

import contextlib
import copy
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any

from ray.tune import Callback

from analysis.errors import first_line
from analysis.folder import State, SweepFolder
from analysis.leaderboard.seeds import best_seed, spread
from analysis.rows import Row, best_trial, configuration_id
from sweeps.search.pbt_exchange import Exchange
from sweeps.store.tune_results import outcome_of, rung_rows, trial_key
from sweeps.tracking.base import SWEEP_RUN, Adapter, Hint, Outcome, Run, Table, Tracker
from sweeps.tracking.tables import answers, leaderboard_table, predictions

log = logging.getLogger(__name__)

CLOSE_SECONDS = 30.0  # for everything still queued when the sweep is over, of all trackers together


class TrackerCallback(Callback):
    """Tells the trackers of a sweep about its trials, baselines and end; a Tune callback, to be used in the driver.

    Args:
        trackers: none is right too: then nothing is done.
        folder: the sweep's.
        trial_config: the resolved, nested config of a trial from its id and its sampled values.
        interrupted: whether the user stopped the sweep: what ends then has not ended, and is gone on with later.
        repeats: seeds of each configuration; with several, a run's config says of which ``configuration`` it is.
    """

    def __init__(
        self,
        trackers: Sequence[Tracker],
        folder: SweepFolder,
        trial_config: Callable[[str, dict[str, Any]], dict[str, Any]],
        interrupted: Callable[[], bool] = lambda: False,
        repeats: int = 1,
    ) -> None:
        self._repeats = repeats
        self._threads = [TrackerThread(tracker) for tracker in trackers]
        self._folder, self._trial_config, self._interrupted = folder, trial_config, interrupted
        self._logged: dict[str, set[int]] = {}  # trial id → steps of the rungs that its run has
        self._last: dict[str, Mapping[str, Any]] = {}  # trial id → what it reported last
        self._open: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray pickles callbacks into its scratch folder, and a sweep is never restored from there."""
        return {}

    @property
    def active(self) -> bool:
        """Whether there is a tracker to tell."""
        return bool(self._threads)

    def setup(self, *args: Any, **info: Any) -> None:
        for thread in self._threads:
            thread.start()  # connects while the first trials start

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
            self._log(trial_id, point)

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
        self._log(exchange.trial_id, point)

    def log_baseline(self, name: str, metrics: Mapping[str, float], config: Mapping[str, Any]) -> None:
        """One run of kind ``baseline``, at step 0."""
        scores = _floats(metrics)
        self._start(Run(name, "baseline", dict(config)))
        self._log(name, {"step": 0} | scores)
        tables = {"answers": partial(answers, self._folder.baseline(name), 0)}
        self._finish(name, Outcome(State.COMPLETED, {"state": str(State.COMPLETED)}, scores, tables))

    def log_sweep(
        self, rows: Sequence[Row], config: Mapping[str, Any], charts: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """One run of kind ``sweep``: the leaderboard, charts, counts, and the best trial's adapter.

        Args:
            rows: the leaderboard, ranked.
            config: of the whole sweep, resolved.
            charts: Plotly figures as JSON, by key.
        """
        trials = [row for row in rows if row.kind == "trial"]
        best = best_trial(rows)
        facts: dict[str, Any] = {f"trials.{state}": n for state, n in Counter(str(r.status) for r in trials).items()}
        scores: dict[str, float] = {}
        adapter = None
        if best is not None:
            facts["best.trial"] = best.trial_id
            scores = {"best.objective": best.objective}
            scores |= {f"best.{name}": value for name, value in _floats(best.metrics).items()}
            facts |= {"best.seeds": len(best.seeds), "best.sd": spread(best)} if len(best.seeds) > 1 else {}
            seed = best_seed(best)
            adapter = Adapter(
                seed.trial_id,
                self._folder.trial(seed.trial_id).adapter_dir,
                {"trial": seed.trial_id, "objective": seed.objective, "values": seed.config, "metrics": seed.metrics},
            )

        def leaderboard(most: int | None) -> Table:
            columns, cells = leaderboard_table(rows)
            return columns, cells[:most]

        self._start(Run(SWEEP_RUN, "sweep", dict(config)))
        self._finish(
            SWEEP_RUN, Outcome(State.COMPLETED, facts, scores, {"leaderboard": leaderboard}, dict(charts), adapter)
        )

    def close(self, timeout: float = CLOSE_SECONDS) -> None:
        """Finish every run and wait, at most ``timeout`` seconds, until all is on disk or uploaded.

        To be called by the driver in the end, whatever happened. May be called more than once.
        """
        self.on_experiment_end([])
        for thread in self._threads:
            thread.stop()
        until = time.monotonic() + timeout
        for thread in self._threads:
            if not thread.join(max(0.0, until - time.monotonic())):
                thread.abandon(timeout)

    def hints(self) -> list[Hint]:
        """What the user can do afterwards, such as the command that uploads what is not uploaded yet."""
        return [hint for thread in self._threads if (hint := thread.hint()) is not None]

    def _begin(self, trial_id: str, values: dict[str, Any]) -> None:
        if not self._threads or trial_id in self._open:
            return  # a retried trial goes on in its run
        self._open.add(trial_id)
        try:
            config = self._trial_config(trial_id, values)
        except Exception as error:  # the trial itself meets the same error, and says so
            log.warning("tracking: no resolved config for %s: %s", trial_id, error)
            config = dict(values)
        if self._repeats > 1:  # to group by
            config = {**config, "configuration": configuration_id(trial_id)}
        self._start(Run(trial_id, "trial", config, dict(values)))

    def _end(self, trial_id: str, state: State, reason: str) -> None:
        if trial_id not in self._open:
            return
        self._open.discard(trial_id)
        last = self._last.pop(trial_id, {})
        facts = {"state": str(state), "reason": reason} | _counts(last)
        facts |= {"where": last["where"]} if last.get("where") else {}
        scores = {"objective": float(last.get("objective", math.nan))} | _floats(last.get("metrics", {}))
        files = self._folder.trial(trial_id)
        steps = [row["step"] for row in last.get("rows", []) if row["final"]]
        tables: dict[str, Callable[[int | None], Table]] = {}
        if state is State.COMPLETED and steps:
            tables["predictions"] = partial(predictions, files, steps[-1])
            tables["answers"] = partial(answers, files, steps[-1])
        adapter = Adapter(trial_id, files.adapter_dir) if state is State.COMPLETED else None
        self._finish(trial_id, Outcome(state, facts, scores, tables, adapter=adapter))

    def _start(self, run: Run) -> None:
        for thread in self._threads:
            thread.post(run.name, "start_run", run)

    def _log(self, name: str, point: Mapping[str, Any]) -> None:
        values = {key: value for key, value in point.items() if key != "step"}
        for thread in self._threads:
            thread.post(name, "log_point", name, int(point["step"]), values)

    def _finish(self, name: str, outcome: Outcome) -> None:
        for thread in self._threads:
            thread.post(name, "finish_run", name, outcome)


@dataclass(frozen=True)
class _Call:
    """One call of a tracker's method, for a run."""

    run: str
    method: str
    arguments: tuple[Any, ...]


class TrackerThread:
    """One tracker with its queue, and the thread that works it off: the tracker's errors and delays stay in here."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._title = tracker.title or type(tracker).__name__
        self._lock = threading.Lock()  # the driver may close while Tune's thread still reports
        self._queue: SimpleQueue[_Call | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stopped: threading.Thread | None = None
        self._given_up = False
        self._noted = False
        self._refused: set[str] = set()  # runs whose start raised

    def start(self) -> None:
        """Start the thread, which connects; nothing where it runs already."""
        with self._lock:
            self._start()

    def post(self, run: str, method: str, *arguments: Any) -> None:
        """Have a method called, after all that was posted before.

        Its arguments are copied: trackers work at the same time, and a library may change what it is given, if only
        for a moment (Plotly does, where it makes a figure of a dictionary).
        """
        if self._given_up:
            return
        arguments = copy.deepcopy(arguments)
        with self._lock:
            self._start()
            self._queue.put(_Call(run, method, arguments))

    def stop(self) -> None:
        """Have the tracker closed once all that was posted is done."""
        with self._lock:
            self._stopped, self._thread = self._thread or self._stopped, None
            if self._stopped is not None:
                self._queue.put(None)

    def join(self, seconds: float) -> bool:
        """Wait until a stopped tracker is closed. False where it is not within the time."""
        thread, self._stopped = self._stopped, None
        if thread is None:
            return True
        thread.join(seconds)
        return not thread.is_alive()

    def abandon(self, seconds: float) -> None:
        """Queue nothing more for the tracker, and say so. What is queued may still be done while the process lives."""
        self._given_up = True
        hint = self.hint(cut_short=True)
        after = f" {hint.purpose[:1].upper()}{hint.purpose[1:]}: `{hint.command}`" if hint else ""
        self._say(f"{self._title} is still busy after {seconds:.0f} s: not waiting for it.{after}")

    def hint(self, cut_short: bool = False) -> Hint | None:
        try:
            return self._tracker.hint(cut_short)
        except Exception as error:
            self._trouble("its hint cannot be shown", error)
            return None

    def _start(self) -> None:
        if self._thread is None and not self._given_up:
            self._queue = SimpleQueue()
            # A daemon: a call that hangs must not keep the process alive.
            self._thread = threading.Thread(
                target=self._work, args=(self._queue,), name=f"lorasweep-{self._title}", daemon=True
            )
            self._thread.start()

    def _work(self, queue: "SimpleQueue[_Call | None]") -> None:
        try:
            self._tracker.connect()
        except Exception as error:
            self._given_up = True
            self._trouble("the trials are not tracked there", error)
            return
        while (call := queue.get()) is not None:
            if call.run in self._refused:
                continue
            try:
                getattr(self._tracker, call.method)(*call.arguments)
            except Exception as error:
                if call.method == "start_run":
                    self._refused.add(call.run)
                what = {"start_run": "is not tracked", "log_point": "lacks a point", "finish_run": "lacks its end"}
                self._trouble(f"{call.run} {what[call.method]}", error)
        try:
            self._tracker.close()
        except Exception as error:
            self._trouble("it could not be closed", error)

    def _trouble(self, what: str, error: Exception) -> None:
        log.warning("%s: %s", self._title, what, exc_info=error)
        if not self._noted:
            self._noted = True
            self._say(
                f"{self._title}: {what} ({first_line(error)[:160]}). Results are in the sweep folder all the same."
            )

    def _say(self, text: str) -> None:
        with contextlib.suppress(Exception):  # the terminal may be gone
            self._tracker.sweep.note(text)


def spare_imports_for_usage_reports() -> None:
    """Keep Ray Tune from importing mlflow, wandb and others, for seconds, before the first trial can start.

    It counts callbacks of its own kinds for Ray's usage reports, which are off here (``ray_cluster.py``).
    """
    with contextlib.suppress(ImportError):
        from ray.air._internal import usage

        usage.tag_callbacks = lambda callbacks: False


def keep_keys_from_ray() -> None:
    """Keep Ray Tune from putting AWS keys into the runtime environment of trials, which Ray writes into its logs.

    Its trials here, proxies, touch no bucket; device workers have the environment that Ray was started with.
    """
    from ray.tune.execution import class_cache

    class_cache.ENV_VARS_TO_PROPAGATE = {it for it in class_cache.ENV_VARS_TO_PROPAGATE if not it.startswith("AWS_")}


def _counts(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("step", "tokens", "seconds", "n_items") if key in row}


def _floats(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}
