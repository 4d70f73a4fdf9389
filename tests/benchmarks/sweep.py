"""A sweep of MiniLM in three ways, whole commands, alternating: a plain Ray Tune script, ours, a bare loop.

python tests/benchmarks/sweep.py [--setting long|short|smoke] [--repeat 3] [--asha] [--tokens 64] [--precision bf16]
  [OVERRIDE …]

``long``: 8 trials × 30 steps, 400 validation rows. ``short``: 32 trials × 5 steps, 64 rows. LoRA on query and value, 8
rows a step of 64 tokens at most; all three train the same ranks and learning rates at the same precision. No early
stopping but with ``--asha`` (ours only, told apart). Prints times, medians and ratios of this run on this machine, and
all accuracies.
"""

import argparse
import csv
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
SETTINGS = {"long": (8, 30, 400), "short": (32, 5, 64), "smoke": (2, 2, 16)}  # trials, steps, validation rows
TOPICS = {"alt.atheism": "atheism", "comp.windows.x": "X", "rec.motorcycles": "motorcycles", "sci.med": "medicine"}


def write_data(folder: Path, validation_rows: int) -> dict[str, Path]:
    """Four newsgroups as CSV files, the rows of each topic in turn."""
    from trainer.config import DataConfig
    from trainer.data.newsgroups import load_newsgroups

    each = {"train": 300, "validation": validation_rows // len(TOPICS)}
    config = DataConfig(topics=TOPICS, train_rows=each["train"], validation_rows=each["validation"])
    files = {}
    for split, table in zip(each, load_newsgroups(config, print), strict=True):
        files[split] = folder / f"{split}.csv"
        with files[split].open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows(zip(table.columns["text"], table.columns["label"], strict=True))
    return files


def configurations(n: int) -> list[dict[str, float]]:
    """The trials that all three train."""
    chooser = random.Random(0)
    return [{"rank": chooser.choice([4, 8, 16, 32]), "lr": 10 ** chooser.uniform(-5, -2)} for _ in range(n)]


def commands(
    setting: str, folder: Path, asha: bool = False, tokens: int = 64, precision: str = "fp32"
) -> dict[str, list[str]]:
    from trainer.config import ModelConfig
    from trainer.models.tokenizer import model_folder

    trials, steps, rows = SETTINGS[setting]
    files = write_data(folder, rows)
    model = Path(model_folder(ModelConfig(source="package", package="minilm")))
    trained = configurations(trials)
    listed = folder / "trials.json"
    listed.write_text(json.dumps(trained))
    shared = [
        *("--model", str(model), "--train", str(files["train"]), "--validation", str(files["validation"])),
        *("--trials", str(listed), "--steps", str(steps), "--tokens", str(tokens)),
        *("--precision", precision),
    ]
    points = ",".join(f"{{lora.rank: {t['rank']}, optim.lr: {t['lr']!r}}}" for t in trained)
    rungs = [10, 30] if setting == "long" else [1, steps]
    ours = [
        *(
            "run",
            "task=classification",
            f"precision={precision}",
            "model=local",
            f"model.path={model}",
            "data=csv",
            f"data.train={files['train']}",
        ),
        *(f"data.validation={files['validation']}", f"data.max_length={tokens}", "lora.targets=query+value"),
        *("space=lora", "~space.lora.alpha_rule", "space.optim.lr={low: 1e-5, high: 1e-2, log: true}"),
        *("objective=single", "bias=none", "baselines=[]", "train.batch_size=8", f"train.max_steps={steps}"),
        *("optim.warmup=0", f"eval.rung_items={rows}", "eval.batch_size=64", f"search.trials={trials}"),
        *(f"search.start_from=[{points}]", f"sweep.dir={folder}/runs"),
    ]
    plan = ["scheduler=fifo", f"train.rungs=[{steps}]"]
    if asha:
        plan = [f"train.rungs={rungs}".replace(" ", ""), f"scheduler.grace_period={rungs[0]}"]
        plan += [f"scheduler.reduction_factor={rungs[1] // rungs[0]}"]
    return {
        "plain script": [sys.executable, str(HERE / "plain_tune.py"), *shared],
        "lorasweep": [str(Path(sys.executable).with_name("lorasweep")), *ours, *plan],
        "bare loop": [sys.executable, str(HERE / "bare_loop.py"), *shared],
    }


def run(name: str, command: list[str], number: int, folder: Path) -> dict[str, Any]:
    """Wall and CPU seconds of a whole command (the machine's, as Ray's processes outlive their parents), accuracies."""
    if name == "lorasweep":
        command = [*command, f"sweep.name=run{number}"]
    before = busy()
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    wall = time.perf_counter() - began
    cpu = busy() - before
    if done.returncode:
        sys.stderr.write(done.stdout[-3000:] + done.stderr[-3000:])
        raise SystemExit(f"{name} failed with exit status {done.returncode}")
    if name == "lorasweep":
        found = accuracies(folder, number)
    else:
        found = sorted((round(t["accuracy"], 3) for t in json.loads(done.stdout.splitlines()[-1])), reverse=True)
    return {"wall": wall, "cpu": cpu, "accuracies": found}


def busy() -> float:
    """CPU seconds of all processes since the machine started."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def accuracies(folder: Path, number: int) -> list[float]:
    """Of ours, best first."""
    with (folder / "runs" / f"run{number}" / "leaderboard.csv").open() as file:
        return [round(float(row["accuracy"]), 3) for row in csv.DictReader(file) if row["accuracy"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=SETTINGS, default="long")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--asha", action="store_true", help="ours with early stopping; the others have none")
    parser.add_argument("--tokens", type=int, default=64, help="of a row at most")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of all three")
    parser.add_argument("--only", help="names to run, joined by a comma")
    parser.add_argument("overrides", nargs="*", help="more overrides for ours")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-sweep-") as name:
        folder = Path(name)
        todo = commands(options.setting, folder, options.asha, options.tokens, options.precision)
        todo["lorasweep"] += options.overrides
        if options.only:
            todo = {kind: todo[kind] for kind in options.only.split(",")}
        times: dict[str, list[dict[str, Any]]] = {kind: [] for kind in todo}
        for number in range(options.repeat):
            for kind, command in todo.items():
                times[kind].append(run(kind, command, number, folder))
                print(json.dumps({"run": number, "kind": kind, **times[kind][-1]}), flush=True)
        told = f"{options.setting} in {options.precision}{' with ASHA' if options.asha else ''}"
        print(f"\n{told}: medians of {options.repeat}")
        medians = {kind: statistics.median(t["wall"] for t in runs) for kind, runs in times.items()}
        for kind, wall in medians.items():
            cpu = statistics.median(t["cpu"] for t in times[kind])
            of = "  ".join(f"{wall / other:.2f} of {what}" for what, other in medians.items() if what != kind)
            print(f"{kind:14}{wall:8.1f} s wall{cpu:8.1f} s CPU  {of}")


if __name__ == "__main__":
    main()
