"""A pack as its slots see it: who the neighbours are, who comes and goes, and what goes wrong for one, changes nothing.

Weights are compared with those of the trial alone under Hugging Face Trainer and PEFT. ``EXACT`` where rows have equal
lengths (padding changes the length of a sum, and so its last bit), else ``CLOSE``: eight steps of AdamW in float32.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from analysis.folder import State, TrialFolder
from tests.trainer.engines.test_pack_equivalence import equal_lengths, materials  # noqa: F401  # fixtures
from tests.trainer.packs import CLOSE, EXACT, alone, at_step, distance, drive, furthest, packed_engine, score, together
from trainer.baselines import score_baseline
from trainer.config import Baseline, TrialConfig
from trainer.engine import Admitted, Ended, Full, Refused, RungResult
from trainer.engines import lora_kernels, pack, pack_layers, slot
from trainer.engines.batches import MicroBatch
from trainer.engines.hf_engine import HfEngine
from trainer.engines.tensors import flat_adamw
from trainer.engines.tensors.flat_adamw import Stepping


@pytest.fixture
def trials(
    make_trial: Callable[..., TrialConfig],
    equal_lengths: Path,  # noqa: F811
) -> Callable[..., list[TrialConfig]]:
    """``trials(3, model="gpt2", …)``: that many, of different rank, learning rate and data order."""

    def make(n: int, model: str = "llama", ragged: bool = False, **changes: Any) -> list[TrialConfig]:
        found = [
            make_trial(
                model,
                **{"trial_id": f"t{i:04}", "seed": 5 * i, "rank": 2 + 3 * i, "lr": 2e-3 * (i + 1), "clip": 0.2}
                | {"max_steps": 8, "rungs": [4, 8], "dropout": 0.2}
                | changes,
            )
            for i in range(n)
        ]
        return found if ragged else [replace(t, data=replace(t.data, train=str(equal_lengths))) for t in found]

    return make


def states(events: dict[str, list[Any]]) -> dict[str, State]:
    return {trial_id: seen[-1].state for trial_id, seen in events.items()}


# --- composition


def test_neighbours_their_number_and_the_place_among_them_change_nothing(trials, materials, tmp_path) -> None:  # noqa: F811
    one, two, three = trials(3)
    [expected] = alone(materials, [one], tmp_path / "alone")
    for i, company in enumerate(([one], [one, two], [three, one], [three, two, one])):
        got = together(materials, company, tmp_path / str(i))[company.index(one)]
        assert distance(got, expected) <= EXACT, i


@pytest.mark.parametrize(("kernel", "ragged"), [("loop", True), ("bmm", False), ("grouped", True), ("grouped", False)])
def test_the_other_kernels_and_more_padding_are_close(kernel, ragged, trials, materials, tmp_path) -> None:  # noqa: F811
    three = trials(3, ragged=ragged, targets="attention")
    expected = alone(materials, three, tmp_path / "alone")
    got = together(materials, three, tmp_path / "pack", kernel)
    assert furthest(got, expected) <= CLOSE


@pytest.mark.parametrize("fault", [{"alpha_rule": "fixed", "alpha_value": 1e40}, {"lr": 1e3, "clip": 1e9}])
def test_a_neighbour_that_diverges_leaves_the_others_as_they_are(fault, trials, materials, tmp_path) -> None:  # noqa: F811
    one, _, three = trials(3)
    [bad] = trials(2, **fault)[1:]
    events = drive(packed_engine(materials), [one, bad, three], tmp_path)
    assert states(events)["t0000"] == states(events)["t0002"] == State.COMPLETED
    if "alpha_value" in fault:
        assert states(events)["t0001"] == State.DIVERGED
    expected = alone(materials, [one, three], tmp_path / "alone")
    assert distance(at_step(tmp_path, one, 8), expected[0]) <= EXACT
    assert distance(at_step(tmp_path, three, 8), expected[1]) <= EXACT


def test_losses_that_are_looked_at_a_step_late_as_on_a_gpu_end_the_same_trials_at_the_same_step(
    trials,
    materials,  # noqa: F811
    tmp_path,
    monkeypatch,
) -> None:
    one, *_ = trials(3)
    bad = trials(3, alpha_rule="fixed", alpha_value=1e40)[1]
    worse = replace(trials(3, accumulation=2, batch_size=8)[2], optim=replace(bad.optim, lr=1e4))
    seen: dict[bool, dict[str, list[Any]]] = {}
    for late in (False, True):
        looked = []
        add, numbers = pack.Pack.add, pack._Unread.numbers

        def late_or_not(self: pack.Pack, newcomer: slot.Slot, late: bool = late, add: Any = add) -> None:
            self._late = late
            add(self, newcomer)

        def counted(self: Any, looked: list[Any] = looked, numbers: Any = numbers) -> Any:
            looked.append(self)
            return numbers(self)

        with monkeypatch.context() as patch:
            patch.setattr(pack.Pack, "add", late_or_not)
            patch.setattr(pack._Unread, "numbers", counted)
            seen[late] = drive(packed_engine(materials), [one, bad, worse], tmp_path / str(late))
        assert looked
    for trial_id, events in seen[False].items():
        for event, same in zip(events, seen[True][trial_id], strict=True):
            assert type(event) is type(same)
            if isinstance(event, Ended):
                assert (event.state, event.reason, event.step) == (same.state, same.reason, same.step)
    assert states(seen[True])["t0001"] == State.DIVERGED
    assert distance(at_step(tmp_path / "True", one, 8), at_step(tmp_path / "False", one, 8)) == 0


# --- coming and going


def test_a_slot_stopped_in_mid_run_is_refilled_and_nobody_notices(trials, materials, tmp_path) -> None:  # noqa: F811
    three = trials(3)
    engine = packed_engine(materials, slots=2)
    events = drive(engine, three, tmp_path, on_rung=lambda event: event.trial_id != "t0000")
    assert [event.row.step for event in events["t0000"]] == [4]
    expected = alone(materials, three[1:], tmp_path / "alone")
    assert furthest([at_step(tmp_path, t, 8) for t in three[1:]], expected) <= EXACT


@pytest.mark.parametrize("first", ["packed", "hf"])
@pytest.mark.parametrize("then", ["packed", "hf"])
def test_a_trial_that_goes_on_from_a_checkpoint_is_the_uninterrupted_one(
    first,
    then,
    trials,
    materials,  # noqa: F811
    tmp_path,
) -> None:
    [one] = trials(1)
    make = {"packed": lambda: packed_engine(materials), "hf": lambda: HfEngine(materials, score)}
    drive(make[first](), [one], tmp_path / "first", on_rung=lambda event: False)
    checkpoint = TrialFolder(tmp_path / "first" / "t0000").checkpoint_dir(4)
    events = drive(make[then](), [one], tmp_path / "then", {"t0000": checkpoint})
    assert [event.row.step for event in events["t0000"] if isinstance(event, RungResult)] == [8]
    [expected] = alone(materials, [one], tmp_path / "alone")
    assert distance(at_step(tmp_path / "then", one, 8), expected) <= EXACT


def test_a_resting_slot_waits_for_its_decision(trials, materials, tmp_path, monkeypatch) -> None:  # noqa: F811
    def weights_after_the_neighbour_went_on(root: Path) -> float:
        engine = packed_engine(materials)
        for trial in trials(2):
            assert isinstance(engine.admit(trial, TrialFolder(root / trial.trial_id), None), Admitted)
        assert {event.trial_id for event in engine.advance()} == {"t0000", "t0001"}
        waiting = engine._find("t0000")[1]
        before = waiting.weights()
        engine.proceed("t0001")
        assert any(event.trial_id == "t0001" for event in engine.advance())
        return distance(before, waiting.weights())

    assert weights_after_the_neighbour_went_on(tmp_path / "a") == 0
    monkeypatch.setattr(pack.Pack, "trains", staticmethod(lambda s: s.record.step < s.trial.train.max_steps))
    assert weights_after_the_neighbour_went_on(tmp_path / "b") > 0, "idle slots stepping must be seen"


def test_with_activation_checkpointing_the_weights_are_the_same(trials, materials, tmp_path) -> None:  # noqa: F811
    two = trials(2)
    expected = together(materials, two, tmp_path / "kept")
    drive(packed_engine(materials, checkpointing=True), two, tmp_path / "recomputed")
    got = [at_step(tmp_path / "recomputed", trial, 8) for trial in two]
    assert furthest(got, expected) <= EXACT


# --- what goes wrong


@pytest.mark.parametrize(("behind", "together"), [(1, True), (2, True), (3, False)])
def test_a_slot_at_a_rung_waits_for_one_that_is_near_to_be_scored_with_it(
    behind: int,
    together: bool,
    trials,
    materials,  # noqa: F811
    tmp_path,
) -> None:
    engine, (first, second), scored = packed_engine(materials), trials(2), {}
    engine.admit(first, TrialFolder(tmp_path / first.trial_id), None)
    while engine.steps(first.trial_id) < behind:
        assert engine.advance(lambda: True) == []
    engine.admit(second, TrialFolder(tmp_path / second.trial_id), None)
    for turn in range(40):
        for event in engine.advance(lambda: True):
            scored.setdefault(event.trial_id, turn)
            if isinstance(event, RungResult):
                engine.proceed(event.trial_id)
    assert (scored[first.trial_id] == scored[second.trial_id]) is together


def test_out_of_memory_halves_the_passes_and_changes_no_result(trials, materials, tmp_path, monkeypatch) -> None:  # noqa: F811
    four = trials(4)
    sizes: list[int] = []
    run_pass = pack.Pack.run_pass

    def tight(self: pack.Pack, slots: list[Any], batches: list[Any]) -> None:
        sizes.append(len(slots))
        if len(slots) > 2:
            raise MemoryError("no room")
        run_pass(self, slots, batches)

    monkeypatch.setattr(pack.Pack, "run_pass", tight)
    events = drive(packed_engine(materials), four, tmp_path)
    assert set(states(events).values()) == {State.COMPLETED}
    assert sizes.count(4) == 1, "once it has failed, larger passes are not tried again"
    monkeypatch.setattr(pack.Pack, "run_pass", run_pass)
    expected = alone(materials, four, tmp_path / "alone")
    assert furthest([at_step(tmp_path, t, 8) for t in four], expected) <= EXACT


@pytest.mark.parametrize(
    ("error", "state"), [(MemoryError("8 GiB"), State.OUT_OF_MEMORY), (ValueError("odd"), State.FAILED)]
)
def test_only_the_slot_whose_fault_it_is_ends(error, state, trials, materials, tmp_path, monkeypatch) -> None:  # noqa: F811
    run_pass = pack.Pack.run_pass

    def faulty(self: pack.Pack, slots: list[Any], batches: list[Any]) -> None:
        if any(s.trial.trial_id == "t0001" and s.record.step == 2 for s in slots):
            raise error
        run_pass(self, slots, batches)

    monkeypatch.setattr(pack.Pack, "run_pass", faulty)
    events = drive(packed_engine(materials), trials(3), tmp_path)
    assert states(events) == {"t0000": State.COMPLETED, "t0001": state, "t0002": State.COMPLETED}
    [ended] = [event for event in events["t0001"] if isinstance(event, Ended)]
    assert str(error) in ended.reason


def test_an_optimiser_step_that_fails_before_it_changes_anything_ends_its_slot_alone(
    trials,
    materials,  # noqa: F811
    tmp_path,
    monkeypatch,
) -> None:
    four = trials(4)
    stepping = slot.Slot.stepping

    def faulty(self: slot.Slot) -> Stepping:
        if self.trial.trial_id == "t0002" and self.record.step == 2:
            raise ValueError("odd moments")
        return stepping(self)

    with monkeypatch.context() as patch:
        patch.setattr(slot.Slot, "stepping", faulty)
        events = drive(packed_engine(materials), four, tmp_path)
    others = [trial for trial in four if trial.trial_id != "t0002"]
    assert states(events) == {**{t.trial_id: State.COMPLETED for t in others}, "t0002": State.FAILED}
    [ended] = events["t0002"]
    assert "odd moments" in ended.reason
    expected = alone(materials, others, tmp_path / "alone")
    assert furthest([at_step(tmp_path, t, 8) for t in others], expected) <= EXACT


def test_an_optimiser_step_that_fails_half_way_ends_all_whose_weights_it_may_have_changed(
    trials,
    materials,  # noqa: F811
    tmp_path,
    monkeypatch,
) -> None:
    step, done = pack.adamw_step, []

    def half_way(slots: list[Stepping], factors: torch.Tensor) -> None:
        done.append(len(slots))
        if len(done) == 3:
            raise ValueError("half of it is written")
        step(slots, factors)

    monkeypatch.setattr(pack, "adamw_step", half_way)
    events = drive(packed_engine(materials), trials(3), tmp_path)
    assert done == [3, 3, 3]
    assert set(states(events).values()) == {State.FAILED}
    assert all("half of it is written" in seen[-1].reason and seen[-1].step == 2 for seen in events.values())


def test_a_full_device_says_so_and_what_a_pack_cannot_hold_is_refused(trials, materials, tmp_path) -> None:  # noqa: F811
    engine = packed_engine(materials, slots=1)
    one, two = trials(2)
    assert isinstance(engine.admit(one, TrialFolder(tmp_path / "a"), None), Admitted)
    assert isinstance(engine.admit(two, TrialFolder(tmp_path / "b"), None), Full)
    engine.end("t0000", State.STOPPED_EARLY)
    refused = engine.admit(replace(two, lora=replace(two.lora, dora=True)), TrialFolder(tmp_path / "b"), None)
    assert isinstance(refused, Refused)
    assert "lora.dora" in refused.reason
    assert "engine=hf" in refused.reason


@pytest.mark.parametrize("model", ["llama", "bert"])
def test_a_probed_device_gives_the_untuned_model_its_own_head(model, trials, materials, tmp_path) -> None:  # noqa: F811
    [one] = trials(1, model=model)
    score_baseline(materials, Baseline("zero_shot", one), TrialFolder(tmp_path / "before"))
    engine = packed_engine(materials, slots=None)  # as a device worker: probe, score the untuned model, train
    assert engine.capacity(one) >= 1
    score_baseline(materials, Baseline("zero_shot", one), TrialFolder(tmp_path / "after"))
    before, after = (TrialFolder(tmp_path / name).read_metrics()[0].metrics for name in ("before", "after"))
    assert before == after
    assert states(drive(engine, [one], tmp_path)) == {"t0000": State.COMPLETED}


# --- known mistakes, each made once: the comparison above must see it


def _mean_across_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    norms = pack.gradient_norms

    def wrong(slots: list[Stepping]) -> torch.Tensor:
        for piece in (piece for stepping in slots for piece in stepping.pieces):
            piece.gradient.mul_(1 / 2)
        return norms(slots)

    monkeypatch.setattr(pack, "gradient_norms", wrong)


def _clipping_across_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    factors = pack.clip_factors
    monkeypatch.setattr(pack, "clip_factors", lambda slots, norms: factors(slots, norms.norm().expand_as(norms)))


def _one_slots_rate_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    step = pack.adamw_step

    def wrong(slots: list[Stepping], factors: torch.Tensor) -> None:
        rate = slots[0].pieces[0].rate
        step([replace(s, pieces=[replace(p, rate=rate) for p in s.pieces]) for s in slots], factors)

    monkeypatch.setattr(pack, "adamw_step", wrong)


def _one_count_of_steps_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    step = pack.adamw_step
    monkeypatch.setattr(pack, "adamw_step", lambda slots, f: step([replace(s, step=1000) for s in slots], f))


def _gradients_that_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat_adamw.torch, "_foreach_zero_", lambda gradients: None)


def _padding_in_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    micro_batches = slot.micro_batches

    def wrong(*args: Any) -> list[MicroBatch]:
        def spoiled(batch: MicroBatch) -> MicroBatch:
            padding = np.arange(batch.shape[1]) >= np.array(batch.lengths)[:, None]
            return replace(batch, labels=np.where(padding, 0, batch.labels))

        return [spoiled(batch) for batch in micro_batches(*args)]

    monkeypatch.setattr(slot, "micro_batches", wrong)


def _dropout_ignored_in_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    drop = lora_kernels.drop
    for module in (lora_kernels, pack_layers):
        monkeypatch.setattr(module, "drop", lambda x, *args: x + (drop(x, *args) - x).detach())


@pytest.mark.parametrize(
    "mistake",
    [
        _mean_across_slots,
        _clipping_across_slots,
        _one_slots_rate_for_all,
        _one_count_of_steps_for_all,
        _gradients_that_stay,
        _padding_in_the_loss,
        _dropout_ignored_in_backward,
    ],
)
@pytest.mark.parametrize("kernel", ["loop", "bmm"])
def test_a_known_mistake_is_seen(mistake, kernel, trials, materials, tmp_path, monkeypatch) -> None:  # noqa: F811
    # AdamW does not feel a gradient's scale: a mean shows only where it lifts the clipping, as it does at 2.0 here.
    clip = 2.0 if mistake is _mean_across_slots else 0.2
    two = trials(2, ragged=mistake is _padding_in_the_loss, clip=clip)
    expected = alone(materials, two, tmp_path / "alone")
    assert furthest(together(materials, two, tmp_path / "right", kernel), expected) <= CLOSE
    mistake(monkeypatch)
    assert furthest(together(materials, two, tmp_path / "wrong", kernel), expected) > 2 * CLOSE


def test_what_stands_in_padded_rows_of_a_never_matters(trials, materials, tmp_path, monkeypatch) -> None:  # noqa: F811
    """The usual initialisation there is a fault in stacks that are trained whole; here only a slot's own rows are."""
    two = trials(2)
    expected = together(materials, two, tmp_path / "right", "bmm")
    lay_out = pack.Stacks.lay_out

    def wrong(self: Any, slots: list[Any]) -> Any:
        pieces = lay_out(self, slots)
        for group, stack in self._stacks.items():
            for k, tensors in enumerate(slots):
                [rank] = {len(one.parameter) for one in tensors if one.group.part == "a"}
                if group.part == "a" and stack.rank > rank:
                    torch.nn.init.kaiming_uniform_(stack.parameters[k, rank:])
                    spoiled.append(stack.rank - rank)
        return pieces

    spoiled: list[int] = []
    monkeypatch.setattr(pack.Stacks, "lay_out", wrong)
    assert furthest(together(materials, two, tmp_path / "wrong", "bmm"), expected) <= EXACT
    assert spoiled
