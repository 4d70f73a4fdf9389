"""Three ways to add many adapters' low-rank products to one base layer's output.

The rows of the batch are sorted by slot; each slot's rows are a segment. ``loop`` is the reference: per slot what PEFT
computes, in the same order of operations. ``bmm`` is one batched product, for which short segments are filled up;
``grouped`` takes ragged ones as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import grouped_mm, linear

from trainer.engines.keyed_dropout import drop


@dataclass(frozen=True)
class Segment:
    """The rows ``start`` to ``stop - 1`` of the batch belong to the slot at ``slot``."""

    slot: int
    start: int
    stop: int


@dataclass(frozen=True)
class Routing:
    """Which rows of a batch belong to which slot.

    It does not change, so that a layer that is recomputed in the backward pass gives the same result. Its tensors are
    on the device once a pass, not once a layer: in training they come with the rows, in one copy
    (``trainer/engines/pass_inputs.py``); in scoring they are copied where they are first asked for, which waits.

    Attributes:
        segments: ascending in slot and row, without gaps, none empty.
        n_slots: slots in the pack; some may have no rows.
        keys: (rows,) from ``row_keys`` for dropout, or None where nothing is dropped (scoring).
        kernel: auto, loop, bmm or grouped.
        device: of the rows.
        tokens: of the longest row; 0 in scoring.
        shared_keys: (segments,) from ``shared_key``, or None where no layer needs them.
        row_p: (rows,) float64, the probability of dropout of each; None where nothing is dropped.
        there: ``index``, ``row_slots``, ``row_ends``, ``spread`` and ``collected``, where they are there already.
    """

    segments: tuple[Segment, ...]
    n_slots: int
    keys: torch.Tensor | None
    kernel: str = "auto"
    device: torch.device | str = "cpu"
    tokens: int = 0
    shared_keys: torch.Tensor | None = None
    row_p: torch.Tensor | None = None
    there: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def only(self, i: int) -> "Routing":
        """That of one segment's rows alone."""
        segment = self.segments[i]
        keys = None if self.keys is None else self.keys[segment.start : segment.stop]
        shared = None if self.shared_keys is None else self.shared_keys[i : i + 1]
        row_p = None if self.row_p is None else self.row_p[segment.start : segment.stop]
        alone = (Segment(segment.slot, 0, segment.stop - segment.start),)
        there = {"index": self.index[i : i + 1]}
        return Routing(alone, self.n_slots, keys, self.kernel, self.device, self.tokens, shared, row_p, there)

    @cached_property
    def rows(self) -> int:
        """Rows of all segments."""
        return self.segments[-1].stop

    @cached_property
    def equal(self) -> bool:
        """Whether every segment has as many rows as the first."""
        return len(set(self.counts)) == 1

    @cached_property
    def slots(self) -> list[int]:
        """The slot of each segment."""
        return [segment.slot for segment in self.segments]

    @cached_property
    def counts(self) -> list[int]:
        """Rows of each segment."""
        return [segment.stop - segment.start for segment in self.segments]

    @cached_property
    def index(self) -> torch.Tensor:
        """(segments,) the slot of each."""
        return self._on_device("index")

    @cached_property
    def row_slots(self) -> torch.Tensor:
        """(rows,) the slot of each."""
        return self._on_device("row_slots")

    @cached_property
    def row_ends(self) -> torch.Tensor:
        """(segments,) int32: rows up to and with those of each segment."""
        return self._on_device("row_ends")

    @cached_property
    def spread(self) -> torch.Tensor:
        """(segments · most rows,) rows so that every segment has as many; those that fill it up are some row."""
        return self._on_device("spread")

    @cached_property
    def collected(self) -> torch.Tensor:
        """(rows,) where each row is in ``spread``."""
        return self._on_device("collected")

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What these tensors hold, by name, on the host; ``spread`` and ``collected`` only where segments differ."""
        slots, counts = np.array(self.slots), np.array(self.counts)
        ends = counts.cumsum()
        arrays = {"index": slots, "row_slots": slots.repeat(counts), "row_ends": ends.astype(np.int32)}
        if not self.equal:
            place = np.arange(counts.max())  # of a row in its segment
            spread = (ends - counts)[:, None] + np.minimum(place, counts[:, None] - 1)
            arrays |= {"spread": spread.reshape(-1), "collected": (place < counts[:, None]).reshape(-1).nonzero()[0]}
        return arrays

    def _on_device(self, name: str) -> torch.Tensor:
        there = self.there.get(name)
        return torch.from_numpy(self.arrays()[name]).to(self.device) if there is None else there


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
    in_place = not torch.is_grad_enabled()  # in scoring the base layer's own output is not needed any more
    pieces = []
    # split() instead of slices: the gradient of each slice would be a tensor of zeros as large as the whole
    parts = zip(routing.segments, output.split(routing.counts), x.split(routing.counts), strict=True)
    for segment, piece, rows in parts:
        slot = slots[segment.slot]
        if slot is not None:
            if slot.p and routing.keys is not None:
                rows = drop(rows, routing.keys[segment.start : segment.stop], module_key, slot.p)
            added = linear(linear(rows, slot.a), slot.b) * slot.scale
            piece = piece.add_(added) if in_place else (piece + added).to(output.dtype)
        pieces.append(piece)
    return output if in_place else pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def bmm(
    output: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor, routing: Routing
) -> torch.Tensor:
    """The same in one batched product. Segments with fewer rows than another are filled up with rows that do not count.

    Args:
        output: (rows, …, d_out).
        x: after dropout, (rows, …, d_in).
        a: (segments, rank, d_in), zero beyond a slot's own rank.
        b: (segments, rank, d_out), transposed, zero likewise.
        scale: (segments,)
        routing: which rows belong to which segment.
    """
    rows = x if routing.equal else x.index_select(0, routing.spread)
    low = torch.bmm(rows.reshape(len(a), -1, x.shape[-1]), a.transpose(1, 2))
    low = (low * scale[:, None, None]).to(low.dtype)
    added = torch.bmm(low, b).view(*rows.shape[:-1], -1)
    if not routing.equal:
        added = added.index_select(0, routing.collected)
    return (output + added).to(output.dtype)


def grouped(
    output: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor, routing: Routing
) -> torch.Tensor:
    """The same for ragged segments in one grouped product. Rows must be multiples of 16 bytes: ``grouped_fits``.

    Slots without rows are left out: with an empty group the fast kernel's backward pass hangs (pytorch#152668), or
    leaves in that group's gradient what was in the memory before (#172439, #193633).

    Args:
        output: (rows, …, d_out).
        x: after dropout, (rows, …, d_in).
        a: (slots, rank, d_in).
        b: (slots, rank, d_out), transposed.
        scale: (slots,)
        routing: slots may have no rows.
    """
    if len(routing.segments) < routing.n_slots:
        a, b = a.index_select(0, routing.index), b.index_select(0, routing.index)
    flat = x.reshape(-1, x.shape[-1])
    ends = routing.row_ends * (len(flat) // len(x))
    dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else flat.dtype
    low = grouped_mm(flat.to(dtype), a.to(dtype).transpose(1, 2), offs=ends)
    low = (low.view(len(x), -1) * scale[routing.row_slots][:, None]).to(dtype).view(low.shape)
    added = grouped_mm(low, b.to(dtype), offs=ends)
    return (output + added.view(output.shape)).to(output.dtype)


def choose(routing: Routing, device: torch.device, autocast: bool, widths: Sequence[int] = ()) -> str:
    """The kernel for a batch on a layer.

    With ``auto``: one segment needs no stack; equal segments go to ``bmm``, and ragged ones too, but for where the GPU
    has a fast ``grouped`` for them. On a CPU it is always ``loop``, whose products are large enough to fill the cores.

    Args:
        routing: of the batch; names the kernel that the config sets.
        device: of the rows.
        autocast: whether products run in bf16.
        widths: d_in and d_out of the layer.
    """
    fits = grouped_fits(widths, 2 if autocast else 4)
    if routing.kernel != "auto":
        return "bmm" if routing.kernel == "grouped" and not fits else routing.kernel
    if len(routing.segments) == 1 or device.type == "cpu":
        return "loop"
    return "grouped" if not routing.equal and autocast and fits and grouped_is_fast(device) else "bmm"


def grouped_fits(widths: Sequence[int], element_bytes: int) -> bool:
    """Whether rows of these widths are multiples of 16 bytes, as ``grouped_mm`` wants all its operands' to be."""
    return all(width * element_bytes % 16 == 0 for width in widths)


@cache
def grouped_is_fast(device: torch.device) -> bool:
    """Whether a GPU has a kernel of its own for ``grouped_mm`` in bf16: NVIDIA's of compute capability 9 and 10.

    Others get a loop that waits for the device at each call (PyTorch's ``ATen/native/cuda/GroupedBlas.cpp``).
    """
    if device.type != "cuda" or torch.version.hip is not None:  # ROCm's numbers mean other chips
        return False
    return torch.cuda.get_device_capability(device)[0] in (9, 10)
