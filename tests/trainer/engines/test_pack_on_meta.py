"""A pack on PyTorch's ``meta`` device, which stands for a GPU: what its host waits for, and what it launches.

There tensors have no values: mixing devices raises as on a GPU, and whoever asks for a value would wait for one. The
operators that are dispatched are those that a GPU would be given.
"""

import contextlib
import traceback
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, GPT2Config

from tests.benchmarks.packs.steps import SHAPES, Setting, encoded, make_slot, make_trial
from trainer.config import TaskConfig
from trainer.engines.pack import Pack
from trainer.models.base_model import BaseModel
from trainer.models.behaviour import Behaviour
from trainer.models.lm_head import TokenLogits

META = torch.device("meta")
in_bf16 = [False]  # whether products are, as under autocast
MODELS: dict[str, Any] = {
    "llama": SHAPES["tiny"],
    "gpt2": lambda: GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=64, n_positions=64),
    "bert": lambda: BertConfig(
        num_hidden_layers=2, hidden_size=32, num_attention_heads=2, intermediate_size=64, vocab_size=64, num_labels=3
    ),
}


class Operators(TorchDispatchMode):
    """Counts what is dispatched, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter[str]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(function)] += 1
        return function(*args, **(kwargs or {}))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Where a value of the device is read, or something is copied from memory that is not pinned."""
    seen = Counter[str]()

    def where() -> str:
        frames = [f for f in traceback.extract_stack() if "/torch/" not in f.filename and f.filename != __file__]
        return f"{frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno}" if frames else "test"

    def reading(name: str, instead: Any) -> None:
        real = getattr(torch.Tensor, name)

        def read(self: torch.Tensor, *args: Any) -> Any:
            if self.device.type != "meta":
                return real(self, *args)
            seen[f"{name} in {where()}"] += 1
            return torch.ones(self.shape).tolist() if instead is None else instead

        monkeypatch.setattr(torch.Tensor, name, read)

    for name, instead in (("item", 1.0), ("tolist", None), ("__bool__", True), ("__float__", 1.0), ("__int__", 1)):
        reading(name, instead)
    to, tensor = torch.Tensor.to, torch.tensor

    def copied(self: torch.Tensor, *args: Any, **named: Any) -> torch.Tensor:
        there = to(self, *args, **named)
        if self.device.type == "cpu" and there.device.type == "meta":
            seen[f"to in {where()}"] += 1
        return there

    def made(*args: Any, **named: Any) -> torch.Tensor:
        there = tensor(*args, **named)
        if there.device.type == "meta":
            seen[f"tensor in {where()}"] += 1
        return there

    monkeypatch.setattr(torch.Tensor, "to", copied)
    monkeypatch.setattr(torch, "tensor", made)
    enabled, dtype = torch.is_autocast_enabled, torch.get_autocast_dtype  # this device knows no autocast
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: in_bf16[0] if kind == "meta" else enabled(kind))
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: torch.bfloat16 if kind == "meta" else dtype(kind))
    monkeypatch.setattr(TokenLogits, "_agrees", lambda self: True)
    return seen


def filled(kind: str, kernel: str, n: int, ragged: bool = False, **changes: Any) -> Pack:
    """A pack of so many slots on the device without values."""
    make = AutoModelForSequenceClassification if kind == "bert" else AutoModelForCausalLM
    in_bf16[:] = [kernel == "grouped"]  # which there is for bf16 alone
    model = make.from_config(MODELS[kind](), dtype=torch.bfloat16 if in_bf16[0] else torch.float32).to(META)
    model.requires_grad_(False)
    heads = frozenset({"classifier"}) if kind == "bert" else frozenset[str]()
    behaviour = Behaviour(needs_mask=kind == "bert")
    base = BaseModel(model, SimpleNamespace(), "bf16", heads, None, heads, 2, behaviour=behaviour)
    task = "classification" if kind == "bert" else "completion"
    pack = Pack(base, task, kernel)
    for i in range(n):
        rows = [replace(row, weight=0.5 + j % 3) for j, row in enumerate(encoded(16))]
        if ragged:
            rows = [replace(row, completion=row.completion[: 1 + j % 3]) for j, row in enumerate(rows)]
        if kind == "bert":
            rows = [replace(row, context=row.tokens, completion=()) for row in rows]
        trial = make_trial(i, "bf16", Setting(n, 4 + (i % 3 if ragged else 0), 16))
        trial = replace(trial, task=TaskConfig(name=task), lora=replace(trial.lora, **changes))
        pack.add(make_slot(base, trial, rows))
    assert pack.step() == []
    return pack


CASES = [
    ("llama", "bmm", False, {}),
    ("llama", "grouped", True, {"dropout": 0.1}),
    ("gpt2", "bmm", True, {}),
    ("gpt2", "grouped", True, {"dropout": 0.1}),
    ("bert", "bmm", False, {"dropout": 0.1}),
    ("bert", "bmm", True, {}),
]


@pytest.mark.parametrize(("kind", "kernel", "ragged", "changes"), CASES)
def test_a_step_waits_for_the_device_at_most_once(kind, kernel, ragged, changes, waits) -> None:
    pack = filled(kind, kernel, 3, ragged, **changes)
    waits.clear()
    steps = 3
    for _ in range(steps):
        assert pack.step() == []
    assert sum(waits.values()) <= steps, waits
    assert {slot.record.step for slot in pack.slots} == {steps + 1}


def test_what_would_wait_is_seen(waits, monkeypatch) -> None:
    pack = filled("llama", "bmm", 2)
    waits.clear()
    monkeypatch.setattr(pack, "_late", False)
    pack.step()
    assert sum(waits.values()) == 2, "both the step before and this one are looked at"
    waits.clear()
    monkeypatch.setattr("trainer.engines.pack.padding_is_known", contextlib.nullcontext)
    pack.step()
    assert any("masking_utils" in place for place in waits)


def operators(
    kind: str, kernel: str, n: int, ragged: bool, changes: dict[str, Any]
) -> tuple[Counter[str], Counter[str]]:
    """Of a pass, and of the optimiser's step."""
    pack = filled(kind, kernel, n, ragged, **changes)
    with Operators() as of_pass:
        pack.run_pass(pack.slots, [slot.next_batch() for slot in pack.slots])
    with Operators() as of_update:
        assert pack._update(list(pack.slots)) == []
    return of_pass.counts, of_update.counts


@pytest.mark.parametrize(("kind", "kernel", "ragged", "changes"), CASES)
def test_a_further_slot_adds_hardly_an_operator_and_none_to_the_optimisers(
    kind, kernel, ragged, changes, waits
) -> None:
    (few, update), (many, same) = (operators(kind, kernel, n, ragged, changes) for n in (2, 8))
    assert update == same, "the optimiser's do not grow"
    assert (many.total() - few.total()) / 6 <= 6, many - few
    assert many["aten.slice_backward.default"] == few["aten.slice_backward.default"]


@pytest.mark.parametrize(("kind", "kernel", "ragged", "changes"), [case for case in CASES if case[0] != "llama"])
def test_no_gradient_of_a_slice_is_as_large_as_the_whole(kind, kernel, ragged, changes, waits) -> None:
    """Llama's own rotary embedding has such slices, whatever is trained."""
    assert operators(kind, kernel, 3, ragged, changes)[0]["aten.slice_backward.default"] <= (1 if kind == "bert" else 0)


@pytest.mark.parametrize(("kind", "kernel", "ragged", "changes"), CASES)
def test_a_pass_waits_for_nothing_and_no_shape_in_it_depends_on_values(kind, kernel, ragged, changes, waits) -> None:
    """As a CUDA graph of it would need."""
    pack = filled(kind, kernel, 3, ragged, **changes)
    batches = [slot.next_batch() for slot in pack.slots]
    waits.clear()
    with Operators() as seen:
        pack.run_pass(pack.slots, batches)
    assert not waits
    by_value = ("nonzero", "masked_select", "unique", "_local_scalar_dense", "repeat_interleave.Tensor")
    assert [name for name in seen.counts if any(word in name for word in by_value)] == []
