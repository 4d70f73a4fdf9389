"""Dropout whose mask is a function of (trial seed, step, module, sample, position) and of nothing else.

So a trial's masks do not depend on padding, on how a batch is cut into micro-steps, on neighbours in a pack, or on
whether it was resumed or recomputed. The mask comes from an integer hash rather than a random stream: a stream's
values depend on the tensor's shape and on the device.
"""

import zlib
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from trainer.engines.triton_kernels import dropout
from trainer.engines.triton_kernels.usable import usable
from trainer.models.behaviour import PLAIN, Behaviour

_MASK = 0xFFFFFFFF
_SIGN = 1 << 31

Lanes = TypeVar("Lanes", torch.Tensor, NDArray[np.int64])


def _mix(x: Lanes) -> Lanes:
    """A 32-bit finaliser on int64 lanes ("lowbias32", Wellons 2018, "Prospecting for hash functions")."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def _mix_in_place(x: torch.Tensor) -> None:
    """The same on int32 lanes, which wrap: half the memory to pass, for a mask as large as the activations."""
    shifted = torch.empty_like(x)  # one for all shifts: fresh memory costs as much as the operator that fills it
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - (1 << 32)), (16, None)):
        torch.bitwise_right_shift(x, shift, out=shifted)
        x ^= shifted.bitwise_and_(_MASK >> shift)  # the mask makes it a logical shift: zeros come in, not the sign
        if factor is not None:
            x *= factor


def row_keys(seed: int, step: int, samples: torch.Tensor) -> torch.Tensor:
    """One 32-bit key for each row.

    Args:
        seed: the trial's.
        step: optimiser steps done.
        samples: (rows,) each row's place in the optimiser step's batch, before it is cut into micro-steps.

    Returns:
        (rows,) int64.
    """
    base = _mix(_mix(torch.tensor(seed & _MASK)) ^ (step & _MASK))
    return _mix(base.to(samples.device) ^ _mix(samples.to(torch.int64) + 1))


def packed_row_keys(
    seeds: NDArray[np.integer], steps: NDArray[np.integer], samples: NDArray[np.integer]
) -> NDArray[np.int64]:
    """What ``row_keys`` gives, for rows of many trials at once and without torch's cost of an operator.

    Args:
        seeds: (rows,) of each row's trial.
        steps: (rows,) optimiser steps done by each row's trial.
        samples: (rows,) each row's place in its trial's batch; -1 gives the trial's ``shared_key``.

    Returns:
        (rows,)
    """
    base = _mix(_mix(seeds.astype(np.int64) & _MASK) ^ (steps.astype(np.int64) & _MASK))
    return _mix(base ^ _mix(samples.astype(np.int64) + 1))


def shared_key(seed: int, step: int) -> torch.Tensor:
    """(1,) the key of what all rows of an optimiser step share, such as embeddings of relative positions.

    Args:
        seed: the trial's.
        step: optimiser steps done.
    """
    return row_keys(seed, step, torch.tensor([-1]))


def module_key(name: str) -> int:
    """The 32-bit key of a module, from its full name in the base model."""
    return zlib.crc32(name.encode())


def drop(x: torch.Tensor, keys: torch.Tensor, module_key: int, p: "float | torch.Tensor") -> torch.Tensor:
    """``x`` with dropped inputs at zero and the others divided by 1 - p.

    Args:
        x: (rows, tokens, features), or (rows, features).
        keys: (rows,) from ``row_keys``.
        module_key: 32-bit key of the module.
        p: probability of dropping; for rows that differ in it, (rows,).
    """
    if _on_gpu(x) and dropout.fits(x, p):
        of_p = p.dtype if isinstance(p, torch.Tensor) else None
        if usable("dropout", _kernel_fault, x.device, x.dtype, of_p):
            return dropout.drop(x, keys, module_key, p)
    return _drop_by_operators(x, keys, module_key, p)


def _on_gpu(x: torch.Tensor) -> bool:
    return x.is_cuda


def _drop_by_operators(x: torch.Tensor, keys: torch.Tensor, module_key: int, p: "float | torch.Tensor") -> torch.Tensor:
    kept = keep_mask(keys, module_key, x.shape, p)
    if isinstance(p, torch.Tensor):
        keep_probability = (1.0 - p).to(x.dtype).view(-1, *[1] * (x.dim() - 1))
        return x * kept / keep_probability
    return x * kept / (1.0 - p)


def _kernel_fault(device: torch.device, dtype: torch.dtype, of_p: torch.dtype | None) -> str | None:
    """What is wrong with the kernel's results on a device, if anything is.

    Args:
        device: tried on a little tensor there.
        dtype: of the inputs.
        of_p: type of the probabilities, one for each row; None for one number.
    """
    rows, tokens, features = 3, 37, 72  # several blocks a row, the last one not full
    numbers = torch.arange(rows * tokens * features, dtype=torch.float64, device=device)
    values = (numbers.sin() * 3).to(dtype).view(rows, tokens, features)
    keys = row_keys(1, 2, torch.arange(rows, device=device))
    p: float | torch.Tensor = 0.1 if of_p is None else torch.tensor([0.0, 0.1, 0.5], dtype=of_p, device=device)
    for x in (values, values.view(tokens, rows, features).transpose(0, 1)):
        results = []
        for function in (_drop_by_operators, dropout.drop):
            leaf = x.detach().requires_grad_()
            y = function(leaf, keys, 0x9E3779B9, p)
            (gradient,) = torch.autograd.grad(y, leaf, x + 1)
            results.append((y, gradient))
        if not all(torch.equal(*pair) for pair in zip(*results, strict=True)):
            return f"its results for {dtype} differ from theirs"
    return None


def drop_shared(x: torch.Tensor, key: torch.Tensor, module_key: int, p: float) -> torch.Tensor:
    """The same of something that all rows share.

    Its places are counted from the middle: of relative positions, which reach as far as a batch's longest row on both
    sides, each has the same mask beside longer rows.

    Args:
        x: (…, places, features).
        key: (1,) from ``shared_key``.
        module_key: 32-bit key of the module.
        p: probability of dropping.
    """
    places = x.shape[:-1].numel()
    shape = torch.Size((1, places, x.shape[-1]))
    return x * keep_mask(key, module_key, shape, p, places // 2).view(x.shape) / (1.0 - p)


def by_row(x: torch.Tensor, layout: str, rows: int, tokens: int) -> torch.Tensor | None:
    """A layer's input with the rows first, (rows, …, features); None where it is something that the rows share.

    Args:
        x: the input, or what the layer made of it.
        layout: of the layer: ``rows``, which may be flattened with the tokens, ``tokens_first`` or ``shared``
            (trainer/models/behaviour.py).
        rows: of the batch.
        tokens: of its longest row; 0 where it is not known.
    """
    if layout == "tokens_first":
        return x.transpose(0, 1)
    if len(x) == rows and (layout == "rows" or rows > 1 or x.shape[-2] == tokens):
        return x
    if x.dim() == 2 and rows and len(x) % rows == 0 and (layout == "rows" or len(x) == rows * tokens):
        return x.reshape(rows, -1, x.shape[-1])
    return None


def keep_mask(
    keys: torch.Tensor, module_key: int, shape: torch.Size, p: "float | torch.Tensor", origin: int = 0
) -> torch.Tensor:
    """Which inputs are kept.

    Args:
        keys: (rows,) from ``row_keys``.
        module_key: 32-bit key of the module.
        shape: of the inputs: (rows, tokens, features), or (rows, features).
        p: probability of dropping; for rows that differ in it, (rows,).
        origin: the token from which the places are counted.

    Returns:
        Boolean, of that shape.
    """
    threshold: int | torch.Tensor
    if isinstance(p, torch.Tensor):
        threshold = ((p.double() * 2**32).to(torch.int64) - _SIGN).to(torch.int32)[:, None]
    else:
        threshold = int(p * 2**32) - _SIGN
    rows, features = shape[0], shape[-1]
    tokens = shape.numel() // max(rows * features, 1)
    place = torch.arange(tokens * features, device=keys.device)  # counted token by token: longer padding only appends
    if origin:
        place -= origin * features
    place = place.to(torch.int32)
    _mix_in_place(place)
    lanes = _mix(keys ^ module_key).to(torch.int32)[:, None] ^ place[None, :]
    _mix_in_place(lanes)
    lanes ^= -_SIGN  # as signed numbers the lanes are now in the order of the unsigned ones
    return (lanes >= threshold).view(shape)


class KeyedDropout(nn.Module):
    """Takes the place of PEFT's ``nn.Dropout``.

    Args:
        p: probability of dropping.
        module_name: full name of the LoRA layer in the base model; keys the mask.
        routing: its keys must be set before each forward pass in training.
    """

    def __init__(self, p: float, module_name: str, routing: "DropoutKeys"):
        super().__init__()
        self.p = p
        self.module_key = module_key(module_name)
        self.layout = routing.behaviour.layout(module_name)
        self.routing = routing

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0.0:
            return x
        routing = self.routing
        rows = by_row(x, self.layout, len(routing.keys), routing.tokens)
        if rows is None:
            return drop_shared(x, routing.shared.to(x.device), self.module_key, self.p)
        dropped = drop(rows, routing.keys, self.module_key, self.p)
        return dropped.transpose(0, 1) if self.layout == "tokens_first" else dropped.view(x.shape)


class DropoutKeys:
    """The dropout keys of the current micro-step; one object for one trial.

    Args:
        behaviour: of the base model.

    Attributes:
        keys: (rows,) from ``row_keys``.
        shared: (1,) from ``shared_key``.
        tokens: of the longest row.
    """

    keys: torch.Tensor
    shared: torch.Tensor

    def __init__(self, behaviour: Behaviour = PLAIN):
        self.behaviour = behaviour
        self.tokens = 0


def use_keyed_dropout(model: nn.Module, p: float, routing: DropoutKeys) -> None:
    """Replace the dropout of every LoRA layer.

    Args:
        model: a base model with an adapter on it; changed in place.
        p: probability of dropping; 0 removes dropout.
        routing: where the layers look up their keys.
    """
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            for adapter in module.lora_dropout:
                module.lora_dropout[adapter] = KeyedDropout(p, name, routing) if p else nn.Identity()
