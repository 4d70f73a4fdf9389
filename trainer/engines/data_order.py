"""The order of a trial's training rows: a function of seed and step alone.

Any step's rows can be computed without those of the steps before.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@lru_cache(maxsize=16)  # one permutation for each slot of a pack
def epoch_order(n_rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The permutation of the rows in one epoch, shape (n_rows,), read-only.

    Keys are drawn with Philox (Salmon et al. 2011) and sorted. Only the raw stream of a bit generator is guaranteed to
    stay the same between numpy versions; ``Generator.permutation`` is not.

    Args:
        n_rows: rows in the training set, at least 1.
        seed: of the trial, from 0 up to 2^64 - 1.
        epoch: from 0.
    """
    keys = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(n_rows)
    order = np.argsort(keys, kind="stable").astype(np.int64)
    order.setflags(write=False)  # all callers share this array
    return order


def data_order(n_rows: int, seed: int, start: int, count: int) -> list[int]:
    """Row indices at some positions of the endless run through the epochs.

    Args:
        n_rows: rows in the training set.
        seed: of the trial.
        start: first position, from 0.
        count: how many positions.

    Raises:
        ValueError: if there are no rows, or ``start`` or ``count`` is negative.
    """
    if n_rows < 1 or start < 0 or count < 0:
        raise ValueError(f"n_rows={n_rows}, start={start}, count={count}: expected at least one row and none negative")
    chosen: list[int] = []
    while len(chosen) < count:
        epoch, offset = divmod(start + len(chosen), n_rows)
        chosen += epoch_order(n_rows, seed, epoch)[offset : offset + count - len(chosen)].tolist()
    return chosen


def rows_for_step(n_rows: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Row indices of one optimiser step. A batch may run over the end of an epoch into the next.

    Args:
        n_rows: rows in the training set.
        batch_size: rows per optimiser step.
        seed: of the trial.
        step: optimiser steps done, from 0.
    """
    return data_order(n_rows, seed, step * batch_size, batch_size)
