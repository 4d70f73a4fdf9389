"""The host's time of a step of a pack: what Python and PyTorch's dispatcher take, whatever computes.

On PyTorch's ``meta`` device nothing is computed, so that a step takes just that time. It stands for a GPU: tensors of
the CPU stay real, mixing devices raises, and where a value is read the step would wait; here it reads 1. On a real GPU
the time until all launches have returned is measured too.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any
from unittest.mock import patch

import torch
from transformers import AutoModelForCausalLM

from tests.benchmarks.packs.steps import SHAPES, Setting, empty, encoded, make_slot, make_trial, step
from trainer.engines.pack import Pack
from trainer.engines.slot_budget import wait_for
from trainer.models.base_model import BaseModel
from trainer.models.lm_head import TokenLogits

META = torch.device("meta")
HEADING = "  K rows tokens dropout   a step  a slot  a further slot  waits   filling s"
_STEPS = 7  # timed ones, of which the shortest counts: what else the machine does only adds


class _Tokens:
    """What a pack asks of a tokenizer."""

    pad_token_id, eos_token_id = 2, 1


@dataclass
class HostLine:
    """The host's time of one setting.

    Attributes:
        milliseconds: of a step of all slots.
        one_slot: of a step of a pack of one.
        waits: values read from the device in a step.
        filling: seconds until all slots were in the pack.
    """

    shape: str
    setting: Setting
    dropout: float
    milliseconds: float
    one_slot: float
    waits: float
    filling: float

    @property
    def each(self) -> float:
        """Milliseconds a slot and step."""
        return self.milliseconds / self.setting.slots

    @property
    def further(self) -> float | None:
        """Milliseconds that a further slot adds to a step."""
        others = self.setting.slots - 1
        return (self.milliseconds - self.one_slot) / others if others else None

    def figures(self) -> dict[str, Any]:
        return asdict(self) | {"each": self.each, "further": self.further}

    def text(self) -> str:
        setting = self.setting
        further = "-" if self.further is None else f"{self.further:.2f}"
        shown = f"{setting.slots:3} {setting.rows:4} {setting.tokens:6} {self.dropout:7g}{self.milliseconds:9.1f}"
        return f"{shown}{self.each:8.2f}{further:>16}{self.waits:7.1f}{self.filling:12.1f}"


@contextmanager
def values_known() -> Iterator[list[str]]:
    """Tensors on ``meta`` have the value 1 where one is read; each reading is noted in the list that is yielded."""
    waits: list[str] = []
    autocast, equal = torch.is_autocast_enabled, torch.equal

    def reading(name: str, value: Any) -> Any:
        real = getattr(torch.Tensor, name)

        def read(self: torch.Tensor, *arguments: Any) -> Any:
            if self.device.type != "meta":
                return real(self, *arguments)
            waits.append(name)
            return torch.ones(self.shape).tolist() if name == "tolist" else value

        return read

    with ExitStack() as patches:
        for name, value in (("item", 1.0), ("tolist", None), ("__bool__", True), ("__float__", 1.0)):
            patches.enter_context(patch.object(torch.Tensor, name, reading(name, value)))
        # PyTorch has no autocast there, and raises where it is asked
        patches.enter_context(
            patch.object(torch, "is_autocast_enabled", lambda kind="cuda": kind != "meta" and autocast(kind))
        )
        patches.enter_context(
            patch.object(torch, "equal", lambda a, b: "meta" in (a.device.type, b.device.type) or equal(a, b))
        )
        # whether the model can be cut in two is found by comparing values; those of this benchmark can
        patches.enter_context(patch.object(TokenLogits, "_agrees", lambda self: True))
        yield waits


def meta_base(shape: str) -> BaseModel:
    """A base model without values."""
    with META:
        model = AutoModelForCausalLM.from_config(SHAPES[shape](), dtype=torch.bfloat16)
    model.requires_grad_(False)
    model.eval()
    return BaseModel(model, _Tokens(), "bf16", frozenset(), None)


@contextmanager
def filled(base: BaseModel, setting: Setting, dropout: float, kernel: str) -> Iterator[Pack]:
    """A pack with its slots, ready for a step."""
    pack = Pack(base, "completion", kernel)
    try:
        rows = encoded(setting.tokens)
        for i in range(setting.slots):
            pack.add(make_slot(base, make_trial(i, "bf16", setting, dropout), rows))
        step(pack)
        yield pack
    finally:
        empty(pack)


def measure(shape: str, setting: Setting, dropout: float = 0.0) -> HostLine:
    """The host's time of a step without a device, of that many slots and of one.

    Args:
        shape: one of SHAPES.
        setting: slots, rows and tokens.
        dropout: of the adapters.
    """
    with values_known() as waits:
        base = meta_base(shape)
        began = time.perf_counter()
        with filled(base, setting, dropout, "bmm") as pack:  # the kernel of a GPU for rows of equal length
            filling = time.perf_counter() - began
            waits.clear()
            milliseconds = _least(pack)
            n_waits = len(waits) / _STEPS
        one = milliseconds
        if setting.slots > 1:
            with filled(base, Setting(1, setting.rows, setting.tokens), dropout, "bmm") as pack:
                one = _least(pack)
    return HostLine(shape, setting, dropout, milliseconds, one, n_waits, filling)


def _least(pack: Pack) -> float:
    """Milliseconds of the shortest of some steps."""
    times = []
    for _ in range(_STEPS):
        began = time.perf_counter()
        step(pack)
        times.append(time.perf_counter() - began)
    return 1e3 * min(times)


def launches(pack: Pack) -> dict[str, float]:
    """On a GPU: milliseconds until all launches of a step have returned, and until the device has done it.

    Where a step waits for the device itself, both are equal.
    """
    device = pack.base.device
    returned, done = [], []
    for _ in range(_STEPS):
        wait_for(device)
        began = time.perf_counter()
        step(pack)
        returned.append(time.perf_counter() - began)
        wait_for(device)
        done.append(time.perf_counter() - began)
    return {"returned_ms": 1e3 * min(returned), "done_ms": 1e3 * min(done)}
