"""Triton's interpreter, which runs kernels on a CPU. With ``LORASWEEP_TEST_DEVICE=cuda`` they are compiled."""

import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.trainer.packs import DEVICE
from trainer.engines.triton_kernels.usable import _warn, usable


@pytest.fixture(scope="session")
def triton() -> None:
    """For a test that needs Triton, which `make dev` installs where there are packages of it: Linux."""
    if importlib.util.find_spec("triton") is None:
        missing = "Triton is not installed: make dev"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)


@pytest.fixture
def interpreter(triton: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Converts from and to bfloat16 as GPUs do: the interpreter of Triton 3.7 cuts bits off instead of rounding."""
    if DEVICE.type != "cpu":
        return
    from triton.runtime import interpreter

    plain = interpreter.InterpreterBuilder.cast_impl

    def as_on_gpus(self: Any, source: Any, to: Any) -> Any:
        import triton.language as tl

        x = torch.from_numpy(source.data.copy())
        if (source.dtype.scalar, to.scalar) == (tl.float32, tl.bfloat16):
            return interpreter.TensorHandle(x.to(torch.bfloat16).view(torch.uint16).numpy(), tl.bfloat16)
        if (source.dtype.scalar, to.scalar) == (tl.bfloat16, tl.float32):
            return interpreter.TensorHandle(x.view(torch.bfloat16).to(torch.float32).numpy(), tl.float32)
        return plain(self, source, to)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "cast_impl", as_on_gpus)


@pytest.fixture(autouse=True)
def _nothing_tried_before() -> Iterator[None]:
    usable.cache_clear()
    _warn.cache_clear()
    yield
    usable.cache_clear()
