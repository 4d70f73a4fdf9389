"""Micro-batches of a trial: each is a function of the trial's seed and the step, so any step can be made alone."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.config import EngineConfig, TrialConfig
from trainer.data.encode import Encoded
from trainer.engines.data_order import rows_for_step
from trainer.likelihood.log_likelihood import pad
from trainer.models.ranks import ALONE, Ranks

# The fixed cost of one more pass, in tokens that take as long: 25 to 100 for MiniLM on a CPU, fewer for larger models
# (BENCHMARKS.md). It is a constant, not measured in each run: where passes are cut decides the last bits of a result,
# and a resumed sweep must end like one that was not interrupted. On other devices one sweep measures it once.
_PASS_COST = {"cpu": 128.0}
_LEAST_SAVED = 0.05  # share of a pass's tokens that a cut must save at least


def micro_batches(trial: TrialConfig, encoded: list[Encoded], pad_token: int, step: int) -> list[dict[str, Any]]:
    """One optimiser step's rows, cut into ``train.accumulation`` micro-batches.

    Args:
        trial: its seed, task and batch size.
        encoded: all training rows.
        pad_token: id.
        step: optimiser steps done.

    Returns:
        Per micro-batch: ``input_ids`` and ``attention_mask`` (rows, longest); ``labels``: completion (rows, longest)
        with -100 where no loss is borne, classification (rows,); ``samples`` (rows,): each row's place in the whole
        step; ``weights`` (rows,): in the loss, None where all are 1; ``step``; ``denominator``: loss-bearing tokens (or
        rows) of the whole step, so that micro-batch losses add up to its token mean; ``lengths``: each row's tokens.
    """
    train = trial.train
    chosen = rows_for_step(len(encoded), train.batch_size, trial.seed, step)
    rows = [encoded[i] for i in chosen]
    completion = trial.task.name == "completion"
    denominator = _denominator(rows, completion)
    size = train.batch_size // train.accumulation
    return [
        _micro_batch(rows[at : at + size], range(at, at + size), completion, pad_token)
        | {"step": step, "denominator": denominator}
        for at in range(0, len(rows), size)
    ]


def batch_of(trial: TrialConfig, rows: list[Encoded], pad_token: int) -> dict[str, Any]:
    """Any rows as one micro-batch of step 0, for measuring what such a batch costs.

    Args:
        trial: its task.
        rows: of the micro-batch.
        pad_token: id.
    """
    completion = trial.task.name == "completion"
    batch = _micro_batch(rows, range(len(rows)), completion, pad_token)
    return batch | {"step": 0, "denominator": _denominator(rows, completion)}


def _denominator(rows: Sequence[Encoded], completion: bool) -> int:
    """What a step's summed loss is divided by: loss-bearing tokens, or in classification rows."""
    return sum(row.n_bearing for row in rows) if completion else len(rows)


def _micro_batch(rows: list[Encoded], samples: range, completion: bool, pad_token: int) -> dict[str, Any]:
    batch: dict[str, Any] = pad([row.tokens for row in rows], pad_token)
    if completion:
        labels = torch.full_like(batch["input_ids"], -100)
        for r, row in enumerate(rows):
            at = len(row.context)
            labels[r, at : at + len(row.completion)] = torch.tensor(row.targets())
    else:
        labels = torch.tensor([row.target for row in rows])
    lengths = [len(row.tokens) for row in rows]
    weights = torch.tensor([row.weight for row in rows]) if any(row.weight != 1.0 for row in rows) else None
    places = torch.tensor(list(samples))
    return batch | {"labels": labels, "samples": places, "weights": weights, "lengths": lengths}


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


def cut_by_length(batches: Sequence[dict[str, Any]], cost: float) -> list[list[tuple[int, dict[str, Any]]]]:
    """Cut micro-batches of several slots into passes of rows that are about as long as each other, to save padding.

    Args:
        batches: one of each slot.
        cost: fixed cost of one more pass, in tokens that take as long; infinite: everything in one pass.

    Returns:
        Passes, the longest rows first. Each holds (index of a batch, that batch's rows in this pass), ascending.
    """
    lengths = np.array([n for batch in batches for n in batch["lengths"]])
    places = [(k, r) for k, batch in enumerate(batches) for r in range(len(batch["lengths"]))]
    order = np.argsort(-lengths, kind="stable")
    cuts = _cuts(lengths[order], max(cost, _LEAST_SAVED * lengths.size * lengths.max()))
    if not cuts:
        return [list(enumerate(batches))]
    passes = []
    for chosen in np.split(order, cuts):
        rows: dict[int, list[int]] = {}
        for k, r in (places[i] for i in sorted(chosen)):
            rows.setdefault(k, []).append(r)
        passes.append([(k, _rows_of(batches[k], own)) for k, own in rows.items()])
    return passes


def _cuts(lengths: NDArray[np.int64], cost: float) -> list[int]:
    """Where to cut rows, the longest first: those behind a cut save more tokens of padding than it costs."""
    saved = (lengths[0] - lengths) * np.arange(len(lengths), 0, -1)
    at = int(saved.argmax())
    if not saved[at] > cost:
        return []
    return [*_cuts(lengths[:at], cost), at, *(at + cut for cut in _cuts(lengths[at:], cost))]


def _rows_of(batch: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    """Some of a micro-batch's rows, padded to the longest of them."""
    lengths = [batch["lengths"][r] for r in rows]
    width = max(lengths)
    part = {"lengths": lengths, "weights": None if batch["weights"] is None else batch["weights"][rows]}
    part |= {name: batch[name][rows, :width] for name in ("input_ids", "attention_mask")}
    labels = batch["labels"][rows]
    part |= {"labels": labels[:, :width] if labels.dim() == 2 else labels, "samples": batch["samples"][rows]}
    return batch | part


def part_of(batch: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """A process's rows of a micro-batch, with the keys and the denominator of the whole.

    Where there are fewer rows than processes, one without a row gets another's, which counts nothing there: all
    processes must make as many passes.
    """
    mine = ranks.share(len(batch["lengths"]))
    part = _rows_of(batch, mine or [0])
    if not mine:
        nothing = -100 if part["labels"].dim() == 2 else 0
        part |= {"labels": torch.full_like(part["labels"], nothing), "weights": torch.zeros(1)}
    return part


class MicroBatches(torch.utils.data.Dataset[dict[str, Any]]):
    """All micro-batches from one optimiser step to another, for a DataLoader with ``batch_size=None``.

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
        batch["tokens"] = sum(batch["lengths"])
        return batch if self.ranks.alone else part_of(batch, self.ranks)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))
