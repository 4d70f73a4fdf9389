"""The AdamW kernel against ``torch.optim.AdamW``, for slices that differ in everything."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.trainer.packs import DEVICE
from trainer.engines.tensors import flat_adamw
from trainer.engines.tensors.slot_tensors import Piece
from trainer.engines.triton_kernels import adamw

on_cpu = pytest.mark.skipif(DEVICE.type != "cpu", reason="it looks into Triton's interpreter")

SETTINGS = [  # lr, beta1, beta2, decay, steps done before
    (5e-3, 0.9, 0.999, 0.0, 0),
    (1e-3, 0.8, 0.99, 0.1, 7),
    (2e-2, 0.3, 0.9, 0.01, 3),  # weights of at least 1/2 take torch.lerp's other form
    (1e-4, 0.9, 0.9999, 0.5, 1000),
]
ULP = 2.0**-23  # of float32, relative


class Slices:
    """Parts of four flat buffers with gaps between them, and ``torch.optim.AdamW`` on copies.

    Args:
        lengths: of the slices, at most as many as ``SETTINGS``.
        gap: elements before, between and behind them.
    """

    def __init__(self, lengths: list[int], gap: int = 4):
        self.settings = SETTINGS[: len(lengths)]
        self.steps = [steps for *_, steps in self.settings]
        total = sum(lengths) + gap * (len(lengths) + 1)
        random = torch.Generator().manual_seed(sum(lengths))
        self.flat = [torch.randn(total, generator=random).to(DEVICE) for _ in range(4)]
        self.flat[3].abs_()
        starts = [gap + sum(lengths[:i]) + gap * i for i in range(len(lengths))]
        self.outside = torch.ones(total, dtype=torch.bool, device=DEVICE)
        for start, n in zip(starts, lengths, strict=True):
            self.outside[start : start + n] = False
        self.parts = [[x[start : start + n] for start, n in zip(starts, lengths, strict=True)] for x in self.flat]
        for k, steps in enumerate(self.steps):
            for moment in self.parts[2:]:
                moment[k].mul_(steps > 0)  # the first step starts from zeros, where every digit of 1 - beta2 shows
        self.references = []
        for k, (lr, beta1, beta2, decay, steps) in enumerate(self.settings):
            leaf = self.parts[0][k].clone().requires_grad_()
            optimiser = torch.optim.AdamW([leaf], lr, (beta1, beta2), eps=1e-8, weight_decay=decay, foreach=False)
            averages = {"exp_avg": self.parts[2][k].clone(), "exp_avg_sq": self.parts[3][k].clone()}
            optimiser.state[leaf] = {"step": torch.tensor(float(steps)), **averages}
            self.references.append((leaf, optimiser))

    def step(self, chosen: list[int], factors: list[float]) -> None:
        """A step of some slices, with the gradients that are in the buffer."""
        rows = []
        for k, factor in zip(chosen, factors, strict=True):
            leaf, optimiser = self.references[k]
            leaf.grad = self.parts[1][k] * factor
            optimiser.step()
            self.steps[k] += 1
            lr, beta1, beta2, decay, _ = self.settings[k]
            corrections = 1 - beta1 ** self.steps[k], (1 - beta2 ** self.steps[k]) ** 0.5
            rows.append((lr, 1 - lr * decay, beta1, beta2, *corrections))
        columns = torch.tensor(rows, dtype=torch.float64, device=DEVICE)
        lists = [[part[k] for k in chosen] for part in self.parts]
        adamw.step(*lists, columns, torch.tensor(factors, device=DEVICE))

    def distance(self) -> float:
        """The largest difference from the references, relative to the largest value of the same kind."""
        furthest = 0.0
        for k, (leaf, optimiser) in enumerate(self.references):
            state = optimiser.state[leaf]
            for part, reference in zip((0, 2, 3), (leaf.detach(), state["exp_avg"], state["exp_avg_sq"]), strict=True):
                difference = (self.parts[part][k] - reference).abs().max() / reference.abs().max()
                furthest = max(furthest, float(difference.nan_to_num(torch.inf)))
        return furthest


@pytest.mark.parametrize("lengths", [[1, 1023, 3000, 1025], [4, 1024, 2048, 2500]], ids=["odd", "in fours"])
def test_a_step_of_all_slices_is_each_slices_own_step_of_torchs_adamw(lengths: list[int], triton: None) -> None:
    slices = Slices(lengths)
    before = [x.clone() for x in slices.flat]
    random = torch.Generator().manual_seed(1)
    for t in range(10):
        for scale, gradient in zip((1e-8, 1.0, 10.0, 1e-3), slices.parts[1], strict=True):  # eps shows in the first
            gradient.copy_(torch.randn(gradient.shape, generator=random) * scale)
        slices.step([0, 1, 2, 3], [1.0, 0.5, 0.01 * t, 2.0])
        assert not any(gradient.any() for gradient in slices.parts[1])
    assert slices.distance() < 8 * ULP
    for flat, old in zip(slices.flat, before, strict=True):
        assert torch.equal(flat[slices.outside], old[slices.outside])


def test_a_slice_that_does_not_step_stays_as_it_is(triton: None) -> None:
    slices = Slices([100, 200, 300])
    idle = [part[1].clone() for part in slices.parts]
    slices.step([0, 2], [1.0, 1.0])
    assert all(torch.equal(part[1], old) for part, old in zip(slices.parts, idle, strict=True))
    slices.parts[1][0].fill_(0.1)
    slices.step([0, 1], [1.0, 1.0])
    assert slices.distance() < 8 * ULP


def counted_launches(monkeypatch: pytest.MonkeyPatch, run: bool = True) -> list[tuple[int, ...]]:
    from trainer.engines.triton_kernels import programs

    program, launches = programs.adamw, []

    class Counted:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
            launches.append(grid)
            return program[grid] if run else lambda *arguments, **named: None

    monkeypatch.setattr(programs, "adamw", Counted())
    return launches


def test_a_step_is_one_launch_and_its_table_is_made_once_for_the_same_tensors(
    triton: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = counted_launches(monkeypatch)
    adamw._table.cache_clear()
    slices, others = Slices([5, 1024, 1025, 3]), Slices([5, 7])
    for _ in range(3):
        slices.step([0, 1, 2, 3], [1.0] * 4)
        others.step([0, 1], [1.0] * 2)
    assert launches == [(1 + 1 + 2 + 1,), (2,)] * 3
    assert adamw._table.cache_info().misses == 2
    adamw.step([], [], [], [], torch.empty(0, 6, dtype=torch.float64), torch.empty(0))
    assert len(launches) == 6


def test_a_step_takes_no_number_from_the_device(triton: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """On PyTorch's ``meta`` device reading a value raises."""
    launches = counted_launches(monkeypatch, run=False)
    slices = [torch.empty(n, device="meta") for n in (5, 2000)]
    columns = torch.empty(2, 6, dtype=torch.float64, device="meta")
    adamw.step(slices, slices, slices, slices, columns, torch.empty(2, device="meta"))
    assert launches == [(3,)]


@on_cpu
def test_an_element_costs_32_bytes(triton: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.interpreter import InterpreterBuilder

    moved = {"read": 0, "written": 0}
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def counted_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        if mask.data.size > 1:  # not of the table and the columns
            moved["read"] += int(mask.data.sum()) * pointers.get_element_ty().primitive_bitwidth // 8
        return load(self, pointers, mask, *rest)

    def counted_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        moved["written"] += int(mask.data.sum()) * pointers.get_element_ty().primitive_bitwidth // 8
        return store(self, pointers, value, mask, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", counted_load)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", counted_store)
    Slices([100, 2000]).step([0, 1], [1.0, 1.0])
    assert moved == {"read": 16 * 2100, "written": 16 * 2100}


def test_columns_in_float32_are_refused(triton: None) -> None:
    x = [torch.zeros(4)]
    with pytest.raises(ValueError, match=r"torch\.float32, not torch\.float64"):
        adamw.step(x, x, x, x, torch.zeros(1, 6), torch.ones(1))


def test_the_try_before_first_use_finds_what_is_wrong_and_nothing_else(
    triton: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert adamw._fault(DEVICE) is None
    assert not adamw.usable_on(torch.device("cpu"))
    real = adamw.step
    wrong = {
        "eps": lambda *a: (monkeypatch.setattr(adamw, "EPS", 1e-7), real(*a), monkeypatch.setattr(adamw, "EPS", 1e-8)),
        "decay": lambda p, g, m, v, columns, f: real(p, g, m, v, columns.index_fill(1, _index(1), 1.0), f),
        "beta2": lambda p, g, m, v, columns, f: real(p, g, m, v, columns.index_fill(1, _index(3), 0.998), f),
        "clip": lambda p, g, m, v, columns, f: real(p, g, m, v, columns, torch.ones_like(f)),
        "float32 columns": lambda p, g, m, v, columns, f: real(p, g, m, v, columns.float().double(), f),
    }
    for name, step in wrong.items():
        monkeypatch.setattr(adamw, "step", step)
        assert adamw._fault(DEVICE) == "its results differ from theirs", name
    monkeypatch.setattr(adamw, "step", lambda *a: None)
    assert adamw._fault(DEVICE) == "it leaves gradients"


def _index(i: int) -> torch.Tensor:
    return torch.tensor([i], device=DEVICE)


def stepping(kernel: bool, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What three slots hold after some steps by ``flat_adamw``, with the kernel or with operators."""
    random = torch.Generator().manual_seed(0)
    slots = []
    for k, (lr, beta1, beta2, decay, steps) in enumerate(SETTINGS[:3]):
        sizes = (1500, 7, 64)[: k + 1]
        held = [[torch.randn(n, generator=random).to(DEVICE).abs() for n in sizes] for _ in range(4)]
        pieces = [Piece(lr * (i + 1), decay * (i % 2), *parts) for i, parts in enumerate(zip(*held, strict=True))]
        slots.append(flat_adamw.Stepping(pieces, 0.1 * (k + 1), 0.5, beta1, beta2, steps + 1))
    with monkeypatch.context() as patch:
        patch.setattr(adamw, "usable_on", lambda device: kernel)
        for t in range(4):
            flat_adamw.step(slots, flat_adamw.clip_factors(slots, flat_adamw.gradient_norms(slots)))
            slots = [replace(slot, step=slot.step + 1) for slot in slots]
            for slot in slots:
                for piece in slot.pieces:
                    piece.gradient.copy_(torch.randn(piece.gradient.shape, generator=random) * t)
    return [x for s in slots for p in s.pieces for x in (p.parameter, p.exp_avg, p.exp_avg_sq)]


def test_slots_of_a_pack_step_through_the_kernel_as_with_operators(
    triton: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = counted_launches(monkeypatch)
    expected = stepping(False, monkeypatch)
    assert launches == []
    got = stepping(True, monkeypatch)
    assert launches == [(2 + 3 + 4,)] * 4
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=16 * ULP, atol=ULP)  # weights are about 1
