"""Out of memory in a pack: smaller passes first, then fewer slots, and only a trial that fails alone has failed."""

import gc
import weakref
from typing import Any

import pytest
import torch

from analysis.folder import State, TrialFolder
from tests.trainer.engines.test_pack import states, trials  # noqa: F401  # fixture
from tests.trainer.engines.test_pack_equivalence import equal_lengths, materials  # noqa: F401  # fixtures
from tests.trainer.packs import EXACT, alone, at_step, distance, drive, furthest, packed_engine
from trainer.engine import Admitted, Ended, Full, Requeued, RungResult
from trainer.engines import pack, slot
from trainer.engines import packed_engine as engine_module


def too_little_room(monkeypatch: pytest.MonkeyPatch, where: str, most: int, since: int = 0) -> None:
    """Memory runs out where more than ``most`` slots have done ``since`` steps, however small the passes are."""

    def crowded(slots: list[slot.Slot]) -> bool:
        return sum(s.record.step >= since for s in slots) > most

    if where == "pass":
        run_pass = pack.Pack.run_pass

        def tight_pass(self: pack.Pack, *args: Any) -> None:
            if crowded(self.slots):
                raise torch.OutOfMemoryError("CUDA out of memory")
            run_pass(self, *args)

        monkeypatch.setattr(pack.Pack, "run_pass", tight_pass)
    elif where == "scoring":
        route = pack.Pack._route

        def tight_route(self: pack.Pack, *args: Any) -> Any:
            if crowded(self.slots):
                raise torch.OutOfMemoryError("CUDA out of memory")
            return route(self, *args)

        monkeypatch.setattr(pack.Pack, "_route", tight_route)
    elif where == "places":
        lay_out = pack.PackedLora.lay_out

        def tight_places(self: Any, slots: list[Any], *more: Any) -> None:
            if len(slots) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            lay_out(self, slots, *more)

        monkeypatch.setattr(pack.PackedLora, "lay_out", tight_places)
    else:
        norms, update = pack.gradient_norms, pack.Pack._update
        present: list[slot.Slot] = []

        def remember(self: pack.Pack, ready: list[slot.Slot]) -> Any:
            present[:] = self.slots
            return update(self, ready)

        def tight_norms(steps: list[Any]) -> torch.Tensor:
            if crowded(present):
                raise torch.OutOfMemoryError("CUDA out of memory")
            return norms(steps)

        monkeypatch.setattr(pack.Pack, "_update", remember)
        monkeypatch.setattr(pack, "gradient_norms", tight_norms)


@pytest.mark.parametrize("where", ["places", "pass", "scoring", "optimiser"])
def test_the_youngest_slots_make_room_and_are_trained_later_with_the_same_results(
    where,
    trials,  # noqa: F811
    materials,  # noqa: F811
    tmp_path,
    monkeypatch,
) -> None:
    four = trials(4)
    with monkeypatch.context() as patch:
        too_little_room(patch, where, most=2)
        events = drive(packed_engine(materials), four, tmp_path)
    assert set(states(events).values()) == {State.COMPLETED}
    requeued = [trial_id for trial_id, seen in events.items() if any(isinstance(e, Requeued) for e in seen)]
    assert len(requeued) == 2
    assert requeued == ["t0002", "t0003"]
    expected = alone(materials, four, tmp_path / "alone")
    assert furthest([at_step(tmp_path, t, 8) for t in four], expected) <= EXACT


def test_a_slot_that_makes_room_goes_on_from_its_last_rung(trials, materials, tmp_path, monkeypatch) -> None:  # noqa: F811
    three = trials(3)
    with monkeypatch.context() as patch:
        too_little_room(patch, "pass", most=2, since=6)
        events = drive(packed_engine(materials), three, tmp_path)
    kinds = [type(e) if not isinstance(e, RungResult) else e.row.step for e in events["t0002"]]
    assert kinds == [4, Requeued, 8, Ended]
    [expected] = alone(materials, three[2:], tmp_path / "alone")
    assert distance(at_step(tmp_path, three[2], 8), expected) <= EXACT


def test_what_a_slot_held_is_free_when_it_has_made_room(trials, materials, tmp_path, monkeypatch) -> None:  # noqa: F811
    engine = packed_engine(materials)
    for trial in trials(3):
        assert isinstance(engine.admit(trial, TrialFolder(tmp_path / trial.trial_id), None), Admitted)
    for _ in range(2):
        assert engine.advance(lambda: True) == []
    held = [weakref.ref(t) for one in engine._find("t0002")[1].tensors.values() for t in one.moments.values()]
    too_little_room(monkeypatch, "pass", most=2)
    [event] = engine.advance()
    assert event.trial_id == "t0002"
    assert isinstance(event, Requeued)
    gc.collect()
    assert [ref() for ref in held] == [None] * len(held)
    assert isinstance(engine.admit(trials(3)[2], TrialFolder(tmp_path / "t0002"), None), Full), "there was no room"
    engine.end("t0000", State.STOPPED_EARLY)
    assert isinstance(engine.admit(trials(3)[2], TrialFolder(tmp_path / "t0002"), None), Admitted)


def test_a_trial_that_has_no_room_alone_has_failed(trials, materials, tmp_path, monkeypatch) -> None:  # noqa: F811
    too_little_room(monkeypatch, "pass", most=0, since=1)
    events = drive(packed_engine(materials), trials(2), tmp_path)
    assert set(states(events).values()) == {State.OUT_OF_MEMORY}


def test_the_oldest_evicted_would_be_seen(trials, materials, tmp_path, monkeypatch) -> None:  # noqa: F811
    too_little_room(monkeypatch, "pass", most=2)
    monkeypatch.setattr(engine_module, "max", lambda *of, **by: min(*of, **by) if by else max(*of), raising=False)
    events = drive(packed_engine(materials), trials(4), tmp_path)
    requeued = [trial_id for trial_id, seen in events.items() if any(isinstance(e, Requeued) for e in seen)]
    assert requeued != ["t0002", "t0003"]


def test_a_slot_that_broke_off_half_way_through_a_step_starts_from_its_checkpoint(
    trials,  # noqa: F811
    materials,  # noqa: F811
    tmp_path,
    monkeypatch,
) -> None:
    two = trials(2)
    expected = alone(materials, two, tmp_path / "alone")
    step, broke = pack.adamw_step, []

    def half_way(steps: list[Any], factors: torch.Tensor) -> None:
        if steps[0].step == 6 and not broke:
            broke.append(steps)
            step(steps[:1], factors[:1])
            raise torch.OutOfMemoryError("CUDA out of memory")
        step(steps, factors)

    monkeypatch.setattr(pack, "adamw_step", half_way)
    drive(packed_engine(materials), two, tmp_path / "right")
    assert furthest([at_step(tmp_path / "right", t, 8) for t in two], expected) <= EXACT
    broke.clear()
    monkeypatch.setattr(slot.Slot, "spoiled", property(lambda self: False, lambda self, value: None), raising=False)
    with pytest.raises(IndexError):  # the mistake of going on with it
        drive(packed_engine(materials), two, tmp_path / "wrong")
