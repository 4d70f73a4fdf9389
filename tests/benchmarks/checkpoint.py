"""How long a pack stands still for a slot's checkpoint, and how long the checkpoint takes until it is sealed.

    python tests/benchmarks/checkpoint.py [--rank 32] [--rounds 10] [--to FOLDER]

A slot of SmolLM2-135M's shape, LoRA on all linear layers, with its moments and a best rung; nothing trains. In turn:
``now``, a snapshot by the engine's thread, then the writing that another thread does; and ``before``, all of it by the
engine's thread: safetensors' own files, flushed, and read again for their digests.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file

from tests.benchmarks.pack import Setting, encoded, load, make_slot, make_trial
from trainer.engines.checkpoints import ADAPTER_FILE, BEST_FILE, OPTIMIZER_FILE, fault, seal
from trainer.engines.slot import Slot
from trainer.engines.trial_record import Best, host_copies


def before(slot: Slot, to: Path) -> None:
    """As it was until 2026-11: seconds are all spent in the engine's thread."""
    assert slot.record.best is not None
    to.mkdir(parents=True)
    save_file(slot.weights(), to / ADAPTER_FILE, metadata={"format": "pt"})
    save_file(host_copies(slot.moments()), to / OPTIMIZER_FILE)
    save_file(slot.record.best.weights, to / BEST_FILE)
    seal(to, {"step": 1})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--to", type=Path, default=None, help="a folder on the disk to be measured")
    given = parser.parse_args()
    stood: list[float] = []
    sealed: list[float] = []
    whole: list[float] = []
    with tempfile.TemporaryDirectory(dir=given.to) as name:
        folder = Path(name)
        base = load("smollm2", "bf16", folder)
        trial = make_trial(0, "bf16", Setting(1, 1, 64))
        trial = replace(trial, lora=replace(trial.lora, rank=given.rank))
        slot = make_slot(base, trial, encoded(64))
        slot.record.best = Best(1, 0.5, slot.weights(), None)
        for i in range(given.rounds):
            began = time.perf_counter()
            write = slot.snapshot(folder / f"now-{i}")
            stood.append(time.perf_counter() - began)
            write()
            sealed.append(time.perf_counter() - began)
            del write
            began = time.perf_counter()
            before(slot, folder / f"before-{i}")
            whole.append(time.perf_counter() - began)
            assert not fault(folder / f"now-{i}")
            size = sum(path.stat().st_size for path in (folder / f"now-{i}").iterdir())
            for way in ("now", "before"):
                shutil.rmtree(folder / f"{way}-{i}")
    print(f"{size / 1e6:.0f} MB; seconds, median (least to most) of {given.rounds} rounds")
    for what, times in (("now, stands still", stood), ("now, sealed", sealed), ("before, stands still", whole)):
        print(f"{what:21} {statistics.median(times):.3f} ({min(times):.3f} to {max(times):.3f})")


if __name__ == "__main__":
    main()
