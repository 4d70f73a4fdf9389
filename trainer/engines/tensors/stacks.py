"""The adapters and heads of all slots of a pack in a few pieces of memory, for products over all slots at once.

A group's parameters (say the A's of all query layers, or their B's transposed, or the heads') lie in one tensor (slots,
rank, width): the columns hold layer behind layer, so that a layer's stack is a view of some columns, and what a slot of
smaller rank has of all layers is one piece at the beginning of its part. That piece is what the optimiser steps; beyond
it, and where a slot leaves these layers alone, are zeros. Moments are the slot's own, laid out like its piece.
"""

from collections.abc import Sequence

import torch

from trainer.engines.tensors.slot_tensors import MOMENTS, Columns, Group, Piece, Trained


def padded(rank: int, multiple: int) -> int:
    """The rank of a stack: the largest rank of its slots, rounded up.

    Args:
        rank: the largest.
        multiple: to which it is rounded up; 0 where nothing is stacked, which leaves it as it is.
    """
    return -(-rank // multiple) * multiple if multiple else rank


class _Stack:
    """A group's parameters and gradients, zeros at first.

    Args:
        columns: of each place.
        n_slots, rank: that have room.
        device: where it lies.
    """

    def __init__(self, columns: Columns, n_slots: int, rank: int, device: torch.device):
        width = max(end for _, end in columns.values())
        self.columns, self.n_slots, self.rank = columns, n_slots, rank
        self.parameters = torch.zeros(n_slots, rank, width, device=device)
        self.gradients = torch.zeros(n_slots, rank, width, device=device)

    def take(self, slots: Sequence[Sequence[Trained]]) -> None:
        """Give slots their places.

        Args:
            slots: what each trains of the group. Those that are here already come first, in their old order.
        """
        for k, tensors in enumerate(slots):
            old = tensors[0].at[1] if tensors and tensors[0].at and tensors[0].at[0] is self else None
            if old == k:
                continue
            for whole in (self.parameters, self.gradients):
                whole[k].zero_() if old is None else whole[k].copy_(whole[old])
            for one in tensors:
                parameter, gradient = (
                    _view(whole[k], self.columns, one) for whole in (self.parameters, self.gradients)
                )
                if old is None:
                    parameter.copy_(one.parameter.data)
                    gradient.copy_(one.gradient)
                one.parameter.data, one.parameter.grad = parameter, gradient
            if tensors:
                tensors[0].at = (self, k)

    def piece(self, k: int, tensors: Sequence[Trained]) -> Piece:
        """A slot's part, with its moments, which are laid out like it.

        Args:
            k: its place.
            tensors: what it trains of the group, at least one.
        """
        first = tensors[0]
        rank = len(first.rows(first.parameter))
        parameter, gradient = (whole[k, :rank].view(-1) for whole in (self.parameters, self.gradients))
        if first.laid_out is None or first.laid_out[0] != self.columns:
            moments = {}
            for name in MOMENTS:
                moments[name] = torch.zeros_like(parameter)
                for one in tensors:
                    view = _view(moments[name].view(rank, -1), self.columns, one)
                    one.moments[name] = view.copy_(one.moments[name])
            first.laid_out = (self.columns, moments)
        return Piece(first.rate, first.decay, parameter, gradient, **first.laid_out[1])


class Stacks:
    """The stacks of a pack.

    Args:
        rank_multiple: ranks are rounded up to it.
        device: where they lie.
    """

    def __init__(self, rank_multiple: int, device: torch.device):
        self.rank_multiple, self.device = rank_multiple, device
        self._stacks: dict[Group, _Stack] = {}
        self._n_slots = 0

    @torch.no_grad()
    def lay_out(self, slots: Sequence[Sequence[Trained]]) -> list[list[Piece]]:
        """Lay the slots' tensors out anew; their values do not change.

        Args:
            slots: what each slot trains. Those of the last layout come first, in their old order.

        Returns:
            The pieces of each slot.

        Raises:
            MemoryError, RuntimeError: where there is no room. What the slots train is as it was, if elsewhere.
        """
        widths: dict[Group, dict[str, int]] = {}  # → place → width
        ranks: dict[Group, int] = {}
        for tensors in slots:
            for one in tensors:
                rank, width = one.rows(one.parameter).shape
                widths.setdefault(one.group, {}).setdefault(one.place, width)
                ranks[one.group] = max(ranks.get(one.group, 0), rank)
        self._stacks = {group: stack for group, stack in self._stacks.items() if group in widths}
        pieces: list[list[Piece]] = [[] for _ in slots]
        for group, of_places in widths.items():
            rank = ranks[group] if group.part == "head" else padded(ranks[group], self.rank_multiple)
            stack = self._stacks[group] = self._stack(group, _columns(of_places), len(slots), rank)
            mine = [[one for one in tensors if one.group == group] for tensors in slots]
            stack.take(mine)
            for k, tensors in enumerate(mine):
                if tensors:
                    pieces[k].append(stack.piece(k, tensors))
        self._n_slots = len(slots)
        return pieces

    def _stack(self, group: Group, columns: Columns, n_slots: int, rank: int) -> _Stack:
        """The one that is there, where it has just the size, or there is no memory for one that has."""
        there = self._stacks.get(group)
        same = there is not None and there.columns == columns
        if there is not None and same and (there.n_slots, there.rank) == (n_slots, rank):
            return there
        try:
            return _Stack(columns, n_slots, rank, self.device)
        except (MemoryError, RuntimeError):
            if there is None or not same or there.n_slots < n_slots or there.rank < rank:
                raise
            return there

    def leaf(self, part: str, place: str) -> torch.Tensor:
        """All slots' parameters at a place as one leaf, (slots, rank, columns), with its gradient in the stack.

        Args:
            part: of the group.
            place: a layer that some slot has an adapter on, or the parameter of a head.
        """
        stack = next(s for group, s in self._stacks.items() if group.part == part and place in s.columns)
        first, end = stack.columns[place]
        leaf = stack.parameters[: self._n_slots, :, first:end].detach().requires_grad_()
        leaf.grad = stack.gradients[: self._n_slots, :, first:end]
        return leaf


def _columns(widths: dict[str, int]) -> Columns:
    columns, end = {}, 0
    for place, width in widths.items():
        columns[place] = (end, end + width)
        end += width
    return columns


def _view(rows: torch.Tensor, columns: Columns, one: Trained) -> torch.Tensor:
    """A parameter's own part of (rank, width), of its shape."""
    first, end = columns[one.place]
    rank = len(one.rows(one.parameter))
    return one.from_rows(rows[:rank, first:end])
