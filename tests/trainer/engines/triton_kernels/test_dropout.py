"""The dropout kernel is the operators bit for bit, and reads and writes each element once."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from tests.trainer.packs import DEVICE, at_step, drive, packed_engine
from trainer.config import TrialConfig
from trainer.device_cache import DeviceCache
from trainer.engines import keyed_dropout
from trainer.engines import packed_engine as packed_engine_module
from trainer.engines.keyed_dropout import _drop_by_operators, _kernel_fault, drop, keep_mask, row_keys
from trainer.engines.triton_kernels import dropout

KEY = 0x9E3779B9  # above 2³¹, as half of all modules' keys
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")  # infinities are meant
on_cpu = pytest.mark.skipif(DEVICE.type != "cpu", reason="it looks into Triton's interpreter")
Drop = Callable[..., torch.Tensor]


def inputs(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """With what is special: zeros of both signs, infinities, NaN, numbers without leading bits, the largest."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    limits = torch.finfo(dtype)
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, limits.tiny / 8, limits.max, limits.min])
    flat = x.view(-1)
    flat[: 3 * len(special)] = special.to(dtype).repeat(3)[: len(flat)]  # some are kept and some are dropped
    return x.to(DEVICE)


def probabilities(of_rows: str, rows: int) -> "float | torch.Tensor":
    if of_rows == "one":
        return 0.3
    dtype = torch.float64 if of_rows == "float64" else torch.float32
    return torch.tensor([0.0, 0.1, 0.5, 0.95, 0.3], dtype=dtype, device=DEVICE)[torch.arange(rows) % 5]


def bits(x: torch.Tensor) -> torch.Tensor:
    """As integers, which tell zeros of both signs apart; NaN is one number."""
    x = torch.where(x.isnan(), torch.nan, x).contiguous()
    return x.view(torch.int32 if x.element_size() == 4 else torch.int16)


def both_ways(function: Drop, x: torch.Tensor, p: "float | torch.Tensor") -> list[torch.Tensor]:
    """What it gives, and the gradient."""
    leaf = x.detach().requires_grad_()
    y = function(leaf, row_keys(1, 2, torch.arange(len(x), device=DEVICE)), KEY, p)
    gradient = torch.linspace(-2, 2, y.numel(), device=DEVICE).to(x.dtype).view(y.shape)
    return [y.detach(), *torch.autograd.grad(y, leaf, gradient)]


def same(x: torch.Tensor, p: "float | torch.Tensor") -> None:
    for mine, theirs in zip(both_ways(dropout.drop, x, p), both_ways(_drop_by_operators, x, p), strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.shape == theirs.shape
        assert torch.equal(bits(mine), bits(theirs))


@pytest.mark.parametrize("of_rows", ["one", "float32", "float64"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_kernel_gives_the_operators_bits_forward_and_backward(
    dtype: torch.dtype, of_rows: str, interpreter: None
) -> None:
    for shape in ((5, 37, 72), (4, 1024), (3, 341, 3), (1, 5, 205), (2, 3, 4, 10), (6, 1, 1), (2, 0, 8)):
        same(inputs(*shape, dtype=dtype), probabilities(of_rows, shape[0]))


def test_it_takes_inputs_that_lie_in_any_order(interpreter: None) -> None:
    base = inputs(6, 40, 50)
    for x in (
        base.transpose(0, 1),  # tokens first
        base[:, 3:30, 5:45],  # part of a larger tensor
        base.transpose(1, 2),  # features apart
        base[:, :, ::2],
        base[:1].expand(6, 40, 50),
        base.view(6, 2000)[:, ::3],
        base[2:5, 0],
    ):
        assert not x.is_contiguous()
        same(x, 0.3)
        same(x, probabilities("float32", len(x)))


def test_where_pytorch_multiplies_by_the_reciprocal_of_a_number_so_does_the_kernel(
    interpreter: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on GPUs: 1 - p rounded to float32, its reciprocal rounded too, times x. At 0.15 both roundings show."""
    monkeypatch.setattr(dropout, "_by_reciprocal", lambda device: True)
    x, p = inputs(3, 700).nan_to_num(0.0), 0.15
    keys = row_keys(1, 2, torch.arange(3, device=DEVICE))
    expected = x * keep_mask(keys, KEY, x.shape, p) * float(np.float32(1) / np.float32(1 - p))
    assert torch.equal(dropout.drop(x, keys, KEY, p), expected)
    assert DEVICE.type != "cpu" or not torch.equal(expected, _drop_by_operators(x, keys, KEY, p))


def test_nothing_as_large_as_the_input_is_saved_for_the_backward_pass(interpreter: None) -> None:
    saved: list[int] = []

    def pack(x: torch.Tensor) -> torch.Tensor:
        saved.append(x.numel())
        return x

    x = inputs(5, 7, 64).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        dropout.drop(x, row_keys(1, 2, torch.arange(5, device=DEVICE)), KEY, probabilities("float32", 5))
    assert saved == [5, 5]  # the keys, and the probabilities of the rows


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_and_autocast_change_nothing(
    reentrant: bool, interpreter: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyed_dropout, "_on_gpu", lambda x: True)  # its first use, so that it is tried in there
    keys = row_keys(1, 2, torch.arange(2, device=DEVICE))
    weight = torch.randn(24, 24, generator=torch.Generator().manual_seed(1)).to(DEVICE)

    def layer(x: torch.Tensor) -> torch.Tensor:
        return drop(x @ weight, keys, KEY, 0.3).exp()

    def gradient(checkpointed: bool) -> torch.Tensor:
        x = torch.linspace(-1, 1, 2 * 5 * 24, device=DEVICE).view(2, 5, 24).requires_grad_()
        with torch.autocast(DEVICE.type, torch.bfloat16):
            y = checkpoint(layer, x, use_reentrant=reentrant) if checkpointed else layer(x)
        assert y.dtype == torch.bfloat16
        return torch.autograd.grad(y.sum(), x)[0] if not (checkpointed and reentrant) else backward(y, x)

    def backward(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        y.sum().backward()
        assert x.grad is not None
        return x.grad

    checkpointed = gradient(True)
    monkeypatch.setattr(keyed_dropout, "_on_gpu", lambda x: False)
    assert torch.equal(checkpointed, gradient(False))


class Traffic(TorchDispatchMode):
    """Bytes that operators read and write, as if nothing stayed in a cache."""

    VIEWS = frozenset({"view", "unsqueeze", "slice", "detach", "alias"})

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.launches = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        result = function(*arguments, **(named or {}))
        if function._schema.name.split("::")[1] not in self.VIEWS:
            tensors = [x for x in tree_leaves((arguments, named, result)) if isinstance(x, torch.Tensor)]
            self.bytes += sum(x.nbytes for x in tensors)
            self.launches += 1
        return result


@on_cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_each_element_is_read_once_and_written_once_in_one_launch(
    dtype: torch.dtype, interpreter: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime.interpreter import InterpreterBuilder

    from trainer.engines.triton_kernels import programs

    x = inputs(8, 16, 256, dtype=dtype)
    with Traffic() as traffic:
        both_ways(_drop_by_operators, x, 0.1)
    assert traffic.bytes > 120 * x.numel()
    assert traffic.launches > 30

    moved: dict[str, int] = {"read": 0, "written": 0}
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def counted_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        moved["read"] += int(mask.data.sum()) * pointers.get_element_ty().primitive_bitwidth // 8
        return load(self, pointers, mask, *rest)

    def counted_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        moved["written"] += int(mask.data.sum()) * pointers.get_element_ty().primitive_bitwidth // 8
        return store(self, pointers, value, mask, *rest)

    launches = []
    program = programs.drop

    class Counted:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            launches.append(grid)
            return program[grid]

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", counted_load)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", counted_store)
    monkeypatch.setattr(programs, "drop", Counted())
    both_ways(dropout.drop, x, 0.1)
    keys = 2 * 8 * 8 * (16 * 256 // 1024)  # bytes: of a row, forward and backward, one for each of its blocks
    assert moved == {"read": 2 * x.nbytes + keys, "written": 2 * x.nbytes}
    assert len(launches) == 2


def test_a_launch_takes_no_number_from_the_device(interpreter: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """On PyTorch's ``meta`` device reading a value raises."""
    from trainer.engines.triton_kernels import programs

    launched: list[Sequence[Any]] = []

    class Nothing:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *arguments, **named: launched.append(arguments)

    monkeypatch.setattr(programs, "drop", Nothing())
    x = torch.empty(4, 5, 64, device="meta", requires_grad=True)
    for p in (0.3, torch.empty(4, device="meta")):
        dropout.drop(x, torch.empty(4, dtype=torch.int64, device="meta"), KEY, p).sum().backward()
    assert len(launched) == 4
    for numbers in ([a for a in arguments if not isinstance(a, torch.Tensor)] for arguments in launched):
        assert {type(number) for number in numbers} == {int, float}
        assert numbers[0] == KEY - 2**32


def test_rows_that_31_bits_cannot_count_and_other_types_are_left_to_the_operators() -> None:
    for shape, dtype, p, fits in (
        ((8, 256, 8192), torch.bfloat16, 0.1, True),
        ((2000, 4096, 8192), torch.bfloat16, 0.1, True),  # 2³⁶ elements
        ((1, 2**19, 4096), torch.bfloat16, 0.1, False),
        ((1, 2**31 - 1025), torch.bfloat16, 0.1, True),
        ((1, 2**31 - 1024), torch.bfloat16, 0.1, False),
        ((2**31, 8), torch.bfloat16, 0.1, False),
        ((8, 256, 64), torch.float64, 0.1, False),
        ((8, 256, 64), torch.float32, torch.empty(8, dtype=torch.float64, device="meta"), True),
        ((8, 256, 64), torch.float32, torch.empty(8, dtype=torch.bfloat16, device="meta"), False),
        ((0, 256, 64), torch.float32, 0.1, True),
    ):
        assert dropout.fits(torch.empty(shape, dtype=dtype, device="meta"), p) == fits, (shape, dtype, p)


@pytest.mark.parametrize("of_p", [None, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_try_before_first_use_finds_no_fault(
    dtype: torch.dtype, of_p: torch.dtype | None, interpreter: None
) -> None:
    assert _kernel_fault(DEVICE, dtype, of_p) is None


def test_the_try_looks_at_gradients_too(interpreter: None, monkeypatch: pytest.MonkeyPatch) -> None:
    real = dropout.drop
    monkeypatch.setattr(dropout, "drop", lambda x, *rest: real(x.detach(), *rest) + 0 * x)
    assert _kernel_fault(DEVICE, torch.float32, None) is not None


def test_a_kernel_with_other_results_is_not_used(
    interpreter: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keyed_dropout, "_on_gpu", lambda x: True)
    real, calls = dropout.drop, []

    def other_mask(x: torch.Tensor, keys: torch.Tensor, module_key: int, p: float) -> torch.Tensor:
        calls.append(x.shape)
        return real(x, keys, module_key ^ 1, p)

    monkeypatch.setattr(dropout, "drop", other_mask)
    x, keys = torch.ones(2, 3, 8, device=DEVICE), row_keys(1, 2, torch.arange(2, device=DEVICE))
    with caplog.at_level(logging.WARNING):
        results = [drop(x, keys, KEY, 0.3) for _ in range(3)]
    assert all(torch.equal(result, _drop_by_operators(x, keys, KEY, 0.3)) for result in results)
    assert len(calls) == 1  # tried once, and never again
    assert ["its results for torch.float32 differ" in record.getMessage() for record in caplog.records] == [True]


@on_cpu
@pytest.mark.parametrize("kernel", ["loop", "bmm"])
def test_a_pack_trains_to_the_same_bits_with_the_kernel(
    kernel: str,
    interpreter: None,
    make_trial: Callable[..., TrialConfig],
    kept: DeviceCache,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Through the engine, with activation checkpointing and slots that differ in their probability."""
    settings = {"targets": "q_proj", "max_steps": 2, "rungs": [2], "rung_items": 2}
    trials = [make_trial("llama", trial_id=f"t{i:04}", seed=i, dropout=p, **settings) for i, p in enumerate((0.1, 0.4))]
    real, calls = dropout.drop, []

    def counted(*arguments: Any) -> torch.Tensor:
        calls.append(arguments)
        return real(*arguments)

    def measured(*arguments: Any) -> Any:
        with monkeypatch.context() as probe:  # its passes are many
            probe.setattr(keyed_dropout, "_on_gpu", lambda x: False)
            return measure(*arguments)

    measure = packed_engine_module.measure
    monkeypatch.setattr(packed_engine_module, "measure", measured)
    monkeypatch.setattr(dropout, "drop", counted)
    weights = []
    for on_gpu in (False, True):
        monkeypatch.setattr(keyed_dropout, "_on_gpu", lambda x, answer=on_gpu: answer)
        assert calls == []
        drive(packed_engine(kept, kernel, checkpointing=True), trials, tmp_path / str(on_gpu))
        weights.append([at_step(tmp_path / str(on_gpu), trial, 2) for trial in trials])
    assert len(calls) >= 2 * 2 * 2  # steps, layers, and again in the backward pass
    for mine, theirs in zip(*weights, strict=True):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
