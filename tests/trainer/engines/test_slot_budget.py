"""What two probe steps say about a slot's memory, against what slots then take."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from analysis.folder import TrialFolder
from tests.trainer.engines.test_pack_equivalence import equal_lengths, materials  # noqa: F401  # fixtures
from tests.trainer.packs import allocator_rounding, held_bytes, most_rounded, packed_engine
from trainer.device_cache import DeviceCache
from trainer.engine import Admitted
from trainer.engines import slot_budget
from trainer.engines.pack import Pack
from trainer.engines.packed_engine import PackedEngine
from trainer.engines.slot_budget import kept_bytes
from trainer.models.base_model import BaseModel

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
    kept, held, rounded = [], [], []
    for n, trial in enumerate(trials, start=1):
        engine.slots = 16
        assert isinstance(engine.admit(trial, TrialFolder(tmp_path / trial.trial_id), None), Admitted)
        [pack] = engine._packs
        if n in (1, len(trials)):
            assert pack.place() == []
            batches = [slot.next_batch() for slot in pack.slots]
            adapters = [tensor for slot in pack.slots for _, tensor in slot.parameters()]
            kept.append(kept_bytes(partial(pack.run_pass, pack.slots, batches), pack.base, adapters))
            rounded.append(most_rounded(partial(pack.run_pass, pack.slots, batches)))
            for slot in pack.slots:
                slot.forget_micro_steps()
            held.append(held_bytes(pack.slots))
    for trial in trials:  # the next engine shares this base, and would run these layers inside its own
        engine.release(trial.trial_id)
    predicted = budget.pack_bytes(trials) - budget.pack_bytes(trials[:1])
    # The probe's slope is of two passes, the second with twice the rows of the first: all further slots' rows have it.
    rounding = rounded[1] + rounded[0] + (len(trials) - 1) * 2 * rounded[0]
    assert abs(kept[1] - kept[0] + held[1] - held[0] - predicted) <= 0.1 * predicted + rounding


def test_torchs_allocator_rounds_as_its_source_says() -> None:
    assert [allocator_rounding(n) for n in (0, 1, 512, 513, 1 << 20)] == [0, 511, 0, 511, 0]
    assert allocator_rounding((1 << 20) + 512) == 1 << 20
    assert allocator_rounding((1 << 20) + 1) == (1 << 20) + 511


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


class FakeGpu:
    """A GPU of which the tests' CPU engine believes that its memory is: base models and slots are there, and others.

    Args:
        engine: whose memory it is.
        total: bytes of the GPU.
    """

    def __init__(self, engine: PackedEngine, total: float, monkeypatch: pytest.MonkeyPatch):
        self.engine, self.total, self.others = engine, total, 0.0
        real = slot_budget._free_bytes
        gpu = torch.device("cuda", 0)
        monkeypatch.setattr(
            torch.cuda, "mem_get_info", lambda device: (self.total - self.allocated - self.others, self.total)
        )
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: self.allocated)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: self.allocated)
        monkeypatch.setattr(slot_budget, "_free_bytes", lambda device, share: real(gpu, share))

    @property
    def bases(self) -> float:
        kept = [it for it in self.engine.device_cache._kept.values() if isinstance(it, BaseModel)]
        return sum(p.numel() * p.element_size() for base in kept for p in base.model.parameters())

    @property
    def allocated(self) -> float:
        return self.bases + held_bytes([slot for pack in self.engine._packs for slot in pack.slots])


class Room:
    """An engine that decides by memory alone how many trials of two base models fit."""

    def __init__(self, make_trial, data, root, monkeypatch, fits: tuple[int, int] | None = None, share: float = 1.0):
        self.root, self.admitted = root, 0
        self.trial = {
            model: replace(trial, data=replace(trial.data, train=str(data)))
            for model, trial in ((name, make_trial(name, rank=8)) for name in ("llama", "gpt2"))
        }
        self.engine = packed_engine(DeviceCache(torch.device("cpu"), share), "loop", slots=None)
        self.gpu = FakeGpu(self.engine, 1e12, monkeypatch)
        self.budget = {name: self.engine._budget(self.engine._pack(it), it) for name, it in self.trial.items()}
        self.engine._packs.clear()
        self.engine.device_cache._kept = {
            name: kept for name, kept in self.engine.device_cache._kept.items() if name[0] != "base"
        }
        monkeypatch.setattr(slot_budget.SlotBudget, "slots", lambda budget, trial: 99)  # however little it pays
        if fits is not None:
            self.gpu.total = self.needs(*fits)

    def needs(self, *fits: int, models: tuple[str, ...] = ("llama", "gpt2")) -> float:
        """Bytes of a GPU on which so many trials of each base model fit, and a byte less is too little."""
        for name in models:
            self.engine.device_cache.base(self.trial[name])
        packs = [(self.budget[name], [self.trial[name]] * n) for name, n in zip(models, fits, strict=True)]
        held = slot_budget.held_bytes(packs)
        largest = max(budget.pass_bytes(trials) for budget, trials in packs)
        return float((held + largest) / 0.8 + self.gpu.bases + 1)

    def admit(self, model: str) -> bool:
        trial = replace(self.trial[model], trial_id=f"t{self.admitted:04}")
        self.admitted += 1
        return isinstance(self.engine.admit(trial, TrialFolder(self.root / trial.trial_id), None), Admitted)


@pytest.fixture
def room(make_trial, equal_lengths, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, device: None)
    return lambda *arguments, **named: Room(make_trial, equal_lengths, tmp_path, monkeypatch, *arguments, **named)


def test_slots_of_all_packs_of_a_device_count_and_the_larger_of_their_passes(room) -> None:
    here = room((3, 2))
    assert [here.admit(model) for model in ("llama", "gpt2", "llama", "gpt2", "llama")] == [True] * 5
    assert [here.admit(model) for model in ("llama", "gpt2")] == [False, False]
    here.engine.release("t0000")
    assert here.admit("llama")


def test_base_models_that_are_kept_take_their_part_of_a_device_though_no_trial_is_on_them(room) -> None:
    here = room()
    alone = here.needs(3, models=("llama",))
    here.gpu.total = alone
    assert [here.admit("llama") for _ in range(4)] == [True, True, True, False]
    for trial_id in ("t0000", "t0001", "t0002"):
        here.engine.release(trial_id)
    here.engine.device_cache.base(here.trial["gpt2"])  # as for a trial that has ended since
    assert [here.admit("llama") for _ in range(3)] == [True, True, False]


def test_another_process_that_grows_takes_what_was_free_and_one_that_is_small_leaves_no_more_than_the_share(
    room,
) -> None:
    here = room(share=0.5)
    here.gpu.total = 2 * here.needs(3, models=("llama",))
    assert [here.admit("llama") for _ in range(4)] == [True, True, True, False], "half of it, though all is free"
    here.engine.release("t0002")
    here.gpu.others = here.gpu.total / 2
    assert here.admit("llama"), "its own half"
    here.engine.release("t0004")
    here.gpu.others += here.budget["llama"].held_bytes([here.trial["llama"]])
    assert not here.admit("llama"), "the other took more than its half, or a third one came"


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


def test_a_probe_without_room_for_twice_the_rows_measures_with_fewer(
    monkeypatch,
    make_trial,
    equal_lengths,  # noqa: F811
    materials,  # noqa: F811
):
    run_pass, rows = Pack.run_pass, []

    def tight(self, slots, batches):
        rows.append(batches[0].shape[0])
        if rows[-1] > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")
        run_pass(self, slots, batches)

    trial = make_trial("llama", batch_size=16)
    trial = replace(trial, data=replace(trial.data, train=str(equal_lengths)))
    roomy = packed_engine(materials, slots=None)
    expected = roomy._budget(roomy._pack(trial), trial)
    monkeypatch.setattr(Pack, "run_pass", tight)
    engine = packed_engine(materials, slots=None)
    budget = engine._budget(engine._pack(trial), trial)
    assert max(rows) > 10
    assert budget.pack_bytes([trial]) == pytest.approx(expected.pack_bytes([trial]), rel=0.1)
    monkeypatch.setattr(Pack, "run_pass", lambda *args: (_ for _ in ()).throw(torch.OutOfMemoryError("no room")))
    engine = packed_engine(materials, slots=None)
    with pytest.raises(torch.OutOfMemoryError):
        engine._budget(engine._pack(trial), trial)
