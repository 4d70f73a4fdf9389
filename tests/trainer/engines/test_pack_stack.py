"""A pack whose adapters are stacked, as on a GPU: how its tensors lie, and that they keep their values where they move.

What a step launches there is counted in ``test_pack_on_meta.py``.
"""

from typing import Any

import pytest
import torch

from analysis.folder import TrialFolder
from tests.trainer.engines.test_pack import trials  # noqa: F401  # fixture
from tests.trainer.engines.test_pack_equivalence import equal_lengths, materials  # noqa: F401  # fixtures
from tests.trainer.packs import CLOSE, alone, at_step, distance, drive, furthest, held_bytes, packed_engine
from trainer.engine import Admitted
from trainer.engines.pack import Pack
from trainer.engines.tensors import stacks
from trainer.engines.tensors.stacks import Stacks


def filled(materials, trials, tmp_path, kernel: str, n: int, **changes: Any) -> Pack:  # noqa: F811
    engine = packed_engine(materials, kernel)
    for trial in trials(n, **changes):
        assert isinstance(engine.admit(trial, TrialFolder(tmp_path / trial.trial_id), None), Admitted)
    [pack] = engine._packs
    return pack


@pytest.mark.parametrize("kernel", ["bmm", "grouped"])
def test_a_slots_tensors_lie_in_one_piece_each_and_alike(kernel, materials, trials, tmp_path) -> None:  # noqa: F811
    pack = filled(materials, trials, tmp_path, kernel, 3)
    assert pack.step() == []
    pack.remove(pack.slots[0])
    assert pack.step() == []
    for one in pack.slots:
        for name, held in one.tensors.items():
            for tensor in (held.gradient, *held.moments.values()):
                assert tensor.stride() == held.parameter.stride(), name
        assert len(one.pieces) < len(one.tensors), "layers of one kind are stepped as one"
        for piece in one.pieces:
            for tensor in (piece.parameter, piece.gradient, piece.exp_avg, piece.exp_avg_sq):
                assert tensor.is_contiguous()
        assert sum(piece.parameter.numel() for piece in one.pieces) == sum(p.numel() for _, p in one.parameters())


def test_slots_that_come_together_are_laid_out_once(materials, trials, tmp_path, monkeypatch) -> None:  # noqa: F811
    laid_out: list[int] = []
    lay_out = Stacks.lay_out
    monkeypatch.setattr(Stacks, "lay_out", lambda self, slots: laid_out.append(len(slots)) or lay_out(self, slots))
    pack = filled(materials, trials, tmp_path, "bmm", 5)
    assert laid_out == [1], "of the probe"
    assert pack.step() == []
    assert pack.step() == []
    assert laid_out == [1, 5]


def test_what_went_makes_room_and_what_stayed_keeps_its_values(materials, trials, tmp_path, monkeypatch) -> None:  # noqa: F811
    """Where there is no memory for a smaller stack, the larger one is used on."""
    pack = filled(materials, trials, tmp_path, "bmm", 4)
    assert pack.step() == []
    before = [{**one.weights(), **one.moments()} for one in pack.slots]
    held = held_bytes(pack.slots)

    def unchanged(*which: int) -> float:
        assert pack.place() == []
        now = [{**one.weights(), **one.moments()} for one in pack.slots]
        return furthest(now, [before[k] for k in which])

    pack.remove(pack.slots[1])
    assert unchanged(0, 2, 3) == 0
    assert held_bytes(pack.slots) < 0.9 * held
    with monkeypatch.context() as patch:
        patch.setattr(
            stacks, "_Stack", lambda *size: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory"))
        )
        pack.remove(pack.slots[0])
        assert unchanged(2, 3) == 0
        assert pack.step() == []
    assert all(torch.isfinite(value).all() for one in pack.slots for value in one.weights().values())


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
