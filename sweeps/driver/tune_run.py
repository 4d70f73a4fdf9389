"""Ray Tune with everything around it: search, scheduler, what records and tracks, budgets, requests, baselines.

Each trial that Tune starts is a proxy in a process of its own: ``sweeps/driver/trial_proxy.py``.
"""

import contextlib
import gc
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import ray
from ray import tune
from ray.tune import Callback

from analysis.constraints import Constraints
from analysis.errors import INTERRUPTED, LorasweepError
from analysis.folder import MetricsRow, SweepFolder, read_lines
from analysis.leaderboard import leaderboard
from analysis.leaderboard.ranking import baselines_metrics, objective_of
from sweeps.checks.length import max_concurrent
from sweeps.compose.compose import Composed, transfer_target
from sweeps.config import SweepConfig
from sweeps.display.progress import Progress
from sweeps.driver.baseline_runner import BaselineRunner, missing, planned, settings_of
from sweeps.driver.device_client import LOST
from sweeps.driver.device_fleet import DeviceFleet
from sweeps.driver.resume import past_runs, tracked_config
from sweeps.driver.stop_budget import StopBudget
from sweeps.driver.stopper import SweepStopper
from sweeps.driver.trial_proxy import with_parameters
from sweeps.search import lineage
from sweeps.search.pacing import PacedSearch
from sweeps.search.pbt_exchange import Exchange
from sweeps.search.scheduler import build_sampler, build_scheduler, replay_scheduler
from sweeps.search.searcher import GuardedOptunaSearch, SearchPlan
from sweeps.search.transfer import FIRST, distinct, keep, to_transfer, transferred
from sweeps.search.warm_start import carried_over, to_carry
from sweeps.space.dimensions import DefineByRun, Scalar
from sweeps.store.control import ENQUEUE, Heartbeat, remove_request, requests, spent
from sweeps.store.leaderboard_writer import LeaderboardWriter
from sweeps.store.reconcile import update_files, update_study
from sweeps.store.recorder import Recorder, write_config
from sweeps.tracking.base import TrackedSweep, build_trackers
from sweeps.tracking.from_folder import Due, sweep_due
from sweeps.tracking.tables import charts
from sweeps.tracking.tune_callback import TrackerCallback, keep_keys_from_ray, spare_imports_for_usage_reports
from trainer.config import Baseline

_CHECKPOINT_SECONDS = 10.0  # that device workers have, at Ctrl-C or SIGTERM, to write checkpoints between two steps


class TuneCallback(Callback):
    """Passes on what Tune tells of trials to a part of ours that is there before Tune is imported."""

    def __init__(self, ours: Progress | StopBudget):
        self.ours = ours

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if isinstance(self.ours, Progress):
            self.ours.on_trial_start(iteration, trials, trial)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self.ours.on_trial_result(iteration, trials, trial, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.ours.on_trial_complete(iteration, trials, trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.ours.on_trial_error(iteration, trials, trial)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        if isinstance(self.ours, Progress):
            self.ours.close()


class Concurrency:
    """How many trials may run at a time, with the devices that there are now."""

    def __init__(self, config: SweepConfig, fleet: DeviceFleet):
        self.config, self.fleet = config, fleet

    def __call__(self) -> int:
        slots = [device.slots for device in self.fleet.devices]
        return max_concurrent(self.config, slots) if slots else 0

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles search and scheduler into scratch that nobody reads


class TuneRun:
    """One run of the driver: everything around Ray Tune, made from the config and from what earlier runs recorded.

    Args:
        folder: of the sweep.
        composed: the sweep as it runs on these devices.
        fleet: has the device workers.
        uid: of the sweep; tells two of one name apart.
        progress: shows what happens.
        began: when the command did, on the clock of ``time.monotonic``.
    """

    def __init__(
        self,
        folder: SweepFolder,
        composed: Composed,
        fleet: DeviceFleet,
        uid: str,
        progress: Progress,
        began: float,
    ):
        self.folder, self.composed, self.fleet, self.progress = folder, composed, fleet, progress
        config, objective = composed.config, composed.objective
        records = list(read_lines(folder.asks_file))
        warm, notes = carried_over(to_carry(records, config), composed.space, composed.resolved(), objective)
        for note in notes:
            progress.note(note)
        moved, more = self._transferred()
        for note in more:
            progress.note(note)
        self.interrupt = SweepStopper(progress, lambda: self.search.abandon())
        asked = {record["number"] for record in records if record["event"] == "ask"}
        closed = config.search.time is not None and spent(folder).closed == config.search.time
        plan = SearchPlan(
            len(asked) if closed else config.search.trials,
            config.sweep.seed,
            [*moved[:FIRST], *composed.start],
            moved[FIRST:],
            warm,
            seeds=[config.seed + k for k in range(config.search.repeats)],
            objectives=len(objective.terms) if objective.method == "pareto" else 1,
            second_chances=2,
            allowed=composed.constraints().allows,
            violated=self._violated,
            disk_fault=self.interrupt.disk,
            used_up=progress.note,
        )
        sampler = build_sampler(config.sampler, config.sweep.seed, len(plan.start_from))
        self.search = GuardedOptunaSearch(DefineByRun(composed.space), sampler, folder, plan)
        self.scheduler = build_scheduler(config.scheduler, config.train.rungs)
        self.scheduler.concurrent = self.concurrent = Concurrency(config, fleet)
        self.board = LeaderboardWriter(folder, config.search.keep_adapters, progress.best)
        self.heartbeat = Heartbeat(folder, fleet.occupied, began)
        self.budget = StopBudget(
            config.search.budget, self.heartbeat, self.interrupt.is_set, config.search.time, config.search.repeats
        )
        self.budget.replay(folder, records)
        if records:
            lineage.reconcile(folder, records)
            self.search.replay(records)
            update_files(folder, records)
            replay_scheduler(self.scheduler, records)
            update_study(folder, self.search, self.scheduler, objective.score)
        side_by_side = self.concurrent()
        if self.scheduler.populate(composed.space, self._exchange) and side_by_side < config.search.trials:
            progress.note(
                f"A population is what trains side by side: {side_by_side} at a time here, and search.trials is"
                f" {config.search.trials}. Those that come later exchange weights among themselves."
            )
        trackers = build_trackers(config.tracking, TrackedSweep(folder, uid, progress.note))
        self.tracking = TrackerCallback(
            trackers, folder, self.trial_config, self.interrupt.is_set, config.search.repeats
        )
        if records:  # an earlier driver may have been killed before its trackers had all
            self.tracking.catch_up(self._ended_runs())

    def __getstate__(self) -> dict[str, Any]:
        return {}  # the search refers to it, and Tune pickles that into scratch that nobody reads

    def _transferred(self) -> tuple[list[dict[str, Scalar]], list[str]]:
        """The points of ``search.transfer_from``, the best first, and notes on them."""
        kept, missing_runs = to_transfer(self.folder, self.composed.config.search.transfer_from)
        found, notes = transferred(missing_runs, *transfer_target(self.composed))
        keep(self.folder, found)
        return distinct([*kept, *found]), notes

    def trial_config(self, trial_id: str, values: dict[str, Any]) -> dict[str, Any]:
        return asdict(self.composed.trial(trial_id, values))

    def _violated(self, metrics: Mapping[str, float], final: bool) -> dict[str, float]:
        """Constraint of the objective → how far a trial violates it, as the ranking has it."""
        constraints = Constraints.from_config(self.composed.resolved()["objective"])
        return constraints.violations(metrics, baselines_metrics(self.folder, constraints.baselines, final))

    def _exchange(self, decided: Exchange) -> bool:
        """Put a trial of a population in its parent's place, and write down whose weights it has now."""
        files, parent = self.folder.trial(decided.trial_id), self.folder.trial(decided.parent)
        config = self.composed.trial(decided.trial_id, decided.new)
        for device in self.fleet.devices:
            try:
                refused = device.client.take_over(config, parent, decided.step).get()
            except LOST:
                continue
            if refused is None:  # it trains on another device
                continue
            if refused:
                self.progress.note(f"{decided.trial_id} keeps its weights at step {decided.step}: {refused}")
                return False
            self.search.perturb(decided)
            lineage.record(files, decided)
            write_config(files, asdict(config))
            new = "  ".join(f"{path}={value:.3g}" for path, value in decided.new.items())
            self.progress.note(f"{decided.trial_id} goes on from {decided.parent} at step {decided.step}: {new}")
            self.tracking.log_exchange(decided)
            return True
        return False

    def run(self, let_go: Callable[[], None]) -> bool:
        """Score the baselines and run the trials. True where it was interrupted.

        Args:
            let_go: called when nothing is left to do for Ray.
        """
        self._baselines = baselines = BaselineRunner(
            self.folder,
            self.fleet,
            missing(self.folder, planned(self.composed.template, self.composed.precisions)),
            self.progress.note,
            self._baseline_scored,
            self.interrupt.at_once,
        )
        baselines.start()
        scratch = tempfile.mkdtemp(prefix="lorasweep-tune-")
        status: int | None = None
        try:
            tuner = self._tuner(scratch)
            with self.interrupt.catching():
                self._fit(tuner)
                if not self.interrupt.at_once():
                    if baselines.unscored:
                        self.progress.phase(f"scoring {', '.join(baselines.unscored)}")
                    baselines.finish()
                    self.fleet.close()
                    # A handle of Ray that is freed while Ray shuts down, beside what follows, ends the process at once.
                    del tuner
                    gc.collect()
                    let_go()
                    self._track_sweep()
            status = INTERRUPTED if self.interrupt.at_once() else None
        except Exception as error:
            known = isinstance(error, LorasweepError)
            self.interrupt.why = self.interrupt.why or (str(error) if known else f"{type(error).__name__}: {error}")
            status = error.exit_code if isinstance(error, LorasweepError) else 1
            raise
        finally:
            with contextlib.suppress(OSError):
                self.heartbeat.end(self.interrupt.why or "finished", status)
            self.tracking.close()
            shutil.rmtree(scratch, ignore_errors=True)
        return self.interrupt.at_once()

    def _tuner(self, scratch: str) -> tune.Tuner:
        """Ray Tune, set up. ``scratch``: a folder for its own state, which nobody reads."""
        spare_imports_for_usage_reports()
        keep_keys_from_ray()
        proxy = with_parameters(
            template=self.composed.template,
            objective=self.composed.objective,
            root=str(self.folder.root),
            dispatcher=self.fleet.dispatcher,
        )
        recorder = Recorder(
            self.folder,
            self.trial_config,
            self.interrupt.is_set,
            self.board.trial_ended,
            self.interrupt.disk,
            self.search.waits,
        )
        return tune.Tuner(
            # Only device workers are where nodes come and go.
            tune.with_resources(proxy, beside_the_driver()),
            tune_config=tune.TuneConfig(
                search_alg=PacedSearch(self.search, self.concurrent),
                scheduler=self.scheduler,
                num_samples=-1,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=self.folder.name,
                storage_path=scratch,
                stop=self.interrupt,
                callbacks=[recorder, TuneCallback(self.budget), TuneCallback(self.progress), self.tracking],
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=2),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # there is nothing in one
            ),
        )

    def _fit(self, tuner: tune.Tuner) -> None:
        """Run Tune in a thread, so that signals stay with us: Tune handles only Ctrl-C, and waits for busy trials."""
        failure: list[BaseException] = []

        def fit() -> None:
            try:
                tuner.fit()
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=fit, name="tune", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(0.2)
            self._look_around()
            if self.interrupt.at_once():
                self.fleet.kill(_CHECKPOINT_SECONDS)  # a worker in the middle of a rung would hold its proxy up
                thread.join(20)
                break
        if self.interrupt.error is not None:
            raise self.interrupt.error
        if failure and not self.interrupt.at_once():
            raise failure[0]

    def _look_around(self) -> None:
        """Count the time, look what is used up, and what somebody asks for."""
        try:
            self.heartbeat.devices = self.fleet.occupied
            self.heartbeat.beat()
            self._follow_cluster()
            self._close_in_time()
            spent = self.budget.used_up()
            if spent:
                self.interrupt.stop(f"{spent}. Running trials stop at their next rung.", at_once=False)
            self._take_requests()
        except OSError as error:
            self.interrupt.disk(str(error))

    def _follow_cluster(self) -> None:
        """Tell the fleet how much there is to do, and hear whether there is nothing to do it with."""
        running, to_come = self.search.open_trials()
        most = self.composed.config.ray.max_concurrent_trials
        wanted = len(running) + (0 if self.interrupt.is_set() else to_come)
        wanted = wanted if most is None else min(wanted, most)
        self.fleet.want(max(wanted, bool(self._baselines.unscored)), running)
        if self.fleet.expired:
            self.interrupt.no_device(self.fleet.expired)
        if self.interrupt.is_set() and not self.fleet.devices:  # no next rung is to be waited for
            self.interrupt.stop(self.interrupt.why)

    def _close_in_time(self) -> None:
        """Begin no trial that would not be over in ``search.time``."""
        config = self.composed.config
        if self.heartbeat.closed == config.search.time or self.budget.room_for(config.train.max_steps):
            return
        self.heartbeat.closed = str(config.search.time)
        self.search.close()
        begun = self.search.handed_out
        if begun < config.search.trials:
            self.progress.note(
                f"search.time={config.search.time} has no room for a further trial. {begun} of {config.search.trials}"
                " were begun."
            )

    def _take_requests(self) -> None:
        for request in requests(self.folder):
            if request.kind == ENQUEUE:
                if request.name in self.search.enqueued:
                    remove_request(self.folder, request)
                else:
                    self.search.enqueue(request.name, request.point or {})
                continue
            remove_request(self.folder, request)
            if request.trial_id:
                self.interrupt.stop_trial(request.trial_id)
                self.progress.note(f"{request.trial_id} is to stop at its next rung.")
            else:
                self.interrupt.stop("Stopping, as `lorasweep stop` asks. Everything scored so far is kept.")

    def _baseline_scored(self, baseline: Baseline, row: MetricsRow) -> None:
        self.tracking.log_baseline(baseline.name, row.metrics, settings_of(baseline))

    def _track_sweep(self) -> None:
        if self.tracking.active:
            rows = leaderboard.ranked(self.folder).rows
            config = tracked_config(self.composed)
            objective, _ = objective_of(self.folder, rows)
            self.tracking.log_sweep(rows, config, charts(rows, objective))
            self.tracking.catch_up([*self._ended_runs(), sweep_due(self.folder, rows, config)])

    def _ended_runs(self) -> list[Due]:
        """What each tracker should have now: it is told of those that it lacks."""
        return past_runs(self.folder, self.composed) if self.tracking.active else []


def beside_the_driver() -> tune.PlacementGroupFactory:
    """What a process claims that is to end with the driver alone: a place on its node, which is not one that goes."""
    own = ray.get_runtime_context().get_node_id()
    (node,) = [node for node in ray.nodes() if node["NodeID"] == own]
    address = next(name for name in node["Resources"] if name.startswith("node:") and "__" not in name)
    # Several nodes of one machine have the same address: the second hint tells them apart.
    return tune.PlacementGroupFactory([{address: 0.0001}], strategy="STRICT_PACK", _soft_target_node_id=own)
