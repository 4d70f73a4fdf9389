"""The state of a sweep, read from its folder alone: what ``lorasweep status`` shows."""

import math
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from analysis.errors import FolderError, LorasweepError
from analysis.folder import ENDED, State, SweepFolder, TrialFolder, read_lines
from analysis.leaderboard.leaderboard import build
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
    search: Mapping[str, Any] = manifest["config"]["search"]
    process = driver(folder)
    handed_out = {line["trial_id"] for line in read_lines(folder.asks_file) if line.get("event") == "ask"}
    trials, unreadable = [], []
    for files in folder.trials():
        try:
            trials.append(_trial(files))
        except FolderError as error:
            unreadable.append(str(error))
    states = Counter(trial["state"] for trial in trials)
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
            "handed_out": len(handed_out),
            "ended": ended,
            "by_state": {str(state): states[state] for state in State if states[state]},
            "enqueued": waiting,
        },
        "running": [trial for trial in trials if trial["state"] == State.RUNNING],
        "best": _best(folder),
        "spent": {
            "hours": used.seconds / 3600,
            "device_hours": used.device_seconds / 3600,
            "tokens": sum(trial["tokens"] for trial in trials),
        },
        "budget": {name: value for name, value in search.get("budget", {}).items() if value not in (None, {})},
        "notes": [f"{trial['trial_id']}: {note}" for trial in trials for note in trial["notes"]] + unreadable,
    }


def lines(facts: Mapping[str, Any], folder: SweepFolder) -> list[str]:
    """An overview as lines of text.

    Args:
        facts: from ``overview``.
        folder: of the sweep.
    """
    trials, process, used = facts["trials"], facts["driver"], facts["spent"]
    text = [f"{facts['name']}: {_state_sentence(facts)}"]
    by_state = ", ".join(f"{n} {state.replace('_', ' ')}" for state, n in trials["by_state"].items())
    enqueued = f", {len(trials['enqueued'])} of them enqueued" if trials["enqueued"] else ""
    to_come = max(trials["total"] - trials["handed_out"], 0)
    text.append(
        f"trials   {trials['ended']} of {trials['total']} ended ({by_state or 'none yet'}), {to_come} to come{enqueued}"
    )
    if facts["best"]:
        best = facts["best"]
        metrics = "  ".join(f"{name} {value:.4g}" for name, value in list(best["metrics"].items())[:3])
        text.append(f"best     {best['trial_id']}  objective {best['objective']:.3f}  {metrics}")
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
    return text


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


def _best(folder: SweepFolder) -> dict[str, Any] | None:
    try:
        rows = build(folder)
    except LorasweepError:
        return None
    best = next((row for row in rows if row.kind == "trial" and math.isfinite(row.objective)), None)
    if best is None:
        return None
    metrics = {name: value for name, value in best.metrics.items() if math.isfinite(value)}
    return {"trial_id": best.trial_id, "status": best.status, "objective": best.objective, "metrics": metrics}
