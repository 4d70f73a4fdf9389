"""How well the trials of a sweep over another model foretold this one's: ``search.transfer_from``."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from analysis import fast_yaml
from analysis.effective_rate import effective_rate
from analysis.folder import SweepFolder, read_lines
from analysis.rows import Row

_NEAR = 0.25  # decades of learning rate; a decade of rank counts as half of one
_FEWEST = 4  # trials
_RESAMPLES = 2000


def agreement_sentence(folder: SweepFolder, rows: Sequence[Row]) -> str:
    """Spearman's correlation of scores here and there, with a bootstrap interval over trials; "" without a transfer.

    A trial is compared with the nearest one of the earlier sweeps, by learning rate (converted to this model's width
    and to alpha 32) and rank; where none is near it is left out.

    Args:
        folder: of this sweep.
        rows: its leaderboard.
    """
    earlier = [line for line in read_lines(folder.transfer_file) if _is_whole(line)]
    if not earlier:
        return ""
    pairs = []
    for row in rows:
        if row.kind == "trial" and math.isfinite(row.objective) and row.status in ("completed", "stopped_early"):
            there = _nearest(fast_yaml.load(folder.trial(row.trial_id).config_file.read_text()), earlier)
            if there is not None:
                pairs.append((row.objective, there))
    names = ", ".join(dict.fromkeys(str(line["source"]).rsplit("/", 1)[0] for line in earlier))
    if len(pairs) < _FEWEST:
        return f"Transfer from {names}: only {len(pairs)} trials are near one of there, too few to compare ranks."
    rho, low, high = spearman(pairs)
    if not math.isfinite(rho):
        return f"Transfer from {names}: ranks cannot be compared, all {len(pairs)} trials score alike here or there."
    return (
        f"Transfer from {names}: Spearman's correlation of scores here and there is {rho:.2f}"
        f" (95 % interval {low:.2f} – {high:.2f}, {len(pairs)} trials)."
    )


def spearman(pairs: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Spearman's rank correlation and its 95 % interval (percentile bootstrap over pairs); NaN without variation."""
    import numpy as np
    from scipy.stats import rankdata

    values = np.array(pairs, float)

    def correlation(table: Any) -> float:
        a, b = (rankdata(column) - (len(table) + 1) / 2 for column in table.T)
        scale = math.sqrt(float((a * a).sum() * (b * b).sum()))
        return float((a * b).sum()) / scale if scale else math.nan

    draws = np.random.default_rng(0).integers(0, len(values), (_RESAMPLES, len(values)))
    resampled = np.array([correlation(values[draw]) for draw in draws])
    finite = resampled[np.isfinite(resampled)]
    if not len(finite):
        return math.nan, math.nan, math.nan
    low, high = np.quantile(finite, [0.025, 0.975])
    return correlation(values), float(low), float(high)


def _is_whole(line: Mapping[str, Any]) -> bool:
    """Whether a line says all that a comparison takes; the folder may be another one's, or damaged."""
    numbers = [line.get(key) for key in ("rate", "rank", "objective")]
    usable = all(isinstance(it, int | float) and math.isfinite(it) for it in numbers)
    return usable and "source" in line and line["rate"] > 0 and line["rank"] > 0


def _nearest(config: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]]) -> float | None:
    """The objective of the earlier trial that is nearest to a trial's config, if one is near.

    A config that lacks a value that this takes is near none.
    """
    try:
        lora, lr = config["lora"], config["optim"]["lr"]
        rate, rank = effective_rate(lr, lora["alpha_rule"], lora["alpha_value"], lora["rank"]), lora["rank"]
        if not (rate > 0 and rank > 0):
            return None
    except (KeyError, TypeError, ValueError):
        return None

    def distance(line: Mapping[str, Any]) -> float:
        return abs(math.log10(rate / line["rate"])) + 0.5 * abs(math.log10(rank / line["rank"]))

    nearest = min(earlier, key=distance)
    return float(nearest["objective"]) if distance(nearest) <= _NEAR else None
