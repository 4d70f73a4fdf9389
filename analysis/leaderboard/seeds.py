"""Configurations that were trained with several seeds (``search.repeats``): their mean beside the rows of the seeds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.rows import Row


@dataclass(frozen=True)
class Configuration:
    """One configuration over its seeds.

    Attributes:
        trial_id: of its first seed.
        rows: of the seeds that completed, the first one first; at least two.
        mean, deviation: of their objective; the deviation is the sample's.
    """

    trial_id: str
    rows: tuple[Row, ...]
    mean: float
    deviation: float


def configurations(rows: Sequence[Row]) -> list[Configuration]:
    """Those of which at least two seeds completed, the best mean first."""
    seeds: dict[str, list[Row]] = {}
    for row in rows:
        if row.kind == "trial" and row.status == "completed" and math.isfinite(row.objective):
            seeds.setdefault(row.trial_id.split(".")[0], []).append(row)
    several = []
    for name, group in seeds.items():
        if len(group) > 1:
            scores = [row.objective for row in group]
            group.sort(key=lambda row: row.trial_id)
            several.append(Configuration(name, tuple(group), statistics.fmean(scores), statistics.stdev(scores)))
    return sorted(several, key=lambda it: -it.mean)


def sentence(rows: Sequence[Row]) -> str:
    """What the seeds say about the ranking; empty where there are none."""
    several = configurations(rows)
    if not several:
        return ""
    shown = ", ".join(f"{it.trial_id} {it.mean:.3f} ± {it.deviation:.3f} ({len(it.rows)} seeds)" for it in several[:5])
    return (
        f"Over its seeds (mean ± standard deviation of the objective): {shown}."
        " A row above is one seed: choose by the mean."
    )
