"""What a population of trials may exchange while it trains; ``sweeps/search/pbt.py`` decides it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from analysis.errors import ConfigError
from sweeps.space.dimensions import Space

TARGET = "sweeps.search.pbt.PopulationBasedTraining"
PERTURBED = ("optim.lr", "optim.weight_decay")  # what may change while a trial trains


@dataclass(frozen=True)
class Exchange:
    """A trial takes up what its donor had at a step, and goes on with other values."""

    trial_id: str
    parent: str
    step: int
    old: dict[str, Any]
    new: dict[str, Any]


def check_population(space: Space, scheduler: Mapping[str, Any], repeats: int) -> None:
    """Raises ConfigError where trials could not take up each other's weights."""
    if scheduler.get("_target_") != TARGET:
        return
    others = [path for path in space if path not in PERTURBED]
    if others:
        raise ConfigError(
            f"scheduler=pbt: trials take up each other's weights, so the space may hold {' and '.join(PERTURBED)} only,"
            f" and not {', '.join(others)}. Give one value: {others[0]}=…, or choose space=optimizer."
        )
    if repeats > 1:
        raise ConfigError(f"scheduler=pbt goes on from other trials' weights: search.repeats={repeats} must be 1.")
