"""Brings a sweep's two records into agreement before it is resumed: ``study/asks.jsonl`` and the trials' files.

A driver that is killed leaves at most one event written in one record and not in the other. The order of writing
depends on the event: a rung goes to the study first; an end that a trial reports itself goes to the trial's files
first; an end that a scheduler decides goes to the study first. So the record that is ahead is right. No trial that
ended runs again, and none that the scheduler had stopped goes on.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from ray.tune.schedulers import TrialScheduler

from analysis.folder import ENDED, MetricsRow, State, Status, SweepFolder, TrialFolder
from sweeps.search.scheduler import GuardedScheduler, StandIn
from sweeps.search.searcher import GuardedOptunaSearch
from sweeps.store.recorder import write_best_adapter
from sweeps.store.tune_results import outcome_of


def update_files(folder: SweepFolder, records: Iterable[Mapping[str, Any]]) -> None:
    """Write the status of trials that ended according to the study, but not according to their own files.

    Checkpoints of trials that ended are removed: the driver may have died before it did so.

    Args:
        folder: of the sweep.
        records: the lines of ``study/asks.jsonl``.
    """
    for record in records:
        if record["event"] != "tell":
            continue
        files = folder.trial(record["trial_id"])
        status = files.read_status()
        if status.state not in ENDED:
            state, reason = State(record["state"]), record.get("reason", "")
            if state is State.STOPPED_EARLY and not reason:
                _, reason = outcome_of({"state": State.RUNNING, "step": record["step"]})
            end_trial(files, replace(status, state=state, reason=reason, step=record["step"]))
        else:  # the driver may have died before it had removed them
            files.remove_checkpoints()


def update_study(
    folder: SweepFolder,
    search: GuardedOptunaSearch,
    scheduler: GuardedScheduler,
    score: Callable[[Mapping[str, float]], float],
) -> None:
    """Tell study and scheduler the rungs and ends that only the files of unfinished trials hold.

    Args:
        folder: of the sweep.
        search: the study, replayed from ``study/asks.jsonl``.
        scheduler: replayed likewise.
        score: the sweep's objective, of a rung's metrics; higher is better.
    """
    for tune_id, suggestion in search.take_up():
        trial, files = StandIn(suggestion["trial_id"]), folder.trial(suggestion["trial_id"])
        status, rows = files.read_status(), files.read_metrics()
        rungs = [row for row in rows if not row.final]
        by_itself = status.state in ENDED and status.state is not State.STOPPED_EARLY
        if by_itself:  # its last rung was reported together with the end
            rungs = [row for row in rungs if row.step != status.step]
        for row in rungs:
            report = _report(row, status, State.RUNNING, score(row.metrics))
            decision = scheduler.on_trial_result(None, trial, report)
            if decision == TrialScheduler.STOP and status.state not in ENDED:
                state, reason = outcome_of(report)
                status = replace(status, state=state, reason=reason, step=row.step)
                search.on_trial_complete(tune_id, report)
                scheduler.on_trial_complete(None, trial, report)
                end_trial(files, status)
                break
            search.on_trial_result(tune_id, report)
        else:
            if status.state in ENDED:
                report = _last(rows, status, score)
                search.on_trial_complete(tune_id, report)
                scheduler.on_trial_complete(None, trial, report)
                files.remove_checkpoints()


def end_trial(files: TrialFolder, status: Status) -> None:
    """Write the end of a trial whose worker is gone: the best rung's adapter from its last checkpoint, then its status.

    Args:
        files: of the trial.
        status: how it ended.
    """
    write_best_adapter(files)
    files.write_status(status)
    files.remove_checkpoints()


def _last(rows: list[MetricsRow], status: Status, score: Callable[[Mapping[str, float]], float]) -> dict[str, Any]:
    """The report with which a trial ended, made again from its files."""
    scores = [value for row in rows if not row.final and math.isfinite(value := score(row.metrics))]
    ended = status.state is State.COMPLETED
    objective = (max(scores) if ended else scores[-1]) if scores else math.nan
    if not ended and status.state is not State.STOPPED_EARLY:
        objective = math.nan
    row = rows[-1] if rows else MetricsRow("", status.step, 0, 0.0, False, 0)
    return _report(row, status, status.state, objective) | {"step": status.step, "done": True}


def _report(row: MetricsRow, status: Status, state: State, objective: float) -> dict[str, Any]:
    """A report as a trial's proxy makes it (``sweeps/driver/trial_proxy.py``)."""
    return {
        "step": row.step,
        "tokens": row.tokens,
        "seconds": row.seconds,
        "n_items": row.n_items,
        "final": row.final,
        "state": str(state),
        "reason": status.reason if state in ENDED else "",
        "where": status.where,
        "objective": objective,
        "metrics": dict(row.metrics),
        "rung_metrics": {} if row.final else dict(row.metrics),
        "rows": [asdict(row)],
        "done": False,
    }
