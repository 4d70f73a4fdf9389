"""What whole sweeps on tiny models leave for W&B."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from analysis.folder import SweepFolder


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
