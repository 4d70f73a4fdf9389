"""Drivers, device workers and proxies are killed while a simulated sweep runs: it ends like an undisturbed one."""

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from analysis.folder import SweepFolder, read_lines
from sweeps.compose.compose import compose
from sweeps.process.installation import package_root

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "simulated.py"
KINDS = {"worker": "ray::SimulatedWorker", "proxy": "ray::ResourceTrainable|ray::TrialProxy"}


def load(name: str, file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Killing:
    """A sweep whose processes are killed, and which is gone on with each time that its driver was."""

    def __init__(self, folder: Path, seed: int, *overrides: str):
        self.root, self.overrides = folder, overrides
        self.folder = SweepFolder(folder / "runs" / "simulated")
        self.chance = random.Random(seed)
        self.mark = uuid.uuid4().hex
        self.killed: Counter[str] = Counter()
        self.start()

    def start(self) -> None:
        command = "resume" if self.folder.sweep_file.exists() else "run"
        arguments = [sys.executable, str(SCRIPT), command, str(self.root), "--seconds", "0.1"]
        more = self.overrides if command == "run" else ()
        environment = {**os.environ, "PYTHONPATH": package_root(), "LORASWEEP_TEST": self.mark}
        with (self.root / "log").open("ab") as log:
            self.driver = subprocess.Popen([*arguments, *more], env=environment, stdout=log, stderr=log)

    def lines(self) -> int:
        return sum(line["event"] in ("rung", "tell") for line in read_lines(self.folder.asks_file))

    def wait_for(self, more: int) -> bool:
        """Until so many rungs and ends were recorded, and a moment. False where the sweep is over before."""
        wanted, gives_up = self.lines() + more, time.monotonic() + 240
        while self.lines() < wanted:
            if self.driver.poll() is not None:
                return False
            assert time.monotonic() < gives_up, (self.root / "log").read_text()
            time.sleep(0.02)
        time.sleep(self.chance.uniform(0, 0.25))
        return self.driver.poll() is None

    def kill(self, kind: str) -> None:
        if kind == "driver":
            self.driver.send_signal(signal.SIGKILL)
            self.driver.wait()
            self.start()
        else:
            there = self._processes(KINDS[kind])
            if not there:
                return
            os.kill(self.chance.choice(there), signal.SIGKILL)
        self.killed[kind] += 1

    def _processes(self, titles: str) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    title, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
                except OSError:
                    continue
                if self.mark.encode() in environment and title.startswith(tuple(t.encode() for t in titles.split("|"))):
                    found.append(int(entry.name))
        return found


def is_consistent(folder: SweepFolder) -> None:
    """No trial lost, none doubled, none run again after its end; study and folders say the same."""
    lines = list(read_lines(folder.asks_file))
    asked = {line["trial_id"] for line in lines if line["event"] == "ask"}
    tells = [line for line in lines if line["event"] == "tell"]
    assert sorted(line["trial_id"] for line in tells) == sorted(asked) == [f.trial_id for f in folder.trials()]
    ended = {line["trial_id"]: line["time"] for line in tells}
    admitted = list(read_lines(folder.root / "admissions.jsonl"))
    assert {line["trial_id"] for line in admitted} == asked
    for line in admitted:
        assert line["time"] <= ended[line["trial_id"]], "a trial that had ended ran again"
    for line in tells:
        files = folder.trial(line["trial_id"])
        rows = [(row.step, row.final) for row in files.read_metrics()]
        assert len(rows) == len(set(rows)), "a rung twice"
        assert files.read_status().state == line["state"]
        assert (files.adapter_dir / "adapter_model.safetensors").exists()
        assert not files.checkpoints_dir.exists()


def test_five_kills_change_nothing(tmp_path: Path) -> None:
    reconcile = load("reconcile", Path(__file__).parent / "store" / "test_reconcile.py")
    # known points, the best few kept, and trials that give up by themselves: what a default sweep has
    overrides = ("search.trials=8", "resources.slots=1", "search.start_from=[portfolio]", "scheduler=asha")
    sweep = Killing(tmp_path, 1, *overrides)
    for kind in ("worker", "driver", "proxy", "driver", "worker"):
        assert sweep.wait_for(sweep.chance.randint(1, 2)), (tmp_path / "log").read_text()
        sweep.kill(kind)
    assert sweep.driver.wait(240) == 0, (tmp_path / "log").read_text()
    assert sweep.killed == {"worker": 2, "driver": 2, "proxy": 1}
    is_consistent(sweep.folder)
    undisturbed = SweepFolder(tmp_path / "undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconcile.sweeps.driver.device_client.ray, "get", lambda answer, timeout=None: answer)
        reconcile.Sweep(compose([*reconcile.simulated.overrides(tmp_path), *overrides]), undisturbed).run()
    assert reconcile.state(sweep.folder) == reconcile.state(undisturbed)


@pytest.mark.heavy
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("slots", "overrides"),
    [(1, ("scheduler=asha", "sampler=tpe")), (4, ("scheduler=fifo", "sampler=random"))],
    ids=["one at a time", "four at a time"],
)
def test_twenty_five_kills_each_change_nothing(slots: int, overrides: Mapping[str, str], tmp_path: Path) -> None:
    """Four at a time, what ASHA and TPE do depends on who is first; so there, each trial stands for itself."""
    reconcile = load("reconcile", Path(__file__).parent / "store" / "test_reconcile.py")
    every = ("search.trials=60", f"resources.slots={slots}", *overrides)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    undisturbed = Killing(whole, 0, *every)
    assert undisturbed.driver.wait(600) == 0, (whole / "log").read_text()
    began, sweep = time.monotonic(), Killing(cut, 7, *every)
    while sum(sweep.killed.values()) < 25 and sweep.wait_for(slots + sweep.chance.randint(0, 2)):
        sweep.kill(sweep.chance.choice(["driver", "driver", "worker", "worker", "proxy"]))
    assert sweep.driver.wait(600) == 0, (cut / "log").read_text()
    is_consistent(sweep.folder)
    assert reconcile.state(sweep.folder) == reconcile.state(undisturbed.folder)
    spent = time.monotonic() - began
    print(json.dumps({"slots": slots, "killed": sweep.killed, "trials": 60, "seconds": round(spent)}))
    assert sum(sweep.killed.values()) == 25
