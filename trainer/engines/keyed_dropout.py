"""Dropout whose mask is a function of (trial seed, step, module, sample, position) and of nothing else.

So a trial's masks do not depend on padding, on how a batch is cut into micro-steps, on neighbours in a pack, or on
whether it was resumed or recomputed. The mask comes from an integer hash rather than a random stream: a stream's
values depend on the tensor's shape and on the device.
"""

import zlib

import torch
from torch import nn

_MASK = 0xFFFFFFFF
_SIGN = 1 << 31


def _mix(x: torch.Tensor) -> torch.Tensor:
    """A 32-bit finaliser on int64 lanes ("lowbias32", Wellons 2018, "Prospecting for hash functions")."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def _mix_in_place(x: torch.Tensor) -> None:
    """The same on int32 lanes, which wrap: half the memory to pass, for a mask as large as the activations."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - (1 << 32))):
        x ^= (x >> shift).bitwise_and_(_MASK >> shift)  # the mask makes it a logical shift: zeros come in, not the sign
        x *= factor
    x ^= (x >> 16).bitwise_and_(_MASK >> 16)


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
    kept = keep_mask(keys, module_key, x.shape, p)
    if isinstance(p, torch.Tensor):
        keep_probability = (1.0 - p).to(x.dtype).view(-1, *[1] * (x.dim() - 1))
        return x * kept / keep_probability
    return x * kept / (1.0 - p)


def keep_mask(keys: torch.Tensor, module_key: int, shape: torch.Size, p: "float | torch.Tensor") -> torch.Tensor:
    """Which inputs are kept.

    Args:
        keys: (rows,) from ``row_keys``.
        module_key: 32-bit key of the module.
        shape: of the inputs: (rows, tokens, features), or (rows, features).
        p: probability of dropping; for rows that differ in it, (rows,).

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
    lanes = _mix(keys ^ module_key).to(torch.int32)[:, None] ^ _mix(place).to(torch.int32)[None, :]
    _mix_in_place(lanes)
    lanes ^= -_SIGN  # as signed numbers the lanes are now in the order of the unsigned ones
    return (lanes >= threshold).view(shape)


class KeyedDropout(nn.Module):
    """Takes the place of PEFT's ``nn.Dropout``.

    Args:
        p: probability of dropping.
        module_name: full name of the LoRA layer in the base model; keys the mask.
        routing: its ``keys`` must be set before each forward pass in training.
    """

    def __init__(self, p: float, module_name: str, routing: "DropoutKeys"):
        super().__init__()
        self.p = p
        self.module_key = module_key(module_name)
        self.routing = routing

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0.0:
            return x
        return drop(x, self.routing.keys, self.module_key, self.p)


class DropoutKeys:
    """The dropout keys of the current micro-step's rows, (rows,); one object for one trial."""

    keys: torch.Tensor


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
