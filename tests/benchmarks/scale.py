"""What a trial costs the driver in a sweep of thousands: the simulated engine, everything else real, tracking off.

    make bench-scale                                       2,000 trials
    python tests/benchmarks/scale.py [--trials 2000] [OVERRIDE …]

Prints the time from the first ask to the k-th end, the marginal cost of a trial, the driver's peak memory, and where
its Tune thread spent the time. Every figure is of this run and this machine.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent


def peak_memory(pid: int, found: list[int]) -> None:
    """Note the peak resident memory of a process, in KiB, until it ends."""
    while True:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return
        found += [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")]
        time.sleep(0.5)


def where(stacks: Path) -> list[tuple[str, float]]:
    """Shares of the samples that are inside some functions that have a name of their own for users."""
    parts = {
        "waiting for proxies (ray.wait)": ("ray:wait", "worker:wait", "_wait", "event_manager:wait"),
        "Optuna's ask": ("search:_ask",),
        "study/asks.jsonl": ("search:_log",),
        "the dashboard's journal": ("mirror:",),
        "trials' folders": ("record:",),
        "leaderboard.csv": ("board:trial_ended",),
        "making Tune's trial objects": ("search_generator:create_trial_if_possible",),
        "starting and resetting proxies": ("controller:_schedule_trial_reset", "controller:_schedule_trial_actor"),
        "Tune's own checkpoint": ("tune_controller:checkpoint",),
    }  # fmt: skip
    counts: Counter[str] = Counter()
    total = 0
    for line in stacks.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        total += int(count)
        inside = next(
            (name for name, marks in parts.items() if any(mark in stack for mark in marks)), "the rest of Tune"
        )
        counts[inside] += int(count)
    return [(name, count / max(total, 1)) for name, count in counts.most_common()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-scale-") as name:
        folder = Path(name)
        command = [sys.executable, str(HERE / "simulated.py"), "run", str(folder), "--profile", str(folder / "stacks")]
        memory: list[int] = []
        began = time.perf_counter()
        process = subprocess.Popen(
            [*command, f"search.trials={options.trials}", *options.overrides],
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(HERE.parent.parent)},
        )
        threading.Thread(target=peak_memory, args=(process.pid, memory), daemon=True).start()
        code = process.wait()
        wall = time.perf_counter() - began
        lines = [json.loads(line) for line in (folder / "runs/simulated/study/asks.jsonl").open()]
        ends = [line["time"] for line in lines if line["event"] == "tell"]
        first = lines[0]["time"]
        print(f"exit status {code}, {len(ends)} trials in {wall:.1f} s, the start and the last ranking included")
        marks = [n for n in (100, 250, 500, 1000, 1500, 2000) if n <= len(ends)]
        for n in marks:
            print(f"  {n:5} trials after {ends[n - 1] - first:7.1f} s   {(ends[n - 1] - first) / n:.4f} s a trial")
        if len(ends) >= 2000:
            marginal = (ends[1999] - ends[499]) / 1500
            ratio = (ends[1999] - first) / (ends[499] - first) / 4
            print(f"marginal {marginal:.4f} s a trial between 500 and 2,000; total {ratio:.2f} of linear")
        print(f"driver's peak memory {max(memory, default=0) / 2**20:.2f} GiB")
        print("where the driver's Tune thread was:")
        for part, share in where(folder / "stacks"):
            print(f"  {share:6.1%}  {part}")


if __name__ == "__main__":
    main()
