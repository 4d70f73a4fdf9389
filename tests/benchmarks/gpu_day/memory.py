"""Part 6: memory that runs out while a pack trains, and two workers that share one card.

python -m tests.benchmarks.gpu_day.memory SHARE MODEL FOLDER TOKENS    is one of the two workers; it prints JSON
"""

import csv
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from analysis.folder import TrialFolder
from tests.benchmarks.gpu_day import processes
from tests.benchmarks.gpu_day.record import Record, markdown, number
from tests.benchmarks.packs.steps import free, save
from tests.conftest import WORDS
from trainer.config import (
    BiasConfig,
    DataConfig,
    EngineConfig,
    EvalConfig,
    LoraSettings,
    ModelConfig,
    OptimConfig,
    TaskConfig,
    TrainConfig,
    TrialConfig,
)
from trainer.device_cache import DeviceCache
from trainer.engine import Admitted, Ended, Requeued, RungResult
from trainer.engines.packed_engine import PackedEngine
from trainer.models.base_model import best_device

_STEPS = 2
_ROOM = {"passes": 4.0, "slots": 1.05}  # times what a trial alone takes beside the base model
_GIB = 2**30


def measure(record: Record) -> None:
    slots, tokens, few = (4, 16, 2) if record.dry else (32, 1024, 8)
    model = save("dry" if record.dry else "llama-1b", record.models)
    with tempfile.TemporaryDirectory(prefix="gpu-day-memory-") as name:
        folder = Path(name)
        data = write_data(folder, tokens)
        with record.trying("memory runs out"):
            running_out(record, model, data, folder, {"passes": slots, "slots": few}, tokens)
        with record.trying("two workers"):
            record.add("workers", two_workers(model, data, tokens, max(5.0, record.seconds_left - 5)))
            for worker in record.figures["workers"]:
                if worker.get("error"):
                    record.fail("two workers", worker["error"])


def write_data(folder: Path, tokens: int) -> list[Path]:
    """CSV files of rows that are cut at so many tokens."""
    chooser = random.Random(0)
    files = []
    for split, n in (("train", 48), ("validation", 12)):
        files.append(folder / f"{split}.csv")
        with files[-1].open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for i in range(n):
                label = sorted(WORDS)[i % 3]
                writer.writerow([" ".join(chooser.choices(WORDS[label].split(), k=tokens)), label])
    return files


def make_trials(n: int, model: Path, data: Sequence[Path], tokens: int) -> list[TrialConfig]:
    on_gpu = best_device().type == "cuda"
    return [
        TrialConfig(
            trial_id=f"t{i:04}",
            seed=i,
            precision="bf16" if on_gpu else "fp32",
            model=ModelConfig(source="local", path=str(model)),
            data=DataConfig(source="csv", train=str(data[0]), validation=str(data[1]), max_length=tokens),
            task=TaskConfig(name="completion"),
            lora=LoraSettings(rank=8, targets="attention"),
            optim=OptimConfig(lr=1e-4),
            train=TrainConfig(max_steps=_STEPS, batch_size=1, rungs=[_STEPS]),
            eval=EvalConfig(rung_items=4, batch_size=4),
            bias=BiasConfig(crows_pairs=0, stereoset=0, swap=0),
        )
        for i in range(n)
    ]


def run_all(engine: PackedEngine, trials: Sequence[TrialConfig], folder: Path) -> dict[str, Any]:
    """All trials to their ends, as many at a time as the engine takes: how they ended, and what made room."""
    waiting, running = list(trials), set[str]()
    states: Counter[str] = Counter()
    requeued, most, reasons = 0, 0, set[str]()
    began = time.monotonic()
    while waiting or running:
        while waiting:
            if not isinstance(engine.admit(waiting[0], TrialFolder(folder / waiting[0].trial_id), None), Admitted):
                break
            running.add(waiting.pop(0).trial_id)
        if not running:
            raise RuntimeError(f"no room for {waiting[0].trial_id} alone")
        most = max(most, len(running))
        for event in engine.advance():
            if isinstance(event, RungResult):
                engine.proceed(event.trial_id)
            elif isinstance(event, Requeued):
                requeued += 1
                running.discard(event.trial_id)
                waiting.append(next(trial for trial in trials if trial.trial_id == event.trial_id))
            elif isinstance(event, Ended):
                running.discard(event.trial_id)
                states[str(event.state)] += 1
                if event.reason:
                    reasons.add(event.reason[:200])
    return {
        "trials": len(trials),
        "side_by_side": most,
        "states": dict(states),
        "requeued": requeued,
        "reasons": sorted(reasons),
        "seconds": time.monotonic() - began,
    }


def running_out(
    record: Record, model: Path, data: Sequence[Path], folder: Path, slots: dict[str, int], tokens: int
) -> None:
    """The same trials with too little memory for all in one pass, then for all slots: all have to complete."""
    device = best_device()
    cache = DeviceCache(device)
    found: list[dict[str, Any]] = []
    [one] = make_trials(1, model, data, tokens)
    cache.base(one)
    free(device)
    held = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    alone = run_all(PackedEngine(cache, _score, EngineConfig(), 1), [one], folder / "alone")
    peak = torch.cuda.max_memory_allocated(device) - held if device.type == "cuda" else 0
    record.add("alone", alone | {"peak_gib": peak / _GIB or None})
    for what, n in slots.items():
        engine = PackedEngine(cache, _score, EngineConfig())
        engine.capacity(one)  # the probe, with all the memory there is
        engine.slots = n
        free(device)
        room = _ROOM[what] * peak
        with record.trying(f"too little memory: {what}"), _limited(device, held + room) as forced:
            of = run_all(engine, make_trials(n, model, data, tokens), folder / what)
            found.append(
                of
                | {"short_of": what, "tokens": tokens, "room_gib": room / _GIB or None, "ran_out": sum(forced) or None}
                | {"right": of["states"] == {"completed": n}}
            )
            record.add("running_out", found)
            if not found[-1]["right"]:
                record.fail(f"too little memory: {what}", f"trials ended as {of['states']}: {of['reasons']}")


@contextmanager
def _limited(device: torch.device, most: float) -> Iterator[list[int]]:
    """A block in which the device has so many bytes. On a CPU the first backward pass says that it ran out.

    Yields a list with a 1 for each time that memory ran out, as far as it can be counted.
    """
    forced: list[int] = []
    if device.type == "cuda":
        total = torch.cuda.mem_get_info(device)[1]
        before = _out_of_memory_count(device)
        torch.cuda.set_per_process_memory_fraction(min(1.0, most / total), device)
        try:
            yield forced
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
            forced.append(_out_of_memory_count(device) - before)
        return
    real = torch.autograd.backward

    def tight(*arguments: Any, **options: Any) -> Any:
        if not forced:
            forced.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory (forced)")
        return real(*arguments, **options)

    with patch.object(torch.autograd, "backward", tight):
        yield forced


def _out_of_memory_count(device: torch.device) -> int:
    return int(torch.cuda.memory_stats(device).get("num_ooms", 0))


def _score(metrics: Any) -> float:
    return -float(metrics["log_loss"])


def two_workers(model: Path, data: Sequence[Path], tokens: int, limit: float) -> list[dict[str, Any]]:
    """Two processes at once, each with half of the card: how many slots each takes, and that it stays in its half."""
    command = processes.command("tests.benchmarks.gpu_day.memory", "0.5", str(model), str(data[0].parent), str(tokens))
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = processes.environment()
    workers = [subprocess.Popen(command, cwd=processes.ROOT, env=environment, **pipes) for _ in range(2)]
    end = time.monotonic() + limit
    found = []
    for worker in workers:
        try:
            out, err = worker.communicate(timeout=max(1.0, end - time.monotonic()))
            said = out.strip().splitlines()
            found.append(json.loads(said[-1]) if worker.returncode == 0 else {"error": (out + err)[-800:]})
        except subprocess.TimeoutExpired:
            processes.end_tree(worker.pid)
            worker.communicate()
            found.append({"error": f"stopped after {limit:.0f} s"})
    return found


def worker(share: float, model: Path, data: Path, tokens: int) -> dict[str, Any]:
    """One worker: as many slots as it plans for, all trained to their end."""
    device = best_device()
    engine = PackedEngine(DeviceCache(device, share), _score, EngineConfig())
    files = [data / "train.csv", data / "validation.csv"]
    capacity = engine.capacity(make_trials(1, model, files, tokens)[0])
    with tempfile.TemporaryDirectory() as folder:
        found = run_all(engine, make_trials(capacity, model, files, tokens), Path(folder))
    used = None
    if device.type == "cuda":
        used = torch.cuda.max_memory_reserved(device) / torch.cuda.mem_get_info(device)[1]
    complete = found["states"] == {"completed": capacity}
    return found | {
        "share": share,
        "slots": capacity,
        "used": used,
        "right": complete and (used is None or used <= share),
    }


def tables(figures: dict[str, Any]) -> list[str]:
    rows = [
        [
            *(of["short_of"], f"{of['trials']} × {of['tokens']}", number(of["room_gib"], ".1f", " GiB"), of["ran_out"]),
            *(of["side_by_side"], of["requeued"], ", ".join(f"{n} {state}" for state, n in of["states"].items())),
            *(number(of["seconds"], ".1f", " s"), "right" if of["right"] else "WRONG"),
        ]
        for of in figures.get("running_out", [])
    ]
    headings = ["too little memory for all", "trials × tokens", "room", "ran out", "side by side", "requeued", "ended"]
    lines = [*markdown([*headings, "took", ""], rows), ""]
    rows = [
        [
            *(of.get("share"), of.get("slots"), number(of.get("used"), ".0%"), number(of.get("seconds"), ".1f", " s")),
            of.get("error", "").splitlines()[-1:] or ("right" if of["right"] else "WRONG"),
        ]
        for of in figures.get("workers", [])
    ]
    return [*lines, *markdown(["worker's share", "slots", "memory used", "took", ""], rows), ""]


if __name__ == "__main__":
    print(json.dumps(worker(float(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))))
