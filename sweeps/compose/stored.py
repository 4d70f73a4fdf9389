"""Configs as sweep folders of earlier versions hold them, in today's form."""

from collections.abc import Mapping
from typing import Any

# What conf/tracking/wandb.yaml says: W&B was the only tracker, and had no entry.
_WANDB = {
    "_target_": "sweeps.tracking.wandb_tracker.WandbTracker",
    "project": "${tracking.project}",
    "entity": "${tracking.entity}",
    "tags": "${tracking.tags}",
    "mode": "${tracking.mode}",
    "predictions": "${tracking.predictions}",
}


def with_trackers(stored_tracking: Mapping[str, Any]) -> dict[str, Any]:
    """The section ``tracking`` of a stored config, with W&B among its trackers where it names none."""
    if "trackers" in stored_tracking:
        return dict(stored_tracking)
    return {"trackers": {"wandb": dict(_WANDB)}, **stored_tracking}
