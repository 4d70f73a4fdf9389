"""``lorasweep finalize``: the finalists of a sweep, trained with several seeds and scored once on the test split.

Everything is in ``finals/`` of the sweep folder; what is finished there is not done again.
"""

import getpass
import hashlib
import re
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from analysis import fast_yaml
from analysis.errors import ConfigError, DataError, FolderError, HardwareError
from analysis.finals import SEED, Look, looks_sentences, read_finals, read_looks, report
from analysis.folder import ENDED, State, Status, SweepFolder, TrialFolder, append_line, atomic_write, read_lines
from analysis.leaderboard import leaderboard
from analysis.leaderboard.baselines import compared_metrics, having, strongest
from analysis.leaderboard.baselines import scored as scored_baselines
from analysis.leaderboard.leaderboard import Row
from analysis.leaderboard.power_words import foretold
from analysis.leaderboard.ranking import objective_of
from analysis.rows import rankable, read_sweep
from sweeps.checks.estimate import entries
from sweeps.checks.preflight import preflight
from sweeps.compose.compose import RESUMABLE, Composed
from sweeps.config import SweepConfig
from sweeps.display.live_view import main_figures
from sweeps.driver.baseline_runner import planned
from sweeps.driver.device_client import DispatcherClient, TrialPlacement
from sweeps.driver.device_fleet import DeviceFleet, following_cluster
from sweeps.driver.ray_cluster import check_kept, ignored_address, ray_running
from sweeps.driver.worker_forks import workers_forked
from sweeps.process.installation import program, shell_path
from sweeps.run import require_same_numbers
from sweeps.store.bucket_upload import fetched_back, saved
from sweeps.store.folder_lock import locked, open_to_drive
from sweeps.store.manifest import read_manifest
from trainer.config import Baseline, TrialConfig, check_trial
from trainer.data.audit import near_message, near_overlap, overlap, overlap_message
from trainer.data.dataset import Row as DataRow
from trainer.data.dataset import check_test, load_dataset, load_test
from trainer.engine import Ended, Halted

CHANGEABLE = (
    "data.test",
    "data.test_rows",
    "data.allow_overlap",
    "bias",
    "eval",
    *(part for part in RESUMABLE if part in ("ray", "resources")),
)

Say = Callable[[str], None]


@dataclass(frozen=True)
class _Run:
    """One finalist with one seed: how it is trained, and how it is scored on the test split."""

    trained: TrialConfig
    scored: TrialConfig
    files: TrialFolder

    @property
    def name(self) -> str:
        return self.trained.trial_id

    @property
    def on_test(self) -> bool:
        return any(row.split == "test" for row in self.files.read_metrics())


def finalize(
    run_dir: str, top: int, seeds: int, overrides: Sequence[str], quiet: bool = False, own_code: bool = False
) -> int:
    """Train the ``top`` trials of a sweep with ``seeds`` new seeds each, score them on the test split, print a table.

    Args:
        run_dir: the sweep folder.
        top: trials, from the top of the leaderboard.
        seeds: for each.
        overrides: of ``data.test``, ``data.allow_overlap``, ``bias``, ``eval``, ``ray`` and ``resources``.
        quiet: print the final scores only.
        own_code: run code that the stored config names: it is the user's.

    Returns:
        The exit status: 1 where some run has no test score.

    Raises:
        DataError: without test rows.
        FolderError: without a completed trial, or where ``finals/`` was scored on other test rows.
        ConfigError: for what is not taken from a stored config (``sweeps/compose/foreign.py``).
    """
    for name, given in (("--top", top), ("--seeds", seeds)):
        if given < 1:
            raise ConfigError(f"{name} {given}: expected 1 or more.")
    folder = open_to_drive(run_dir)
    manifest = read_manifest(folder)
    composed = _composed(manifest["unresolved"], overrides, own_code)
    test, near = _test_rows(folder, composed, manifest)
    rows = leaderboard.build(folder)
    finalists = _finalists(folder, rows, top)
    began = time.monotonic()

    def say(text: str) -> None:
        if not quiet:
            minutes, seconds = divmod(int(time.monotonic() - began), 60)
            print(f"[{minutes:>4}:{seconds:02}] {text}", flush=True)

    for sentence in [*composed.notes, *near]:
        say(sentence)
    preflight(composed.config, composed.space, quiet)
    with locked(folder):
        runs = [run for row in finalists for run in _runs(folder, composed, row.trial_id, seeds)]
        baselines = _best_baselines(folder, composed, rows, finalists[0])
        looks, look = _look(folder, [row.trial_id for row in finalists], seeds, test)
        if looks:
            for sentence in looks_sentences(read_looks(folder)):
                say(sentence)
        if len(finalists) < top:
            say(f"only {len(finalists)} of the {top} trials asked for have completed")
        if sentence := _power(folder, finalists, test["rows"]):
            say(sentence)
        _finish(folder, composed, runs, baselines, say)
        append_line(folder.looks_file, {"look": look, "event": "finished", "time": _now()})
        saved(folder, say)
    finals = read_finals(folder)
    print(report(finals))
    print(f"\nFinal scores: {shell_path(folder.where_is(folder.finals_dir))}/")
    return 0 if all(run.on_test for run in runs) else 1


def _composed(stored: dict[str, Any], overrides: Sequence[str], own_code: bool) -> Composed:
    chosen = any(line.split("=")[0].lstrip("+") == "bias" for line in overrides)
    wanted = [*([] if chosen else ["bias=full"]), *overrides]
    return Composed.from_stored(
        stored,
        wanted,
        CHANGEABLE,
        "when finalists are scored",
        "For other values start a new sweep.",
        own_code=own_code,
    )


def _test_rows(folder: SweepFolder, composed: Composed, manifest: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Number and fingerprint of the test rows, and what to tell of them.

    Raises:
        DataError: where there are none, or they stand among the rows that trained or chose the trials.
    """
    data = composed.config.data
    try:
        rows = load_test(data)
    except DataError as error:
        if data.test or data.test_rows:
            raise
        given = "data.test_rows=40" if data.source == "newsgroups" else "data.test=FILE"
        again = f"{program()} finalize {shell_path(folder.where)} {given}"
        raise DataError(
            f"The finalists need a test split that the sweep has not seen. {error} Such as: {again}"
        ) from None
    dataset = load_dataset(data)
    require_same_numbers(folder, manifest, dataset.labels)
    check_test(rows, dataset.labels)
    known, test = list(entries([*dataset.train, *dataset.validation])), list(entries(rows))
    found = []
    if (repeated := overlap(known, test)).rows:
        if not data.allow_overlap:
            raise DataError(overlap_message(repeated, of_test=True))
        found.append(overlap_message(repeated, of_test=True))
    if (near := near_overlap(known, test)).rows:
        found.append(near_message(near, of_test=True))
    return {"rows": len(rows), "fingerprint": _fingerprint(rows)}, found


def _fingerprint(rows: Sequence[DataRow]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row.item_id}\n".encode())  # it ends in a hash of the content
    return digest.hexdigest()


def _finalists(folder: SweepFolder, rows: Sequence[Row], top: int) -> list[Row]:
    """In the order of the leaderboard; the seeds of ``search.repeats`` are one row there."""
    completed = [row for row in rows if row.kind == "trial" and rankable(row)]
    kept = [row for row in completed if not row.broken] or completed
    if not kept:
        raise FolderError(
            f"{folder.where}: no trial has completed with a score, so there are no finalists. Go on with the sweep"
            f" first; `{program()} rank {shell_path(folder.where)}` says how its trials ended."
        )
    return kept[:top]


def _runs(folder: SweepFolder, composed: Composed, trial_id: str, seeds: int) -> list[_Run]:
    """Runs of a trial with new seeds: by its own seed the search chose it."""
    own = _trial_config(folder.trial(trial_id), composed.config)
    runs = []
    for i in range(seeds):
        seed = own.seed + composed.config.search.repeats + i
        name = f"{trial_id}{SEED}{seed}"
        trained = replace(own, trial_id=name, seed=seed, data=composed.config.data)
        scored = replace(trained, bias=composed.config.bias, eval=composed.config.eval)
        runs.append(_Run(trained, scored, folder.final(name)))
    return runs


def _trial_config(files: TrialFolder, sweep: SweepConfig) -> TrialConfig:
    """A trial's config as it was run: its values as they stand, its code and addresses those of the sweep's config.

    Raises:
        FolderError: where it cannot be read.
    """
    try:
        content = _literal(fast_yaml.load(files.config_file.read_text()))
        trial = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrialConfig), OmegaConf.create(content)))
        assert isinstance(trial, TrialConfig)
        check_trial(trial)
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException, ConfigError) as error:
        raise FolderError(f"{files.config_file}: cannot be read as a trial's config ({error}). Restore it.") from None
    judge = replace(trial.eval.judge, server=sweep.eval.judge.server, key_variable=sweep.eval.judge.key_variable)
    known = replace(trial.eval, metrics=sweep.eval.metrics, run_code=sweep.eval.run_code, judge=judge)
    return replace(trial, eval=known)


def _literal(value: Any) -> Any:
    """Plain values in which OmegaConf resolves nothing: they were resolved when they were written."""
    if isinstance(value, dict):
        return {key: _literal(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_literal(inner) for inner in value]
    return re.sub(r"(\\*)\$\{", lambda it: it[1] * 2 + "\\${", value) if isinstance(value, str) else value


def _best_baselines(folder: SweepFolder, composed: Composed, rows: Sequence[Row], best: Row) -> list[Baseline]:
    """The baseline that is best in each metric in which the best trial is compared: to be scored on the test too."""
    there = {it.name: it for it in planned(composed.template, composed.precisions)}
    scored = [row for row in scored_baselines(rows) if row.trial_id in there]
    chosen = [
        strongest(having(scored, metric), metric).trial_id
        for metric in compared_metrics(folder, best)
        if having(scored, metric)
    ]
    return [there[name] for name in dict.fromkeys(chosen)]


def _power(folder: SweepFolder, finalists: Sequence[Row], n: int) -> str:
    """Whether so many test rows can show the difference of the finalists; empty where they can, or it is not known."""
    if len(finalists) < 2:
        return ""
    from analysis.statistics.comparison import judge

    objective, _ = objective_of(folder, finalists)
    judgement = judge(folder, finalists, objective, read_sweep(folder).labels)
    return foretold(judgement, n, objective) if judgement is not None else ""


def _look(
    folder: SweepFolder, finalists: Sequence[str], seeds: int, test: dict[str, Any]
) -> tuple[Sequence[Look], int]:
    """Record that the test split is looked at. Returns the looks before, and this one's number.

    A look that was not finished, at the same finalists, goes on.

    Raises:
        FolderError: where ``finals/`` was scored on other test rows.
    """
    before = read_looks(folder)
    prints = {r["test"]["fingerprint"] for r in read_lines(folder.looks_file) if r.get("event") == "began"}
    if prints - {test["fingerprint"]}:
        raise FolderError(
            f"{folder.finals_dir}: holds scores on other test rows than these. Give the same test file as before, or"
            " move the folder away to begin anew."
        )
    goes_on = bool(before) and not before[-1].finished and before[-1].finalists == tuple(finalists)
    number = before[-1].number if goes_on else len(before) + 1
    record = {
        "look": number,
        "event": "resumed" if goes_on else "began",
        "time": _now(),
        "user": f"{_user()}@{socket.gethostname()}",
        "command": " ".join(["lorasweep", *sys.argv[1:]]),
        "finalists": list(finalists),
        "seeds": seeds,
        "test": test,
    }
    append_line(folder.looks_file, record)
    return before[:-1] if goes_on else before, number


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # an id without a name, as in some containers
        return "unknown"


def _finish(
    folder: SweepFolder, composed: Composed, runs: Sequence[_Run], baselines: Sequence[Baseline], say: Say
) -> None:
    """Train what is not trained, then score what is not scored."""
    again = (State.FAILED, State.OUT_OF_MEMORY)
    waiting = [r for r in runs if (state := r.files.read_status().state) not in ENDED or state in again]
    unscored = [r for r in runs if r in waiting or (r.files.read_status().state is State.COMPLETED and not r.on_test)]
    left = [it for it in baselines if folder.final(it.name).read_status().state is not State.COMPLETED]
    if not unscored and not left:
        say("all of them have their final scores already")
        return
    say("starting Ray and the device workers")
    check_kept(folder.root)
    go_on = f"Go on when there is a Ray again, with the same options: {program()} finalize {shell_path(folder.where)}"
    with (
        workers_forked(composed.config) as forks,
        ray_running(composed.config, lambda: go_on, forks),
        following_cluster(composed, folder, say) as fleet,
    ):
        if ignored := ignored_address(composed.config):
            say(ignored)
        fleet.want(max(1, len(waiting)))
        fleet.assemble()
        say("loading model and data")
        fleet.begin(unscored[0].trained if unscored else runs[0].trained)
        limit = composed.config.resources.rung_timeout

        def slots() -> int:
            return sum(device.slots for device in fleet.devices)

        _side_by_side([partial(_train, run, fleet.dispatcher, limit, say) for run in waiting], fleet, slots)
        for run in runs:  # one that failed is trained on from its last rung, when asked again
            if run.files.read_status().state is State.COMPLETED:
                run.files.remove_checkpoints()
        scores: list[Callable[[], None]] = [
            partial(_score, fleet, run, say) for run in unscored if run.files.read_status().state is State.COMPLETED
        ]
        scores += [partial(_score_baseline, fleet, _on_test(it, composed.config), folder, say) for it in left]
        _side_by_side(scores, fleet, lambda: len(fleet.devices))


def _side_by_side(work: Sequence[Callable[[], None]], fleet: DeviceFleet, at_a_time: Callable[[], int]) -> None:
    """Do all pieces of work. Raises the first error, once all are done.

    Args:
        work: in the order in which it is begun.
        fleet: does it.
        at_a_time: how many pieces at a time, with the devices that there are now.
    """
    waiting, errors = deque(work), list[Exception]()

    def do(piece: Callable[[], None]) -> None:
        try:
            piece()
        except Exception as error:
            errors.append(error)

    busy: list[threading.Thread] = []
    while waiting or busy:
        busy = [thread for thread in busy if thread.is_alive()]
        while waiting and len(busy) < max(1, at_a_time()):
            busy.append(threading.Thread(target=do, args=(waiting.popleft(),), daemon=True))
            busy[-1].start()
        fleet.want(len(waiting) + len(busy))
        if busy:
            busy[0].join(0.2)  # Ctrl-C is heard in between
        if fleet.expired:
            raise HardwareError(f"{fleet.expired} Finalize again: it goes on where it stopped.")
    if errors:
        raise errors[0]


def _train(run: _Run, dispatcher: DispatcherClient, rung_timeout: float | None, say: Say) -> None:
    """Train one run to its end, on whichever device has room; on from its last checkpoint where a worker is lost."""
    atomic_write(run.files.config_file, fast_yaml.dump(asdict(run.trained)))
    _train_to_end(run, TrialPlacement(dispatcher, run.trained, run.files, rung_timeout), say)


def _train_to_end(run: _Run, placement: TrialPlacement, say: Say) -> None:
    """Record what a placed run reports until it ends. Raises FolderError where its folder cannot be written."""
    files = run.files
    recorded = {(row.step, row.final) for row in files.read_metrics()}
    files.write_status(Status(State.RUNNING, "", max((step for step, _ in recorded), default=0)))
    said = 0
    while True:
        event = placement.next_event()
        for note in placement.notes[said:]:
            say(f"{run.name}  {note}")
        said = len(placement.notes)
        if isinstance(event, Halted):
            raise FolderError(f"{event.reason}. Mend that and finalize again: it goes on from the last rung.")
        if event.row is not None and (event.row.step, event.row.final) not in recorded:
            files.append_metrics(event.row)
            recorded.add((event.row.step, event.row.final))
            placement.rung_recorded()
        if isinstance(event, Ended):
            _ended(run, event, placement.where, say)
            return
        files.write_status(Status(State.RUNNING, "", event.row.step, placement.where))
        say(f"{run.name}  step {event.row.step}/{run.trained.train.max_steps}{main_figures(event.row.metrics)}")


def _ended(run: _Run, event: Ended, where: str, say: Say) -> None:
    run.files.write_status(Status(event.state, event.reason, event.step, where))
    figures = main_figures(event.row.metrics) if event.row is not None else ""
    why = f": {event.reason}" if event.reason else ""
    say(f"{run.name}  {str(event.state).replace('_', ' ')} at step {event.step}{figures}{why}")


def _score(fleet: DeviceFleet, run: _Run, say: Say) -> None:
    saved(SweepFolder(run.files.root.parents[1]))  # the worker may be on another node
    row = fleet.call(lambda device: device.score_on_test(run.scored, run.files), run.scored.precision)
    fetched_back(run.files)
    say(f"{run.name}  test{main_figures(row.metrics)}")


def _on_test(baseline: Baseline, config: SweepConfig) -> Baseline:
    """A baseline with the data, bias sets and generation that finalists are scored with."""
    return replace(baseline, trial=replace(baseline.trial, data=config.data, bias=config.bias, eval=config.eval))


def _score_baseline(fleet: DeviceFleet, baseline: Baseline, folder: SweepFolder, say: Say) -> None:
    files = folder.final(baseline.name)
    row = fleet.call(lambda device: device.score_baseline(baseline, files, test=True), baseline.trial.precision)
    fetched_back(files)
    say(f"{baseline.name}  test{main_figures(row.metrics)}")
