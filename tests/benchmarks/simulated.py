"""Sweeps whose trials cost nothing: a real driver, Ray Tune, Optuna, proxies and folders over a simulated engine.

    python tests/benchmarks/simulated.py run DIR [--seconds 0.05] [--steps] [--plain] [--profile FILE] [OVERRIDE …]
    python tests/benchmarks/simulated.py resume DIR …

``run`` makes DIR/runs/simulated. ``--seconds`` are those of a rung or a baseline; ``--steps`` notes every step in
``steps.jsonl`` there; ``--plain`` prints what happens; ``--profile`` samples where the driver's Tune thread is, a
hundred times a second, and writes folded stacks, as flame graph programs read them.

The engine stands where a device worker makes a real one (``run_sweep(…, worker=…)``). A trial's accuracy follows a
power law in steps towards what its learning rate and rank can reach: a plateau, then a cliff, as measured for LoRA
(arXiv 2602.04998). A part of it is a chain over all steps so far, so that a trial that went on from a wrong place
shows it in every later rung. What is admitted, where, and from which step, is noted in ``admissions.jsonl``. A
trial that is named in a file ``hang`` there never comes back from its next rung, and one named in ``evict`` makes room
for others, as where memory runs out; the file is gone then.
"""

import atexit
import csv
import json
import math
import os
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from analysis.errors import LorasweepError
from analysis.folder import MetricsRow, State, Status, TrialFolder, append_line, atomic_write
from sweeps.driver.device_facts import DataFacts, WorkerFacts
from sweeps.driver.device_worker import DeviceWorker
from trainer.config import Baseline, TrialConfig
from trainer.engine import Admission, Admitted, DeviceFault, Ended, Event, Full, Requeued, RungResult, never

NOISE = 0.01  # standard deviation or so of a rung's accuracy
ITEMS = 12


def reachable(lr: float, rank: int) -> float:
    """Accuracy after endless training: a plateau over two decades, wider for higher ranks, and a cliff above it."""
    best = -3.3 + 0.1 * math.log2(rank / 8)  # log10 of the learning rate
    off = math.log10(lr) - best
    plateau = 0.92 - 0.02 * off**2
    return plateau * (1 - 1 / (1 + math.exp(-12 * (off - 0.75))))


def accuracy(trial: TrialConfig, step: int, chain: int) -> float:
    """After ``step`` steps; ``chain`` is the trial's own noise."""
    reached = reachable(trial.optim.lr, trial.lora.rank)
    power_law = reached - (reached - 0.05) * (1 + 4 * step / trial.train.max_steps) ** -0.8
    return min(max(power_law + NOISE * (chain / 2**31 - 1), 0.0), 1.0)


@dataclass
class SimulatedSlot:
    trial: TrialConfig
    folder: TrialFolder
    step: int
    chain: int
    resting: bool = False
    best: tuple[float, int, dict[str, float]] = field(default_factory=lambda: (-math.inf, 0, {}))


def adapter(slot: SimulatedSlot) -> dict[str, str]:
    """Files of an adapter, by their names in a trial's adapter folder."""
    return {"adapter_config.json": "{}", "adapter_model.safetensors": json.dumps({"best_step": slot.best[1]})}


class SimulatedEngine:
    """The engine interface without any arithmetic.

    Args:
        slots: trials at a time.
        score: the sweep's objective.
        seconds: that a rung takes.
        node: where it is.
        note_steps: whether every step is noted.
    """

    def __init__(
        self,
        slots: int,
        score: Callable[[dict[str, float]], float],
        seconds: float,
        node: str = "",
        note_steps: bool = False,
    ):
        self.capacity_, self.score, self.seconds = slots, score, seconds
        self.node, self.note_steps = node, note_steps
        self.slots: dict[str, SimulatedSlot] = {}
        self.patience = 0.0
        self.pass_cost: float | None = None

    def capacity(self, trial: TrialConfig) -> int:
        return self.capacity_

    def admit(self, trial: TrialConfig, folder: TrialFolder, checkpoint: Path | None) -> Admission:
        if len(self.slots) >= self.capacity_:
            return Full()
        slot = SimulatedSlot(trial, folder, 0, zlib.crc32(f"{trial.seed} {trial.optim.lr} {trial.lora.rank}".encode()))
        if checkpoint is not None:
            counters = json.loads((checkpoint / "counters.json").read_text())
            slot.step, slot.chain = counters["step"], counters["chain"]
            slot.best = (counters["best"][0], counters["best"][1], counters["best"][2])
        self._note("admissions", slot, {"from": slot.step, "time": time.time()})
        self.slots[trial.trial_id] = slot
        return Admitted(slot.step)

    def advance(self, until: Callable[[], bool] = never, leaving: Callable[[], bool] = never) -> list[Event]:
        """The slot that has done least goes to its next rung; one at its last rung ends."""
        going = [slot for slot in self.slots.values() if not slot.resting]
        if not going:
            return []
        slot = min(going, key=lambda it: (it.step in {0, *it.trial.train.rungs}, it.step))  # first who is under way
        if slot.step >= slot.trial.train.max_steps:
            return [self._finish(slot)]
        if self._asked(slot, "hang"):
            threading.Event().wait()
        if self._asked(slot, "evict"):
            del self.slots[slot.trial.trial_id]
            return [Requeued(slot.trial.trial_id, "memory ran out")]
        if self._asked(slot, "gpu"):
            raise DeviceFault("CUDA error: an illegal memory access was encountered")
        if self._asked(slot, "gpu_always", for_ever=True):
            raise DeviceFault("CUDA error: device-side assert triggered")
        before, rung = next((a, b) for a, b in pairwise([0, *slot.trial.train.rungs]) if a <= slot.step < b)
        while slot.step < rung:
            if self.seconds:
                time.sleep(self.seconds / (rung - before))
            slot.step += 1
            slot.chain = zlib.crc32(f"{slot.chain} {slot.step}".encode())
            if self.note_steps:
                self._note("steps", slot, {"step": slot.step})
            if slot.step < rung and until():
                return []
        row = self._row(slot, slot.step, final=False)
        slot.best = max(slot.best, (self.score(row.metrics), slot.step, row.metrics), key=lambda it: it[0])
        slot.resting = True
        return [RungResult(slot.trial.trial_id, row)]

    def _note(self, file: str, slot: SimulatedSlot, what: dict[str, Any]) -> None:
        line = {"trial_id": slot.trial.trial_id, "node": self.node, "pid": os.getpid(), **what}
        append_line(slot.folder.root.parent.parent / f"{file}.jsonl", line)

    def _asked(self, slot: SimulatedSlot, fault: str, for_ever: bool = False) -> bool:
        file = slot.folder.root.parent / fault
        if file.exists() and file.read_text() == slot.trial.trial_id:
            if not for_ever:
                file.unlink()
            return True
        return False

    def proceed(self, trial_id: str) -> None:
        self.slots[trial_id].resting = False

    def steps(self, trial_id: str) -> int:
        return self.slots[trial_id].step

    def release(self, trial_id: str) -> None:
        del self.slots[trial_id]

    def snapshot(self, trial_id: str, to: Path) -> Callable[[], None]:
        slot = self.slots[trial_id]
        scored = max(step for step in (0, *slot.trial.train.rungs) if step <= slot.step)
        counters = {"step": slot.step, "scored": scored, "chain": slot.chain, "best": list(slot.best)}
        files = {name.replace("adapter_model", "best"): content for name, content in adapter(slot).items()}
        files["counters.json"] = json.dumps(counters)

        def write() -> None:
            for name, content in files.items():
                atomic_write(to / name, content)

        return write

    def end(self, trial_id: str, state: State) -> None:
        self._write_adapter(self.slots.pop(trial_id))

    def _finish(self, slot: SimulatedSlot) -> Ended:
        del self.slots[slot.trial.trial_id]
        self._write_adapter(slot)
        row = self._row(slot, slot.best[1], final=True, metrics=slot.best[2])
        return Ended(slot.trial.trial_id, State.COMPLETED, "", slot.step, row)

    def _write_adapter(self, slot: SimulatedSlot) -> None:
        for name, content in adapter(slot).items():
            atomic_write(slot.folder.adapter_dir / name, content)

    def _row(self, slot: SimulatedSlot, step: int, final: bool, metrics: dict[str, float] | None = None) -> MetricsRow:
        if metrics is None:
            right = accuracy(slot.trial, slot.step, slot.chain)
            metrics = {"accuracy": right, "macro_f1": right, "log_loss": 2 * (1 - right)}
        tokens = slot.step * slot.trial.train.batch_size * 8
        return MetricsRow(slot.trial.trial_id, step, tokens, 0.0, final, ITEMS * (1 + final), metrics)


class SimulatedWorker(DeviceWorker):
    """A device worker that needs no torch, no model and no data."""

    seconds, note_steps = 0.0, False

    def _make_engine(self) -> Any:
        return SimulatedEngine(self.slots or 4, self.objective.score, self.seconds, self.node, self.note_steps)

    def _facts(self, wanted: Sequence[str]) -> WorkerFacts:
        return WorkerFacts(self.node, "simulated", dict.fromkeys(("fp32", "bf16", "int8", "nf4"), ""))

    def _prepare(self, trial: TrialConfig) -> DataFacts:
        known = {"rows": {"train": 1, "validation": 1}, "labels": ("a", "b"), "fingerprint": "0" * 64, "parameters": 1}
        known |= {"slots": self.engine.capacity(trial), "schema": "labelled", "tokens": {}, "skipped": {}}
        told: dict[str, Any] = {item.name: None for item in fields(DataFacts)}  # the rest is of no use here
        return DataFacts(**told | {"absent": {}, "model_notes": [], "bias_notes": [], "lost": ""} | known)

    def _score_baseline(self, baseline: Baseline, folder: TrialFolder, test: bool) -> MetricsRow:
        append_line(folder.root.parent.parent / "baselines.jsonl", {"name": folder.trial_id, "node": self.node})
        time.sleep(self.seconds)
        metrics = {"accuracy": 0.5, "macro_f1": 0.5, "log_loss": 1.0}
        row = MetricsRow(folder.trial_id, 0, 0, 0.0, True, 2 * ITEMS, metrics)
        atomic_write(folder.config_file, "{}")
        folder.append_metrics(row)
        folder.write_status(Status(State.COMPLETED))
        return row


def write_data(folder: Path) -> dict[str, Path]:
    """Data files that satisfy the checks before a sweep; nothing trains on them."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for split in ("train", "validation"):
        files[split] = folder / f"{split}.csv"
        with files[split].open("w", newline="") as out:
            rows = [[f"{split} text {n}", "ab"[n % 2]] for n in range(16)]
            csv.writer(out).writerows([["text", "label"], *rows])
    return files


def overrides(folder: Path) -> list[str]:
    """A sweep of the simulated engine, to be changed by further overrides."""
    files = write_data(folder)
    return [
        "task=classification", "model=hub", "model.name=simulated/none", "data=csv", f"data.train={files['train']}",
        f"data.validation={files['validation']}", "bias=none", "baselines=[]", "tracking=none", "objective=single",
        "data.max_length=64", "search.start_from=[]",
        "objective.terms.quality.metric=accuracy", "train.max_steps=16", "train.rungs=[4,8,16]", "resources.slots=4",
        "space=learning_rate", "lora.rank=choice(4,8,16,32)", "precision=fp32",
        "sweep.name=simulated", f"sweep.dir={folder}/runs",
    ]  # fmt: skip


def sample_stacks(to: Path, every: float = 0.01) -> None:
    """Start a thread that notes where the thread ``tune`` is, and writes how often at the end of the process."""
    stacks: Counter[str] = Counter()

    def write() -> None:
        to.write_text("".join(f"{stack} {count}\n" for stack, count in stacks.most_common()))

    def sample() -> None:
        while True:
            time.sleep(every)
            own = next((t.ident for t in threading.enumerate() if t.name == "tune"), None)
            frame = sys._current_frames().get(own) if own else None
            names = []
            while frame is not None:
                names.append(f"{Path(frame.f_code.co_filename).stem}:{frame.f_code.co_name}")
                frame = frame.f_back
            if names:
                stacks[";".join(reversed(names))] += 1

    atexit.register(write)
    threading.Thread(target=sample, name="sampler", daemon=True).start()


def main(arguments: list[str]) -> int:
    from sweeps.compose.compose import compose
    from sweeps.run import resume_sweep, run_sweep

    command, folder, given = arguments[0], Path(arguments[1]).absolute(), arguments[2:]
    view = "quiet"
    if given[:1] == ["--seconds"]:
        SimulatedWorker.seconds, given = float(given[1]), given[2:]
    if given[:1] == ["--steps"]:
        SimulatedWorker.note_steps, given = True, given[1:]
    if given[:1] == ["--plain"]:
        view, given = "plain", given[1:]
    if given[:1] == ["--profile"]:
        sample_stacks(Path(given[1]).absolute())
        given = given[2:]
    try:
        if command == "run":
            return run_sweep(compose([*overrides(folder), *given]), view=view, worker=SimulatedWorker)
        if command == "resume":
            return resume_sweep(str(folder / "runs" / "simulated"), given, view=view, worker=SimulatedWorker)
    except LorasweepError as error:  # as the command line does
        print(f"lorasweep: {error}", file=sys.stderr)
        return error.exit_code
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
