"""The command that trains one trial of a sweep again."""

import shlex
from collections.abc import Mapping
from typing import Any

from analysis.rows import Row
from analysis.searched_values import at

_DROPPED = ("search.", "sweep.name", "sweep.dir", "ray.", "resources.", "tracking", "--quiet", "sampler", "scheduler")


def command(manifest: Mapping[str, Any], row: Row) -> str:
    """A shell command that trains one trial again: the sweep's own command, with this trial's values as start point.

    Args:
        manifest: ``sweep.yaml``, with the sweep's command.
        row: of the trial.

    Returns:
        Empty for a baseline, or where the values are not known.
    """
    values = {path: value for path, value in row.config.items() if value is not None}
    repeats = at(manifest, "config", "search", "repeats")
    seed = values.pop("seed", None) if isinstance(repeats, int) and repeats > 1 else None  # it is not searched
    sweep_command = manifest.get("command")
    if row.kind != "trial" or not values or not isinstance(sweep_command, list) or len(sweep_command) < 2:
        return ""
    kept = [str(word) for word in sweep_command[2:] if not str(word).startswith(_DROPPED)]
    cost = at(manifest, "config", "engine", "pass_cost")  # it was measured then, and decides the last bits
    if isinstance(cost, int | float) and not any(word.startswith("engine.pass_cost=") for word in kept):
        kept.append(f"engine.pass_cost={cost:g}")
    point = ",".join(f"{path}: {_plain(value)}" for path, value in values.items())
    words = [
        "lorasweep",
        "trial",
        *kept,
        *([f"seed={seed}"] if seed is not None else []),
        f"search.start_from=[{{{point}}}]",
        f"sweep.name={_name(manifest)}-{row.trial_id}",
    ]
    return " ".join(shlex.quote(word) for word in words)


def _plain(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _name(manifest: Mapping[str, Any]) -> str:
    return str(manifest.get("name") or "sweep")
