"""Micro-batches of a trial: each is a function of the trial's seed and the step, so any step can be made alone."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.config import EngineConfig, TrialConfig
from trainer.data.encode import Encoded
from trainer.engines.data_order import rows_for_step
from trainer.models.ranks import ALONE, Ranks

# The fixed cost of one more pass, in tokens that take as long: 25 to 100 for MiniLM on a CPU, fewer for larger models
# (BENCHMARKS.md). It is a constant, not measured in each run: where passes are cut decides the last bits of a result,
# and a resumed sweep must end like one that was not interrupted. On other devices one sweep measures it once.
_PASS_COST = {"cpu": 128.0}
_LEAST_SAVED = 0.05  # share of a pass's tokens that a cut must save at least


@dataclass(frozen=True)
class MicroBatch:
    """Some rows of a trial's optimiser step, padded on the right to the longest, on the host.

    Attributes:
        input_ids: (rows, longest) int64.
        labels: completion: (rows, longest) int64, -100 where no loss is borne; classification: (rows,) int64.
        samples: (rows,) int64, each row's place in the whole step.
        weights: (rows,) float32, in the loss; None where all are 1.
        lengths: each row's tokens.
        step: optimiser steps done.
        denominator: loss-bearing tokens (or rows) of the whole step, so that the losses of its micro-batches add up to
            its token mean.
    """

    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    samples: NDArray[np.int64]
    weights: NDArray[np.float32] | None
    lengths: tuple[int, ...]
    step: int
    denominator: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, and tokens of the longest."""
        return len(self.lengths), self.input_ids.shape[1]

    def only(self, rows: list[int]) -> "MicroBatch":
        """Some of the rows, padded to the longest of them."""
        lengths = tuple(self.lengths[r] for r in rows)
        width = max(lengths)
        labels = self.labels[rows]
        return replace(
            self,
            input_ids=self.input_ids[rows, :width],
            labels=labels[:, :width] if labels.ndim == 2 else labels,
            samples=self.samples[rows],
            weights=None if self.weights is None else self.weights[rows],
            lengths=lengths,
        )

    def tensors(self) -> dict[str, Any]:
        """The same with tensors, by the names of a model's arguments; with ``attention_mask`` (rows, longest)."""
        mask = np.arange(self.shape[1]) < np.array(self.lengths)[:, None]
        return {
            "input_ids": torch.from_numpy(self.input_ids),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
            "labels": torch.from_numpy(self.labels),
            "samples": torch.from_numpy(self.samples),
            "weights": None if self.weights is None else torch.from_numpy(self.weights),
            "lengths": list(self.lengths),
            "step": self.step,
            "denominator": self.denominator,
        }


def micro_batches(trial: TrialConfig, encoded: list[Encoded], pad_token: int, step: int) -> list[MicroBatch]:
    """One optimiser step's rows, cut into ``train.accumulation`` micro-batches.

    Args:
        trial: its seed, task and batch size.
        encoded: all training rows.
        pad_token: id.
        step: optimiser steps done.
    """
    train = trial.train
    chosen = rows_for_step(len(encoded), train.batch_size, trial.seed, step)
    rows = [encoded[i] for i in chosen]
    completion = trial.task.name == "completion"
    denominator = _denominator(rows, completion)
    size = train.batch_size // train.accumulation
    return [
        _micro_batch(rows[at : at + size], at, completion, pad_token, step, denominator)
        for at in range(0, len(rows), size)
    ]


def batch_of(trial: TrialConfig, rows: list[Encoded], pad_token: int) -> MicroBatch:
    """Any rows as one micro-batch of step 0, for measuring what such a batch costs.

    Args:
        trial: its task.
        rows: of the micro-batch.
        pad_token: id.
    """
    completion = trial.task.name == "completion"
    return _micro_batch(rows, 0, completion, pad_token, 0, _denominator(rows, completion))


def _denominator(rows: Sequence[Encoded], completion: bool) -> int:
    """What a step's summed loss is divided by: loss-bearing tokens, or in classification rows."""
    return sum(row.n_bearing for row in rows) if completion else len(rows)


def _micro_batch(
    rows: list[Encoded], first: int, completion: bool, pad_token: int, step: int, denominator: int
) -> MicroBatch:
    lengths = tuple(len(row.ids) for row in rows)
    longest = max(lengths)
    if completion:
        labels = stacked([row.label_ids[None] for row in rows], longest, -100)
    else:
        labels = np.array([row.target for row in rows])
    weights = [row.weight for row in rows]
    return MicroBatch(
        stacked([row.ids[None] for row in rows], longest, pad_token),
        labels,
        np.arange(first, first + len(rows)),
        np.array(weights, dtype=np.float32) if any(weight != 1.0 for weight in weights) else None,
        lengths,
        step,
        denominator,
    )


def stacked(blocks: Sequence[NDArray[np.int64]], width: int, fill: int) -> NDArray[np.int64]:
    """Rows of several blocks one below the other, each padded on the right.

    Args:
        blocks: (rows, tokens) each, of at most ``width`` tokens.
        width: of the result.
        fill: what rows are padded with.
    """
    result = np.full((sum(len(block) for block in blocks), width), fill)
    at = 0
    for block in blocks:
        result[at : at + len(block), : block.shape[1]] = block
        at += len(block)
    return result


def pass_cost(settings: EngineConfig, device: torch.device) -> float | None:
    """The fixed cost of one more pass on this device, in tokens that take as long; infinite where passes are not cut.

    Args:
        settings: of the engine.
        device: that trains.

    Returns:
        None where it is to be measured (``SlotBudget.pass_cost``).
    """
    if settings.name != "packed" or not settings.cut_by_length:
        return math.inf
    return _PASS_COST.get(device.type) if settings.pass_cost is None else settings.pass_cost


def cut_by_length(batches: Sequence[MicroBatch], cost: float) -> list[list[tuple[int, MicroBatch]]]:
    """Cut micro-batches of several slots into passes of rows that are about as long as each other, to save padding.

    Args:
        batches: one of each slot.
        cost: fixed cost of one more pass, in tokens that take as long; infinite: everything in one pass.

    Returns:
        Passes, the longest rows first. Each holds (index of a batch, that batch's rows in this pass), ascending.
    """
    lengths = np.array([n for batch in batches for n in batch.lengths])
    cost = max(cost, _LEAST_SAVED * lengths.size * lengths.max())
    order = np.argsort(-lengths, kind="stable")
    cuts = _cuts(lengths[order], cost) if cost < math.inf else []
    if not cuts:
        return [list(enumerate(batches))]
    places = [(k, r) for k, batch in enumerate(batches) for r in range(len(batch.lengths))]
    passes = []
    for chosen in np.split(order, cuts):
        rows: dict[int, list[int]] = {}
        for k, r in (places[i] for i in sorted(chosen)):
            rows.setdefault(k, []).append(r)
        passes.append([(k, batches[k].only(own)) for k, own in rows.items()])
    return passes


def _cuts(lengths: NDArray[np.int64], cost: float) -> list[int]:
    """Where to cut rows, the longest first: those behind a cut save more tokens of padding than it costs."""
    saved = (lengths[0] - lengths) * np.arange(len(lengths), 0, -1)
    at = int(saved.argmax())
    if not saved[at] > cost:
        return []
    return [*_cuts(lengths[:at], cost), at, *(at + cut for cut in _cuts(lengths[at:], cost))]


def part_of(batch: MicroBatch, ranks: Ranks) -> MicroBatch:
    """A process's rows of a micro-batch, with the keys and the denominator of the whole.

    Where there are fewer rows than processes, one without a row gets another's, which counts nothing there: all
    processes must make as many passes.
    """
    mine = ranks.share(len(batch.lengths))
    part = batch.only(mine or [0])
    if mine:
        return part
    nothing = -100 if part.labels.ndim == 2 else 0
    return replace(part, labels=np.full_like(part.labels, nothing), weights=np.zeros(1, dtype=np.float32))


class MicroBatches(torch.utils.data.Dataset[dict[str, Any]]):
    """All micro-batches from one optimiser step to another as tensors, for a DataLoader with ``batch_size=None``.

    Args:
        trial, encoded, pad_token: as for ``micro_batches``.
        start, stop: optimiser steps.
        ranks: the processes that train the trial; each micro-batch holds this one's rows. ``tokens``: of all.
    """

    def __init__(
        self,
        trial: TrialConfig,
        encoded: list[Encoded],
        pad_token: int,
        start: int,
        stop: int,
        ranks: Ranks = ALONE,
    ):
        self.trial, self.encoded, self.pad_token = trial, encoded, pad_token
        self.start, self.stop, self.ranks = start, stop, ranks

    def __len__(self) -> int:
        return (self.stop - self.start) * self.trial.train.accumulation

    def __getitem__(self, index: int) -> dict[str, Any]:
        step, micro = divmod(index, self.trial.train.accumulation)
        if index >= len(self):
            raise IndexError(index)
        batch = micro_batches(self.trial, self.encoded, self.pad_token, self.start + step)[micro]
        part = batch if self.ranks.alone else part_of(batch, self.ranks)
        return part.tensors() | {"tokens": sum(batch.lengths)}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))
