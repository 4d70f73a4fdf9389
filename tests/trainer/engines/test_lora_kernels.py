"""The three kernels against autograd's own check and against each other."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from trainer.engines import lora_kernels
from trainer.engines.keyed_dropout import drop, module_key, row_keys
from trainer.engines.lora_kernels import Routing, Segment, SlotLora, bmm, choose, grouped, loop

KEY = module_key("layer.q_proj")
D_IN, D_OUT, WIDTH = 8, 4, 3  # rows of 16 bytes, as grouped_mm wants them


def routing(counts: list[int], dropout: bool = True) -> Routing:
    ends = torch.tensor(counts).cumsum(0).tolist()
    segments = tuple(Segment(k, end - n, end) for k, (n, end) in enumerate(zip(counts, ends, strict=True)) if n)
    keys = row_keys(3, 1, torch.arange(sum(counts))) if dropout else None
    return Routing(segments, len(counts), keys)


def tensors(ranks: list[int], rows: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Output, input, and each slot's A and B."""
    torch.manual_seed(0)
    shapes = [(rows, WIDTH, D_OUT), (rows, WIDTH, D_IN)]
    for rank in ranks:
        shapes += [(rank, D_IN), (D_OUT, rank)]
    return tuple(torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5])
def test_gradients_of_the_loop(p: float) -> None:
    where = routing([2, 0, 1])

    def run(output: torch.Tensor, x: torch.Tensor, *ab: torch.Tensor) -> torch.Tensor:
        slots = [SlotLora(ab[0], ab[1], 0.7, p), None, SlotLora(ab[2], ab[3], 2.0, p)]
        return loop(output, x, slots, where, KEY)

    assert torch.autograd.gradcheck(run, tensors([2, 3], 3, torch.float64))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5])
def test_gradients_of_bmm(p: float) -> None:
    where = routing([2, 2])
    scale = torch.tensor([0.7, 2.0], dtype=torch.float64)

    def run(output: torch.Tensor, x: torch.Tensor, *ab: torch.Tensor) -> torch.Tensor:
        dropped = drop(x, where.keys, KEY, p) if p else x
        return bmm(output, dropped, torch.stack(ab[::2]), torch.stack([b.T for b in ab[1::2]]), scale)

    assert torch.autograd.gradcheck(run, tensors([3, 3], 4, torch.float64))


def test_bmm_and_grouped_are_the_loop() -> None:
    """Values and gradients, float32, slots of different ranks padded to 8; grouped also with ragged rows."""
    ranks, scale = [2, 8, 5], torch.tensor([0.5, 2.0, 1.0])
    for counts, kernels in (([2, 2, 2], (bmm, grouped)), ([3, 0, 1], (grouped,))):
        where = routing(counts, dropout=False)
        given = tensors(ranks, sum(counts), torch.float32)
        slots = [SlotLora(given[2 + 2 * k], given[3 + 2 * k], float(scale[k]), 0.0) for k in range(3)]
        expected = loop(given[0], given[1], slots, where, KEY)
        weights = torch.randn_like(expected)
        wanted = torch.autograd.grad((expected * weights).sum(), given, allow_unused=True)
        for kernel in kernels:
            a = torch.stack([torch.nn.functional.pad(s.a, (0, 0, 0, 8 - len(s.a))) for s in slots])
            b = torch.stack([torch.nn.functional.pad(s.b.T, (0, 0, 0, 8 - s.b.shape[1])) for s in slots])
            more = (where,) if kernel is grouped else ()
            got = kernel(given[0], given[1], a, b, scale, *more)
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
            gradients = torch.autograd.grad((got * weights).sum(), given, allow_unused=True)
            for mine, theirs in zip(gradients, wanted, strict=True):
                theirs = torch.zeros_like(mine) if theirs is None else theirs
                torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("counts", [[3, 0, 1], [0, 2, 1], [2, 1, 0], [0, 0, 2]])
def test_slots_without_rows_are_left_out_of_the_grouped_product(
    counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[torch.Size, list[int]]] = []
    real = lora_kernels.grouped_mm

    def noted(x: torch.Tensor, stack: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
        given.append((stack.shape, offs.tolist()))
        return real(x, stack, offs=offs)

    monkeypatch.setattr(lora_kernels, "grouped_mm", noted)
    a, b = (torch.randn(3, 8, width, requires_grad=True) for width in (D_IN, D_OUT))
    x, output = torch.randn(sum(counts), WIDTH, D_IN), torch.zeros(sum(counts), WIDTH, D_OUT)
    grouped(output, x, a, b, torch.ones(3), routing(counts, dropout=False)).square().sum().backward()
    present = [n for n in counts if n]
    for shape, ends in given:
        assert shape[0] == len(present)
        assert ends == (torch.tensor(present).cumsum(0) * WIDTH).tolist(), "each group has rows"
    for k, n in enumerate(counts):
        assert bool(a.grad[k].any()) == bool(b.grad[k].any()) == bool(n)


def test_the_grouped_product_asks_the_device_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, where reading a value raises."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: False)
    where = replace(routing([3, 0, 1], dropout=False), device="meta")
    shapes = [(4, WIDTH, 16), (4, WIDTH, 8), (3, 8, 8), (3, 8, 16), (3,)]
    given = [torch.empty(shape, device="meta", dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
    grouped(*given, where).square().sum().backward()
    assert all(tensor.grad is not None for tensor in given)


@pytest.fixture
def capability(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[tuple[int, int]], None]]:
    """Say which compute capability the GPU has."""

    def set_capability(numbers: tuple[int, int]) -> None:
        lora_kernels.grouped_is_fast.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: numbers)

    yield set_capability
    lora_kernels.grouped_is_fast.cache_clear()


def test_the_kernel_is_chosen_by_shape_and_device(capability: Callable[[tuple[int, int]], None]) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    capability((9, 0))
    assert choose(routing([2, 2]), cpu, False) == "loop"
    assert choose(routing([2]), gpu, True) == "loop"
    assert choose(routing([2, 2]), gpu, True) == "bmm"
    assert choose(routing([2, 1]), gpu, True, (64, 256)) == "grouped"
    assert choose(routing([2, 1]), gpu, False, (64, 256)) == "loop"


def test_ragged_segments_are_grouped_only_where_the_gpu_has_a_kernel_for_that(
    capability: Callable[[tuple[int, int]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, ragged = torch.device("cuda"), routing([2, 1])
    for numbers, kernel in (
        ((8, 0), "loop"),
        ((8, 9), "loop"),
        ((9, 0), "grouped"),
        ((10, 3), "grouped"),
        ((12, 0), "loop"),
    ):
        capability(numbers)
        assert choose(ragged, gpu, True) == kernel, numbers
    capability((9, 4))
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert choose(ragged, gpu, True) == "loop", "gfx942 is no Hopper"


def test_rows_that_are_not_multiples_of_16_bytes_are_not_grouped_though_the_config_says_so(
    capability: Callable[[tuple[int, int]], None],
) -> None:
    capability((9, 0))
    gpu, auto, forced = torch.device("cuda"), routing([2, 1]), replace(routing([2, 1]), kernel="grouped")
    for widths, bf16, kernel in (((64, 12), True, "loop"), ((12, 64), True, "loop"), ((64, 12), False, "grouped")):
        assert choose(forced, gpu, bf16, widths) == kernel
        if bf16:
            assert choose(auto, gpu, bf16, widths) == kernel
