"""The command line as a process of its own, and what a whole sweep leaves behind."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

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


def left_behind(place: Path, seconds: float = 20) -> list[Path]:
    """What is still in a folder for temporary files after some time, in which processes that were killed are ended."""
    gives_up = time.monotonic() + seconds
    while time.monotonic() < gives_up and any(place.iterdir()):
        time.sleep(0.1)
    return sorted(place.iterdir())
