"""Configurations that were trained with several seeds (``search.repeats``): one row each, by the mean of its seeds.

What counts is what the sampler is told (``sweeps/search/study_log.py``): a configuration whose first seed does not
complete is that seed; one of which a seed diverged or ran out of memory has ended so; of any other, the seeds that
completed count. Until all of them have ended it runs, whatever the first one scored, and so stands behind those that
are complete: the mean of fewer seeds is further off, and the best of many such means is a lucky one.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from analysis.folder import ENDED, State, SweepFolder, read_lines
from analysis.rows import UNKNOWN, Row, configuration_id, rankable

WAIT = "WAIT"  # what the sampler is told of a seed whose configuration has others


def seeds_expected(folder: SweepFolder, repeats: int) -> Callable[[str], int]:
    """(configuration's id) → how many seeds it has, as far as that is known.

    Args:
        folder: of the sweep; the search writes down which configurations have all their seeds.
        repeats: seeds of each configuration that completes (``search.repeats``).
    """
    if repeats == 1:
        return lambda name: 1
    told = {str(record.get("trial_id")) for record in read_lines(folder.asks_file) if all_ended(record)}
    return lambda name: 1 if name in told else repeats


def all_ended(record: Mapping[str, Any]) -> bool:
    """Whether a line of ``study/asks.jsonl`` says that a configuration has ended, with all its seeds."""
    event = record.get("event")
    return event == "mean" or (event == "tell" and not record.get("repeat") and record.get("told") != WAIT)


def configurations(rows: Sequence[Row], expected: Callable[[str], int] = lambda name: 1) -> list[Row]:
    """The rows, those of the seeds of one configuration as one.

    Args:
        rows: of baselines and of all seeds, with their objective.
        expected: from ``seeds_expected``.
    """
    seeds: dict[str, list[Row]] = {}
    for row in rows:
        if row.kind == "trial":
            seeds.setdefault(configuration_id(row.trial_id), []).append(row)
    others = [row for row in rows if row.kind != "trial"]
    return [*others, *(_together(sorted(group, key=_repeat), expected(name)) for name, group in seeds.items())]


def _repeat(row: Row) -> int:
    number = row.trial_id.rpartition("/")[2].partition(".")[2]
    return int(number) if number.isdecimal() else 0


def _together(group: Sequence[Row], expected: int) -> Row:
    """One configuration.

    Args:
        group: its seeds, the first one first.
        expected: how many it has; there may be more.
    """
    first, of = group[0], max(expected, len(group))
    if of == 1 or not rankable(first):
        return replace(first, uncounted=tuple(group[1:]))
    counted = [row for row in group if rankable(row)]
    ended = sum(row.status in ENDED or row.status == UNKNOWN for row in group)
    status, reason = _outcome(group, f"{len(counted)} of {of} seeds", ended == of)
    n = len(counted)
    return replace(
        first,
        status=status,
        reason="; ".join(filter(None, [first.reason, reason])),
        config={path: value if _alike(group, path) else None for path, value in first.config.items()},
        metrics={name: _mean(row.metrics.get(name, math.nan) for row in counted) for name in _named(counted)},
        objective=statistics.fmean(row.objective for row in counted),
        tokens=round(sum(row.tokens for row in counted) / n),
        seconds=_mean(row.seconds for row in counted),
        seeds=tuple(counted),
        uncounted=tuple(row for row in group if row not in counted),
    )


def _outcome(group: Sequence[Row], counted: str, all_ended: bool) -> tuple[str, str]:
    """How a configuration ended whose first seed completed, and why, if it is not that all seeds completed."""
    if not all_ended:
        return State.RUNNING, f"mean of the {counted} that have completed: the others have not ended"
    for bad in (State.OUT_OF_MEMORY, State.DIVERGED):
        for row in group:
            if row.status == bad:
                return bad, f"its seed {row.trial_id} ended so, which counts for the configuration"
    left_out = [row.trial_id for row in group if not rankable(row)]
    return State.COMPLETED, f"mean of {counted}: {', '.join(left_out)} did not complete" if left_out else ""


def _alike(group: Sequence[Row], path: str) -> bool:
    return all(row.config.get(path) == group[0].config.get(path) for row in group)


def _named(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.metrics))


def _mean(values: Iterable[float]) -> float:
    """Of the finite ones; NaN for none."""
    finite = [value for value in values if math.isfinite(value)]
    return statistics.fmean(finite) if finite else math.nan


def spread(row: Row) -> float:
    """Sample standard deviation of the objective over a configuration's seeds; NaN for fewer than two."""
    return statistics.stdev(seed.objective for seed in row.seeds) if len(row.seeds) > 1 else math.nan


def best_seed(row: Row) -> Row:
    """The seed of a configuration with the best objective: whose adapter stands for it. Else the row itself."""
    return max(row.seeds, key=lambda seed: seed.objective) if row.seeds else row


def with_seeds(rows: Iterable[Row]) -> list[Row]:
    """For tables: below each configuration of several seeds a row of kind ``seed`` for each of them."""
    listed = []
    for row in rows:
        listed.append(row)
        several = len(row.seeds) + len(row.uncounted) > 1
        seeds = sorted((*row.seeds, *row.uncounted), key=_repeat) if several else row.uncounted
        listed += [replace(seed, kind="seed", rank=0) for seed in seeds]
    return listed


def runs(rows: Iterable[Row]) -> list[Row]:
    """The trials as they ran, each seed as one."""
    return [run for row in rows if row.kind == "trial" for run in (*(row.seeds or (row,)), *row.uncounted)]


def mean_over_seeds(row: Row, read: Callable[[Row], Mapping[str, float]]) -> dict[str, float]:
    """Item id → mean over a configuration's seeds, of the items that all of them have.

    Args:
        row: of a configuration, a trial or a baseline.
        read: the items of one run.
    """
    of_seeds = [read(seed) for seed in row.seeds or (row,)]
    common = [item for item in of_seeds[0] if all(item in items for items in of_seeds)]
    return {item: statistics.fmean(items[item] for items in of_seeds) for item in common}


def counted(rows: Iterable[Row]) -> str:
    """Such as ``3 configurations (6 runs)``, or ``3 trials`` where each has one seed."""
    trials = [row for row in rows if row.kind == "trial"]
    several = len(runs(trials))
    if not any(row.seeds or row.uncounted for row in trials):
        return f"{len(trials)} trial{'s' if len(trials) != 1 else ''}"
    return f"{len(trials)} configuration{'s' if len(trials) != 1 else ''} ({several} runs)"
