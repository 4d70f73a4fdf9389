"""What a slot trains: parameters with their gradients and moments, and the pieces of memory that AdamW steps."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import nn

MOMENTS = ("exp_avg", "exp_avg_sq")
Columns = dict[str, tuple[int, int]]  # place of a parameter in a stack → its first column, and the one behind its last


@dataclass(frozen=True)
class Group:
    """Parameters that each slot trains all or none of, with one rate, one decay and one rank in common.

    Attributes:
        part: ``a`` or ``b`` of an adapter, or ``head``.
        layers: what the names of the adapter's layers end in: ``lora.targets`` picks layers by it.
        decayed: whether ``optim.weight_decay`` holds for them.
    """

    part: str
    layers: str
    decayed: bool


@dataclass
class Trained:
    """One parameter of a slot.

    Attributes:
        key: its name in a PEFT adapter file.
        place: the layer, or the head's parameter, in the base model that it belongs to.
        group: of it.
        rate: its peak learning rate.
        decay: its weight decay.
        parameter: with its gradient, which is kept from step to step.
        moments: AdamW's, by name, of the parameter's shape.
        laid_out: of the first of a group that was in a stack: the columns that the group's moments are laid out by, and
            these moments, each in one piece.
        at: of the same: the stack, and the slot's place in it.
    """

    key: str
    place: str
    group: Group
    rate: float
    decay: float
    parameter: nn.Parameter
    moments: dict[str, torch.Tensor] = field(init=False)
    laid_out: tuple[Columns, dict[str, torch.Tensor]] | None = None
    at: tuple[object, int] | None = None

    def __post_init__(self) -> None:
        # all memory from the start: a slot that was admitted does not run out of it in its first step
        self.parameter.grad = torch.zeros_like(self.parameter)
        self.moments = {name: torch.zeros_like(self.parameter.data) for name in MOMENTS}

    @property
    def gradient(self) -> torch.Tensor:
        assert self.parameter.grad is not None, "gradients are set to zero, never to None"
        return self.parameter.grad

    def rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the parameter's shape as (rank, width): A as it is, B transposed, a head's as one row."""
        if self.group.part == "head":
            return tensor.reshape(1, -1)
        return tensor if self.group.part == "a" else tensor.T

    def from_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """A view of the parameter's shape into (rank, width): the inverse of ``rows``."""
        if self.group.part == "head":
            return rows.view(self.parameter.shape)
        return rows if self.group.part == "a" else rows.T


@dataclass(frozen=True)
class Piece:
    """Memory that AdamW steps at once: of one parameter, or of a slot's whole group.

    Attributes:
        rate: peak learning rate.
        decay: weight decay.
        parameter, gradient, exp_avg, exp_avg_sq: float32, of one shape and with the same strides.
    """

    rate: float
    decay: float
    parameter: torch.Tensor
    gradient: torch.Tensor
    exp_avg: torch.Tensor
    exp_avg_sq: torch.Tensor


def own_pieces(tensors: Iterable[Trained]) -> list[Piece]:
    """A piece for each parameter, where slots share no memory."""
    return [Piece(t.rate, t.decay, t.parameter.data, t.gradient, **t.moments) for t in tensors]
