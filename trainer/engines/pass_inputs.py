"""What one pass of a pack needs on the device: the rows of its slots, what they predict, and whose they are.

All of it is made on the host as arrays and copied at once, before the forward pass: in mid-pass nothing waits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.engines.batches import MicroBatch, stacked
from trainer.engines.keyed_dropout import packed_row_keys
from trainer.engines.lora_kernels import Routing, Segment
from trainer.engines.slot import Slot
from trainer.engines.tensors.transfer import to_device


@dataclass(frozen=True)
class PassInputs:
    """One pass.

    Attributes:
        ids: (rows, longest) token ids.
        mask: (rows, longest), 0 at padding; None where the model needs none, or nothing is padded.
        routing: whose rows they are.
        bearing: completion: (positions,) of those that bear loss among all positions in their order; else None.
        targets: (positions,) or (rows,): token ids or classes.
        weights: the same, in the loss; None where all are 1.
        counts: positions or rows of each slot.
        denominators: (slots of the pass,) what each slot's summed loss is divided by.
    """

    ids: torch.Tensor
    mask: torch.Tensor | None
    routing: Routing
    bearing: torch.Tensor | None
    targets: torch.Tensor
    weights: torch.Tensor | None
    counts: list[int]
    denominators: torch.Tensor


def pass_inputs(
    slots: Sequence[Slot],
    batches: Sequence[MicroBatch],
    places: Sequence[int],
    n_slots: int,
    kernel: str,
    needs_mask: bool,
    shared_keys: bool,
) -> PassInputs:
    """Make the inputs of a pass.

    Args:
        slots: of the pass.
        batches: rows of each.
        places: of each slot in its pack, ascending.
        n_slots: of the pack.
        kernel: of the LoRA products.
        needs_mask: whether padding must be masked.
        shared_keys: whether some layer's dropout is of what rows share.
    """
    base = slots[0].base
    rows = [len(batch.lengths) for batch in batches]
    ends = np.cumsum(rows)
    width = max(batch.shape[1] for batch in batches)
    segments = tuple(Segment(p, int(end) - n, int(end)) for p, n, end in zip(places, rows, ends, strict=True))
    routing = Routing(segments, n_slots, None, kernel, base.device, width)
    arrays: dict[str, NDArray[Any]] = {
        "ids": stacked([batch.input_ids for batch in batches], width, base.pad_token),
        "denominators": np.array([batch.denominator for batch in batches], dtype=np.float32),
        **routing.arrays(),
    }
    lengths = np.concatenate([batch.lengths for batch in batches])
    if needs_mask and lengths.min() < width:
        arrays["mask"] = (np.arange(width) < lengths[:, None]).astype(np.int64)
    counts = rows
    if batches[0].labels.ndim == 2:
        targets = np.full((len(lengths), width), -100)  # of each position the token that it predicts
        targets[:, :-1] = stacked([batch.labels for batch in batches], width, -100)[:, 1:]
        bears = targets != -100
        of_rows = bears.sum(1)
        counts = [int(own.sum()) for own in np.split(of_rows, ends[:-1])]
        arrays |= {"bearing": bears.reshape(-1).nonzero()[0], "targets": targets[bears]}
    else:
        of_rows = np.ones(len(lengths), dtype=np.int64)
        arrays["targets"] = np.concatenate([batch.labels for batch in batches])
    if any(batch.weights is not None for batch in batches):
        each = [np.ones(n, np.float32) if b.weights is None else b.weights for n, b in zip(rows, batches, strict=True)]
        arrays["weights"] = np.concatenate(each).repeat(of_rows)
    p = np.repeat([slot.trial.lora.dropout for slot in slots], rows)
    if p.any():
        seeds, steps = (np.array(of) for of in ([s.trial.seed for s in slots], [b.step for b in batches]))
        samples = np.concatenate([batch.samples for batch in batches])
        arrays |= {"keys": packed_row_keys(seeds.repeat(rows), steps.repeat(rows), samples), "row_p": p}
        if shared_keys:
            arrays["shared_keys"] = packed_row_keys(seeds, steps, np.full(len(slots), -1))
    there = to_device(arrays, base.device)
    return PassInputs(
        there["ids"],
        there.get("mask"),
        replace(
            routing,
            keys=there.get("keys"),
            shared_keys=there.get("shared_keys"),
            row_p=there.get("row_p"),
            there=there,
        ),
        there.get("bearing"),
        there["targets"],
        there.get("weights"),
        counts,
        there["denominators"],
    )
