"""From what Ray Tune says of trials to calls of every tracker of the sweep, each in a thread of its own.

A sweep never waits for a tracker and never fails because of one: here a call is only put into the tracker's queue
(``tracker_thread.py``), and closing waits for a bounded time.
"""

import contextlib
import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.tune import Callback

from analysis.folder import State, SweepFolder
from analysis.rows import Row, configuration_id
from sweeps.search.pbt_exchange import Exchange
from sweeps.store.tune_results import outcome_of, rung_rows, trial_key
from sweeps.tracking.base import Hint, Outcome, Run, Tracker
from sweeps.tracking.from_folder import (
    Due,
    PastRuns,
    Story,
    baseline_story,
    exchange_point,
    floats,
    sweep_story,
    trial_outcome,
)
from sweeps.tracking.record import TrackingRecord
from sweeps.tracking.tracker_thread import TrackerThread, close_all

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
        record = TrackingRecord(folder)
        self._threads = [TrackerThread(tracker, record) for tracker in trackers]
        self._past = PastRuns(folder)
        self._folder, self._trial_config, self._interrupted = folder, trial_config, interrupted
        self._logged: dict[str, set[int]] = {}  # trial id → steps of the rungs that its run has
        self._last: dict[str, Mapping[str, Any]] = {}  # trial id → what it reported last
        self._open: set[str] = set()
        self._turn = threading.Lock()  # to begin or end a run: where Ray dies, the driver closes beside Tune's thread
        self._closed = False

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
            point = _counts(row) | floats(row["metrics"])
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
        with self._turn:
            left = sorted(self._open)
        for trial_id in left:
            self._end(trial_id, State.RUNNING, "the sweep was interrupted; run it again to go on")

    def log_exchange(self, exchange: Exchange) -> None:
        """A trial of a population goes on from another one's weights: its parent, and its new values as a curve."""
        point = exchange_point(exchange.parent, exchange.old, exchange.new)
        self._log(exchange.trial_id, {"step": exchange.step} | point)

    def log_baseline(self, name: str, metrics: Mapping[str, float], config: Mapping[str, Any]) -> None:
        """One run of kind ``baseline``, at step 0."""
        self._tell(baseline_story(self._folder, name, metrics, config))

    def log_sweep(
        self, rows: Sequence[Row], config: Mapping[str, Any], charts: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """One run of kind ``sweep``: as ``sweep_story``."""
        self._tell(sweep_story(self._folder, rows, config, charts))

    def catch_up(self, due: Sequence[Due]) -> None:
        """Have every tracker get what it lacks of these runs, after what it was told so far."""
        for thread in self._threads:
            thread.catch_up(due)

    def close(self, timeout: float = CLOSE_SECONDS) -> None:
        """Finish every run and wait, at most ``timeout`` seconds, until all is on disk or uploaded.

        To be called by the driver in the end, whatever happened. What Tune still reports afterwards is not tracked: the
        sweep folder has it, and the next driver writes it from there. May be called more than once.
        """
        with self._turn:
            self._closed = True
        self.on_experiment_end([])
        close_all(self._threads, timeout)

    def hints(self) -> list[Hint]:
        """What the user can do afterwards, such as the command that uploads what is not uploaded yet."""
        return [hint for thread in self._threads if (hint := thread.hint()) is not None]

    def _begin(self, trial_id: str, values: dict[str, Any]) -> None:
        with self._turn:
            if not self._threads or self._closed or trial_id in self._open:
                return  # a retried trial goes on in its run
            self._open.add(trial_id)
            self._start(self._run(trial_id, values))

    def _run(self, trial_id: str, values: dict[str, Any]) -> Run:
        try:
            config = self._trial_config(trial_id, values)
        except Exception as error:  # the trial itself meets the same error, and says so
            log.warning("tracking: no resolved config for %s: %s", trial_id, error)
            config = dict(values)
        if self._repeats > 1:  # to group by
            config = {**config, "configuration": configuration_id(trial_id)}
        logged = self._logged.get(trial_id)
        earlier = [point for point in self._past.points(trial_id) if point[0] in logged] if logged else []
        return Run(trial_id, "trial", config, dict(values), tuple(earlier))

    def _end(self, trial_id: str, state: State, reason: str) -> None:
        with self._turn:
            if trial_id in self._open:
                self._open.discard(trial_id)
                self._finish(trial_id, self._outcome(trial_id, state, reason))

    def _outcome(self, trial_id: str, state: State, reason: str) -> Outcome:
        last = self._last.pop(trial_id, {})
        facts = {"state": str(state), "reason": reason} | _counts(last)
        facts |= {"where": last["where"]} if last.get("where") else {}
        scores = {"objective": float(last.get("objective", math.nan))} | floats(last.get("metrics", {}))
        files = self._folder.trial(trial_id)
        steps = [row["step"] for row in last.get("rows", []) if row["final"]]
        return trial_outcome(files, state, facts, scores, steps)

    def _tell(self, story: Story) -> None:
        for thread in self._threads:
            thread.tell(story)

    def _start(self, run: Run) -> None:
        for thread in self._threads:
            thread.post(run.name, "start_run", run)

    def _log(self, name: str, point: Mapping[str, Any]) -> None:
        values = {key: value for key, value in point.items() if key != "step"}
        with self._turn:
            if name in self._open:  # else it comes too late
                for thread in self._threads:
                    thread.post(name, "log_point", name, int(point["step"]), values)

    def _finish(self, name: str, outcome: Outcome) -> None:
        for thread in self._threads:
            thread.post(name, "finish_run", name, outcome)


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
