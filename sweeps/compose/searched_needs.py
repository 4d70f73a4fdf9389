"""What searched values need of other keys, checked before a sweep starts and not by its first trial that has them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from analysis.errors import ConfigError
from sweeps.config import SweepConfig, trial_part
from sweeps.space.dimensions import Choices, Dimension, Space
from trainer.config import check_needs

# Searched key → whether a value of it needs something of other keys (``trainer.config.check_needs``).
_NEEDY: dict[str, Callable[[Any], bool]] = {
    "optim.head_lr": lambda value: value is not None,
    "optim.head_ratio": lambda value: value != 1.0,
    "train.class_weight": lambda value: value != "none",
    "mitigation.reweight": lambda value: value != 0.0,
    "lora.init": lambda value: value != "default",
    "lora.rank": lambda value: value % 2 == 1,
}


def check_searched_needs(config: SweepConfig, space: Space) -> None:
    """Raises ConfigError where a point of the space has values that do not go together.

    Not where ``space_constraints``, or a condition of the space (``when``), may keep such points away.

    Args:
        config: of the sweep.
        space: what is searched.
    """
    if "optim.head_ratio" in space and (config.optim.head_lr is not None or "optim.head_lr" in space):
        given = "" if config.optim.head_lr is None else f"={config.optim.head_lr:g}"
        raise ConfigError(
            f"optim.head_lr{given} and space.optim.head_ratio: both say the head's learning rate. Give one: head_lr is"
            " the rate itself, head_ratio times optim.lr."
        )
    if config.space_constraints:
        return
    trial = trial_part(config, "check")
    needy = []
    for path, dimension in space.items():
        needs = _NEEDY.get(path)
        value = next(filter(needs, _values(dimension)), None) if needs and not dimension.when else None
        if value is not None:
            needy.append(path)
            section, _, name = path.partition(".")
            trial = replace(trial, **{section: replace(getattr(trial, section), **{name: value})})
    try:
        check_needs(trial)
    except ConfigError as error:
        raise ConfigError(f"{error} (the space holds {' and '.join(needy)})") from error


def _values(dimension: Dimension) -> list[Any]:
    """Values of a dimension, both ends and one beside an end among them."""
    if isinstance(dimension, Choices):
        return list(dimension.values)
    return [dimension.low, min(dimension.low + (dimension.step or 1), dimension.high), dimension.high]
