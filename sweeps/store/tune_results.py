"""What Tune's callbacks are given, read: a trial's id and values, how it ended, and the rungs that a report carries."""

from collections.abc import Mapping
from typing import Any

from analysis.folder import State


def trial_key(trial: Any) -> tuple[str, dict[str, Any]]:
    """Our trial id and the sampled values. (``trial.trial_id``, and ``trial_id`` in a result, are Tune's own.)"""
    return str(trial.config["trial_id"]), dict(trial.config["values"])


def outcome_of(last: Mapping[str, Any] | None) -> tuple[State, str]:
    """How a trial that Tune calls complete ended, and why, from its last report.

    A trial that ends by itself says so in its last report; one that a scheduler or stopper ends does not.
    """
    if last is None:
        return State.STOPPED_EARLY, "stopped before its first rung"
    state = State(last["state"])
    if state is State.RUNNING:
        return State.STOPPED_EARLY, str(last.get("reason") or f"scheduler: not among the best at step {last['step']}")
    return state, str(last["reason"])


def rung_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rung evaluations that a report carries, each with step, tokens, seconds, n_items and metrics.

    A trial reports its last rung together with its end; ``rows`` holds both where the two are to be told apart.
    """
    if "rows" in result:
        return [row for row in result["rows"] if not row["final"]]
    return [dict(result)] if result["state"] == State.RUNNING else []
