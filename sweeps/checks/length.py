"""How long trials train, how many there are and when they are scored, where the config leaves it open.

What the data want comes first: passes over the rows until curves flatten. Where ``search.time`` is too short for
that, trials are given up first, down to half of them; then tokens of long rows, down to 128; then length, down to a
half; then the rest of trials, tokens and length. Nothing that the user names is changed.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sweeps.checks.simulate import Cost, Sizes, play
from sweeps.compose.compose import Composed
from sweeps.config import SweepConfig, computed_baselines, seconds_of, stand_ins
from trainer.config import TrialConfig

DEFAULT_TIME = "15m"
# A classification head needs about 200 steps of 16 rows until curves flatten (MiniLM, 780 rows: four passes), a decoder
# that names a label about 100 (SmolLM2, 288 rows: five passes), and larger sets three passes: BENCHMARKS.md,
# "Quality of the defaults".
_LEAST_ROWS = {"classification": 3200, "completion": 1600}
_PASSES, _MOST_PASSES = 3, 40
_ENOUGH_TOKENS = 128  # of a row: longer ones are cut before trials are made shorter, and only then to fewer
_MOST_TOKENS = {"label": 512, "text": 256}  # of a row, where data.max_length is left open
_MOST_TOKENS_ELSE = 2048  # of conversations and completions: what is cut there is what is to be learnt
_DENSE = (2, 4, 5, 6, 7, 8)  # eighths of a trial at which it is scored, where that costs little
_SPARSE = (2, 4, 8)
_LITTLE = 0.05  # share of a trial's time for three more scorings
_USED = 0.88  # share of the time that a plan fills: probes are short, and machines do other things
_LINEAR_ROW_SECONDS = 0.002  # of the baseline linear, a row of some hundred words
END_SECONDS = 3.0  # ranking, and W&B's last words


@dataclass(frozen=True)
class Measured:
    """What a sweep's devices say.

    Attributes:
        sizes: of one of them.
        devices: that train.
        spent: seconds since the command began.
    """

    sizes: Sizes
    devices: int
    spent: float


def time_limit(composed: Composed) -> str | None:
    """``search.time``, with what ``auto`` stands for: a default that gives way to any length that the user names."""
    config = composed.config
    if config.search.time != "auto":
        return config.search.time
    named = config.train.max_steps or config.train.epochs or "search.trials" in composed.explicit
    return None if named else DEFAULT_TIME


def max_concurrent(config: SweepConfig, capacities: Sequence[int]) -> int:
    """Trials that run at a time: as many as the devices take side by side, unless the config says fewer.

    Where nothing is said of it, a search has at most half of its trials at a time, so that the other half is suggested
    by what the first half has shown.

    Args:
        config: ``ray.max_concurrent_trials``, ``resources.slots`` and ``search.trials``.
        capacities: trials that each device worker takes.
    """
    most = config.ray.max_concurrent_trials or sum(capacities)
    if config.ray.max_concurrent_trials is None and config.resources.slots == "auto":
        most = max(-(-config.search.trials // 2), len(capacities))
    return max(1, min(most, sum(capacities), config.search.trials * config.search.repeats))


def fitting_tokens(p99: int, schema: str) -> int:
    """``data.max_length`` where it is left open: what 99 % of the rows need, up to what is reasonable.

    Args:
        p99: tokens that 99 % of the rows have at most; 0 where rows are cut into windows.
        schema: of the rows.
    """
    most = _MOST_TOKENS.get(schema, _MOST_TOKENS_ELSE)
    return min(max(-(-(p99 or most) // 8) * 8, 16), most)


def is_open(composed: Composed) -> bool:
    """Whether something is left to choose, or a time to keep."""
    config = composed.config
    return is_timed(composed) or not config.data.max_length


def is_timed(composed: Composed) -> bool:
    """Whether what trials cost matters to what is chosen."""
    return not composed.config.train.max_steps or time_limit(composed) is not None


def asked_about(composed: Composed) -> TrialConfig:
    """A trial of the sweep to measure sizes with. What is open of its length is any; ``data.max_length`` stays 0."""
    any_length = stand_ins(composed.config)
    filled = composed.with_values(
        {
            "train.epochs": None,
            "train.max_steps": any_length.train.max_steps,
            "train.rungs": any_length.train.rungs,
            "data.max_length": any_length.data.max_length,
        }
    )
    trial = filled.trial("t0000", composed.start[0] if composed.start else {})
    return replace(trial, data=replace(trial.data, max_length=composed.config.data.max_length))


def choose(composed: Composed, found: Measured) -> Composed:
    """The sweep with what its config leaves open.

    Args:
        composed: the sweep, on its machine.
        found: what its devices say.
    """
    config, limit, sizes = composed.config, time_limit(composed), found.sizes
    if not is_timed(composed):
        settled = composed.with_values({"data.max_length": max(sizes.costs), "search.time": None})
        note = f"At most {max(sizes.costs)} tokens a row (data.max_length), from the lengths of the rows."
        return replace(settled, notes=[*settled.notes, note])
    left = math.inf if limit is None else _USED * seconds_of(limit) - found.spent
    wanted = steps_wanted(config, sizes.rows)
    fixed_steps = bool(config.train.max_steps or config.train.epochs)
    fixed_trials = "search.trials" in composed.explicit
    with_steps: dict[tuple[int, ...], Composed] = {}  # composing takes a tenth of a second
    half = -(-config.search.trials // 2)
    best: tuple[float, Composed, int, int] | None = None
    for max_length, share, trials in _preferences(list(sizes.costs), config.search.trials, fixed_steps, fixed_trials):
        steps, cost = wanted if fixed_steps else _eighths(wanted * share), sizes.costs[max_length]
        rungs = tuple(config.train.rungs) or _rungs(steps, cost)
        if rungs not in with_steps:
            values = {"train.max_steps": steps, "train.rungs": list(rungs), "train.epochs": None, "search.time": limit}
            with_steps[rungs] = composed.with_values(values)
        tried = with_steps[rungs]
        scoring = cost.rung_seconds + cost.final_seconds
        baselines = baseline_seconds(config, sizes.rows, sizes.n_validation, scoring) / found.devices
        besides = baselines + END_SECONDS
        seconds = played(tried.config, trials, cost, found) + besides
        fits = seconds <= left and _unstopped(tried.config, min(trials, half), cost, found) + besides <= left
        if best is None or seconds < best[0] or fits:
            best = seconds, tried, max_length, trials
        if fits:
            break
    assert best is not None
    seconds, tried, max_length, trials = best
    fitted: dict[str, Any] = {"data.max_length": max_length}
    if trials < config.search.trials and config.ray.max_concurrent_trials is None:
        fitted["ray.max_concurrent_trials"] = max(-(-trials // 2), found.devices)
    tried = tried.with_values(fitted)
    note = _note(config, tried.config, sizes, (trials, wanted), seconds + found.spent)
    return replace(tried, notes=[*tried.notes, note])


def baseline_seconds(config: SweepConfig, n_train: int, n_validation: int, scoring: float) -> float:
    """Seconds that the baselines take on one device, one after the other.

    Args:
        config: names them.
        n_train: training rows.
        n_validation: validation items.
        scoring: seconds to score all validation items and the bias sets once.
    """
    rows = n_train + n_validation
    seconds = {
        "majority": 0.0,
        "linear": rows * _LINEAR_ROW_SECONDS,
        "frozen": rows / n_validation * scoring,
        "few_shot": config.few_shot.k * scoring,  # longer by so many rows
        "retrieval": config.retrieval.k * scoring,
    }
    return sum(seconds.get(kind, scoring) for kind in computed_baselines(config))


def steps_wanted(config: SweepConfig, rows: int) -> int:
    """Optimiser steps of a trial: those named, those of ``train.epochs``, or as many as so many rows want."""
    batch = config.train.batch_size
    if config.train.max_steps:
        return config.train.max_steps
    if config.train.epochs:
        return max(1, math.ceil(config.train.epochs * rows / batch))
    return _eighths(max(_PASSES * rows, min(_LEAST_ROWS[config.task.name], _MOST_PASSES * rows)) / batch)


def played(config: SweepConfig, trials: int, cost: Cost, found: Measured) -> float:
    """Seconds that so many trials take, early stopping played through."""
    trial = replace(cost, rungs=tuple(config.train.rungs))
    slots = config.resources.slots if isinstance(config.resources.slots, int) else found.sizes.slots
    searched = replace(config, search=replace(config.search, trials=trials))
    side_by_side = max_concurrent(searched, [slots] * found.devices) // found.devices
    return play(config, [trial] * trials, max(1, side_by_side), found.devices).seconds


def _unstopped(config: SweepConfig, trials: int, cost: Cost, found: Measured) -> float:
    """Seconds that so many trials take where none is stopped early, as the first ones of a search rarely are."""
    everyone = replace(config, scheduler={"_target_": "ray.tune.schedulers.FIFOScheduler"})
    return played(everyone, trials, cost, found)


def _preferences(
    max_lengths: list[int], trials: int, fixed_steps: bool, fixed_trials: bool
) -> Iterator[tuple[int, float, int]]:
    """(``data.max_length``, share of the steps that the data want, trials), the best first."""
    half = trials if fixed_trials else -(-trials // 2)
    long_enough = [n for n in max_lengths if n >= _ENOUGH_TOKENS] or max_lengths[:1]
    for max_length in long_enough:
        yield from ((max_length, 1.0, n) for n in range(trials, half - 1, -1))
    if not fixed_steps:
        yield from ((long_enough[-1], share, half) for share in (0.75, 0.5))
    fewest = trials if fixed_trials else 1
    for share in [1.0] if fixed_steps else [0.5, 0.35, 0.25, 0.15, 0.1, 0.05]:
        yield from ((max_lengths[-1], share, n) for n in range(half, fewest - 1, -1))


def _eighths(steps: float) -> int:
    """A number of steps in whole eighths, as rungs are; of a few steps, as they are."""
    return max(1, round(steps)) if steps < 8 else max(8, round(steps / 8) * 8)


def _rungs(steps: int, cost: Cost) -> tuple[int, ...]:
    if steps % 8:
        return tuple(steps // part for part in (4, 2, 1) if steps % part == 0)
    dense = 3 * cost.rung_seconds <= _LITTLE * steps * (cost.own + cost.shared)
    return tuple(steps * eighths // 8 for eighths in (_DENSE if dense else _SPARSE))


def _note(
    asked: SweepConfig, chosen: SweepConfig, sizes: Sizes, trials_and_steps: tuple[int, int], seconds: float
) -> str:
    """What was chosen and why, and what more time would give.

    Args:
        asked: as composed.
        chosen: with what was open in it.
        sizes: what the device said.
        trials_and_steps: trials that there is time for, and steps of each that so many rows want.
        seconds: that the sweep takes, foretold.
    """
    (trials, wanted), train, limit = trials_and_steps, chosen.train, chosen.search.time
    passes = train.max_steps * train.batch_size / sizes.rows
    note = (
        f"{_count(trials, asked.search.trials)} of {train.max_steps} steps of {train.batch_size} rows"
        f" ({passes:.2g} passes over {sizes.rows:,} rows), at most {chosen.data.max_length} tokens a row:"
        f" about {shown_time(seconds)}"
    )
    if limit is None:
        return f"{note}. A limit makes it fit: search.time=15m"
    given_up = []
    if trials < asked.search.trials:
        given_up.append("further trials, unless these are over sooner than foretold")
    if train.max_steps < wanted:
        given_up.append(f"{1 - train.max_steps / wanted:.0%} of the steps that so many rows want ({wanted})")
    if chosen.data.max_length < max(sizes.costs):
        given_up.append(f"the end of rows of more than {chosen.data.max_length} tokens")
    note += f" of search.time={limit}."
    if given_up:
        note += f" Left out for want of time: {', '.join(given_up)}."
    if seconds > seconds_of(limit):
        note += " It may not be over in time: then running trials stop at their next rung."
    return note


def _count(trials: int, asked: int) -> str:
    return f"{trials} trial{'s' if trials > 1 else ''}" + (f" (asked: {asked})" if trials < asked else "")


def shown_time(seconds: float) -> str:
    """Such as 1.5 s, 50 s, 12 min or 2 h 5 min."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
