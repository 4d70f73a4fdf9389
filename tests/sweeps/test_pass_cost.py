"""What a pass was measured to cost, through the real command: one figure for a sweep, its resume and its trials again.

A CPU has a constant; here it measures, as a GPU does, and each process would measure what TEST_PASS_COST says.
"""

import csv
import os
import random
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.folder import SweepFolder
from analysis.leaderboard import leaderboard
from analysis.report.reproduce import command as command_again
from sweeps.process.installation import package_root
from sweeps.store.manifest import read_manifest
from tests.conftest import WORDS

MEASURING = """
import importlib.abc, importlib.machinery, os, sys

class Measuring(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "trainer.engines.slot_budget":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        inner = spec.loader.exec_module
        def exec_module(module):
            inner(module)
            from trainer.engines import batches
            batches._PASS_COST.clear()
            module.SlotBudget.pass_cost = property(lambda self: float(os.environ["TEST_PASS_COST"]))
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Measuring())
"""
CHEAP, DEAR = "1.0", "1048576.0"


@pytest.fixture
def ragged(tmp_path: Path) -> Path:
    chooser = random.Random(3)
    path = tmp_path / "ragged.csv"
    with path.open("w", newline="") as file:
        rows = [(" ".join(chooser.choices(WORDS[label].split(), k=chooser.randint(1, 24))), label)
                for label in sorted(WORDS) for _ in range(12)]  # fmt: skip
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


@pytest.mark.heavy
def test_a_sweep_measures_once_and_a_resume_and_a_single_trial_take_what_was_recorded(
    lorasweep: Any, tiny: Callable[..., list[str]], reading: Any, ragged: Path, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(MEASURING)
    overrides = [word for word in tiny("llama") if not word.startswith(("data.train=", "train."))]
    overrides += [f"data.train={ragged}", "train.max_steps=40", "train.rungs=[4,40]", "train.batch_size=8"]
    overrides += ["search.trials=1", "resources.slots=1", "scheduler=fifo", "tracking=none", "baselines=[]"]

    def process(cost: str) -> Any:
        return lorasweep(tmp_path, {"PYTHONPATH": f"{package_root()}:{tmp_path}", "TEST_PASS_COST": cost})

    def adapter(folder: SweepFolder) -> bytes:
        return (folder.trial("t0000").adapter_dir / "adapter_model.safetensors").read_bytes()

    def sweep(name: str, cost: str) -> SweepFolder:
        done = process(cost)("run", *overrides, f"sweep.name={name}")
        assert done.returncode == 0, done.stdout + done.stderr
        return SweepFolder(tmp_path / "runs" / name)

    whole = sweep("whole", CHEAP)
    manifest = read_manifest(whole)
    assert manifest["config"]["engine"]["pass_cost"] == float(CHEAP)

    driver = process(CHEAP).start("run", *overrides, "sweep.name=killed")
    killed = SweepFolder(tmp_path / "runs" / "killed")
    gives_up = time.monotonic() + 200
    while not (killed.trial("t0000").metrics_file.exists() and killed.trial("t0000").read_metrics()):
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < gives_up
        time.sleep(0.02)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    assert [row.step for row in killed.trial("t0000").read_metrics()] == [4]
    done = process(DEAR)("resume", "runs/killed")
    assert done.returncode == 0, done.stdout + done.stderr
    assert reading.curves(killed) == reading.curves(whole)
    assert adapter(killed) == adapter(whole)

    (row,) = [row for row in leaderboard.build(whole) if row.kind == "trial"]
    words = shlex.split(command_again(manifest, row))
    assert "engine.pass_cost=1" in words
    done = process(DEAR)(*words[1:])
    assert done.returncode == 0, done.stdout + done.stderr
    assert adapter(SweepFolder(tmp_path / "runs" / "whole-t0000")) == adapter(whole)
    done = process(DEAR)(
        "trial", *(word for word in words[2:] if not word.startswith(("engine.pass_cost", "sweep.name")))
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (other,) = set((tmp_path / "runs").iterdir()) - {
        tmp_path / "runs" / it for it in ("whole", "killed", "whole-t0000")
    }
    assert read_manifest(SweepFolder(other))["config"]["engine"]["pass_cost"] == float(DEAR)
    assert adapter(SweepFolder(other)) != adapter(whole), "where passes are cut decides the last bits"
