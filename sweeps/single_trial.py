"""``lorasweep trial``: one configuration, trained and scored in this process, without Ray."""

import sys
import time
from dataclasses import asdict

from analysis import fast_yaml
from analysis.constraints import check_available
from analysis.errors import ConfigError
from analysis.folder import MetricsRow, Status, SweepFolder, atomic_write
from analysis.leaderboard import leaderboard
from sweeps.checks.length import Measured, asked_about, choose, is_open, is_timed
from sweeps.checks.preflight import preflight, skipped_note
from sweeps.compose.compose import Composed
from sweeps.display.summary import show_leaderboard, show_next
from sweeps.driver.baseline_runner import planned
from sweeps.process import gc_pause
from sweeps.store.folder_lock import locked, new_folder, sweep_folder
from sweeps.store.manifest import make_manifest, write_manifest
from trainer.engine import Ended, Refused
from trainer.preload import import_libraries


def run_trial(composed: Composed) -> int:
    """Train and score the composed configuration, with the first point of ``search.start_from`` where there is one.

    Writes a sweep folder that holds this one trial and the baselines. Returns the exit status.

    Raises:
        LorasweepError: for anything about the input that cannot be run.
    """
    if composed.config.resources.ranks > 1:
        raise ConfigError(
            f"`lorasweep trial` trains in one process, and the configuration asks for {composed.config.resources.ranks}"
            " (resources.gpus_per_trial, resources.workers_per_trial). Use `lorasweep run … search.trials=1`."
        )
    folder = new_folder(sweep_folder(composed.config.sweep), composed.config.sweep)
    preflight(composed.config, composed.space)
    with locked(folder):
        return _run(folder, composed)


def _run(folder: SweepFolder, composed: Composed) -> int:
    began = time.monotonic()

    def say(text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - began), 60)
        print(f"{minutes}:{seconds:02}  {text}", flush=True)

    say("loading model and data")
    with gc_pause.paused():
        import_libraries()
        import torch

        from sweeps.checks.probe import sizes_on
        from trainer.baselines import score_baseline
        from trainer.device_cache import DeviceCache
        from trainer.engines.make import make_engine
        from trainer.evaluation.evaluate import absent_metrics, bias_notes
        from trainer.models.base_model import available_precisions, best_device, slow_precisions

    threads = composed.config.resources.threads
    if threads:
        torch.set_num_threads(threads)
    device = best_device()
    faults = available_precisions(device)
    composed = composed.on_machine(
        [precision for precision, fault in faults.items() if not fault], slow_precisions(device)
    )
    values = dict(composed.start[0]) if composed.start else {}
    device_cache = DeviceCache(device)
    composed = composed.with_values({"search.time": None, "search.trials": 1})
    if is_open(composed):
        sizes = sizes_on(device_cache, composed.config.engine, asked_about(composed), is_timed(composed))
        composed = choose(composed, Measured(sizes, 1, time.monotonic() - began))
    trial = composed.trial("t0000", values)
    engine = make_engine(composed.config.engine, device_cache, composed.objective.score, 1)
    absent = absent_metrics(trial, device_cache.validation(trial))
    check_available(composed.resolved()["objective"], absent)
    for why in dict.fromkeys(absent.values()):
        say(f"not measured: {why}")
    for note in bias_notes(trial, device_cache.validation(trial)):
        say(note)
    files = folder.trial(trial.trial_id)
    for note in composed.notes:
        say(note)
    admission = engine.admit(trial, files, None)
    assert not isinstance(admission, Refused)  # the only slot is free, and what cannot run has raised
    if engine.pass_cost is not None:
        composed = composed.with_values({"engine.pass_cost": engine.pass_cost})
    data = device_cache.facts(trial)
    for note in data["model_notes"]:
        say(note)
    if data["skipped"]:
        say(skipped_note(data["skipped"]))
    if data["lost"]:
        say(data["lost"])
    manifest = make_manifest(composed, data, [{"device": str(device), "precisions": faults}])
    manifest["space"] = {}  # nothing is searched
    write_manifest(folder, manifest)
    atomic_write(files.config_file, fast_yaml.dump(asdict(trial)))
    say(f"training {trial.train.max_steps} steps of {trial.train.batch_size} rows, {trial.precision}, on {device}")
    status = _train(engine, trial.trial_id, files, say)
    for baseline in planned(composed.template, [trial.precision]):
        say(f"scoring {baseline.name}")
        score_baseline(device_cache, baseline, folder.baseline(baseline.name))
    leaderboard_rows = leaderboard.build(folder)
    leaderboard.write(folder, leaderboard_rows)
    show_leaderboard(folder, leaderboard_rows)
    show_next(folder, leaderboard_rows, interrupted=False)
    nothing = leaderboard.nothing_scored(leaderboard_rows)
    if nothing:
        print(f"\n{nothing}", file=sys.stderr)
    return 1 if nothing or status.state != "completed" else 0


def _train(engine, trial_id, files, say) -> Status:  # type: ignore[no-untyped-def]  # annotations would import torch
    """Drive the engine to the trial's end, writing what it yields."""
    while True:
        for event in engine.advance():
            if isinstance(event, Ended):
                if event.row is not None:
                    _note(files, event.row, say)
                status = Status(event.state, event.reason, event.step)
                files.write_status(status)
                say(f"{event.state} {event.reason}".strip())
                return status
            _note(files, event.row, say)
            engine.proceed(trial_id)


def _note(files, row: MetricsRow, say) -> None:  # type: ignore[no-untyped-def]
    files.append_metrics(row)
    what = "all items" if row.final else "rung"
    figures = {name: value for name, value in row.metrics.items() if not name.endswith("stderr")}
    shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
    say(f"step {row.step} ({what}, {row.n_items})  {shown}")
