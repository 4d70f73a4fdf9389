"""Starting points that the field agrees on, by name: ``search.start_from=rules``, or ``[low_rate, {lora.rank: 64}]``.

A rule fits itself to the space: a key that is not searched is left out, a number goes to the nearest value that the
space holds, and text that it does not hold is left to the sampler.
"""

import math
from collections.abc import Mapping
from typing import Any

from analysis.errors import ConfigError, did_you_mean
from sweeps.space.dimensions import Choices, Dimension, Scalar, Space

# LoRA's best learning rate is about ten times that of full fine-tuning, which is 2e-5 for models of billions and 1e-4
# for small ones; all linear layers; effective batches of at most 32 ("LoRA Without Regret", Thinking Machines 2025).
_PRIOR: dict[str, Scalar] = {
    "lora.alpha_rule": "ratio",
    "lora.targets": "all_linear",
    "lora.dropout": 0.0,
    "optim.weight_decay": 0.0,
    "optim.warmup": 0.1,
    "train.batch_size": 16,
    "precision": "bf16",
}
RULES: dict[str, dict[str, Scalar]] = {
    "low_rate": {**_PRIOR, "optim.lr": 2e-4, "lora.rank": 16},  # ten times 2e-5
    "high_rate": {**_PRIOR, "optim.lr": 1e-3, "lora.rank": 8},  # ten times 1e-4
    # rsLoRA: with alpha over the square root of the rank the best rate stays as the rank grows (arXiv 2312.03732)
    "high_rank": {**_PRIOR, "optim.lr": 5e-4, "lora.rank": 64, "lora.alpha_rule": "sqrt"},
}
ALL = "rules"


def expand(start_from: Any, space: Space) -> list[dict[str, Any]]:
    """``search.start_from`` with the names of rules replaced by their points.

    Args:
        start_from: a name, a point, or a list of both.
        space: that the rules are fitted to.

    Raises:
        ConfigError: for a name that is no rule, or an entry that is neither a name nor a point.
    """
    entries = [start_from] if isinstance(start_from, str | Mapping) else list(start_from or [])
    points: list[dict[str, Any]] = []
    for n, entry in enumerate(entries):
        if isinstance(entry, Mapping):
            points.append(dict(entry))
        elif entry == ALL:
            points += [fitted(rule, space) for rule in RULES.values()]
        elif entry in RULES:
            points.append(fitted(RULES[entry], space))
        else:
            raise ConfigError(
                f"search.start_from[{n}]={entry!r}: expected a point such as {{optim.lr: 1e-3}}, or the name of a rule."
                f" {did_you_mean(str(entry), [ALL, *RULES])}"
            )
    return [point for n, point in enumerate(points) if point and point not in points[:n]]


def fitted(rule: Mapping[str, Scalar], space: Space) -> dict[str, Scalar]:
    """A rule's values for the keys of the space, each as near as the space allows.

    Args:
        rule: dotted path → value.
        space: of the sweep.
    """
    values: dict[str, Scalar] = {}
    for path, dimension in space.items():
        met = all(path_ in values and values[path_] in allowed for path_, allowed in dimension.when.items())
        if path in rule and met and (value := _nearest(rule[path], dimension)) is not None:
            values[path] = value
    return values


def _nearest(value: Scalar, dimension: Dimension) -> Scalar:
    if dimension.holds(value):
        return dimension.own(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(dimension, Choices):
        numbers = [it for it in dimension.values if isinstance(it, int | float) and not isinstance(it, bool)]
        return min(numbers, key=lambda it: abs(_log(it) - _log(value)), default=None)
    inside = min(max(value, dimension.low), dimension.high)
    if dimension.step:
        inside = dimension.low + round((inside - dimension.low) / dimension.step) * dimension.step
    return dimension.own(inside)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -100.0
