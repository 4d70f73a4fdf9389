"""A sampler beside Optuna's own, and what makes all of them repeatable."""

from collections.abc import Iterator

import numpy as np
from optuna.samplers import BaseSampler, BruteForceSampler
from optuna.samplers._lazy_random_state import LazyRandomState

# What GPSampler remembers of its last fit, to begin the next one there: a resumed search would fit from elsewhere.
_FORGOTTEN = ("_gprs_cache_list", "_constraints_gprs_cache_list")


class GridSampler(BruteForceSampler):
    """Every combination once: Optuna's exhaustive sampler, and the number of values that a range becomes.

    Optuna's own ``GridSampler`` knows no conditions and wants every value written down a second time.

    Args:
        points: values for a range without ``step``, both ends included; evenly in the logarithm where it has ``log``.
        seed: of the order in which the combinations are tried.
    """

    def __init__(self, points: int = 4, seed: int | None = None):
        if points < 2:
            raise ValueError(f"points must be at least 2, both ends of a range, not {points}")
        super().__init__(seed=seed)
        self.points = points


def reseed(sampler: BaseSampler, seed: int, number: int) -> None:
    """Make a sampler's random numbers a function of seed and trial number.

    A resumed search then repeats nothing, and, one trial at a time, suggests what an undisturbed one would. Optuna's
    own ``reseed_rng`` draws from the operating system. Each generator inside the sampler (TPE has two) gets a stream of
    its own.
    """
    for name in _FORGOTTEN:
        if hasattr(sampler, name):
            setattr(sampler, name, None)
    states = list(_random_states(sampler))
    for state, own in zip(states, np.random.SeedSequence([seed, number]).generate_state(len(states)), strict=True):
        state.seed(int(own))


def _random_states(sampler: BaseSampler) -> Iterator[np.random.RandomState]:
    for _, part in sorted(vars(sampler).items()):
        if isinstance(part, LazyRandomState):
            yield part.rng
        elif isinstance(part, np.random.RandomState):
            yield part
        elif isinstance(part, BaseSampler):
            yield from _random_states(part)
