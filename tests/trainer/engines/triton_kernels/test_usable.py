"""Whether a kernel is used: one try on a device, one line in the log where it fails."""

import logging

import pytest
import torch

from trainer.engines.triton_kernels.usable import usable

CPU = torch.device("cpu")


def test_a_kernel_is_tried_once_for_each_device_and_type() -> None:
    tried: list[tuple[object, ...]] = []

    def fault(*given: object) -> None:
        tried.append(given)

    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        assert usable("toy", fault, CPU, dtype)
    assert tried == [(CPU, torch.float32), (CPU, torch.bfloat16)]


def test_a_difference_or_an_error_is_told_once_and_the_kernel_not_used(caplog: pytest.LogCaptureFixture) -> None:
    def differs(device: torch.device, dtype: torch.dtype) -> str:
        return "its results differ"

    def fails(device: torch.device, dtype: torch.dtype) -> str:
        raise ModuleNotFoundError("No module named 'triton'")

    with caplog.at_level(logging.WARNING):
        for fault in (differs, fails):
            for dtype in (torch.float32, torch.bfloat16, torch.float32):
                assert not usable("toy", fault, CPU, dtype)
    said = "The Triton kernel of toy is not used on cpu, but slower operators: "
    assert [record.getMessage() for record in caplog.records] == [
        said + "its results differ",
        said + "ModuleNotFoundError: No module named 'triton'",
    ]


def test_where_memory_runs_out_it_is_tried_again() -> None:
    tried = []

    def fault(device: torch.device) -> None:
        tried.append(device)
        if len(tried) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        usable("toy", fault, CPU)
    assert usable("toy", fault, CPU)


def test_a_try_inside_a_checkpointed_pass_under_autocast_is_not_part_of_it() -> None:
    def fault(device: torch.device) -> str | None:
        x = torch.ones(2, 2, requires_grad=True)
        (x @ x).exp().sum().backward()  # saves what the pass would count as its own
        return None if (x @ x).dtype == torch.float32 and x.grad is not None else "it is not by itself"

    def layer(x: torch.Tensor) -> torch.Tensor:
        return x.exp() if usable("toy", fault, CPU) else x

    for reentrant in (True, False):
        usable.cache_clear()
        x = torch.ones(3, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            y = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=reentrant)
        y.sum().backward()
        assert torch.equal(x.grad, x.detach().exp())  # type: ignore[arg-type]
