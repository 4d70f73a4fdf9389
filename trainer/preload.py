"""Imports torch, bitsandbytes, PEFT and scikit-learn ahead of their use, in less time."""

from collections.abc import Callable
from typing import Any


def import_libraries() -> None:
    """Import torch, bitsandbytes and PEFT, so that later imports of them take no time.

    PEFT imports bitsandbytes wherever that is installed, whether or not anything will be quantised.
    """
    import_bitsandbytes()
    import peft  # noqa: F401


def import_bitsandbytes() -> None:
    """Import torch and bitsandbytes, without TorchInductor.

    While it is imported, bitsandbytes 0.50 wraps some fallbacks of its kernels in ``torch.compile``, which imports
    TorchInductor: a fifth of the time of all these imports. Here they stay as written: they are for devices without
    kernels of its own (it has some for NVIDIA GPUs and for CPUs), and compiling them would ask for a C++ compiler.
    What is left of bitsandbytes is 3 MB and next to no time, so it is not hidden from PEFT where nothing is quantised.
    """
    import torch

    real = torch.compile
    setattr(torch, "compile", _as_written)  # noqa: B010  # mypy knows the real one's overloads
    try:
        import bitsandbytes  # noqa: F401
    except Exception:  # its fault is reported where it is needed (precision_fault)
        pass
    finally:
        setattr(torch, "compile", real)  # noqa: B010


def import_scorers() -> None:
    """Import what the first rung would, while nothing trains yet."""
    import sklearn.metrics  # noqa: F401


def _as_written(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Stands in for ``torch.compile``: returns the function, or a decorator, that changes nothing."""
    return _as_written if function is None else function
