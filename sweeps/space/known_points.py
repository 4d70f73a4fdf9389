"""Points that are known to be good, placed in a space: ``search.start_from=[portfolio]``.

The points are data: ``portfolio.yaml`` beside this file. Each is a learning rate at alpha 32 and a rank. Placing takes
the space's nearest rank, and the alpha rule with which the rate that this means lies inside the space. What else is
searched begins with what the field agrees on.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis import fast_yaml
from analysis.effective_rate import effective_rate
from analysis.errors import ConfigError, did_you_mean
from sweeps.space.dimensions import Choices, Dimension, Scalar, Space
from sweeps.space.width_rule import WIDTH, rate_factor
from trainer.config import LoraSettings

PORTFOLIO = "portfolio"
LR, RANK, RULE = "optim.lr", "lora.rank", "lora.alpha_rule"
# LoRA matches full fine-tuning where all linear layers have adapters and batches are small, of at most 32 rows ("LoRA
# Without Regret", Thinking Machines 2025).
_PRIOR: dict[str, Scalar] = {
    "lora.targets": "all_linear",
    "lora.dropout": 0.0,
    "optim.weight_decay": 0.0,
    "optim.warmup": 0.1,
    "train.batch_size": 16,
}  # no precision: not every machine does every one, and a point that asks for one that it lacks is left out
_RULES = ("sqrt", "ratio", "fixed")  # of two that place a rate equally well the first: rsLoRA, arXiv 2312.03732
_FAR = math.log(2)  # a rate that the space moves by more than this is no longer the known point


@dataclass(frozen=True)
class BaseModel:
    """What is known of a base model before it is loaded.

    Attributes:
        hidden_size: None where it is not known.
        model_type: as in its ``config.json``; "" where it is not known.
    """

    hidden_size: int | None = None
    model_type: str = ""

    @property
    def factor(self) -> float:
        """By which rates of the portfolio are multiplied. It has points for models of its own widths."""
        narrow = self.hidden_size is not None and self.hidden_size < WIDTH
        return rate_factor(self.hidden_size, self.model_type) if narrow else 1.0


@dataclass(frozen=True)
class RatePoint:
    """A learning rate at alpha 32, a rank, and values of other keys."""

    rate: float
    rank: int
    values: Mapping[str, Scalar] | None = None


@functools.cache
def _read() -> dict[str, list[dict[str, Any]]]:
    return dict(fast_yaml.load((Path(__file__).parent / "portfolio.yaml").read_text()))


def portfolio(model: BaseModel) -> list[RatePoint]:
    """The points that suit a model, the most useful one first."""
    return [RatePoint(it["rate"] * model.factor, it["rank"]) for it in _read()["points"]]


def expand(entries: Sequence[Any], known: Sequence[Mapping[str, Scalar]]) -> Iterator[tuple[dict[str, Any], bool]]:
    """The entries of ``search.start_from``: each point, and whether it came by name. None is given twice.

    Args:
        entries: points, or names.
        known: what the name ``portfolio`` stands for.

    Raises:
        ConfigError: for a name that is none, or an entry that is neither a name nor a point.
    """
    given: list[dict[str, Any]] = []
    for n, entry in enumerate(entries):
        if entry == PORTFOLIO:
            points = [(dict(point), True) for point in known]
        elif isinstance(entry, Mapping):
            points = [(dict(entry), False)]
        else:
            raise ConfigError(
                f"search.start_from[{n}]={entry!r}: expected a point such as {{optim.lr: 1e-3}}, or {PORTFOLIO}."
                f" {did_you_mean(str(entry), [PORTFOLIO])}"
            )
        for point, named in points:
            if point and point not in given:
                given.append(point)
                yield point, named


def placed(
    points: Sequence[RatePoint], space: Space, settings: Callable[[Mapping[str, Scalar]], LoraSettings]
) -> list[dict[str, Scalar]]:
    """Points as values of a space's keys, as near as it allows.

    A point whose rate the space does not hold, nor one within a factor of two of it, is left out; so are all where the
    space has no learning rate.

    Args:
        points: the most useful one first.
        space: of the sweep.
        settings: values of the space's keys → the adapter's settings of the trial that has them.
    """
    if LR not in space:
        return []
    found: list[dict[str, Scalar]] = []
    for point in points:
        candidates = list(_candidates(point, space, settings))
        off, values = min(candidates, key=lambda it: round(it[0], 6), default=(math.inf, {}))
        if off <= _FAR and values not in found:
            found.append(values)
    return found


def _candidates(
    point: RatePoint, space: Space, settings: Callable[[Mapping[str, Scalar]], LoraSettings]
) -> Iterator[tuple[float, dict[str, Scalar]]]:
    """One for each alpha rule: how far its rate is from the point's, in the logarithm, and its values."""
    wanted = {**_PRIOR, **(point.values or {}), RANK: point.rank}
    for rule in _RULES if RULE in space else ("",):
        if rule and not space[RULE].holds(rule):
            continue
        adapter = {
            path: value for path, value in fitted({**wanted, RULE: rule}, space).items() if path.startswith("lora.")
        }
        lora = settings(adapter)
        lr = float(f"{point.rate / effective_rate(1.0, lora.alpha_rule, lora.alpha_value, lora.rank):.3g}")
        values = fitted({**wanted, RULE: rule, LR: lr}, space)
        if LR in values:
            yield abs(math.log(float(str(values[LR])) / lr)), values


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
