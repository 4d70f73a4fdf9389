"""How much training does a search need to come within 1 % of the best? Simulated curves, the real search and scheduler.

    python -m tests.benchmarks.search_quality [--seeds 20] [--first 0] [--space wide] [SETTING …]

A setting is SAMPLER/SCHEDULER, with overrides behind it: 'tpe/asha sampler.n_startup_trials=10 train.rungs=[12,48]'.

Of each seed: the optimiser steps that all trials made until the trial a user would pick, the best completed one by its
noisy score, is truly within 1 % of the best that the space holds; in units of one whole trial. Random search without
early stopping is what the others are compared with. The interval of a ratio of means is a paired bootstrap over seeds.
"""

import argparse
import functools
import tempfile
import time
from pathlib import Path

import numpy as np

from sweeps.compose.compose import Composed, compose
from tests.benchmarks.curves import diverges, final, score
from tests.sweeps.loop import Loop

WITHIN = 0.01
MOST_TRIALS = 1500
CONCURRENT = 4


@functools.cache
def best(space: str) -> float:
    """The best final score in the space: of many points drawn at random, the best one, improved from there."""
    import optuna

    from sweeps.space.dimensions import suggest

    flat = compose([f"space={space}"]).space
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))
    found = -1.0
    for _ in range(20_000):
        values = suggest(flat, study.ask())
        found = max(found, -1.0 if diverges(values) else final(values))
    return found


def whole_trials_needed(composed: Composed, space: str, seed: int) -> float:
    """Whole trials' worth of steps until the pick is within 1 % of the best."""
    config, goal = composed.config, best(space) * (1 - WITHIN)
    max_steps = config.train.max_steps

    def reached(loop: Loop) -> bool:
        done = [trial for trial in loop.ended if trial.state == "completed"]
        return bool(done) and final(max(done, key=lambda trial: trial.objective).values) >= goal

    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as root:
        loop = Loop(
            Path(root),
            composed.space,
            lambda values, step: score(values, step, max_steps, seed),
            list(config.train.rungs),
            {**config.sampler, "seed": None},
            config.scheduler,
            MOST_TRIALS,
            CONCURRENT,
            seed,
        )
        loop.run(until=reached)
        return loop.steps / max_steps if reached(loop) else float("nan")


def main() -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--space", default="wide")
    parser.add_argument("settings", nargs="*", default=["random/asha", "tpe/fifo", "tpe/asha"])
    given = parser.parse_args()
    seeds = range(given.first, given.first + given.seeds)
    print(f"space={given.space}: best {best(given.space):.4f}; seeds {seeds}, {CONCURRENT} trials at a time")
    needed: dict[str, np.ndarray] = {}
    for setting in dict.fromkeys(["random/fifo", *given.settings]):
        pair, *more = setting.split()
        sampler, scheduler = pair.split("/")
        words = [
            f"space={given.space}",
            f"sampler={sampler}",
            f"scheduler={scheduler}",
            "train.max_steps=48",
            "search.trials=60",
        ]
        composed, began = compose([*words, *more]), time.perf_counter()
        found = np.array([whole_trials_needed(composed, given.space, seed) for seed in seeds])
        needed[setting] = found
        draws = np.random.default_rng(0).integers(0, given.seeds, (10_000, given.seeds))
        ratios = found[draws].mean(axis=1) / needed["random/fifo"][draws].mean(axis=1)
        low, high = np.quantile(ratios, [0.025, 0.975])
        share = found.mean() / needed["random/fifo"].mean()
        print(
            f"{setting:12} mean {found.mean():6.1f} median {np.median(found):6.1f} whole trials"
            f"   {share:.3f} of random search, 95 % interval [{low:.3f}, {high:.3f}],"
            f" of medians {np.median(found) / np.median(needed['random/fifo']):.3f}"
            f"   ({time.perf_counter() - began:.0f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
