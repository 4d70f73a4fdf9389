"""Drivers for the tests of packs: the same trials alone (Hugging Face Trainer and PEFT) and in a pack.

``LORASWEEP_TEST_DEVICE=cuda`` runs them on a GPU, where the size of a product decides how it is rounded.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from analysis.folder import State, TrialFolder
from trainer.config import EngineConfig, TrialConfig
from trainer.device_cache import DeviceCache
from trainer.engine import Admitted, Ended, Event, Requeued, RungResult
from trainer.engines.hf_engine import HfEngine
from trainer.engines.packed_engine import PackedEngine
from trainer.engines.slot import Slot

Weights = dict[str, torch.Tensor]
DEVICE = torch.device(os.environ.get("LORASWEEP_TEST_DEVICE", "cpu"))
CLOSE = 2e-4  # weights after eight steps of AdamW in float32
EXACT = 0.0 if DEVICE.type == "cpu" else CLOSE  # the loop kernel, rows of equal length


def score(metrics: Any) -> float:
    return -float(metrics["log_loss"])


def packed_engine(
    materials: DeviceCache,
    kernel: str = "auto",
    slots: int | None = 16,
    checkpointing: bool = False,
    cut_by_length: bool = False,
) -> PackedEngine:
    """Where passes are cut is for the clock to say, and cuts change the last bits: only tests of cuts have them."""
    settings = EngineConfig(kernel=kernel, activation_checkpointing=checkpointing, cut_by_length=cut_by_length)
    return PackedEngine(materials, score, settings, slots)


def drive(
    engine: Any,
    trials: Sequence[TrialConfig],
    root: Path,
    checkpoints: dict[str, Path] | None = None,
    on_rung: Callable[[RungResult], bool] = lambda event: True,
) -> dict[str, list[Event]]:
    """Admit the trials (as many at a time as the engine takes) and drive them to their ends.

    A checkpoint is written at every rung. Where ``on_rung`` says False, the trial is stopped there.
    """
    waiting, events = list(trials), {trial.trial_id: [] for trial in trials}
    by_id = {trial.trial_id: trial for trial in trials}
    resumed = dict(checkpoints or {})
    running: set[str] = set()
    while waiting or running:
        while waiting:
            trial = waiting[0]
            at = resumed.get(trial.trial_id)
            if not isinstance(engine.admit(trial, TrialFolder(root / trial.trial_id), at), Admitted):
                break
            running.add(waiting.pop(0).trial_id)
        for event in engine.advance():
            events[event.trial_id].append(event)
            if isinstance(event, Requeued):
                running.discard(event.trial_id)
                waiting.append(by_id[event.trial_id])
                written = TrialFolder(root / event.trial_id).checkpoints()
                if written:
                    resumed[event.trial_id] = TrialFolder(root / event.trial_id).checkpoint_dir(written[-1])
                continue
            if isinstance(event, Ended):
                running.discard(event.trial_id)
                continue
            folder = TrialFolder(root / by_id[event.trial_id].trial_id)
            engine.snapshot(event.trial_id, folder.checkpoint_dir(event.row.step))()
            if on_rung(event):
                engine.proceed(event.trial_id)
            else:
                engine.end(event.trial_id, State.STOPPED_EARLY)
                running.discard(event.trial_id)
    return events


def at_step(root: Path, trial: TrialConfig, step: int) -> Weights:
    """A trial's adapter as its checkpoint at a rung holds it."""
    return load_file(TrialFolder(root / trial.trial_id).checkpoint_dir(step) / "adapter_model.safetensors")


def alone(materials: DeviceCache, trials: Sequence[TrialConfig], root: Path) -> list[Weights]:
    """Final weights of each trial, trained by the reference engine."""
    for trial in trials:
        drive(HfEngine(materials, score), [trial], root)
    return [at_step(root, trial, trial.train.max_steps) for trial in trials]


def together(materials: DeviceCache, trials: Sequence[TrialConfig], root: Path, kernel: str = "auto") -> list[Weights]:
    """Final weights of each trial, trained in one pack."""
    drive(packed_engine(materials, kernel), trials, root)
    return [at_step(root, trial, trial.train.max_steps) for trial in trials]


def distance(a: Weights, b: Weights) -> float:
    """The largest absolute difference of any weight; NaN where there is one, which is not near anything."""
    assert a.keys() == b.keys()
    return float(torch.stack([(a[name] - b[name]).abs().max() for name in a]).max())


def furthest(some: Sequence[Weights], others: Sequence[Weights]) -> float:
    """The largest ``distance`` of trials and the same ones elsewhere, in the same order."""
    return float(torch.tensor([distance(a, b) for a, b in zip(some, others, strict=True)]).max())


def held_bytes(slots: Sequence[Slot]) -> int:
    """Memory of slots' weights, gradients and moments, a stack that several lie in counted once."""
    held: dict[int, int] = {}
    for one in (one for slot in slots for one in slot.tensors.values()):
        for tensor in (one.parameter, one.gradient, *one.moments.values()):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(held.values())


def allocator_rounding(nbytes: int) -> int:
    """Most bytes by which torch's allocator on a GPU may count a tensor larger than it is.

    It gives blocks of 512 bytes. What is left of a block is split off, but for 1 MiB or less of one that is larger than
    that (``round_size`` and ``should_split`` in c10/cuda/CUDACachingAllocator.cpp).
    """
    whole = -(-nbytes // 512) * 512
    return whole - nbytes + (1 << 20 if whole > 1 << 20 else 0)


def most_rounded(work: Callable[[], object]) -> int:
    """Most bytes by which the allocator counts too many for what a pass keeps for its backward pass; 0 on a CPU."""
    if DEVICE.type != "cuda":
        return 0
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        work()
    return sum(allocator_rounding(nbytes) for nbytes in saved.values())
