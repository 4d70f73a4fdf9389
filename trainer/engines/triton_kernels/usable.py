"""Whether a Triton kernel can be used on a device: it is tried there once, against what PyTorch's own operators give.

A kernel needs Triton (which comes with the CUDA build of torch), a C compiler, and a folder for what it compiles. Where
one is missing, or a result differs, the operators do the same work in more time.
"""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

logger = logging.getLogger(__name__)


@cache
def usable(kernel: str, fault: Callable[..., str | None], device: torch.device, *types: torch.dtype | None) -> bool:
    """Whether a kernel runs on a device and gives what it must. Only the first call waits for the device.

    Args:
        kernel: its name, for the log.
        fault: called once with the device and the types; says in a few words what is wrong, or gives None.
        device: on which the kernel would run.
        types: of its arguments, where it is compiled for each anew.

    Raises:
        torch.OutOfMemoryError: nothing was learned; the next call tries again.
    """
    try:
        # In a thread of its own: there neither autocast nor activation checkpointing of the caller's is on, which would
        # count what the trial saves for its backward pass.
        with ThreadPoolExecutor(1) as thread:
            reason = thread.submit(fault, device, *types).result()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a missing package, a compiler, a driver or a read-only folder raises
        reason = f"{type(error).__name__}: {error}"
    if reason is not None:
        _warn(kernel, device, reason)
    return reason is None


@cache  # each reason is told once
def _warn(kernel: str, device: torch.device, reason: str) -> None:
    logger.warning("The Triton kernel of %s is not used on %s, but slower operators: %s", kernel, device, reason)
