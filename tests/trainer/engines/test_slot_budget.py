"""What two probe steps say about a slot's memory, against what slots then take."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from analysis.folder import TrialFolder
from tests.trainer.engines.test_pack_equivalence import equal_lengths, materials  # noqa: F401  # fixtures
from tests.trainer.packs import held_bytes, packed_engine
from trainer.device_cache import DeviceCache
from trainer.engine import Admitted
from trainer.engines import slot_budget
from trainer.engines.slot_budget import kept_bytes

MIXED = ["all_linear", "attention", "attention", "all_linear"]  # so that some layers' stacks need only the low ranks


@pytest.mark.parametrize("model", ["llama", "bert"])
@pytest.mark.parametrize("targets", ["all_linear", "attention", "mixed"])
@pytest.mark.parametrize("kernel", ["loop", "bmm", "grouped"])
def test_the_memory_of_further_slots_is_predicted_within_a_tenth(
    model,
    targets,
    kernel,
    make_trial,
    equal_lengths,  # noqa: F811
    materials,  # noqa: F811
    tmp_path,
) -> None:
    trials = [
        make_trial(model, trial_id=f"t{i:04}", seed=i, rank=rank, targets=MIXED[i] if targets == "mixed" else targets)
        for i, rank in enumerate([4, 8, 16, 4])
    ]
    trials = [replace(t, data=replace(t.data, train=str(equal_lengths))) for t in trials]
    engine = packed_engine(materials, kernel, slots=None)
    budget = engine._budget(engine._pack(trials[0]), trials[0])
    kept, held = [], []
    for n, trial in enumerate(trials, start=1):
        engine.slots = 16
        assert isinstance(engine.admit(trial, TrialFolder(tmp_path / trial.trial_id), None), Admitted)
        [pack] = engine._packs
        if n in (1, len(trials)):
            assert pack.place() == []
            batches = [slot.next_batch() for slot in pack.slots]
            adapters = [tensor for slot in pack.slots for _, tensor in slot.parameters()]
            kept.append(kept_bytes(partial(pack.run_pass, pack.slots, batches), pack.base, adapters))
            for slot in pack.slots:
                slot.forget_micro_steps()
            held.append(held_bytes(pack.slots))
    for trial in trials:  # the next engine shares this base, and would run these layers inside its own
        engine.release(trial.trial_id)
    predicted = budget.pack_bytes(trials) - budget.pack_bytes(trials[:1])
    assert kept[1] - kept[0] + held[1] - held[0] == pytest.approx(predicted, rel=0.1)


@pytest.mark.parametrize(
    ("free", "reserved", "share", "expected"),
    [
        (70, 5, 1.0, 72),  # all that is free, and what the allocator holds unused
        (70, 5, 0.5, 37),  # what is left of half the memory
        (20, 5, 0.5, 22),  # no more than is free: others have taken theirs, and some of ours
    ],
)
def test_of_a_gpu_that_is_shared_no_more_is_planned_than_the_share(monkeypatch, free, reserved, share, expected):
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 3)
    assert slot_budget._free_bytes(gpu, share) == expected


def test_the_share_is_a_limit_of_the_allocator_and_of_the_engines_plan(
    monkeypatch,
    make_trial,
    equal_lengths,  # noqa: F811
):
    limits = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, device: limits.append(share))
    DeviceCache(torch.device("cuda", 0), 0.25)
    DeviceCache(torch.device("cuda", 0))
    DeviceCache(torch.device("cpu"), 0.25)
    assert limits == [0.25]

    asked = []
    real = slot_budget._free_bytes
    monkeypatch.setattr(slot_budget, "_free_bytes", lambda device, share: asked.append(share) or real(device, share))
    trial = make_trial("llama")
    trial = replace(trial, data=replace(trial.data, train=str(equal_lengths)))
    packed_engine(DeviceCache(torch.device("cpu"), 0.25), "loop", slots=None).capacity(trial)
    assert asked == [0.25]
