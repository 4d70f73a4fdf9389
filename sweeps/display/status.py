"""The state of a sweep, read from its folder alone: what ``lorasweep status`` shows."""

import math
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from analysis.errors import FolderError, LorasweepError
from analysis.folder import ENDED, State, SweepFolder, TrialFolder, read_lines
from analysis.leaderboard.leaderboard import build
from analysis.leaderboard.seeds import spread
from analysis.rows import Row, best_trial, configuration_id, leading_trial
from analysis.text.visible import single_line
from sweeps.process.installation import program, shell_path
from sweeps.store.control import Driver, driver, requests, spent
from sweeps.store.manifest import read_manifest

RUNNING, FINISHED, STOPPED, DIED, IDLE = "running", "finished", "stopped", "died", "not running"


def overview(folder: SweepFolder) -> dict[str, Any]:
    """The state of a sweep as plain values: its driver, trials, best trial, what it spent and what went wrong.

    Args:
        folder: of the sweep, which may be running, stopped, finished or left by a driver that died.

    Raises:
        FolderError: where there is no sweep.
    """
    manifest = read_manifest(folder)
    search = _search(folder, manifest)
    process = driver(folder)
    asked = {line["trial_id"] for line in read_lines(folder.asks_file) if line.get("event") == "ask"}
    handed_out = set(map(configuration_id, asked))
    trials, unreadable = [], []
    for files in folder.trials():
        try:
            trials.append(_trial(files))
        except FolderError as error:
            unreadable.append(str(error))
    rows = _rows(folder)
    # Of a configuration of several seeds the state is that of all of them.
    states = Counter(str(row.status) for row in rows) if rows else Counter(trial["state"] for trial in trials)
    ended = sum(states[state] for state in ENDED)
    used = spent(folder)
    waiting = [dict(request.point or {}) for request in requests(folder) if request.kind == "enqueue"]
    return {
        "name": manifest["name"],
        "folder": folder.where,
        "state": _state(process, ended, len(handed_out), search["trials"]),
        "driver": {
            "alive": process.alive,
            "pid": process.pid,
            "host": process.host,
            "running_for_seconds": max(0.0, time.time() - process.started)
            if process.alive and process.started
            else None,
            "last_sign_seconds_ago": max(0.0, time.time() - process.seen) if process.seen else None,
            "ended": process.ended,
        },
        "trials": {
            "total": search["trials"],
            "seeds_each": search.get("repeats", 1),
            "runs": len(trials),
            "handed_out": len(handed_out),
            "ended": ended,
            "by_state": {str(state): states[state] for state in State if states[state]},
            "enqueued": waiting,
        },
        "running": [trial for trial in trials if trial["state"] == State.RUNNING],
        "best": _shown(best_trial(rows)),
        "leading": _shown(leading_trial(rows)) if best_trial(rows) is None else None,
        "spent": {
            "hours": used.seconds / 3600,
            "device_hours": used.device_seconds / 3600,
            "tokens": sum(trial["tokens"] for trial in trials),
        },
        "budget": {name: value for name, value in search.get("budget", {}).items() if value not in (None, {})},
        "notes": [f"{trial['trial_id']}: {note}" for trial in trials for note in trial["notes"]] + unreadable,
    }


def _search(folder: SweepFolder, manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the search. Raises FolderError where ``sweep.yaml`` does not have it."""
    search = manifest["config"].get("search") if isinstance(manifest["config"], Mapping) else None
    if not isinstance(search, Mapping) or not isinstance(search.get("trials"), int):
        raise FolderError(f"{folder.sweep_file}: lacks config.search.trials, a number. Restore it from a copy.")
    return search


def lines(facts: Mapping[str, Any], folder: SweepFolder) -> list[str]:
    """An overview as lines of text.

    Args:
        facts: from ``overview``.
        folder: of the sweep.
    """
    trials, process, used = facts["trials"], facts["driver"], facts["spent"]
    text = [f"{facts['name']}: {_state_sentence(facts)}"]
    several = trials["seeds_each"] > 1 or trials["runs"] > sum(trials["by_state"].values())
    by_state = ", ".join(f"{n} {state.replace('_', ' ')}" for state, n in trials["by_state"].items())
    by_state = (by_state or "none yet") + (f"; {trials['runs']} runs" if several else "")
    enqueued = f", {len(trials['enqueued'])} of them enqueued" if trials["enqueued"] else ""
    to_come = max(trials["total"] - trials["handed_out"], 0)
    text.append(
        f"trials   {trials['ended']} of {trials['total']} {'configurations ' if several else ''}ended ({by_state}),"
        f" {to_come} to come{enqueued}"
    )
    for name in ("best", "leading"):
        if shown := facts[name]:
            metrics = "  ".join(f"{name} {value:.4g}" for name, value in list(shown["metrics"].items())[:3])
            seeds = f" ± {shown['sd']:.3f} over {shown['seeds']} seeds" if shown["sd"] is not None else ""
            rung = f"  (no trial has completed; this is its score at step {shown['step']})" if name == "leading" else ""
            text.append(f"{name:<8} {shown['trial_id']}  objective {shown['objective']:.3f}{seeds}  {metrics}{rung}")
    limits = ", ".join(f"{name} {value}" for name, value in facts["budget"].items())
    hours = f"{used['hours']:.2f} hours, {used['device_hours']:.2f} device-hours, {used['tokens']} tokens"
    text.append(f"spent    {hours}" + (f" (budget: {limits})" if limits else ""))
    for trial in facts["running"]:
        at = f"step {trial['step']}" if trial["step"] else "before its first rung"
        metrics = "  ".join(f"{name} {value:.4g}" for name, value in list(trial["metrics"].items())[:3])
        going = "running " if process["alive"] else "waiting "
        text.append(f"{going} {trial['trial_id']}  {at}  {metrics}  {trial['where']}  {trial['reason']}".rstrip())
    text += [f"note     {note}" for note in facts["notes"]]
    if facts["state"] in (STOPPED, DIED, IDLE):
        text.append(f"go on:   {program()} resume {shell_path(folder.where)}")
    return [single_line(line) for line in text]


def _state_sentence(facts: Mapping[str, Any]) -> str:
    process = facts["driver"]
    by = f"process {process['pid']} on {process['host']}" if process["pid"] else "its process has not said who it is"
    if facts["state"] == RUNNING:
        ago = process["last_sign_seconds_ago"]
        sign = f", last sign of life {ago:.0f} s ago" if ago is not None else ""
        return f"running ({by}{sign})"
    if facts["state"] == DIED:
        return f"not running: its driver ({by}) died"
    if facts["state"] == STOPPED:
        return f"stopped: {process['ended']}"
    return str(facts["state"])


def _state(process: Driver, ended: int, handed_out: int, total: int) -> str:
    if process.alive:
        return RUNNING
    if ended == handed_out and handed_out >= total:
        return FINISHED
    if process.ended:
        return STOPPED if process.ended != "finished" else FINISHED
    return DIED if process.pid else IDLE


def _trial(files: TrialFolder) -> dict[str, Any]:
    status, rows = files.read_status(), files.read_metrics()
    return {
        "trial_id": files.trial_id,
        "state": str(status.state),
        "step": status.step,
        "where": status.where,
        "reason": status.reason,
        "notes": list(status.notes),
        "tokens": max((row.tokens for row in rows), default=0),
        "metrics": {name: value for name, value in rows[-1].metrics.items() if math.isfinite(value)} if rows else {},
    }


def _rows(folder: SweepFolder) -> list[Row]:
    """The trials, ranked; none where the folder does not tell how."""
    try:
        return [row for row in build(folder) if row.kind == "trial"]
    except LorasweepError:
        return []


def _shown(row: Row | None) -> dict[str, Any] | None:
    if row is None:
        return None
    deviation = spread(row)
    return {
        "trial_id": row.trial_id,
        "status": row.status,
        "step": row.step,
        "objective": row.objective,
        "sd": deviation if math.isfinite(deviation) else None,
        "seeds": max(1, len(row.seeds)),
        "metrics": {name: value for name, value in row.metrics.items() if math.isfinite(value)},
    }
