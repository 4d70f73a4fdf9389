"""Whole sweeps on tiny models: the command line as a process of its own, and what it leaves behind."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

from analysis.folder import SweepFolder, read_lines
from sweeps.process.installation import package_root


@dataclass
class Lorasweep:
    """Runs ``lorasweep`` in a folder, and knows which processes came from it by a mark in their environment."""

    cwd: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    temporary: ClassVar[Path]  # where all of them have their temporary files

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        environment = {**os.environ, "PYTHONPATH": package_root(), "LORASWEEP_TEST": self.mark, **self.environment}
        environment["LORASWEEP_TESTS"] = str(os.getpid())
        environment.setdefault("TMPDIR", str(self.temporary))
        environment["PYTHONUNBUFFERED"] = "1"
        return subprocess.Popen(
            [sys.executable, "-m", "sweeps.cli", *arguments],
            cwd=self.cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        process = self.start(*arguments)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def processes(self) -> list[str]:
        """The command lines of all living processes that descend from ours, zombies left out."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                environment, command = (entry / "environ").read_bytes(), (entry / "cmdline").read_bytes()
            except OSError:  # it has ended meanwhile
                continue
            if self.mark.encode() in environment and command:
                found.append(command.replace(b"\0", b" ").decode(errors="replace").strip())
        return found


def _asked(folder: SweepFolder) -> dict[str, dict[str, Any]]:
    return {line["trial_id"]: line["values"] for line in read_lines(folder.asks_file) if line["event"] == "ask"}


def _curves(folder: SweepFolder) -> dict[str, list[tuple[int, bool, dict[str, float]]]]:
    return {
        trial.trial_id: [(row.step, row.final, row.metrics) for row in trial.read_metrics()]
        for trial in folder.trials()
    }


@dataclass(frozen=True)
class Reader:
    """What a sweep folder says, in the form in which two sweeps can be compared."""

    asked: Callable[[SweepFolder], dict[str, dict[str, Any]]] = _asked
    curves: Callable[[SweepFolder], dict[str, list[tuple[int, bool, dict[str, float]]]]] = _curves

    @staticmethod
    def tells(folder: SweepFolder) -> dict[str, dict[str, Any]]:
        """The answer given to the sampler for each trial. Fails where a trial was told twice."""
        told: dict[str, dict[str, Any]] = {}
        for line in read_lines(folder.asks_file):
            if line["event"] == "tell":
                assert line["trial_id"] not in told
                told[line["trial_id"]] = line
        return told

    @staticmethod
    def require_same_curves(of: SweepFolder, wanted: SweepFolder, rel: float) -> None:
        """Fails unless the trials of two sweeps have the same rungs, with metrics that differ by ``rel`` at most."""
        expected = _curves(wanted)
        for trial_id, rows in _curves(of).items():
            assert [row[:2] for row in rows] == [row[:2] for row in expected[trial_id]]
            for (*_, metrics), (*_, those) in zip(rows, expected[trial_id], strict=True):
                assert metrics == pytest.approx(those, rel=rel)


@pytest.fixture(scope="session")
def reading() -> Reader:
    return Reader()


@pytest.fixture(scope="session")
def lorasweep() -> Iterator[type[Lorasweep]]:
    place = Path(tempfile.mkdtemp(prefix="lt-", dir="/tmp"))
    yield type("LorasweepHere", (Lorasweep,), {"temporary": place})  # tests/cluster/ has this fixture once more
    left = left_behind(place)
    for process in psutil.process_iter():  # of tests that failed: a driver that hung, a raylet that was stopped
        with contextlib.suppress(psutil.Error):
            if process.environ().get("LORASWEEP_TESTS") == str(os.getpid()):
                process.kill()
    shutil.rmtree(place)
    assert not left, "a command of these tests left temporary files behind"


def left_behind(place: Path, seconds: float = 20) -> list[Path]:
    """What is still in a folder for temporary files after some time, in which processes that were killed are ended."""
    gives_up = time.monotonic() + seconds
    while time.monotonic() < gives_up and any(place.iterdir()):
        time.sleep(0.1)
    return sorted(place.iterdir())


@pytest.fixture(scope="session")
def tiny(tiny_models: dict[str, Path], tiny_data: tuple[Path, Path]) -> Callable[..., list[str]]:
    """Overrides for a sweep that trains in a second: ``tiny("llama")``, ``tiny("bert", "task=classification")``."""

    def overrides(model: str, *more: str) -> list[str]:
        train, validation = tiny_data
        return [
            "model=local",
            f"model.path={tiny_models[model]}",
            "data=csv",
            f"data.train={train}",
            f"data.validation={validation}",
            "train.max_steps=8",
            "train.rungs=[2,8]",
            "train.batch_size=4",
            "eval.rung_items=12",
            "bias=none",
            *more,
        ]

    return overrides


@dataclass(frozen=True)
class WandbRun:
    """An offline W&B run through W&B's own reader."""

    config: dict[str, Any]
    history: list[dict[str, Any]]
    summary: dict[str, Any]
    run: dict[str, Any]


@pytest.fixture(scope="session")
def wandb_runs() -> Callable[[SweepFolder], dict[str, list[WandbRun]]]:
    """The W&B runs in a sweep folder by their name."""
    from wandb.util import get_core_path

    def read(folder: SweepFolder) -> dict[str, list[WandbRun]]:
        runs: dict[str, list[WandbRun]] = {}
        for file in sorted(folder.root.glob("wandb/*/*.wandb")):
            command = [get_core_path(), "leet", "inspect", "--no-observability", "--json", "--run-file", str(file)]
            out = subprocess.run([*command, str(file.parent.parent)], capture_output=True, text=True, check=True).stdout
            records = [json.loads(line) for line in out.splitlines()]
            run = next(record["run"] for record in records if record["type"] == "run")
            history = [record["history"]["item"] for record in records if record["type"] == "history"]
            summary: dict[str, Any] = {}
            for record in records:
                if record["type"] == "summary":
                    summary |= record["summary"]["update"]
            runs.setdefault(run["display_name"], []).append(WandbRun(run["config"]["update"], history, summary, run))
        return runs

    return read
