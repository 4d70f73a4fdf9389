"""The layers of a base model as a pack sees them: many slots' adapters on each target, many slots' heads.

Nothing in the base model is replaced but its task heads: adapters are added by a forward hook, so that any linear
layer, quantised or not, keeps its own code. ``BaseState`` makes the model its old self when the pack is gone.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from trainer.engines import lora_kernels
from trainer.engines.keyed_dropout import by_row, drop, drop_shared, module_key
from trainer.engines.lora_kernels import Routing, Segment, SlotLora
from trainer.engines.tensors.stacks import Stacks


class SlotModule:
    """One slot's trained tensors on one module: parameters of their own, or views into the module's stack.

    Args:
        a: (rank, d_in), start values.
        b: (d_out, rank), start values.
        scale: the factor on B A x.
        p: dropout probability.
    """

    def __init__(self, a: torch.Tensor, b: torch.Tensor, scale: float, p: float):
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)
        self.scale, self.p = scale, p


class PackedLora:
    """All slots' adapters on one linear layer. Called as the layer's forward hook.

    ``a``: (slots, r_max, d_in) and ``b``: (slots, r_max, d_out), transposed, are zero beyond a slot's own rank, and for
    slots that leave the module alone. There the gradient is zero too, because each is multiplied by the other's zeros.
    Where only the loop kernel can run, nothing is stacked: products of transposed rows round differently from PEFT's.

    Args:
        name: the layer's full name in the base model, which keys dropout and start values.
        layer: linear, ``Conv1D``, or a quantised linear layer.
        routing: gives the routing of the current batch; None leaves the layer alone.
        layout: how the layer's input holds the rows (``by_row``).
    """

    def __init__(
        self,
        name: str,
        layer: nn.Module,
        routing: Callable[[], Routing | None],
        layout: str = "rows",
    ):
        self.name, self.routing, self.layout = name, routing, layout
        self.key = module_key(name)
        self.slots: list[SlotModule | None] = []
        self.a = self.b = self.scale = torch.empty(0)
        layer.register_forward_hook(self)

    def lay_out(self, slots: list[SlotModule | None], stacks: Stacks | None, scale: torch.Tensor) -> None:
        """Take the slots' tensors where they lie now.

        Args:
            slots: one for each slot of the pack; None where a slot leaves this layer alone.
            stacks: of the pack; None for the loop kernel alone.
            scale: (slots,) the factors on B A x.
        """
        self.slots = slots
        if stacks is not None and any(slots):
            self.a, self.b, self.scale = stacks.leaf("a", self.name), stacks.leaf("b", self.name), scale

    def let_go(self) -> None:
        """Forget the slots and the stack, whose memory is to be free."""
        self.slots = []
        self.a = self.b = self.scale = torch.empty(0)

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        routing = self.routing()
        if routing is None or not any(self.slots[k] for k in routing.slots):
            return output
        x = inputs[0]
        if len(x) == routing.rows and self.layout == "rows":
            return self._added(routing, x, output)
        rows = by_row(x, self.layout, routing.rows, routing.tokens)
        if rows is None:
            return self._added_to_shared(routing, x, output)
        added = self._added(
            routing,
            rows,
            output.transpose(0, 1) if self.layout == "tokens_first" else output.view(*rows.shape[:-1], -1),
        )
        return added.transpose(0, 1).contiguous() if self.layout == "tokens_first" else added.view(output.shape)

    def _added_to_shared(self, routing: Routing, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """To what the rows share, in a pass of one slot."""
        if len(routing.segments) > 1:
            raise RuntimeError(f"the layer {self.name} got {tuple(x.shape)} for {routing.rows} rows of several slots")
        slot = self.slots[routing.slots[0]]
        assert slot is not None, "the slot has an adapter here, or the layer's output would be left alone"
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.float32)
        if slot.p and routing.shared_keys is not None:
            x = drop_shared(x, routing.shared_keys, self.key, slot.p)
        lora = SlotLora(slot.a, slot.b, slot.scale, 0.0)
        return lora_kernels.loop(output, x, [lora], Routing((Segment(0, 0, len(x)),), 1, None), self.key)

    def _added(self, routing: Routing, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """To the output of rows, (rows, …, d_out), of ``x``, (rows, …, d_in)."""
        autocast = torch.is_autocast_enabled(x.device.type)
        if not autocast:
            x = x.to(torch.float32)  # as the adapters, and as in PEFT; autocast casts by itself
        kernel = lora_kernels.choose(routing, x.device, autocast, (x.shape[-1], output.shape[-1]))
        if kernel == "loop":
            slots = [SlotLora(slot.a, slot.b, slot.scale, slot.p) if slot else None for slot in self.slots]
            return lora_kernels.loop(output, x, slots, routing, self.key)
        if routing.keys is not None and routing.row_p is not None:
            x = drop(x, routing.keys, self.key, routing.row_p)
        if kernel == "grouped":
            return lora_kernels.grouped(output, x, self.a, self.b, self.scale, routing)
        whole = len(routing.segments) == routing.n_slots
        a, b, scale = (t if whole else t[routing.index] for t in (self.a, self.b, self.scale))
        return lora_kernels.bmm(output, x, a, b, scale, routing)


class PerSlot:
    """Runs a module once for each slot, where a layer in it is applied to something that all rows share.

    Such as the embeddings of relative positions in DeBERTa's attention: each slot's adapter makes something else of
    them, and what comes after expects one result. Stands in the place of the module's ``forward``.

    Args:
        module: takes and gives rows.
        arguments: those of its arguments that have the rows, by place or name.
        layers: the layers in it that need this.
        routing: gives the routing of the current batch, or None.
        routed: a context in which another routing is the current one.
    """

    def __init__(
        self,
        module: nn.Module,
        arguments: frozenset[int | str],
        layers: Sequence[PackedLora],
        routing: Callable[[], Routing | None],
        routed: Callable[[Routing], AbstractContextManager[None]],
    ):
        self.module, self.arguments, self.layers = module, arguments, layers
        self.routing, self.routed = routing, routed
        self._forward = module.forward
        module.forward = self

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        routing = self.routing()
        alone = routing is None or len(routing.segments) == 1
        if alone or not any(layer.slots[k] for layer in self.layers for k in routing.slots):  # type: ignore[union-attr]
            return self._forward(*inputs, **named)
        assert routing is not None
        arguments: dict[int | str, Any] = dict(enumerate(inputs))
        arguments |= named  # type: ignore[arg-type]  # names are among the keys
        parts = {
            name: arguments[name].split(routing.counts)
            for name in self.arguments
            if isinstance(arguments.get(name), torch.Tensor)
        }
        results = []
        for i in range(len(routing.segments)):
            own = arguments | {name: part[i] for name, part in parts.items()}
            with self.routed(routing.only(i)):
                places = [own[place] for place in range(len(inputs))]
                results.append(self._forward(*places, **{name: own[name] for name in named}))
        if isinstance(results[0], tuple):
            return tuple(None if each[0] is None else torch.cat(each) for each in zip(*results, strict=True))
        return torch.cat(results)


class PackedHead(nn.Module):
    """Stands for a task head: applies each slot's own copy to its rows; the base model's head where nothing is routed.

    Args:
        original: the base model's head.
        name: its full name in the base model.
        routing: gives the routing of the current batch, or None.
    """

    def __init__(self, original: nn.Module, name: str, routing: Callable[[], Routing | None]):
        super().__init__()
        self.original, self.name = original, name
        self._routing = routing
        self.slots: list[nn.Module] = []
        self._stacked: dict[str, torch.Tensor] = {}  # name of a parameter in the head → (slots, *its shape)

    def lay_out(self, slots: list[nn.Module], stacks: Stacks | None) -> None:
        """Take the slots' copies where they lie now.

        Args:
            slots: the copy of each slot of the pack.
            stacks: of the pack; None where slots share no memory.
        """
        self.slots = slots
        if stacks is not None:
            self._stacked = {
                part: stacks.leaf("head", f"{self.name}.{part}") for part, _ in slots[0].named_parameters()
            }

    def let_go(self) -> None:
        """Forget the slots and the stack, whose memory is to be free."""
        self.slots, self._stacked = [], {}

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        routing = self._routing()
        if routing is None:
            result: torch.Tensor = self.original(x, *args, **kwargs)
            return result
        if self._stacked and len(routing.segments) > 1 and not args and not kwargs:
            return self._all_at_once(x, routing)
        # split() instead of slices: the gradient of each slice would be a tensor of zeros as large as the whole
        parts = zip(routing.slots, x.split(routing.counts), strict=True)
        pieces = [self.slots[k](part, *args, **kwargs) for k, part in parts]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _all_at_once(self, x: torch.Tensor, routing: Routing) -> torch.Tensor:
        """One batched product for all slots, whatever the head is made of."""
        shapes = {part: parameter.shape for part, parameter in self.slots[0].named_parameters()}
        whole = len(routing.segments) == routing.n_slots
        own = {
            part: (stack if whole else stack[routing.index]).view(-1, *shapes[part])
            for part, stack in self._stacked.items()
        }

        def apply(parameters: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = torch.func.functional_call(self.slots[0], parameters, (rows,))
            return result

        rows = x if routing.equal else x.index_select(0, routing.spread)
        results = torch.func.vmap(apply)(own, rows.view(len(routing.segments), -1, *x.shape[1:])).flatten(0, 1)
        return results if routing.equal else results.index_select(0, routing.collected)
