"""Is the default a good one? The default command on real tasks, against two baselines and an expert's reference.

    make bench-quality BENCH="--tasks newsgroups8,privacy --out quality search.time=15m"

For each task: `lorasweep run model=M data=csv data.train=train.csv data.test=test.csv` with the OVERRIDEs given and
nothing else. Then the trial that the sweep ranks first is exported, and plain transformers and PEFT score it on
test.csv, which nothing chose by. Beside it: word counts (linear), logistic regression on the frozen model, and the
reference of `quality_references.py`, with a paired bootstrap interval of the difference. A task whose result.json is in
the folder is not run again.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.benchmarks import quality_scoring, quality_tasks
from tests.benchmarks.quality_references import reference
from trainer.assets.packages import fetch

LORASWEEP = [sys.executable, "-m", "sweeps.cli"]
HERE = Path(__file__).resolve().parents[2]  # so that the code that is run is the one beside this script
METRICS = ("accuracy", "macro_f1")
_FROZEN_LENGTH = 256  # tokens: where all-MiniLM-L6-v2 was trained to end


def lorasweep(words: list[str], folder: Path) -> str:
    """Run a command in a folder. Returns what it printed; SystemExit where it failed."""
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    done = subprocess.run([*LORASWEEP, *words], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.stderr.write(done.stdout[-3000:] + done.stderr[-3000:])
        raise SystemExit(f"lorasweep {' '.join(words)}: exit status {done.returncode}")
    return done.stdout


def measure(name: str, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Everything of one task.

    Args:
        name: of the task.
        folder: where it is run: train.csv, test.csv, runs/.
        overrides: beside model and data.
    """
    task = quality_tasks.TASKS[name]
    texts, labels = quality_tasks.read(folder / "train.csv")
    tests, truth = quality_tasks.read(folder / "test.csv")
    quality_scoring.quiet()
    words = [f"model={task.model}", "data=csv", "data.train=train.csv", "data.test=test.csv", *overrides]
    foretold = json.loads(lorasweep(["check", "--json", *words], folder))["estimate"]
    began = time.perf_counter()
    printed = lorasweep(["run", *words], folder)
    wall = time.perf_counter() - began
    runs = sorted((folder / "runs").iterdir())
    if len(runs) != 1:
        raise SystemExit(
            f"{folder / 'runs'}: {len(runs)} sweeps, expected one. Delete the folder, or take another --out."
        )
    lorasweep(["export", str(runs[0]), "--to", "adapter"], folder)
    ranking = json.loads(lorasweep(["rank", str(runs[0]), "--json"], folder))
    said = {
        "sweep": quality_scoring.predictions(folder / "adapter", tests),
        "linear": quality_scoring.linear(texts, labels, tests),
        "frozen": quality_scoring.frozen(fetch(task.model, print), _FROZEN_LENGTH, texts, labels, tests),
    }
    expert = reference(name, quality_tasks.checksum(folder))
    if expert:
        said["reference"] = expert
    return {
        "task": name,
        "model": task.model,
        "command": ["run", *words],
        "rows": [len(texts), len(tests)],
        "wall_seconds": wall,
        "foretold_seconds": foretold["seconds"],
        "completed": sum(row["kind"] == "trial" and row["status"] == "completed" for row in ranking),
        "trials": sum(row["kind"] == "trial" for row in ranking),
        "test": {who: quality_scoring.figures(truth, theirs) for who, theirs in said.items()},
        "difference": {m: quality_scoring.difference(truth, said["sweep"], expert, m) for m in METRICS}
        if expert
        else None,
        "verdict": verdict(printed),
        "card": json.loads((folder / "adapter" / "lorasweep.json").read_text()),
    }


def verdict(printed: str) -> str:
    """The sentences between the ranking, with its remarks on trials, and the results' place, as `run` printed them."""
    ranking = re.split(r"(?m)^ *# trial", printed)[-1]
    below = ranking.split("\nResults:")[0].strip().split("\n\n")[1:]
    return re.sub(r"\s+", " ", " ".join(part for part in below if not re.match(r"t\d{4}\S*: ", part)))


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: a row for each task, figures in per cent."""
    head = [
        "task, model",
        "rows, train + test",
        *("sweep", "linear", "frozen", "reference"),
        "sweep - reference [95 %]",
    ]
    head += ["minutes", "foretold", "completed"]
    lines = [head, ["---"] * len(head)]
    for result in results:
        shown = [_pair(result["test"].get(who)) for who in ("sweep", "linear", "frozen", "reference")]
        gaps = "; ".join(_gap(result, metric) for metric in METRICS) if result["difference"] else "no reference"
        lines.append(
            [
                f"{result['task']}, {result['model']}",
                " + ".join(f"{n:,}" for n in result["rows"]),
                *shown,
                gaps,
                f"{result['wall_seconds'] / 60:.1f}",
                f"{result['foretold_seconds'] / 60:.1f}",
                f"{result['completed']} of {result['trials']}",
            ]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _pair(figures: dict[str, float] | None) -> str:
    return " · ".join(f"{100 * figures[metric]:.1f}" for metric in METRICS) if figures else "-"


def _gap(result: dict[str, Any], metric: str) -> str:
    ours, theirs = (result["test"][who][metric] for who in ("sweep", "reference"))
    low, high = result["difference"][metric]
    return f"{100 * (ours - theirs):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="OVERRIDE", help="beside model and data, such as search.time=15m"
    )
    parser.add_argument("--tasks", default=",".join(quality_tasks.TASKS), help="names, joined by commas")
    parser.add_argument("--out", type=Path, default=Path("quality"), help="folder of data, sweeps and results")
    given = parser.parse_args()
    results = []
    for name in given.tasks.split(","):
        if name not in quality_tasks.TASKS:
            parser.error(f"--tasks: no task '{name}'. There are: {', '.join(quality_tasks.TASKS)}")
    for name in given.tasks.split(","):
        folder = given.out.absolute() / name
        kept = folder / "result.json"
        if not kept.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a run that did not end
            quality_tasks.write(name, folder.parent)
            kept.write_text(json.dumps(measure(name, folder, given.overrides), indent=1) + "\n")
        results.append(json.loads(kept.read_text()))
        print(f"{name}: {results[-1]['verdict']}", flush=True)
    print("\nAccuracy · macro-F1 on the test split, per cent\n\n" + table(results))


if __name__ == "__main__":
    main()
