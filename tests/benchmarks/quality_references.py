"""What a careful expert reaches on each task of the suite: a grid of rates, ranks and head rates, and long trials.

    python -m tests.benchmarks.quality_references TASK [TASK …] [--out references] [--threads 1]

Each is a sweep with everything named (``command``); the trial that it ranks first is scored once on the test split. The
config, its figures and what it says of each test row go to ``quality_references.json``, which ``quality.py`` compares
with. All of them take some hours.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks import quality_scoring, quality_tasks

FILE = Path(__file__).with_suffix(".json")
VALIDATION = 0.2  # share of the training rows
BATCH = 16  # rows of a step


@dataclass(frozen=True)
class Grid:
    """The search of one task.

    Attributes:
        epochs: of a trial that is not stopped.
        grace: epochs before a trial can be stopped by the median rule.
        max_length: tokens of a row.
        rates: peak learning rates.
        ranks: of the adapter, on all linear layers, with the factor 6 / √rank.
        head_ratios: rates of the head over those of the adapter; none where there is no head.
    """

    epochs: int
    grace: int
    max_length: int
    rates: tuple[float, ...]
    ranks: tuple[int, ...]
    head_ratios: tuple[float, ...] = ()

    @property
    def trials(self) -> int:
        return len(self.rates) * len(self.ranks) * max(1, len(self.head_ratios))


_RATIOS = (1, 5, 20)
GRIDS = {
    "newsgroups8": Grid(6, 2, 256, (5e-4, 1e-3, 2e-3), (16,), _RATIOS),
    "hardware": Grid(8, 3, 256, (5e-4, 1e-3, 2e-3), (16,), _RATIOS),
    "boolq": Grid(6, 2, 256, (5e-4, 1e-3, 2e-3), (16,), _RATIOS),
    "pubmedqa": Grid(5, 2, 512, (5e-4, 1e-3, 2e-3), (16,), _RATIOS),
    "privacy": Grid(12, 3, 128, (5e-4, 1e-3, 2e-3), (16,), _RATIOS),
    "subjects": Grid(10, 3, 64, (5e-4, 1e-3, 2e-3), (8, 32), _RATIOS),
    "topics6": Grid(6, 2, 64, (5e-4, 1e-3, 2e-3, 4e-3), (8, 32)),
    "tweets": Grid(6, 2, 96, (5e-4, 1e-3, 2e-3, 4e-3), (16,)),
}


def command(name: str, rows: int, threads: int) -> list[str]:
    """The words of `lorasweep run`, without where its folder is.

    Args:
        name: of the task.
        rows: of its train.csv.
        threads: of the worker.
    """
    grid, model = GRIDS[name], quality_tasks.TASKS[name].model
    steps = math.ceil(rows * (1 - VALIDATION) / BATCH)  # of an epoch
    rungs = [steps * epoch for epoch in range(1, grid.epochs + 1)]
    return [
        *(f"model={model}", f"task={'completion' if model == 'smollm2' else 'classification'}"),
        *("data=csv", "data.train=train.csv", f"data.split.validation={VALIDATION}"),
        *(f"data.max_length={grid.max_length}", "precision=bf16", "space=lora", "lora.targets=all_linear"),
        *("~space.lora.alpha_rule", "lora.alpha_rule=sqrt", f"space.lora.rank.choices={list(grid.ranks)}"),
        *("~space.optim.lr", f"+space.optim.lr={{choices: {list(grid.rates)}}}"),
        *([f"+space.optim.head_ratio={{choices: {list(grid.head_ratios)}}}"] if grid.head_ratios else []),
        *("sampler=grid", f"search.trials={grid.trials}", "search.start_from=[]", "search.time=null"),
        *("scheduler=median", f"scheduler.grace_period={grid.grace * steps}", "scheduler.min_samples_required=2"),
        *(f"train.batch_size={BATCH}", f"train.max_steps={rungs[-1]}", f"train.rungs={rungs}".replace(" ", "")),
        *("eval.rung_items=1000", "objective=single", "bias=none", "baselines=[]", "tracking=none"),
        f"resources.threads={threads}",
    ]


def reference(name: str, checksum: str) -> list[str] | None:
    """What the reference says of each test row; None where there is none for these rows.

    Args:
        name: of the task.
        checksum: of its files.
    """
    kept = json.loads(FILE.read_text()).get(name) if FILE.exists() else None
    if kept is None or kept["checksum"] != checksum:
        return None
    return [kept["labels"][int(code)] for code in kept["said"]]


def record(name: str, folder: Path, run: Path, words: list[str]) -> dict[str, Any]:
    """Score the best of a sweep on the test split, and keep it in the file.

    Args:
        name: of the task.
        folder: with train.csv and test.csv.
        run: the sweep's folder.
        words: that it was run with.
    """
    from analysis.folder import State, SweepFolder
    from analysis.leaderboard import leaderboard
    from sweeps.export import export

    adapter = folder / "reference-adapter"
    shutil.rmtree(adapter, ignore_errors=True)
    sweep = SweepFolder.open(str(run))
    rows = leaderboard.ranked(sweep).rows
    first = max((row for row in rows if row.status == State.COMPLETED), key=lambda row: row.objective)
    export(str(run), first.trial_id, str(adapter), merge=False)
    card = json.loads((adapter / "lorasweep.json").read_text())
    texts, truth = quality_tasks.read(folder / "test.csv")
    said = quality_scoring.predictions(adapter, texts)
    trial = sweep.trial(first.trial_id)
    entry = {
        "checksum": quality_tasks.checksum(folder),
        "command": words,
        "trials": len(rows),
        "chosen": _point(trial.config_file.read_text()),
        "best_step": first.step,
        "validation": {metric: card["metrics"][metric] for metric in ("accuracy", "macro_f1")},
        "test": quality_scoring.figures(truth, said),
        "labels": card["labels"],
        "said": "".join(str(card["labels"].index(label)) for label in said),
    }
    kept = json.loads(FILE.read_text()) if FILE.exists() else {}
    FILE.write_text(json.dumps({**kept, name: entry}, indent=1, sort_keys=True) + "\n")
    return entry


def _point(config: str) -> dict[str, Any]:
    from analysis import fast_yaml

    found = fast_yaml.load(config)
    return {"lora.rank": found["lora"]["rank"]} | {
        f"optim.{name}": found["optim"][name] for name in ("lr", "head_ratio") if name in found["optim"]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", metavar="TASK", choices=list(GRIDS))
    parser.add_argument("--out", type=Path, default=Path("references"), help="folder of data and sweeps")
    parser.add_argument("--threads", type=int, default=1, help="of the device worker")
    given = parser.parse_args()
    quality_scoring.quiet()
    for name in given.tasks:
        folder = quality_tasks.write(name, given.out.absolute())
        words = command(name, len(quality_tasks.read(folder / "train.csv")[0]), given.threads)
        place = [f"sweep.dir={folder}", "sweep.name=run"]
        subprocess.run([sys.executable, "-m", "sweeps.cli", "run", *words, *place], cwd=folder, check=True)
        entry = record(name, folder, folder / "run", words)
        print(f"{name}: {entry['chosen']}, test {entry['test']}", flush=True)


if __name__ == "__main__":
    main()
