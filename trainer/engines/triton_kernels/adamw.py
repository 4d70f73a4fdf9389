"""AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) over slices of many lengths and settings, in one launch.

Every slice has a row of its own in a table of addresses, and a row of numbers: so parameters of many slots, which
differ in all of them, step at once. An element costs 32 bytes: parameter, gradient and both moments are read and
written once.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain

import numpy as np
import torch

from trainer.engines.triton_kernels.usable import usable

EPS = 1e-8
_BLOCK = 1024  # elements of a program: eight for each thread of four warps


def usable_on(device: torch.device) -> bool:
    """Whether the kernel runs on a device and agrees with ``torch.optim.AdamW`` there; tried at the first call."""
    return device.type == "cuda" and usable("AdamW", _fault, device)


def step(
    parameters: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    exp_avgs: Sequence[torch.Tensor],
    exp_avg_sqs: Sequence[torch.Tensor],
    columns: torch.Tensor,
    factors: torch.Tensor,
) -> None:
    """Step the slices in place, and set their gradients to zero.

    Values are those of ``torch.optim.AdamW`` but for the last bits: a compiler may round a product and a sum once, and
    it does so elsewhere in its operators. Nothing waits for the device, and only the first step with these tensors
    copies to it.

    Args:
        parameters, gradients, exp_avgs, exp_avg_sqs: (slices,) each float32, one-dimensional and contiguous; the four
            of a slice equally long. A slice that does not step is in none of them.
        columns: (slices, 6) float64 on the device: lr, 1 - lr · decay, beta1, beta2, bias correction 1 = 1 - beta1^t,
            and √(bias correction 2). In float32, 1 - beta2 would be wrong in the fifth digit.
        factors: (slices,) float32 on the device: what the gradients are multiplied by, to clip them.

    Raises:
        ValueError: if the columns are of another type.
    """
    if columns.dtype != torch.float64:
        raise ValueError(f"the columns of AdamW are {columns.dtype}, not torch.float64")
    from trainer.engines.triton_kernels import programs

    tensors = (parameters, gradients, exp_avgs, exp_avg_sqs)
    addresses = tuple(map(torch.Tensor.data_ptr, chain(*tensors)))
    table, owners, unit = _table(columns.device, addresses, tuple(map(torch.Tensor.numel, parameters)))
    if not len(owners):
        return
    with torch.cuda.device_of(columns):
        programs.adamw[(len(owners),)](
            table,
            owners,
            columns.contiguous(),
            factors.contiguous(),
            UNIT=unit,
            EPS=EPS,
            BLOCK=_BLOCK,
        )


@lru_cache(maxsize=16)  # addresses and lengths are all that it holds: it is right for whatever lies there
def _table(
    device: torch.device, addresses: tuple[int, ...], lengths: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """``table`` and ``owners`` of ``programs.adamw``, on the device, and its ``UNIT``.

    Args:
        device: where they are wanted.
        addresses: of all parameters, then of all gradients, exp_avg and exp_avg_sq.
        lengths: of the slices.
    """
    blocks = -(-np.array(lengths, dtype=np.int64) // _BLOCK)
    firsts = blocks.cumsum() - blocks
    places = np.array(addresses, dtype=np.int64).reshape(4, -1)
    table = torch.from_numpy(np.column_stack([*places, lengths, firsts]).astype(np.int64))
    owners = torch.from_numpy(np.repeat(np.arange(len(lengths), dtype=np.int32), blocks))
    if device.type == "cuda":  # from pinned memory a copy does not wait
        table, owners = (x.pin_memory().to(device, non_blocking=True) for x in (table, owners))
    in_fours = not (places % 16).any() and not any(length % 4 for length in lengths)
    return table, owners, 4 if in_fours else 1


def _fault(device: torch.device) -> str | None:
    """What is wrong with the kernel's results on a device, if anything is.

    Args:
        device: tried on little tensors there, with lengths that are multiples of four and with others.
    """
    for lengths in ((1, 1023, 2501), (4, 1024, 2500)):
        fault = _fault_of(device, lengths)
        if fault is not None:
            return fault
    return None


def _fault_of(device: torch.device, lengths: tuple[int, int, int]) -> str | None:
    """The same for slices of these lengths, over three steps of rates, betas, decays and factors that differ."""
    scales = (1.0, 1e-8, 100.0)  # of gradients; the second shows whether eps is where it should be
    settings = [(0.1, 0.9, 0.999, 0.0), (0.01, 0.8, 0.99, 0.1), (1e-3, 0.3, 0.95, 0.5)]  # lr, betas, decay
    numbers = [torch.arange(n, dtype=torch.float32, device=device) for n in lengths]
    theirs = [(x * 1.7).cos().requires_grad_() for x in numbers]
    optimisers = [
        torch.optim.AdamW([x], lr=lr, betas=(beta1, beta2), eps=EPS, weight_decay=decay, foreach=False)
        for x, (lr, beta1, beta2, decay) in zip(theirs, settings, strict=True)
    ]
    mine = [x.detach().clone() for x in theirs]
    averages, squares = ([torch.zeros_like(x) for x in mine] for _ in range(2))
    factors = torch.tensor([1.0, 0.5, 0.25], device=device)
    for t in (1, 2, 3):
        gradients = [(x * 0.3 + t).sin() * scale for x, scale in zip(numbers, scales, strict=True)]
        for x, gradient, factor, optimiser in zip(theirs, gradients, factors, optimisers, strict=True):
            x.grad = gradient * factor
            optimiser.step()
        rows = [
            (lr, 1 - lr * decay, beta1, beta2, 1 - beta1**t, (1 - beta2**t) ** 0.5)
            for lr, beta1, beta2, decay in settings
        ]
        columns = torch.tensor(rows, dtype=torch.float64, device=device)
        step(mine, gradients, averages, squares, columns, factors)
        if any(gradient.any() for gradient in gradients):
            return "it leaves gradients"
    for i, (x, optimiser) in enumerate(zip(theirs, optimisers, strict=True)):
        state = optimiser.state[x]
        for value, reference in (
            (mine[i], x),
            (averages[i], state["exp_avg"]),
            (squares[i], state["exp_avg_sq"]),
        ):
            if not (value - reference).abs().max() <= 2e-6 * reference.abs().max():
                return "its results differ from theirs"
    return None
