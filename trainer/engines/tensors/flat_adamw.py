"""AdamW over all slots of a pack at once: each has a clip, rates, decays and a count of steps of its own.

The operators do not grow with the slots, so that a GPU is not kept waiting for Python: PyTorch's ``_foreach`` operators
take a list of tensors and a number for each of them. Values are those of ``torch.nn.utils.clip_grad_norm_`` and of
``torch.optim.AdamW`` (Loshchilov & Hutter 2019, arXiv 1711.05101; eps 1e-8) in their order of operations, bit for bit
where a slot's pieces are its parameters. On a GPU a kernel of ours does the same in one launch, where it can be used.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from trainer.engines.tensors.slot_tensors import Piece
from trainer.engines.tensors.transfer import to_device
from trainer.engines.triton_kernels import adamw

_CLIP_EPS = 1e-6  # that of clip_grad_norm_


@dataclass(frozen=True)
class Stepping:
    """One slot's optimiser step.

    Attributes:
        pieces: at least one.
        clip: largest norm of the slot's gradient.
        factor: of the schedule, on every peak learning rate.
        beta1, beta2: of AdamW.
        step: which step this is, from 1.
    """

    pieces: Sequence[Piece]
    clip: float
    factor: float
    beta1: float
    beta2: float
    step: int


@torch.no_grad()
def gradient_norms(slots: Sequence[Stepping]) -> torch.Tensor:
    """(slots,) the norm of each slot's gradient, over all its pieces."""
    of_pieces = torch.stack(torch._foreach_norm([piece.gradient for slot in slots for piece in slot.pieces]))
    return torch.stack(torch._foreach_norm(of_pieces.split([len(slot.pieces) for slot in slots])))


def clip_factors(slots: Sequence[Stepping], norms: torch.Tensor) -> torch.Tensor:
    """(slots,) the factor on each slot's gradient that brings its norm down to the clip, at most 1."""
    clips = to_device({"clips": np.array([slot.clip for slot in slots], dtype=np.float32)}, norms.device)["clips"]
    return (norms + _CLIP_EPS).reciprocal().mul(clips).clamp(max=1.0)


@torch.no_grad()
def step(slots: Sequence[Stepping], factors: torch.Tensor) -> None:
    """Clip the gradients, step the parameters, and set the gradients to zero; all in place.

    Nothing is allocated, so that it does not fail half-way for want of memory: the gradient's place holds the
    denominator once the moments have taken the gradient up.

    Args:
        slots: those that step.
        factors: from ``clip_factors``.
    """
    pieces = [piece for slot in slots for piece in slot.pieces]
    owners = [slot for slot in slots for _ in slot.pieces]
    parameters = [piece.parameter for piece in pieces]
    gradients = [piece.gradient for piece in pieces]
    averages = [piece.exp_avg for piece in pieces]
    squares = [piece.exp_avg_sq for piece in pieces]
    rates = [piece.rate * slot.factor for piece, slot in zip(pieces, owners, strict=True)]

    if adamw.usable_on(factors.device):
        columns = [
            (rate, 1 - rate * piece.decay, slot.beta1, slot.beta2, 1 - slot.beta1**slot.step, _root(slot))
            for rate, piece, slot in zip(rates, pieces, owners, strict=True)
        ]
        which = np.repeat(np.arange(len(slots)), [len(slot.pieces) for slot in slots])
        there = to_device({"columns": np.array(columns), "which": which}, factors.device)
        each = factors.index_select(0, there["which"])
        adamw.step(parameters, gradients, averages, squares, there["columns"], each)
        return
    of_slots = zip(factors.unbind(), slots, strict=True)
    torch._foreach_mul_(gradients, [factor for factor, slot in of_slots for _ in slot.pieces])
    if any(piece.decay for piece in pieces):
        torch._foreach_mul_(parameters, [1 - rate * piece.decay for rate, piece in zip(rates, pieces, strict=True)])
    torch._foreach_lerp_(averages, gradients, [1 - slot.beta1 for slot in owners])
    torch._foreach_mul_(squares, [slot.beta2 for slot in owners])
    torch._foreach_addcmul_(squares, gradients, gradients, [1 - slot.beta2 for slot in owners])
    torch._foreach_copy_(gradients, squares)
    torch._foreach_sqrt_(gradients)
    torch._foreach_div_(gradients, [_root(slot) for slot in owners])
    torch._foreach_add_(gradients, adamw.EPS)
    torch._foreach_addcdiv_(
        parameters,
        averages,
        gradients,
        [-(rate / (1 - slot.beta1**slot.step)) for rate, slot in zip(rates, owners, strict=True)],
    )
    torch._foreach_zero_(gradients)


def _root(slot: Stepping) -> float:
    """The root of the second moment's bias correction."""
    return float((1 - slot.beta2**slot.step) ** 0.5)
