"""The state of a shared base model, taken before a trial touches it and put back afterwards, whatever was done to it.

Not an undoing of what PEFT or a pack did, step by step: each object of the model is remembered as it was, so that
what a library will change tomorrow is put back as well.
"""

from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig

_OBJECTS = (nn.Module, PreTrainedConfig, GenerationConfig)  # whose attributes belong to the state


class BaseState:
    """Modules, attributes, hooks, configs and tensors of a model, as they are when this is made.

    Attributes are remembered by reference, dictionaries, lists and sets by content as well. Tensors are remembered by
    their place in memory; of values there is a copy of buffers (a pass in training may change them) and, from
    ``keep_trained`` on, of weights that are trained. All others are frozen, and too large to be copied.

    Args:
        model: the base model.
    """

    def __init__(self, model: nn.Module):
        self._types: list[tuple[Any, type]] = []
        self._containers: list[tuple[Any, Any]] = []  # itself, a shallow copy
        self._tensors: list[tuple[torch.Tensor, torch.Tensor, bool, torch.Tensor | None]] = []
        self._values: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._seen: dict[int, Any] = {}  # by id; the objects are kept, so that no id is given away
        self._remember(model)
        self._values += [(buffer, buffer.detach().clone()) for buffer in model.buffers()]

    def keep_trained(self) -> None:
        """Copy the values of those weights of the base model that require a gradient by now, to put them back too."""
        self._values += [(tensor, tensor.detach().clone()) for tensor, *_ in self._tensors if tensor.requires_grad]

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back. May be called again."""
        for thing, kind in self._types:
            if type(thing) is not kind:
                thing.__class__ = kind
        for container, content in self._containers:
            container.clear()
            container.extend(content) if isinstance(container, list) else container.update(content)
        for tensor, data, trained, gradient in self._tensors:
            if tensor.data_ptr() != data.data_ptr() or tensor.dtype != data.dtype or tensor.shape != data.shape:
                tensor.data = data
            if tensor.requires_grad != trained:
                tensor.requires_grad_(trained)
            tensor.grad = gradient
        for tensor, value in self._values:
            if not torch.equal(tensor, value):
                tensor.copy_(value)

    def _remember(self, thing: Any) -> None:
        if id(thing) in self._seen:
            return
        if isinstance(thing, torch.Tensor):
            self._seen[id(thing)] = thing
            self._tensors.append((thing, thing.detach(), thing.requires_grad, thing.grad))
        elif isinstance(thing, (dict, list, set)):
            self._seen[id(thing)] = thing
            self._containers.append((thing, thing.copy()))
            for part in thing.values() if isinstance(thing, dict) else thing:
                self._remember(part)
        elif isinstance(thing, _OBJECTS):
            self._seen[id(thing)] = thing
            self._types.append((thing, type(thing)))
            self._remember(vars(thing))
