"""Forecasts how long a sweep takes, by simulating its slots, rungs and early stopping with measured costs.

The scheduler is the sweep's own. Trials get random scores: how good they will be is not known before. How many are
stopped early depends on the order in which they come, so the sweep is simulated several times, each time in another.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sweeps.config import SweepConfig

_TURNOVER_SECONDS = 0.3  # between two trials in a slot
_SIMULATIONS = 7
_SPREAD = 0.3  # standard deviation of a rung's score around its trial's own

Decide = Callable[[int, int, float], bool]  # (trial, step, score, higher is better) → whether it goes on


@dataclass(frozen=True)
class Cost:
    """What a trial costs on one device.

    Attributes:
        pack: trials of one name share passes.
        own: seconds of an optimiser step for the trial's own tokens.
        shared: seconds of an optimiser step that all slots of a pack pay once, together.
        rungs: optimiser steps, ascending; the last is its end.
        rung_seconds: to score the rung subset.
        final_seconds: to score all that is left at its end.
        tokens: of an optimiser step, padding not counted.
    """

    pack: str
    own: float
    shared: float
    rungs: tuple[int, ...]
    rung_seconds: float
    final_seconds: float
    tokens: float = 0.0


@dataclass(frozen=True)
class Sizes:
    """What decides how long trials can be: how much there is to learn from, and what it costs on a device.

    Attributes:
        rows: to train on; of texts, windows of ``data.max_length`` tokens.
        n_validation: items that a completed trial is scored on.
        slots: trials side by side, as far as memory and time of a pass go.
        costs: ``data.max_length`` → what a trial costs at it, the longest first. More than one where it is left open.
        item_seconds: ``data.max_length`` → seconds to score one row.
    """

    rows: int
    n_validation: int
    slots: int
    costs: dict[int, Cost]
    item_seconds: dict[int, float]


@dataclass(frozen=True)
class Forecast:
    """The simulation of median length.

    Attributes:
        seconds: from the first trial's start to the last one's end.
        low, high: seconds of the shortest and of the longest simulation.
        completed: trials that reach their last step.
        steps: optimiser steps of all trials.
        tokens: training tokens of all trials.
        scorings: rung scorings of all trials.
    """

    seconds: float
    low: float
    high: float
    completed: int
    steps: int
    tokens: float
    scorings: int


def play(config: SweepConfig, costs: Sequence[Cost], slots: int, devices: int) -> Forecast:
    """``forecast`` with the scheduler of a sweep.

    Args:
        config: of the sweep.
        costs: what each trial costs.
        slots: trials side by side on a device.
        devices: device workers.
    """
    from sweeps.search.scheduler import StandIn, build_scheduler  # Ray Tune takes seconds to import

    def decider() -> Decide:
        scheduler = build_scheduler(config.scheduler, config.train.rungs)
        added: set[int] = set()

        def decide(trial: int, step: int, score: float) -> bool:
            own: Any = StandIn(f"t{trial:04}")
            if trial not in added:
                added.add(trial)
                scheduler.on_trial_add(None, own)
            result = {"step": step, "objective": score, "training_iteration": step, "time_total_s": float(step)}
            return scheduler.on_trial_result(None, own, result) != "STOP"

        return decide

    return forecast(costs, slots, devices, decider, _TURNOVER_SECONDS, config.sweep.seed)


def forecast(
    trials: Sequence[Cost],
    slots: int,
    devices: int,
    decider: Callable[[], Decide],
    overhead: float,
    seed: int = 0,
) -> Forecast:
    """Simulate a sweep several times.

    Args:
        trials: what each costs.
        slots: trials side by side on a device.
        devices: device workers.
        decider: makes a scheduler, as a ``Decide``, for each simulation.
        overhead: seconds between a trial's end and the first step of the next in its slot.
        seed: of the random scores and orders.
    """
    simulations = []
    for number in range(_SIMULATIONS):
        chance = random.Random(seed + number)
        order = list(trials)
        chance.shuffle(order)
        simulations.append(_simulate(order, slots, devices, decider(), overhead, chance))
    simulations.sort(key=lambda total: total.seconds)
    middle = simulations[len(simulations) // 2]
    return Forecast(
        middle.seconds,
        simulations[0].seconds,
        simulations[-1].seconds,
        middle.completed,
        middle.steps,
        middle.tokens,
        middle.scorings,
    )


@dataclass
class _Running:
    """A trial in a slot; ``quality`` is its own score, around which those of its rungs lie."""

    trial: int
    cost: Cost
    quality: float
    step: int = 0

    def next_rung(self) -> int:
        return next(rung for rung in self.cost.rungs if rung > self.step)


@dataclass
class _Totals:
    """What one simulation comes to; see ``Forecast``."""

    seconds: float = 0.0
    completed: int = 0
    steps: int = 0
    tokens: float = 0.0
    scorings: int = 0


def _simulate(
    trials: Sequence[Cost], slots: int, devices: int, decide: Decide, overhead: float, chance: random.Random
) -> _Totals:
    """One simulation. Each device has a clock; the event on the clock that is furthest behind comes next."""
    waiting = list(enumerate(trials))[::-1]
    clocks, running = [0.0] * devices, [list[_Running]() for _ in range(devices)]
    total = _Totals()
    while True:
        for place in range(devices):
            while waiting and len(running[place]) < slots:
                trial, cost = waiting.pop()
                running[place].append(_Running(trial, cost, chance.gauss(0, 1)))
                clocks[place] += overhead / slots  # the others train meanwhile
        busy = [place for place in range(devices) if running[place]]
        if not busy:
            total.seconds = max(clocks)
            return total
        place = min(busy, key=clocks.__getitem__)  # events are decided in the order of their time
        here = running[place]
        n = min(slot.next_rung() - slot.step for slot in here)
        shared = {slot.cost.pack: slot.cost.shared for slot in here}
        clocks[place] += n * (sum(shared.values()) + sum(slot.cost.own for slot in here))
        for slot in list(here):
            slot.step += n
            total.steps += n
            total.tokens += n * slot.cost.tokens
            if slot.step not in slot.cost.rungs:
                continue
            clocks[place] += slot.cost.rung_seconds
            total.scorings += 1
            goes_on = decide(slot.trial, slot.step, slot.quality + chance.gauss(0, _SPREAD))
            if slot.step == slot.cost.rungs[-1]:
                clocks[place] += slot.cost.final_seconds
                total.completed += 1
                here.remove(slot)
            elif not goes_on:
                here.remove(slot)
