"""One copy to the device for many small arrays, and one look at the device's numbers, late: neither stops the host.

Each copy of its own would cost a launch, and one from memory that is not pinned would wait for all that the device
still has to do.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_ALIGNED = 16  # bytes: whatever lies there can be read as any type


def to_device(arrays: Mapping[str, NDArray[Any]], device: torch.device) -> dict[str, torch.Tensor]:
    """Arrays as tensors on a device, by name, in one copy that does not wait. On a CPU nothing is copied.

    Args:
        arrays: on the host, contiguous.
        device: where to.
    """
    if device.type == "cpu":
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    places: dict[str, tuple[int, int]] = {}
    size = 0
    for name, array in arrays.items():
        places[name] = (size, size + array.nbytes)
        size += -(-array.nbytes // _ALIGNED) * _ALIGNED
    host = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    bytes_there = host.numpy()
    for name, array in arrays.items():
        bytes_there[slice(*places[name])] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    there = torch.empty(size, dtype=torch.uint8, device=device)
    there.copy_(host, non_blocking=True)
    return {
        name: there[slice(*places[name])].view(_TORCH[array.dtype.name]).view(array.shape)
        for name, array in arrays.items()
    }


_TORCH = {"int64": torch.int64, "int32": torch.int32, "float32": torch.float32, "float64": torch.float64}


class Reading:
    """Numbers on their way from the device.

    Args:
        values: one-dimensional tensors on one device.
    """

    def __init__(self, values: Sequence[torch.Tensor]):
        self._values = torch.cat(list(values))
        self._there: torch.cuda.Event | None = None
        if self._values.device.type == "cuda":
            host = torch.empty(self._values.shape, dtype=self._values.dtype, pin_memory=True)
            self._values = host.copy_(self._values, non_blocking=True)
            self._there = torch.cuda.Event()
            self._there.record()

    def numbers(self) -> list[float]:
        """The numbers; waits for the device if it has not come so far yet."""
        if self._there is not None:
            self._there.synchronize()
        numbers: list[float] = self._values.tolist()
        return numbers
