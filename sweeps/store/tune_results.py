"""Reads what Ray Tune hands to callbacks: a trial's id and values, how it ended, and the rungs of a report."""

from collections.abc import Mapping
from typing import Any

from analysis.folder import State


def trial_key(trial: Any) -> tuple[str, dict[str, Any]]:
    """Our id of a trial, and its sampled values. ``trial.trial_id``, and ``trial_id`` in a result, are Tune's own.

    Args:
        trial: Ray Tune's.
    """
    return str(trial.config["trial_id"]), dict(trial.config["values"])


def outcome_of(last: Mapping[str, Any] | None) -> tuple[State, str]:
    """How a trial that Tune calls complete ended, and why.

    Args:
        last: its last report, or None. A trial that ends by itself reports its end; one that a scheduler or a stopper
            ends does not.
    """
    if last is None:
        return State.STOPPED_EARLY, "stopped before its first rung"
    state = State(last["state"])
    if state is State.RUNNING:
        return State.STOPPED_EARLY, str(last.get("reason") or f"scheduler: not among the best at step {last['step']}")
    return state, str(last["reason"])


def rung_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rung evaluations that a report carries, each with step, tokens, seconds, n_items and metrics.

    Args:
        result: the report. A trial reports its last rung together with its end; ``rows`` then holds both.
    """
    if "rows" in result:
        return [row for row in result["rows"] if not row["final"]]
    return [dict(result)] if result["state"] == State.RUNNING else []
