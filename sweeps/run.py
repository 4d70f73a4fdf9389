"""A sweep from its config to its leaderboard, and again from its folder.

Check what can be checked at once; start the device workers; let Ray Tune run the trials; rank.
"""

import contextlib
import fcntl
import math
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray import tune

from analysis import leaderboard
from analysis.constraints import Constraints, check_available
from analysis.errors import DataError, FolderError
from analysis.folder import ENDED, MetricsRow, SweepFolder, read_lines
from analysis.objective import Objective
from analysis.ranking import objective_of
from sweeps import lineage
from sweeps.again import nothing_left, same_sweep
from sweeps.baselines import BaselineRunner, missing, planned, settings_of
from sweeps.board import Board
from sweeps.budget import Budget
from sweeps.compose import Composed
from sweeps.control import ENQUEUE, Post, done, driver, requests
from sweeps.devices import answer, facts_of, max_concurrent, ray_running, start_workers
from sweeps.exchange import Exchange
from sweeps.interrupt import INTERRUPTED, Interrupt
from sweeps.logs import to_file
from sweeps.manifest import make_manifest, read_manifest, write_manifest
from sweeps.pacing import PacedSearch
from sweeps.place import program, typed
from sweeps.preflight import preflight, skipped_note
from sweeps.progress import Progress
from sweeps.record import Recorder, write_config
from sweeps.scheduling import build_sampler, build_scheduler, replay_scheduler
from sweeps.search import GuardedOptunaSearch
from sweeps.settle import settle_told, settle_untold
from sweeps.show import show_leaderboard, show_next
from sweeps.space import DefineByRun
from sweeps.standing import SweepState
from sweeps.tracking import WandbTracker
from sweeps.trial import TrialProxy
from sweeps.wandb_tables import charts
from sweeps.warm import carried_over, to_carry
from sweeps.worker import DeviceWorker
from trainer.config import Baseline


def run_sweep(composed: Composed, view: str = "auto", worker: type[DeviceWorker] = DeviceWorker) -> int:
    """Run a sweep and print its leaderboard; where its folder holds this same sweep, go on. Returns the exit status.

    Args:
        view: how it is shown while it runs: one of ``sweeps.views.VIEWS``.
        worker: what owns a device; a simulation gives another class.

    Raises:
        LorasweepError: for anything about the input that cannot be run; nothing is left behind then.
    """
    there = SweepFolder(Path(composed.config.sweep.dir) / str(composed.config.sweep.name))
    if there.sweep_file.exists():
        manifest = read_manifest(there)
        return _go_on(there, same_sweep(there, manifest, composed), manifest, view, worker)
    folder = new_folder(composed)
    config, objective = composed.config, Objective.from_config(composed.resolved()["objective"])
    carried_over(config.search.warm_start, composed.space, composed.resolved(), objective)
    preflight(composed, view == "quiet")
    with locked(folder), _progress(composed, view) as progress:
        return _drive(folder, composed, progress, None, worker)


def resume_sweep(
    run_dir: str, overrides: list[str], view: str = "auto", worker: type[DeviceWorker] = DeviceWorker
) -> int:
    """Go on with a sweep that was interrupted, or extend one (``search.trials=40``). Returns the exit status.

    Raises:
        FolderError: where there is no sweep, or another process drives it.
        ConfigError: for an override that would change what trials are.
    """
    folder = SweepFolder.open(run_dir)
    manifest = read_manifest(folder)
    if not manifest["space"]:
        raise FolderError(f"{folder.root} holds a single trial, of `lorasweep trial`: there is nothing to go on with.")
    return _go_on(folder, Composed.from_stored(manifest["unresolved"], overrides), manifest, view, worker)


def _go_on(
    folder: SweepFolder, composed: Composed, manifest: dict[str, Any], view: str, worker: type[DeviceWorker]
) -> int:
    done = nothing_left(folder, composed)
    if done and not driver(folder).alive:
        ranking = leaderboard.ranked(folder)
        show_leaderboard(folder, ranking.rows, judgement=ranking.judgement)
        print(f"\n{done}")
        return _exit_status(ranking.rows)
    preflight(composed, view == "quiet")
    with locked(folder), _progress(composed, view, _ended(folder)) as progress:
        return _drive(folder, composed, progress, manifest, worker)


def new_folder(composed: Composed) -> SweepFolder:
    """The folder of a new sweep, not yet made. Raises FolderError where it cannot be used."""
    settings = composed.config.sweep
    folder = SweepFolder(Path(settings.dir) / str(settings.name))
    if folder.sweep_file.exists():
        raise FolderError(
            f"{folder.root} already holds a sweep. Go on with it: {program()} resume {typed(folder.root)}"
            f" — or give this one another name: sweep.name={settings.name}-2"
        )
    if folder.root.is_file() or (folder.root.is_dir() and any(not _left_behind(p) for p in folder.root.iterdir())):
        raise FolderError(f"{folder.root} is there already and is no sweep. Give another name: sweep.name=…")
    return folder


def _left_behind(path: Path) -> bool:
    """Whether a file is what a driver leaves that was killed before it had begun."""
    return path.name.startswith(".") or path.name in ("control", "lorasweep.log")


def _drive(
    folder: SweepFolder,
    composed: Composed,
    progress: Progress,
    manifest: dict[str, Any] | None,
    worker_class: type[DeviceWorker],
) -> int:
    """Everything from Ray's start to the printed leaderboard; ``manifest`` is None for a new sweep."""
    objective = Objective.from_config(composed.resolved()["objective"])
    progress.phase("starting Ray and the device workers")
    with ray_running(composed.config), to_file(folder.log_file, progress.verbose):
        workers = start_workers(composed.config, objective, worker_class)
        facts = facts_of(workers, str(folder.root), progress.note)
        asked = composed.unresolved()
        able = [name for name in facts[0].precisions if not any(fact.precisions[name] for fact in facts)]
        composed = composed.on_machine(able, {name: times for fact in facts for name, times in fact.slow.items()})
        for note in composed.notes:
            progress.note(note)
        progress.phase("loading model and data")
        first = composed.trial("t0000", {**composed.start[0]} if composed.start else {})
        prepared = [worker.prepare.remote(first) for worker in workers]  # all load at the same time
        found = [asdict(answer(reference)) for reference in prepared]
        capacities = [data.pop("slots") for data in found]
        if found[-1]["skipped"]:
            progress.note(skipped_note(found[-1]["skipped"]))
        absent = [data.pop("absent") for data in found][-1]
        check_available(composed.resolved()["objective"], absent)
        for why in dict.fromkeys(absent.values()):
            progress.note(f"not measured: {why}")
        if manifest is None:
            manifest = make_manifest(composed, found[-1], [asdict(f) for f in facts]) | {"asked": asked}
        else:
            _require_same_data(folder, manifest, found[-1]["fingerprint"])
            manifest |= {"config": composed.resolved(), "unresolved": composed.unresolved()}
        write_manifest(folder, manifest)
        placed = list(zip(workers, (fact.where for fact in facts), strict=True))
        concurrent = max_concurrent(composed.config, capacities)
        sweep = _Sweep(folder, composed, objective, placed, concurrent, manifest["uid"], progress)
        interrupted = sweep.run()
        progress.phase("ranking")
    return _close(folder, progress, sweep, interrupted)


def _require_same_data(folder: SweepFolder, manifest: dict[str, Any], fingerprint: str) -> None:
    """Raises DataError where the data have changed since the sweep began."""
    before = manifest.get("fingerprints", {}).get("data")
    if before not in (None, fingerprint):
        raise DataError(
            f"{folder.root}: the data are not those that this sweep began with (their fingerprint was {before[:12]}…,"
            f" now {fingerprint[:12]}…): its trials would not be comparable. Restore them, or start a new sweep."
        )


class _Sweep:
    """Tune with everything around it, for one run of the driver."""

    def __init__(
        self,
        folder: SweepFolder,
        composed: Composed,
        objective: Objective,
        workers: list[tuple[Any, str]],
        concurrent: int,
        uid: str,
        progress: Progress,
    ):
        self.concurrent = concurrent
        self.folder, self.composed, self.workers, self.progress = folder, composed, workers, progress
        config = composed.config
        records = list(read_lines(folder.asks_file))
        warm, notes = carried_over(to_carry(records, config), composed.space, composed.resolved(), objective)
        for note in notes:
            progress.note(note)
        self.search = GuardedOptunaSearch(
            DefineByRun(composed.space),
            build_sampler(config.sampler, config.sweep.seed),
            seed=config.sweep.seed,
            trials=config.search.trials,
            folder=folder,
            start_from=composed.start,
            allowed=composed.constraints().allows,
            warm=warm,
            seeds=[config.seed + k for k in range(config.search.repeats)],
            objectives=len(objective.terms) if objective.method == "pareto" else 1,
            violated=self._violated,
        )
        self.scheduler = build_scheduler(config.scheduler, config.train.rungs)
        self.board = Board(folder, config.search.keep_adapters)
        self.interrupt = Interrupt(progress, self.search.abandon)
        self.search.second_chances = 2
        self.search.on_disk_fault = self.interrupt.disk
        self.post = Post(folder, devices=len(workers))
        self.budget = Budget(config.search.budget, self.post, self.interrupt.is_set)
        self.budget.replay(folder, records)
        if records:
            lineage.reconcile(folder, records)
            self.search.replay(records)
            settle_told(folder, records)
            replay_scheduler(self.scheduler, records)
            settle_untold(folder, self.search, self.scheduler, objective.score)
        if self.scheduler.populate(composed.space, self._exchange) and concurrent < config.search.trials:
            progress.note(
                f"A population is what trains side by side: {concurrent} at a time here, and search.trials is"
                f" {config.search.trials}. Those that come later exchange weights among themselves."
            )
        self.tracker: WandbTracker | None = None
        if config.tracking.mode != "disabled":
            tracking = config.tracking
            self.tracker = WandbTracker(
                folder,
                uid,
                tracking.project,
                tracking.entity,
                tracking.tags,
                tracking.mode,
                self.trial_config,
                progress.note,
                self.interrupt.is_set,
                tracking.predictions,
            )
        self.objective = objective

    def trial_config(self, trial_id: str, values: dict[str, Any]) -> dict[str, Any]:
        return asdict(self.composed.trial(trial_id, values))

    def _violated(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Constraint of the objective → how far a trial violates it."""
        constraints = Constraints.from_config(self.composed.resolved()["objective"])
        known = {name: self.folder.baseline(name).read_metrics() for name in constraints.baselines}
        rows = {name: read[-1].metrics for name, read in known.items() if read}
        return {
            it.name: it.violation(
                metrics.get(it.metric, math.nan), rows.get(it.baseline or "", {}).get(it.metric, math.nan)
            )
            for it in constraints.items
        }

    def _exchange(self, decided: Exchange) -> bool:
        """Put a trial of a population in its parent's place, and write down whose weights it has now."""
        files, parent = self.folder.trial(decided.trial_id), self.folder.trial(decided.parent)
        config = self.composed.trial(decided.trial_id, decided.new)
        for worker, _ in self.workers:
            refused = answer(worker.take_over.remote(config, str(parent.root), decided.step))
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
            if self.tracker is not None:
                self.tracker.log_exchange(decided)
            return True
        return False

    def run(self) -> bool:
        """Score the baselines and run the trials. True where it was interrupted."""
        baselines = BaselineRunner(
            self.folder,
            [worker for worker, _ in self.workers],
            missing(self.folder, planned(self.composed)),
            self.progress.note,
            self._baseline_scored,
            self.interrupt.at_once,
        )
        baselines.start()
        callbacks = [
            Recorder(
                self.folder,
                self.trial_config,
                self.interrupt.is_set,
                self.board.trial_ended,
                self.interrupt.disk,
                self.search.waits,
            ),
            self.budget,
            self.progress,
        ]
        if self.tracker is not None:
            callbacks.append(self.tracker)
        proxy = tune.with_parameters(
            TrialProxy,
            composed=self.composed,
            objective=self.objective,
            root=str(self.folder.root),
            workers=self.workers,
        )
        scratch = tempfile.mkdtemp(prefix="lorasweep-tune-")
        tuner = tune.Tuner(
            tune.with_resources(proxy, {"cpu": 0.001}),
            tune_config=tune.TuneConfig(
                search_alg=PacedSearch(self.search, self.concurrent),
                scheduler=self.scheduler,
                num_samples=-1,
                max_concurrent_trials=self.concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=self.folder.name,
                storage_path=scratch,
                stop=self.interrupt,
                callbacks=callbacks,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=2),
            ),
        )
        try:
            with self.interrupt.catching():
                self._fit(tuner)
                if not self.interrupt.at_once():
                    if baselines.unscored:
                        self.progress.phase(f"scoring {', '.join(baselines.unscored)}")
                    baselines.finish()
                    self._track_sweep()
        finally:
            with contextlib.suppress(OSError):
                self.post.end(self.interrupt.why or "finished")
            if self.tracker is not None:
                self.tracker.close()
            shutil.rmtree(scratch, ignore_errors=True)
        return self.interrupt.at_once()

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
                for worker, _ in self.workers:  # a worker in the middle of a rung would hold its proxy up
                    with contextlib.suppress(Exception):
                        ray.kill(worker)
                thread.join(20)
                break
        if self.interrupt.error is not None:
            raise self.interrupt.error
        if failure and not self.interrupt.at_once():
            raise failure[0]

    def _look_around(self) -> None:
        """Count the time, look what is used up, and what somebody asks for."""
        try:
            self.post.beat()
            spent = self.budget.used_up()
            if spent:
                self.interrupt.stop(f"{spent}. Running trials stop at their next rung.", at_once=False)
            self._take_requests()
        except OSError as error:
            self.interrupt.disk(str(error))

    def _take_requests(self) -> None:
        for request in requests(self.folder):
            if request.kind == ENQUEUE:
                if request.name in self.search.enqueued:
                    done(self.folder, request)
                else:
                    self.search.enqueue(request.name, request.point or {})
                continue
            done(self.folder, request)
            if request.trial_id:
                self.interrupt.stop_trial(request.trial_id)
                self.progress.note(f"{request.trial_id} is to stop at its next rung.")
            else:
                self.interrupt.stop("Stopping, as `lorasweep stop` asks. Everything scored so far is kept.")

    def _baseline_scored(self, baseline: Baseline, row: MetricsRow) -> None:
        if self.tracker is not None:
            self.tracker.log_baseline(baseline.name, row.metrics, settings_of(baseline))

    def _track_sweep(self) -> None:
        if self.tracker is not None:
            rows = leaderboard.build(self.folder)
            objective, _ = objective_of(self.folder, rows)
            config = self.composed.resolved() | {
                "searched": list(self.composed.space)
            }  # `lorasweep wandb pull` reads it
            self.tracker.log_sweep(rows, config, charts(rows, objective))


def _close(folder: SweepFolder, progress: Progress, sweep: _Sweep, interrupted: bool) -> int:
    """Write and print the leaderboard, and what can be done next. Returns the exit status."""
    ranking = sweep.board.close()
    rows = ranking.rows
    progress.close()
    show_leaderboard(folder, rows, judgement=ranking.judgement)
    show_next(folder, rows, interrupted, sweep.tracker.sync_hint() if sweep.tracker is not None else "")
    if interrupted:
        return INTERRUPTED
    return _exit_status(rows)


def _exit_status(rows: list[leaderboard.Row]) -> int:
    return 0 if any(row.kind == "trial" and row.status in ("completed", "stopped_early") for row in rows) else 1


@contextlib.contextmanager
def locked(folder: SweepFolder) -> Iterator[None]:
    """One driver a folder. Folders that were made here and stayed without a sweep are removed again."""
    made = [path for path in (folder.root, *folder.root.parents) if not path.exists()]
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
        lock = (folder.root / ".lock").open("w")
    except OSError as error:
        raise FolderError(
            f"{folder.root}: cannot be written ({error.strerror}). Choose another place: sweep.dir=…"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderError(
                f"{folder.root}: another lorasweep runs this sweep now. Wait for it, or stop it first."
            ) from None
        try:
            yield
        finally:
            if made and not folder.sweep_file.exists():
                shutil.rmtree(folder.root, ignore_errors=True)
                for parent in made[1:]:
                    with contextlib.suppress(OSError):  # something else is in it by now
                        parent.rmdir()


def _progress(composed: Composed, view: str, ended: int = 0) -> Progress:
    config = composed.config
    state = SweepState(str(config.sweep.name), config.search.trials, config.train.max_steps, ended)
    return Progress(state, sys.stdout, view)


def _ended(folder: SweepFolder) -> int:
    return sum(files.read_status().state in ENDED for files in folder.trials())
