"""What orchestration costs a trial: whole sweeps through the real proxies and folders over an engine that does nothing.

python tests/benchmarks/overhead.py [--few 50] [--many 200] [--tracking none wandb_offline] [--profile FILE]

Prints the seconds of both sweeps and the marginal cost, (t_many - t_few) / (many - few): what starts once is left out.
Trials reach two rungs and end; engine, model and data are stubs in the device worker, all else is a sweep's own.
"""

import argparse
import contextlib
import cProfile
import csv
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.folder import MetricsRow, State, TrialFolder, atomic_write
from sweeps.worker import DataFacts, DeviceWorker, WorkerFacts
from trainer.config import TrialConfig
from trainer.engine import Admission, Admitted, Ended, Event, Full, RungResult

SLOTS = 8


@dataclass
class _Running:
    trial: TrialConfig
    folder: TrialFolder
    step: int = 0
    resting: bool = False


@dataclass
class StubEngine:
    """Takes no time to train; writes the files that a pack writes, but for tensors."""

    patience: float = 0.0
    running: dict[str, _Running] = field(default_factory=dict)

    def capacity(self, trial: TrialConfig) -> int:
        return SLOTS

    def admit(self, trial: TrialConfig, folder: TrialFolder, checkpoint: Path | None) -> Admission:
        if len(self.running) >= SLOTS:
            return Full()
        self.running[trial.trial_id] = _Running(trial, folder)
        return Admitted()

    def advance(self, until: Callable[[], bool]) -> list[Event]:
        events: list[Event] = []
        for trial_id, slot in list(self.running.items()):
            if slot.resting:
                continue
            rungs = slot.trial.train.rungs
            final = slot.step == rungs[-1]
            slot.step = slot.step if final else next(rung for rung in rungs if rung > slot.step)
            accuracy = random.Random(f"{trial_id}-{slot.step}").random()
            metrics = {"accuracy": accuracy, "macro_f1": accuracy, "log_loss": 1.0}
            row = MetricsRow(trial_id, slot.step, 100 * slot.step, 0.0, final, 8, metrics)
            ids = [f"i{i}" for i in range(8)]
            columns = {"item_id": ids, "group": [""] * 8, "label": ["a"] * 8, "prediction": ["a"] * 8, "nll": [0.5] * 8}
            slot.folder.write_items("task", "validation", slot.step, {**columns, "logprobs": [[-0.5, -1.0]] * 8})
            if final:
                del self.running[trial_id]
                events.append(Ended(trial_id, State.COMPLETED, "", slot.step, row))
            else:
                slot.resting = True
                events.append(RungResult(trial_id, row))
        return events

    def proceed(self, trial_id: str) -> None:
        self.running[trial_id].resting = False

    def checkpoint(self, trial_id: str, to: Path) -> None:
        to.mkdir(parents=True, exist_ok=True)
        atomic_write(to / "counters.json", "{}")

    def end(self, trial_id: str, state: State) -> None:
        self.running.pop(trial_id, None)


class StubWorker(DeviceWorker):
    """A device worker that loads nothing."""

    @property
    def engine(self) -> Any:
        if not hasattr(self, "_stub"):
            self._stub = StubEngine()
        return self._stub

    def _facts(self, wanted: Sequence[str]) -> WorkerFacts:
        return WorkerFacts(self.node, "stub", dict.fromkeys(("fp32", "bf16", "int8", "nf4"), ""))

    def _prepare(self, trial: TrialConfig) -> DataFacts:
        return DataFacts({"train": 8, "validation": 8}, ("a", "b"), "0" * 64, 1, SLOTS)


def sweep(trials: int, tracking: str, profile: str | None) -> tuple[float, float]:
    """Seconds of one sweep, and CPU seconds of the driver in it."""
    from sweeps import cli, devices, tuning

    devices.DeviceWorker = StubWorker  # type: ignore[misc]
    if profile:  # cProfile sees but one thread
        tuning.TuneRun._fit = lambda self, tuner: tuner.fit()  # type: ignore[method-assign,assignment,return-value]
    with tempfile.TemporaryDirectory(prefix="bench-overhead-") as name:
        rows = Path(name) / "rows.csv"
        with rows.open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *((f"text {i}", "ab"[i % 2]) for i in range(8))])
        arguments = [
            *("run", "--quiet", "task=classification", "model=minilm", "data=csv", f"data.train={rows}"),
            *(f"data.validation={rows}", "bias=none", "baselines=[]", f"tracking={tracking}", "train.max_steps=8"),
            *("train.rungs=[2,8]", "space=lora", "scheduler=fifo", f"search.trials={trials}", f"sweep.dir={name}/runs"),
            *("sweep.name=overhead", "objective=single"),
        ]
        began, cpu = time.perf_counter(), time.process_time()
        with (
            contextlib.redirect_stdout(open(os.devnull, "w")),
            cProfile.Profile() if profile else contextlib.nullcontext() as profiled,
        ):
            status = cli.main(arguments)
        seconds = time.perf_counter() - began, time.process_time() - cpu
        if profiled is not None and profile:
            profiled.dump_stats(profile)
    if status:
        raise SystemExit(f"the sweep ended with exit status {status}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", type=int, default=50)
    parser.add_argument("--many", type=int, default=200)
    parser.add_argument("--tracking", nargs="+", default=["none", "wandb_offline"])
    parser.add_argument("--profile", help="write the driver's cProfile of the larger sweep here")
    options = parser.parse_args()
    for tracking in options.tracking:
        few, many = sweep(options.few, tracking, None), sweep(options.many, tracking, options.profile)
        marginal, cpu = ((b - a) / (options.many - options.few) for a, b in zip(few, many, strict=True))
        print(
            f"{tracking:14} {options.few} trials {few[0]:6.1f} s   {options.many} trials {many[0]:6.1f} s"
            f"   marginal {marginal:.3f} s a trial, {cpu:.3f} CPU s of them in the driver",
            flush=True,
        )


if __name__ == "__main__":
    main()
