"""What to change where the best trial is not shown to beat a baseline: one sentence, from what the folder holds."""

import math
from collections.abc import Mapping
from typing import Any

import yaml

from analysis import fast_yaml
from analysis.errors import LorasweepError
from analysis.folder import MetricsRow, SweepFolder
from analysis.leaderboard.ranking import objective_of
from analysis.metrics import one_class
from analysis.rows import Row, sweep_yaml

_EDGE = 0.1  # of the logarithmic width of the searched learning rates: so near to an end, the best may lie beyond it


def advice(folder: SweepFolder, best: Row) -> str:
    """What to change, with the override: the first of these that the best trial's files show.

    Its predictions are all one label; its objective still rose at its last rung; its learning rate lies at an end of
    those searched; its loss on the validation rows rose while it trained. Else a larger model is what is left.

    Args:
        folder: of the sweep.
        best: its best trial, completed.
    """
    try:
        rungs = _rungs(folder, best)
        config = _mapping(sweep_yaml(folder).get("config"))
    except (LorasweepError, OSError, ValueError, yaml.YAMLError):
        rungs, config = [], {}
    longer, trial = _longer(config, best), best.trial_id
    if one_class(best.metrics):
        higher = _rate(folder, best)
        rate = f" or raise the learning rate (it had {higher:.2g})" if higher else " or raise the learning rate"
        return f"{trial} still gives every row the same label: train longer ({longer}){rate}."
    if _rising(folder, best, rungs):
        return f"{trial} was still getting better at its last rung: train longer ({longer})."
    if edge := _edge(folder, best):
        return f"The learning rate of {trial} lies at the {edge}"
    if lost := _overfitted(rungs):
        return (
            f"The validation loss of {trial} was lowest at step {lost} and rose from there, while it trained on: more"
            " training rows would help most; else a smaller lora.rank, or more lora.dropout."
        )
    return f"Nothing in the curve of {trial} asks for other settings: try a larger model (model=…)."


def _rungs(folder: SweepFolder, best: Row) -> list[MetricsRow]:
    """Its evaluations at rungs, in the order of their steps."""
    rows = folder.trial(best.trial_id).read_metrics()
    return sorted((row for row in rows if not row.final), key=lambda row: row.step)


def _rising(folder: SweepFolder, best: Row, rungs: list[MetricsRow]) -> bool:
    """Whether the last rung of two or more is better than each before it, by the objective."""
    if len(rungs) < 2:
        return False
    try:
        objective, _ = objective_of(folder, [best])
    except LorasweepError:
        return False
    *before, last = (objective.score(row.metrics) for row in rungs)
    return all(last > score for score in before)


def _overfitted(rungs: list[MetricsRow]) -> int | None:
    """The step of the lowest validation loss, where that is not the last rung; None where it is, or is not known."""
    for name in ("log_loss", "completion_loss", "bits_per_byte"):
        losses = {row.step: row.metrics.get(name, math.nan) for row in rungs}
        if losses and all(math.isfinite(value) for value in losses.values()):
            lowest = min(losses, key=lambda step: (losses[step], -step))
            return lowest if lowest != rungs[-1].step else None
    return None


def _edge(folder: SweepFolder, best: Row) -> str:
    """Which end of the searched learning rates its own lies at, and the override that moves it; empty for neither."""
    rate, searched = _rate(folder, best), _mapping(_mapping(sweep_yaml(folder).get("space")).get("optim.lr"))
    low, high = searched.get("low"), searched.get("high")
    if not rate or not isinstance(low, int | float) or not isinstance(high, int | float) or not 0 < low < high:
        return ""
    place = math.log(rate / low) / math.log(high / low)
    if place >= 1 - _EDGE:
        return f"upper end of those searched ({rate:.2g} of at most {high:.2g}): space.optim.lr.high={3 * high:.2g}."
    if place <= _EDGE:
        return f"lower end of those searched ({rate:.2g} of at least {low:.2g}): space.optim.lr.low={low / 3:.2g}."
    return ""


def _rate(folder: SweepFolder, best: Row) -> float | None:
    """The peak learning rate of the trial."""
    try:
        config = _mapping(fast_yaml.load(folder.trial(best.trial_id).config_file.read_bytes()))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    rate = _mapping(config.get("optim")).get("lr")
    return float(rate) if isinstance(rate, int | float) and rate > 0 else None


def _longer(config: Mapping[str, Any], best: Row) -> str:
    """The override that doubles the length of a trial."""
    train = _mapping(config.get("train"))
    for name in ("epochs", "max_steps"):
        length = train.get(name)
        if isinstance(length, int | float) and not isinstance(length, bool) and length > 0:
            return f"train.{name}={2 * length:g}"
    return f"train.max_steps={2 * best.step}"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
