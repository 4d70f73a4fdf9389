"""A pack whose adapters are stacked, as on a GPU: what a step launches there, and how its tensors lie.

A GPU works off what Python launches; one that waits for Python, or Python for it, is idle. So the operations of a pass
must hardly grow with its slots, no layer may wait for a copy to the device, and an optimiser must be able to step all
tensors of a slot in one kernel.
"""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from analysis.folder import TrialFolder
from tests.trainer.engines.test_pack import trials  # noqa: F401  # fixture
from tests.trainer.engines.test_pack_equivalence import equal_lengths, materials  # noqa: F401  # fixtures
from tests.trainer.packs import CLOSE, alone, at_step, distance, drive, furthest, packed_engine, together
from trainer.engine import Admitted
from trainer.engines import pack_layers, slot
from trainer.engines.pack import Pack

WAITS = ("lift_fresh", "_local_scalar_dense", "nonzero", "repeat_interleave.Tensor")  # a copy to the device, or from it


class Operations(TorchDispatchMode):
    """Counts what is dispatched, and what a GPU would be waited for inside ``PackedLora``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        super().__init__()
        self.all, self.waits, self._inside = 0, Counter[str](), 0
        call = pack_layers.PackedLora.__call__

        def inside(layer: Any, *args: Any) -> Any:
            self._inside += 1
            try:
                return call(layer, *args)
            finally:
                self._inside -= 1

        monkeypatch.setattr(pack_layers.PackedLora, "__call__", inside)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.all += 1
        for name in WAITS:
            if self._inside and name in str(function):
                self.waits[name] += 1
        return function(*args, **(kwargs or {}))


def filled(materials, trials, tmp_path, kernel: str, n: int, **changes: Any) -> Pack:  # noqa: F811
    engine = packed_engine(materials, kernel)
    for trial in trials(n, **changes):
        assert isinstance(engine.admit(trial, TrialFolder(tmp_path / trial.trial_id), None), Admitted)
    [pack] = engine._packs
    return pack


def operations(pack: Pack) -> Operations:
    with pytest.MonkeyPatch.context() as patch:
        counted = Operations(patch)
        batches = [one.next_batch() for one in pack.slots]
        with counted:
            pack.run_pass(pack.slots, batches)
    for one in list(pack.slots):
        pack.remove(one)
    return counted


@pytest.mark.parametrize("kernel", ["bmm", "grouped"])
def test_a_pass_launches_hardly_more_for_more_slots_and_no_layer_waits(kernel, materials, trials, tmp_path) -> None:  # noqa: F811
    few = operations(filled(materials, trials, tmp_path / "few", kernel, 2))
    many = operations(filled(materials, trials, tmp_path / "many", kernel, 6))
    assert (many.all - few.all) / 4 < 80, "what is left is each slot's loss and its dropout keys"
    assert sum(many.waits.values()) <= 3, "what the routing copies once a pass"
    loop = [
        operations(filled(materials, trials, tmp_path / f"loop{n}", "loop", n)).all for n in (2, 6)
    ]  # the reference, to see that this can be seen: some 14 layers' products a slot
    assert (loop[1] - loop[0]) / 4 > 200


def test_a_layer_that_copies_to_the_device_is_seen(materials, trials, tmp_path, monkeypatch) -> None:  # noqa: F811
    whole = filled(materials, trials, tmp_path, "grouped", 3)
    monkeypatch.setattr(
        "trainer.engines.lora_kernels.Routing.row_ends",
        property(lambda self: torch.tensor(self.counts, dtype=torch.int32).cumsum(0).to(torch.int32)),
    )
    assert sum(operations(whole).waits.values()) > 3


@pytest.mark.parametrize("kernel", ["bmm", "grouped"])
def test_a_slots_tensors_lie_in_one_piece_each_and_alike(kernel, materials, trials, tmp_path) -> None:  # noqa: F811
    pack = filled(materials, trials, tmp_path, kernel, 3)
    pack.step()
    pack.remove(pack.slots[0])
    pack.step()
    for one in pack.slots:
        for name, parameter in one.parameters():
            state = one.optimizer.state[parameter]
            for tensor in (parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"]):
                assert tensor.stride() == parameter.stride(), name
            assert parameter.is_contiguous() or parameter.T.is_contiguous(), name


@pytest.mark.parametrize("kernel", ["bmm", "grouped"])
def test_the_fused_optimiser_gives_the_same(kernel, materials, trials, tmp_path, monkeypatch) -> None:  # noqa: F811
    """As on a GPU; PyTorch has it for CPUs too."""
    three = trials(3)
    expected = alone(materials, three, tmp_path / "alone")
    single = torch.optim.AdamW
    monkeypatch.setattr(slot.torch.optim, "AdamW", lambda *args, **more: single(*args, **more | {"fused": True}))
    assert furthest(together(materials, three, tmp_path / kernel, kernel), expected) <= CLOSE


def test_moments_move_into_another_pack_and_back(materials, trials, tmp_path) -> None:  # noqa: F811
    """A checkpoint of a stacked slot, gone on with in a loop, and the other way round."""
    [one] = trials(1)
    [expected] = alone(materials, [one], tmp_path / "alone")
    for first, then in (("bmm", "loop"), ("loop", "grouped")):
        root = tmp_path / f"{first}-{then}"
        drive(packed_engine(materials, first), [one], root / "first", on_rung=lambda event: False)
        checkpoint = TrialFolder(root / "first" / one.trial_id).checkpoint_dir(4)
        drive(packed_engine(materials, then), [one], root / "then", {one.trial_id: checkpoint})
        assert distance(at_step(root / "then", one, 8), expected) <= CLOSE
