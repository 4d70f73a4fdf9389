"""Samplers beside Optuna's own."""

from optuna.samplers import BruteForceSampler


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
