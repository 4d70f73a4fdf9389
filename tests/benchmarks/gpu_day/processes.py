"""Processes of the day: each starts in this checkout, and can be ended with all that it started."""

import os
import subprocess
import sys
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[3]


def command(module: str, *arguments: str) -> list[str]:
    """A command that runs a module as ``python -m`` does, with ``tests`` being this checkout's."""
    return [sys.executable, str(ROOT / "tests/benchmarks/gpu_day"), "inside", module, *arguments]


def environment(**more: str) -> dict[str, str]:
    """The environment of such a command: this checkout comes first, and no model hub is asked."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", **more}


def run(module: str, arguments: list[str], seconds: float) -> int | None:
    """Run a module, its output being ours. Returns its exit status; None where it took too long, and was ended."""
    process = subprocess.Popen(command(module, *arguments), cwd=ROOT, env=environment())
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            end_tree(process.pid)
            process.wait()


def end_tree(pid: int) -> None:
    """End a process and what it started."""
    try:
        of = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return
    for process in (*of.children(recursive=True), of):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
