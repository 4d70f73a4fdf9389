"""Part 5: a real sweep through Ray on the card: the command a user types, on a model with random weights."""

import csv
import importlib.util
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from analysis.folder import SweepFolder
from tests.benchmarks.gpu_day import machine, processes
from tests.benchmarks.gpu_day.record import Record, markdown, number
from tests.benchmarks.packs.steps import save
from tests.conftest import write_rows

NEEDED = ("ray", "optuna", "hydra", "omegaconf")
_LAST = 1500  # characters of what a failed sweep said


def measure(record: Record) -> None:
    lacking = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if lacking:
        record.leave_out("the sweeps", f"not installed here: {', '.join(lacking)}")
        return
    precisions = ["bf16"]
    if importlib.util.find_spec("bitsandbytes") is None:
        record.leave_out("nf4", "not installed here: bitsandbytes")
    else:
        precisions.append("nf4")
    shape, trials, steps, rows = ("dry", 4, 4, (60, 30)) if record.dry else ("llama-1b", 16, 32, (600, 120))
    if record.dry:
        precisions[0] = "fp32"  # what a CPU may be slow at is refused
    model = save(shape, record.models)
    with tempfile.TemporaryDirectory(prefix="gpu-day-sweep-") as name:
        folder = Path(name)
        files = [
            write_rows(folder / f"{split}.csv", n, seed)
            for seed, (split, n) in enumerate(zip(("train", "validation"), rows, strict=True))
        ]
        shared = [
            *("model=local", f"model.path={model}", "data=csv", f"data.train={files[0]}"),
            *(f"data.validation={files[1]}", "data.allow_overlap=true", "task=completion", "space=lora"),
            *("objective=single", "bias=none", "baselines=[]", "tracking=none", "optim.warmup=0", "search.time=null"),
            *("train.batch_size=8", f"train.max_steps={steps}", f"train.rungs=[{steps // 4},{steps}]"),
            *("eval.rung_items=60", f"sweep.dir={folder / 'runs'}"),
        ]
        chosen = precisions[0] if len(precisions) == 1 else f"choice({','.join(precisions)})"
        sweeps = {
            "packed, ASHA": [f"search.trials={trials}", f"precision={chosen}"],
            "hf": [f"search.trials={max(2, trials // 4)}", "engine=hf", f"precision={precisions[0]}", "scheduler=fifo"],
        }
        found: list[dict[str, Any]] = []
        for number_, (what, own) in enumerate(sweeps.items()):
            if record.seconds_left < 20 and not record.dry:
                record.leave_out(what, "no time left")
                continue
            share = record.seconds_left * (0.7 if number_ == 0 else 1.0)
            with record.trying(what):
                name = f"sweep{number_}"
                found.append(
                    {"sweep": what, **run([*shared, *own, f"sweep.name={name}"], folder / "runs" / name, share)}
                )
                record.add("sweeps", found)
                if found[-1]["exit"] != 0:
                    record.fail(what, f"exit status {found[-1]['exit']}: {found[-1]['said']}")


def run(overrides: list[str], root: Path, limit: float) -> dict[str, Any]:
    """One sweep: its time, how its trials ended, tokens trained, and how busy the card was.

    Args:
        overrides: of ``lorasweep run``.
        root: the sweep folder.
        limit: seconds; then it is interrupted, as by Ctrl-C.
    """
    busy: list[dict[str, Any]] = []
    over = threading.Event()
    watching = threading.Thread(target=_watch, args=(busy, over))
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            processes.command("sweeps.cli", "run", *overrides),
            cwd=root.parent.parent,
            env=processes.environment(),
            stdout=said,
            stderr=subprocess.STDOUT,
            text=True,
        )
        watching.start()
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                processes.end_tree(process.pid)
        finally:
            over.set()
            watching.join()
        seconds = time.monotonic() - began
        said.seek(0)
        text = said.read()
    found = {"exit": process.returncode, "seconds": seconds, "said": text[-_LAST:]}
    return found | of_folder(root, seconds) | _of_card(busy)


def of_folder(root: Path, seconds: float) -> dict[str, Any]:
    """What a sweep folder says: trials by state, optimiser steps and tokens of all, and those of a second."""
    folder = SweepFolder(root)
    states: Counter[str] = Counter()
    tokens = steps = 0
    for trial in folder.trials() if root.exists() else ():
        status = trial.read_status()
        states[str(status.state)] += 1
        rows = trial.read_metrics()
        tokens += max((row.tokens for row in rows), default=0)
        steps += max((row.step for row in rows), default=0)
    best = None
    if folder.leaderboard_file.exists():
        with folder.leaderboard_file.open(newline="") as file:
            best = next((row["trial_id"] for row in csv.DictReader(file)), None)
    ended = sum(states.values())
    return {
        "states": dict(states),
        "trials": ended,
        "steps": steps,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "best": best,
    }


def _watch(busy: list[dict[str, Any]], over: threading.Event) -> None:
    while not over.wait(1.0):
        now = machine.card_now()
        if not now:
            return
        busy.append(now)


def _of_card(busy: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean use of the card as its driver reports it, and the most memory in use; None where there is no card."""
    used = [one["utilisation_percent"] for one in busy if isinstance(one.get("utilisation_percent"), float)]
    memory = [one["memory_used_mib"] for one in busy if isinstance(one.get("memory_used_mib"), float)]
    return {
        "card_percent": sum(used) / len(used) if used else None,
        "card_memory_mib": max(memory, default=None),
    }


def tables(figures: dict[str, Any]) -> list[str]:
    rows = [
        [
            *(of["sweep"], of["exit"], number(of["seconds"], ".0f", " s"), of["trials"]),
            ", ".join(f"{n} {state}" for state, n in of["states"].items()),
            *(of["steps"], number(of["tokens_per_second"], ",.0f"), of["best"]),
            *(number(of["card_percent"], ".0f", " %"), number(of["card_memory_mib"], ",.0f", " MiB")),
        ]
        for of in figures.get("sweeps", [])
    ]
    headings = ["sweep", "exit", "took", "trials", "states", "steps", "tokens/s", "best", "card used", "card's memory"]
    return [*markdown(headings, rows), ""]
