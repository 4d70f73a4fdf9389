"""A sweep from its config to its leaderboard, and again from its folder.

Check what can be checked at once; start the device workers; let Ray Tune run the trials; rank.
"""

import contextlib
import fcntl
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.constraints import check_available
from analysis.errors import INTERRUPTED, DataError, FolderError
from analysis.folder import ENDED, SweepFolder
from analysis.leaderboard import leaderboard
from analysis.objective import Objective
from sweeps.checks.preflight import preflight, skipped_note
from sweeps.compose.compose import Composed
from sweeps.display.progress import Progress
from sweeps.display.summary import show_leaderboard, show_next
from sweeps.display.sweep_state import SweepState
from sweeps.driver.device_worker import DeviceWorker
from sweeps.driver.ray_cluster import answer, facts_of, max_concurrent, ray_running, start_workers
from sweeps.driver.resume import nothing_left, same_sweep
from sweeps.process import gc_pause
from sweeps.process.installation import program, typed
from sweeps.process.logs import to_file
from sweeps.search.warm_start import carried_over
from sweeps.store.control import driver
from sweeps.store.manifest import make_manifest, read_manifest, write_manifest
from sweeps.tracking.base import check_trackers

if TYPE_CHECKING:
    from sweeps.driver.tune_run import TuneRun


def run_sweep(composed: Composed, view: str = "auto", worker: type[DeviceWorker] = DeviceWorker) -> int:
    """Run a sweep and print its leaderboard; where its folder holds this same sweep, go on. Returns the exit status.

    Args:
        view: how it is shown while it runs: one of ``sweeps.display.live_view.VIEWS``.
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
    check_trackers(config.tracking, composed.raw["tracking"], composed.explicit)
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
    check_trackers(composed.config.tracking, composed.raw["tracking"], composed.explicit)
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
    with ray_running(composed.config) as let_go, to_file(folder.log_file, progress.verbose):
        workers = start_workers(composed.config, objective, worker_class)
        with gc_pause.kept():
            from sweeps.driver.tune_run import TuneRun  # imports Ray Tune, which takes seconds: while the workers start

        facts = facts_of(workers, str(folder.root), composed.precisions, progress.note)
        asked = composed.unresolved()
        able = [name for name in facts[0].precisions if not any(fact.precisions.get(name) for fact in facts)]
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
        sweep = TuneRun(folder, composed, objective, placed, concurrent, manifest["uid"], progress)
        interrupted = sweep.run(let_go)
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


def _close(folder: SweepFolder, progress: Progress, sweep: "TuneRun", interrupted: bool) -> int:
    """Write and print the leaderboard, and what can be done next. Returns the exit status."""
    ranking = sweep.board.close()
    rows = ranking.rows
    progress.close()
    show_leaderboard(folder, rows, judgement=ranking.judgement)
    waiting = [files.trial_id for files in folder.trials() if files.read_status().state not in ENDED]
    if waiting and not interrupted:
        print(f"\nNot ended yet, and gone on with by a resume: {', '.join(waiting)}")
    show_next(folder, rows, interrupted or bool(waiting), sweep.tracking.hints())
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
