"""A simulated sweep as a process of its own, and what it leaves behind in a form in which two can be compared."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.folder import SweepFolder, read_lines
from sweeps.process.installation import package_root

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "simulated.py"


class Simulated:
    """A simulated sweep in a folder of its own.

    Args:
        root: the folder; the sweep is below it.
        environment: further variables, such as those that a cluster asks for.
    """

    def __init__(self, root: Path, environment: Mapping[str, str] | None = None):
        root.mkdir(exist_ok=True)
        self.root, self.folder = root, SweepFolder(root / "runs" / "simulated")
        self.environment = environment or {}
        self._out, self._err = (root.with_name(f"{root.name}.{kind}") for kind in ("out", "err"))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, command: str, *overrides: str, seconds: float = 0.0, options: Sequence[str] = ()) -> "Simulated":
        """Run or resume it; ``options`` are those of ``tests/benchmarks/simulated.py``."""
        arguments = [sys.executable, str(SCRIPT), command, str(self.root), "--seconds", str(seconds), *options]
        environment = {**os.environ, "PYTHONPATH": package_root(), "PYTHONUNBUFFERED": "1", **self.environment}
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen([*arguments, *overrides], env=environment, stdout=out, stderr=err)
        return self

    def until(self, what: Callable[[], object], seconds: float = 120) -> None:
        """Wait for something that comes about while the sweep runs."""
        assert self.process is not None
        gives_up = time.monotonic() + seconds
        while not what():
            assert self.process.poll() is None, self.said() + self.errors()
            assert time.monotonic() < gives_up, self.said() + self.errors()
            time.sleep(0.02)

    def ends(self, seconds: float = 180) -> tuple[int, str, str]:
        """Exit status and what it printed."""
        assert self.process is not None
        code = self.process.wait(seconds)
        return code, self.said(), self.errors()

    def kill(self) -> None:
        """End the driver, where it still runs."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def said(self) -> str:
        return self._out.read_text()

    def errors(self) -> str:
        return self._err.read_text()

    def rungs(self) -> int:
        return sum(line["event"] == "rung" for line in read_lines(self.folder.asks_file))

    def lines(self, name: str) -> list[dict[str, Any]]:
        """What the simulated engines noted: ``admissions``, ``steps`` or ``baselines``."""
        file = self.folder.root / f"{name}.jsonl"
        return list(read_lines(file)) if file.exists() else []


def result(folder: SweepFolder) -> dict[str, Any]:
    """What a sweep of independent trials leaves, without its times."""
    found = {}
    for files in folder.trials():
        rows = [(row.step, row.final, row.metrics) for row in files.read_metrics()]
        found[files.trial_id] = (files.read_status().state, rows, files.checkpoints_dir.exists())
    told = [line["trial_id"] for line in read_lines(folder.asks_file) if line["event"] == "tell"]
    assert sorted(told) == sorted(found)
    return found
