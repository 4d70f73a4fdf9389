"""A published grid of learning rates and ranks as something to search: what a trial would have scored.

``lora_lr_rank_grid.csv`` beside this file: 18 models of 1B to 550B parameters, alpha 32 throughout, Tulu 3, batch 128,
780 steps, negative log-likelihood on test data in nats (tinker-cookbook, ``recipes/chat_sl/results``, Apache-2.0).

Assumptions, each of them ours:

- Another alpha rule: what counts is the rate at alpha 32, rate · alpha / 32 (analysis/effective_rate.py).
- Between the cells: linear in log rate at each rank, then linear in log rank; ranks outside are the nearest one; below
  the smallest rate the first slope goes on.
- Above the largest rate that a rank has, the trial diverges: the table leaves those cells out. Between two ranks, where
  it does at one of them. A cell that is missing between others is bridged.
- Keys that the grid does not have (dropout, batch size, targets, …) change nothing.
"""

import csv
import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FILE = Path(__file__).parent / "lora_lr_rank_grid.csv"
NOISE = 0.002  # nats, standard deviation of a measurement


@dataclass(frozen=True)
class Model:
    """One model's cells.

    Attributes:
        name: owner/name.
        cells: rank → ascending (ln rate, NLL).
    """

    name: str
    cells: dict[int, list[tuple[float, float]]]

    def nll(self, rate: float, rank: float) -> float:
        """NLL in nats at an effective rate and a rank; infinite where the trial diverges."""
        ranks = sorted(self.cells)
        rank = min(max(rank, ranks[0]), ranks[-1])
        upper = next(it for it in ranks if it >= rank)
        lower = max(it for it in ranks if it <= rank)
        below, above = self._at(lower, rate), self._at(upper, rate)
        if lower == upper or not (math.isfinite(below) and math.isfinite(above)):
            return max(below, above)
        share = math.log(rank / lower) / math.log(upper / lower)
        return below + share * (above - below)

    def _at(self, rank: int, rate: float) -> float:
        line = self.cells[rank]
        x = math.log(rate)
        if x > line[-1][0] + 1e-9:
            return math.inf
        if x < line[0][0]:
            (x0, y0), (x1, y1) = line[:2]
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
        return float(np.interp(x, [it[0] for it in line], [it[1] for it in line]))

    def best(self, ranks: tuple[float, float]) -> float:
        """The lowest NLL within a range of ranks: it is linear between cells, so at one of their rates."""
        inside = {it for it in {*self.cells, *ranks} if ranks[0] <= it <= ranks[1]}
        rates = {math.exp(x) for line in self.cells.values() for x, _ in line}
        return min(self.nll(rate, rank) for rank in inside for rate in rates)


@functools.cache
def models() -> dict[str, Model]:
    """Every model of the file, by name."""
    read: dict[str, dict[int, list[tuple[float, float]]]] = {}
    with FILE.open() as file:
        for row in csv.DictReader(file):
            line = read.setdefault(row["model"], {}).setdefault(int(row["rank"]), [])
            line.append((math.log(float(row["lr"])), float(row["test_nll"])))
    return {name: Model(name, {rank: sorted(cells[rank]) for rank in sorted(cells)}) for name, cells in read.items()}
