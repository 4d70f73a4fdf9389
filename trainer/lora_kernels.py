"""Three ways to add many adapters' low-rank products to one base layer's output.

The rows of the batch are sorted by slot; each slot's rows are a segment. ``loop`` is the reference: per slot what PEFT
computes, in the same order of operations. ``bmm`` needs equal segments; ``grouped`` takes ragged ones in one call.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import grouped_mm, linear

from trainer.dropout import drop


@dataclass(frozen=True)
class Segment:
    """The rows ``start`` to ``stop - 1`` of the batch belong to the slot at ``slot``."""

    slot: int
    start: int
    stop: int


@dataclass(frozen=True)
class Routing:
    """Which rows of a batch belong to which slot: a value, so that recomputing a layer repeats it.

    Attributes:
        segments: ascending in slot and row, without gaps, none empty.
        n_slots: slots in the pack; some may have no rows.
        keys: (rows,) from ``row_keys`` for dropout, or None where nothing is dropped (scoring).
        kernel: the kernel asked for: auto, loop, bmm or grouped.
    """

    segments: tuple[Segment, ...]
    n_slots: int
    keys: torch.Tensor | None
    kernel: str = "auto"

    @property
    def equal(self) -> bool:
        """Whether every segment has as many rows as the first."""
        return len({segment.stop - segment.start for segment in self.segments}) == 1

    @property
    def slots(self) -> list[int]:
        return [segment.slot for segment in self.segments]


@dataclass(frozen=True)
class SlotLora:
    """One slot's adapter on one module: ``a`` (rank, d_in), ``b`` (d_out, rank), factor, dropout probability."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    p: float


def loop(
    output: torch.Tensor, x: torch.Tensor, slots: Sequence[SlotLora | None], routing: Routing, module_key: int
) -> torch.Tensor:
    """output + B_k A_k drop(x) · scale_k, segment by segment.

    Args:
        output: the base layer's, (rows, …, d_out).
        x: its input, (rows, …, d_in).
        slots: of all slots in the pack; None where a slot leaves this module alone.
        routing: which rows belong to which slot.
        module_key: for dropout.
    """
    counts = [segment.stop - segment.start for segment in routing.segments]
    pieces = []
    # split, as the gradient of a slice is a tensor of zeros as large as the whole, for every slot
    for segment, piece, rows in zip(routing.segments, output.split(counts), x.split(counts), strict=True):
        slot = slots[segment.slot]
        if slot is not None:
            if slot.p and routing.keys is not None:
                rows = drop(rows, routing.keys[segment.start : segment.stop], module_key, slot.p)
            piece = (piece + linear(linear(rows, slot.a), slot.b) * slot.scale).to(output.dtype)
        pieces.append(piece)
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def bmm(output: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The same for equal segments in one batched product.

    Args:
        output: (slots · rows, …, d_out).
        x: after dropout, (slots · rows, …, d_in).
        a: (slots, rank, d_in), zero beyond a slot's own rank.
        b: (slots, d_out, rank), zero likewise.
        scale: (slots,)
    """
    low = torch.bmm(x.reshape(len(a), -1, x.shape[-1]), a.transpose(1, 2))
    low = (low * scale[:, None, None]).to(low.dtype)
    added = torch.bmm(low, b.transpose(1, 2))
    return (output + added.view(output.shape)).to(output.dtype)


def grouped(
    output: torch.Tensor,
    x: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: torch.Tensor,
    counts: Sequence[int],
) -> torch.Tensor:
    """The same for ragged segments in one grouped product. The rank must be a multiple of 8 (strides of 16 bytes).

    Args:
        output: (rows, …, d_out).
        x: after dropout, (rows, …, d_in).
        a: (slots, rank, d_in).
        b: (slots, d_out, rank).
        scale: (slots,)
        counts: rows of each slot; may be 0.
    """
    flat = x.reshape(-1, x.shape[-1])
    per_row = len(flat) // len(x)
    lengths = torch.tensor(counts, device=x.device) * per_row
    ends = lengths.cumsum(0).to(torch.int32)
    dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else flat.dtype
    low = grouped_mm(flat.to(dtype), a.to(dtype).transpose(1, 2), offs=ends)
    low = (low * scale.repeat_interleave(lengths)[:, None]).to(dtype)
    added = grouped_mm(low, b.to(dtype).transpose(1, 2), offs=ends)
    return (output + added.view(output.shape)).to(output.dtype)


def choose(routing: Routing, device: torch.device, autocast: bool) -> str:
    """The kernel for a batch where the config leaves it open.

    One segment needs no stack. Equal segments go to ``bmm``; ragged ones to ``grouped`` where the GPU has it (bf16),
    else to ``loop``: on a CPU the loop's products are large enough to fill the cores.
    """
    if routing.kernel != "auto":
        return routing.kernel if routing.kernel != "bmm" or routing.equal else "loop"
    if len(routing.segments) == 1 or device.type == "cpu":
        return "loop"
    if routing.equal:
        return "bmm"
    return "grouped" if autocast else "loop"
