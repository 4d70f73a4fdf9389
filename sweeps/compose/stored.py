"""Configs that an earlier version of lorasweep stored in ``sweep.yaml``, as this version reads them."""

from collections.abc import Mapping
from typing import Any

# Modules that samplers and schedulers were named by, before they moved into rooms → where they are now.
_MOVED = {"sweeps.samplers.": "sweeps.search.samplers.", "sweeps.population.": "sweeps.search.pbt."}
# What conf/tracking/wandb.yaml says: W&B was the only tracker, and had no entry.
_WANDB = {
    "_target_": "sweeps.tracking.wandb_tracker.WandbTracker",
    "project": "${tracking.project}",
    "entity": "${tracking.entity}",
    "tags": "${tracking.tags}",
    "mode": "${tracking.mode}",
    "predictions": "${tracking.predictions}",
}


def current_target(target: Any) -> Any:
    """A ``_target_`` under the name that it has now; what was never ours is given back as it is."""
    for before, now in _MOVED.items():
        if isinstance(target, str) and target.startswith(before):
            return now + target.removeprefix(before)
    return target


def normalised(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A whole config, nested, with the names of today."""
    config = dict(stored)
    for group in ("sampler", "scheduler"):
        part = config.get(group)
        if isinstance(part, Mapping) and "_target_" in part:
            config[group] = {**part, "_target_": current_target(part["_target_"])}
    return config


def with_trackers(stored_tracking: Mapping[str, Any]) -> dict[str, Any]:
    """The section ``tracking`` of a stored config, with W&B among its trackers where it names none."""
    if "trackers" in stored_tracking:
        return dict(stored_tracking)
    return {"trackers": {"wandb": dict(_WANDB)}, **stored_tracking}
