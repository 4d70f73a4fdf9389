"""Keyed dropout in one launch: bit for bit what ``keyed_dropout`` computes with operators.

An element is read once and written once in each direction; the mask is hashed in registers, and hashed again in the
backward pass, for which nothing is saved but the rows' keys. No argument comes from the device, so nothing waits.
"""

from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable

_BLOCK = 1024  # places of a program: eight for each thread of four warps, so that loads are of 16 bytes and more
_ROWS = 4  # of a program, which hashes the places once for all of them
_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def fits(x: torch.Tensor, p: "float | torch.Tensor") -> bool:
    """Whether the kernel is made for such arguments: their types, and rows whose places 31 bits can count.

    Args:
        x: (rows, …, features).
        p: probability of dropping; for rows that differ in it, (rows,).
    """
    if isinstance(p, torch.Tensor) and p.dtype not in (torch.float32, torch.float64):
        return False
    rows = max(len(x), 1)
    length = x.numel() // rows
    return x.dtype in _TYPES and length < 2**31 - _BLOCK and rows * -(-length // _BLOCK) < 2**31


def drop(x: torch.Tensor, keys: torch.Tensor, module_key: int, p: "float | torch.Tensor") -> torch.Tensor:
    """``x`` with dropped inputs at zero and the others divided by 1 - p.

    Args:
        x: (rows, …, features), as ``fits`` has it.
        keys: (rows,) from ``row_keys``, on the same device.
        module_key: 32-bit key of the module.
        p: probability of dropping; for rows that differ in it, (rows,) on the same device.
    """
    result: torch.Tensor = _Drop.apply(x, keys, module_key, p)
    return result


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, keys: torch.Tensor, module_key: int, p: "float | torch.Tensor"
    ) -> torch.Tensor:
        per_row = isinstance(p, torch.Tensor)
        ctx.save_for_backward(keys, p if per_row else None)
        ctx.module_key, ctx.p = module_key, None if per_row else p
        return _launch(x, keys, module_key, p)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        keys, p = ctx.saved_tensors
        return _launch(gradient, keys, ctx.module_key, ctx.p if p is None else p), None, None, None


def _launch(x: torch.Tensor, keys: torch.Tensor, module_key: int, p: "float | torch.Tensor") -> torch.Tensor:
    from trainer.engines.triton_kernels import programs

    features = x.shape[-1]
    if x.dim() != 3:
        flat = x.reshape(len(x), -1, features)
        return _launch(flat, keys, module_key, p).view(x.shape)
    if x.stride(-1) != 1:
        x = x.contiguous()
    dropped = torch.empty_like(x)
    rows, length = len(x), x.shape[1] * features
    if not x.numel():
        return dropped
    threshold, factor = 0, 1.0
    reciprocal = _by_reciprocal(x.device)
    if not isinstance(p, torch.Tensor):
        threshold = int(p * 2**32)
        keep = np.float32(1.0 - p)
        factor = float(1 / keep if reciprocal else keep)
    blocks = -(-length // _BLOCK)
    with torch.cuda.device_of(x):
        programs.drop[(-(-rows // _ROWS) * blocks,)](
            x,
            dropped,
            keys.contiguous(),
            p.contiguous() if isinstance(p, torch.Tensor) else keys,
            _signed(module_key),
            _signed(threshold),
            factor,
            rows,
            length,
            features,
            blocks,
            x.stride(0),
            x.stride(1),
            dropped.stride(0),
            dropped.stride(1),
            PER_ROW=isinstance(p, torch.Tensor),
            RECIPROCAL=reciprocal,
            ROWS=_ROWS,
            BLOCK=_BLOCK,
        )
    return dropped


def _by_reciprocal(device: torch.device) -> bool:
    """Whether PyTorch multiplies by the reciprocal of a Python number instead of dividing (BinaryDivTrueKernel.cu)."""
    return device.type != "cpu"


def _signed(bits: int) -> int:
    """32 bits as the signed number that has them: whatever the value, Triton takes it for an int32."""
    return bits - (1 << 32) if bits >= 1 << 31 else bits
