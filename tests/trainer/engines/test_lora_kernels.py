"""The three kernels against autograd's own check and against each other."""

import pytest
import torch

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


def test_the_kernel_is_chosen_by_shape_and_device() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert choose(routing([2, 2]), cpu, False) == "loop"
    assert choose(routing([2]), gpu, True) == "loop"
    assert choose(routing([2, 2]), gpu, True) == "bmm"
    assert choose(routing([2, 1]), gpu, True) == "grouped"
    assert choose(routing([2, 1]), gpu, False) == "loop"
