"""A sweep from its config to its leaderboard, and again from its folder.

Check what can be checked at once; start the device workers; let Ray Tune run the trials
(``sweeps/driver/tune_run.py``); rank.
"""

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from analysis.constraints import check_available
from analysis.errors import INTERRUPTED, DataError, FolderError
from analysis.folder import ENDED, State, SweepFolder
from analysis.leaderboard import leaderboard
from analysis.leaderboard.seeds import runs
from sweeps.checks.length import Measured, asked_about, choose, is_open, is_timed
from sweeps.checks.preflight import answers_note, preflight, skipped_note
from sweeps.compose.compose import Composed, transfer_target
from sweeps.config import SweepConfig
from sweeps.display.progress import Progress
from sweeps.display.summary import show_leaderboard, show_next
from sweeps.display.sweep_state import SweepState
from sweeps.driver.baseline_runner import planned
from sweeps.driver.device_fleet import DeviceFleet, following_cluster
from sweeps.driver.device_worker import DeviceWorker
from sweeps.driver.ray_cluster import check_kept, ignored_address, ray_running
from sweeps.driver.resume import nothing_left, past_runs, same_sweep, tracked_config
from sweeps.driver.worker_forks import workers_forked
from sweeps.process import gc_pause
from sweeps.process.fork_server import ForkServer
from sweeps.process.installation import program, shell_path
from sweeps.process.logs import to_file
from sweeps.search.transfer import transferred
from sweeps.search.warm_start import carried_over
from sweeps.store.bucket_upload import saved
from sweeps.store.control import driver
from sweeps.store.folder_lock import locked, new_folder, open_to_drive, sweep_folder
from sweeps.store.manifest import make_manifest, read_manifest, write_manifest
from sweeps.tracking.base import Hint, TrackedSweep, build_trackers, check_trackers
from sweeps.tracking.catch_up import CatchUp
from sweeps.tracking.from_folder import sweep_due
from trainer.evaluation.metric_names import told

if TYPE_CHECKING:
    from sweeps.driver.tune_run import TuneRun


def run_sweep(
    composed: Composed,
    view: str = "auto",
    worker: type[DeviceWorker] = DeviceWorker,
    forks: ForkServer | None = None,
) -> int:
    """Run a sweep and print its leaderboard; where its folder holds this same sweep, go on. Returns the exit status.

    Args:
        view: how it is shown while it runs: one of ``sweeps.display.live_view.VIEWS``.
        worker: what owns a device; a simulation gives another class.
        forks: starts the workers of a Ray of our own.

    Raises:
        LorasweepError: for anything about the input that cannot be run; nothing is left behind then.
    """
    there = sweep_folder(composed.config.sweep)
    if there.sweep_file.exists():
        manifest = read_manifest(there)
        return _go_on(there, same_sweep(there, manifest, composed), manifest, view, worker, forks)
    folder = new_folder(there, composed.config.sweep)
    carried_over(composed.config.search.warm_start, composed.space, composed.resolved(), composed.objective)
    transferred(composed.config.search.transfer_from, *transfer_target(composed))
    check_trackers(composed.config.tracking, composed.raw["tracking"], composed.explicit)
    preflight(composed.config, composed.space, view == "quiet")
    with locked(folder), _progress(composed.config, view) as progress:
        return _drive(folder, composed, progress, None, worker, forks)


def resume_sweep(
    run_dir: str, overrides: list[str], view: str = "auto", worker: type[DeviceWorker] = DeviceWorker
) -> int:
    """Go on with a sweep that was interrupted, or extend one (``search.trials=40``). Returns the exit status.

    Raises:
        FolderError: where there is no sweep, or another process drives it.
        ConfigError: for an override that would change what trials are.
    """
    folder = open_to_drive(run_dir)
    manifest = read_manifest(folder)
    if not manifest["space"]:
        raise FolderError(f"{folder.where} holds a single trial, of `lorasweep trial`: there is nothing to go on with.")
    composed = Composed.from_stored(manifest["unresolved"], overrides)
    if worker is not DeviceWorker:
        return _go_on(folder, composed, manifest, view, worker, None)
    with workers_forked(composed.config) as forks:
        return _go_on(folder, composed, manifest, view, worker, forks)


def _go_on(
    folder: SweepFolder,
    composed: Composed,
    manifest: dict[str, Any],
    view: str,
    worker: type[DeviceWorker],
    forks: ForkServer | None,
) -> int:
    baselines = planned(composed.template, composed.precisions)
    done = nothing_left(folder, composed.config.search, baselines)
    if done and not driver(folder).alive:
        ranking = leaderboard.ranked(folder)
        hints = _track_what_lacks(folder, composed, manifest, ranking.rows)
        show_leaderboard(folder, ranking.rows, judgement=ranking.judgement)
        print(f"\n{done}")
        for hint in hints:
            print(f"To {hint.purpose}: {hint.command}")
        return _exit_status(ranking.rows)
    check_trackers(composed.config.tracking, composed.raw["tracking"], composed.explicit)
    preflight(composed.config, composed.space, view == "quiet")
    with locked(folder), _progress(composed.config, view, *_ended(folder)) as progress:
        return _drive(folder, composed, progress, manifest, worker, forks)


def _track_what_lacks(
    folder: SweepFolder, composed: Composed, manifest: Mapping[str, Any], rows: Sequence[leaderboard.Row]
) -> list[Hint]:
    """Give the trackers of a sweep that is over what an earlier driver could not. Returns what can be done then."""
    tracking = composed.config.tracking
    trackers = build_trackers(tracking, TrackedSweep(folder, manifest["uid"], print))
    due = [*past_runs(folder, composed), sweep_due(folder, rows, tracked_config(composed))] if trackers else []
    catch_up = CatchUp(folder, trackers, due)
    if not catch_up.needed:
        return []
    check_trackers(tracking, composed.raw["tracking"], composed.explicit)
    with locked(folder), to_file(folder.log_file):
        hints = catch_up.write()
        saved(folder, print)
    return hints


def _drive(
    folder: SweepFolder,
    composed: Composed,
    progress: Progress,
    manifest: dict[str, Any] | None,
    worker_class: type[DeviceWorker],
    forks: ForkServer | None,
) -> int:
    """Everything from Ray's start to the printed leaderboard; ``manifest`` is None for a new sweep."""
    began = time.monotonic()
    progress.phase("starting Ray and the device workers")
    check_kept(folder.root)
    with (
        ray_running(composed.config, lambda: _go_on_with(folder), forks) as let_go,
        to_file(folder.log_file, progress.verbose),
        following_cluster(composed, folder, progress.note, worker_class) as fleet,
    ):
        if ignored := ignored_address(composed.config):
            progress.note(ignored)
        with gc_pause.paused():
            from sweeps.driver.tune_run import TuneRun  # imports Ray Tune, which takes seconds: while the workers start

        facts = fleet.assemble()
        as_given = composed.unresolved()
        able = [name for name in facts[0].precisions if not any(fact.precisions.get(name) for fact in facts)]
        composed = composed.on_machine(able, {name: times for fact in facts for name, times in fact.slow.items()})
        progress.phase("loading model and data")
        composed = _with_length(composed, fleet, began)
        progress.planned(composed.config.search.trials, composed.config.train.max_steps)
        for note in composed.notes:
            progress.note(note)
        threading.Thread(target=import_statistics, name="imports").start()
        data = fleet.begin(composed.trial("t0000", composed.start[0] if composed.start else {}))
        if data.pass_cost is not None and composed.config.engine.pass_cost is None:
            composed = composed.with_values({"engine.pass_cost": data.pass_cost})  # for all workers, and a resume
        for note in data.model_notes:
            progress.note(note)
        if data.skipped:
            progress.note(skipped_note(data.skipped))
        if data.lost:
            progress.note(data.lost)
        if data.judge:
            progress.note(data.judge)
        if data.max_new_tokens:
            progress.note(answers_note(composed.config.eval, data.max_new_tokens))
        check_available(composed.resolved()["objective"], data.absent)
        for why in told(data.absent, composed.config.eval):
            progress.note(f"not measured: {why}")
        for note in data.bias_notes:
            progress.note(note)
        if manifest is None:
            manifest = make_manifest(composed, data.for_manifest(), [asdict(fact) for fact in facts])
            manifest |= {"asked": as_given}
        else:
            _require_same_data(folder, manifest, data.fingerprint, data.labels)
            manifest |= {"config": composed.resolved(), "unresolved": composed.unresolved()}
        write_manifest(folder, manifest)
        sweep = TuneRun(folder, composed, fleet, manifest["uid"], progress, began)
        interrupted = sweep.run(let_go)
        progress.phase("ranking")
    return _close(folder, progress, sweep, interrupted)


def import_statistics() -> None:
    """Import what ranking does in the end, 0.7 s, while this process waits for model and data to be loaded."""
    import scipy.stats  # noqa: F401


def _with_length(composed: Composed, fleet: DeviceFleet, began: float) -> Composed:
    """The sweep with what its config leaves to the data and the devices: how long trials are, and how many."""
    if not is_open(composed):
        return composed
    sizes = fleet.call(lambda device: device.sizes(asked_about(composed), is_timed(composed)))
    return choose(composed, Measured(sizes, fleet.occupied, time.monotonic() - began))


def _require_same_data(folder: SweepFolder, manifest: dict[str, Any], fingerprint: str, labels: Sequence[str]) -> None:
    """Raises DataError where the data, or the numbers of the classes, have changed since the sweep began."""
    before = manifest.get("fingerprints", {}).get("data")
    if before not in (None, fingerprint):
        raise DataError(
            f"{folder.where}: the data are not those that this sweep began with (their fingerprint was {before[:12]}…,"
            f" now {fingerprint[:12]}…): its trials would not be comparable. Restore them, or start a new sweep."
        )
    require_same_numbers(folder, manifest, labels)


def require_same_numbers(folder: SweepFolder, manifest: dict[str, Any], labels: Sequence[str]) -> None:
    """Raises DataError where the sweep's classes stood in another order: its heads and log-probabilities have it."""
    numbered = manifest.get("data", {}).get("labels")
    if numbered and list(labels) != list(numbered):
        raise DataError(
            f"{folder.where}: an earlier version numbered the classes as text ({', '.join(map(str, numbered[:5]))}, …),"
            f" this one by value ({', '.join(labels[:5])}, …): heads of the one do not fit the other."
            " Start a new sweep."
        )


def _close(folder: SweepFolder, progress: Progress, sweep: "TuneRun", interrupted: bool) -> int:
    """Write and print the leaderboard, and what can be done next. Returns the exit status."""
    ranking = sweep.board.close()
    rows = ranking.rows
    saved(folder, progress.phase)
    progress.close()
    show_leaderboard(folder, rows, judgement=ranking.judgement)
    waiting = [files.trial_id for files in folder.trials() if files.read_status().state not in ENDED]
    if waiting and not interrupted:
        print(f"\nNot ended yet, and gone on with by a resume: {', '.join(waiting)}")
    show_next(folder, rows, interrupted or bool(waiting), sweep.tracking.hints())
    if interrupted:
        return INTERRUPTED
    return _exit_status(rows)


def _go_on_with(folder: SweepFolder) -> str:
    """What to do after Ray died, as a sentence."""
    if not folder.sweep_file.exists():
        return "Run the command again."
    return f"Go on when there is a Ray again: {program()} resume {shell_path(folder.where)}"


def _exit_status(rows: list[leaderboard.Row]) -> int:
    """1 where no trial has a score, with a sentence."""
    nothing = leaderboard.nothing_scored(rows)
    if nothing:
        print(f"\n{nothing}", file=sys.stderr)
    trials = [row for row in rows if row.kind == "trial"]
    over = any(row.status in (State.COMPLETED, State.STOPPED_EARLY) or row.seeds for row in trials)
    return 0 if over and not nothing else 1


def _progress(config: SweepConfig, view: str, ended: int = 0, seeds: Mapping[str, int] | None = None) -> Progress:
    state = SweepState(
        str(config.sweep.name),
        config.search.trials,
        config.train.max_steps,
        ended,
        repeats=config.search.repeats,
        seeds_before=seeds,
    )
    state.terms = tuple(term.metric for term in config.objective.terms.values())
    return Progress(state, sys.stdout, view)


def _ended(folder: SweepFolder) -> tuple[int, dict[str, int]]:
    """Configurations that are over, and of each other one how many of its seeds have ended."""
    rows = [row for row in leaderboard.build(folder) if row.kind == "trial"]
    seeds = {row.trial_id: sum(run.status in ENDED for run in runs([row])) for row in rows if row.status not in ENDED}
    return sum(row.status in ENDED for row in rows), {name: n for name, n in seeds.items() if n}
