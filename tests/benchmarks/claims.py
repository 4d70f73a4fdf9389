"""Do the claims of a ranking hold? Coverage of intervals, correction of the best, and who is named the winner.

    make bench-claims                           all of it
    make bench-claims BENCH="--quick"           a tenth of the samples: whether it runs, not what it says
    make bench-claims BENCH="coverage chosen"   some of it

Made-up item tables with a known truth go through the code that ranks sweeps (`side_by_side`, `figures` and `judge` of
`analysis/statistics/comparison.py`) with the objectives that ship. The truth of a metric is its value over a very large
sample. Answers of trials on an item are alike as those of fine-tunes of one model are: most of what makes an item hard
is hard for all. Prints the tables of BENCHMARKS.md.
"""

import argparse
import math
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.folder import SweepFolder
from analysis.objective import Objective
from analysis.rows import Row
from analysis.statistics.comparison import figures, judge, side_by_side
from analysis.statistics.estimators import ESTIMATORS, scores
from analysis.statistics.items import align

SIZES = (50, 100, 160, 400, 1000)
SHARES = {
    "4 equal": (0.25,) * 4,
    "8 skewed": tuple(share / 100 / 1.01 for share in (52, 29, 5, 5, 4, 3, 2, 1)),
    "90/8/2": (0.90, 0.08, 0.02),
}
ACCURACIES = (0.6, 0.9)
ALIKE = 0.6  # share of what decides whether an item is answered rightly that all trials have in common
TASK_METRICS = (
    "accuracy", "macro_f1", "balanced_accuracy", "mcc", "log_loss", "brier", "ece",
    "perplexity", "completion_perplexity", "bits_per_byte",
)  # fmt: skip
UNLABELLED = ("completion_loss", "perplexity", "completion_perplexity", "bits_per_byte")
BIAS = (
    "bias.crows_pairs.pct", "bias.crows_pairs.distance", "bias.crows_pairs.signed", "bias.crows_pairs.abs",
    "bias.stereoset.ss", "bias.stereoset.lms", "bias.stereoset.icat", "bias.bbq.s_dis", "bias.bbq.s_amb",
    "bias.bbq.accuracy", "bias.swap.flip_rate", "bias.swap.gap",
)  # fmt: skip
Tables = dict[str, pa.Table]


@dataclass(frozen=True)
class World:
    """Where items come from.

    Attributes:
        shares: of the classes; empty for rows without labels.
        accuracy: of the trials, in each class.
        uneven: standard deviation of the logarithm of a row's loss a token.
    """

    shares: tuple[float, ...] = ()
    accuracy: tuple[float, ...] = (0.8,)
    uneven: float = 0.4

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(f"class {i}" for i in range(len(self.shares)))

    def truths(self) -> dict[str, np.ndarray]:
        """Accuracy and macro-F1 of each trial: a wrong answer is any other class alike."""
        classes = len(self.shares)
        f1 = []
        for accuracy in self.accuracy:
            wrong = (1 - accuracy) / (classes - 1)
            confusion = np.array(self.shares)[:, None] * np.where(np.eye(classes, dtype=bool), accuracy, wrong)
            f1.append((2 * np.diag(confusion) / (confusion.sum(axis=0) + confusion.sum(axis=1))).mean())
        return {"accuracy": np.array(self.accuracy), "macro_f1": np.array(f1)}

    def draw(self, rng: np.random.Generator, n: int) -> dict[str, list[pa.Table]]:
        """Data set → an item table of each trial, over the same items."""
        from scipy.special import ndtri

        hard = rng.standard_normal(n)
        tokens = np.ceil(np.exp(rng.normal(4.0, 0.8, n)))
        common = rng.normal(0.5, self.uneven, n)
        ids = pa.array([f"i{i}" for i in range(n)])
        task = []
        gold = rng.choice(len(self.shares), size=n, p=self.shares) if self.shares else None
        mistake = rng.integers(1, len(self.shares), n) if self.shares else None
        for accuracy in self.accuracy:
            loss = tokens * np.exp(common + 0.1 * rng.standard_normal(n))
            columns: dict[str, Any] = {"item_id": ids, "nll": loss, "n_tokens": tokens, "n_bytes": 4 * tokens}
            columns |= {"completion_nll": loss / 4, "completion_tokens": np.ceil(tokens / 4)}
            if gold is not None and mistake is not None:
                classes = len(self.shares)
                own = math.sqrt(ALIKE) * hard + math.sqrt(1 - ALIKE) * rng.standard_normal(n)
                other = np.where(rng.random(n) < ALIKE, mistake, rng.integers(1, classes, n))
                told = np.where(own < ndtri(accuracy), gold, (gold + other) % classes)
                logits = rng.normal(0.0, 0.7, (n, classes))
                sure = np.where(told == gold, 0.3, 0.1) + rng.exponential(1.5, n)
                logits[np.arange(n), told] = logits.max(axis=1) + sure
                logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
                columns["completion_nll"] = -logprobs[np.arange(n), gold]
                columns["completion_tokens"] = np.ones(n)
                names = pa.array(self.labels)
                columns["label"], columns["prediction"] = (names.take(pa.array(x)) for x in (gold, told))
                columns["logprobs"] = lists(logprobs)
            task.append(pa.table(columns))
        apart = rng.normal(0.4, 1.0, n)
        pairs = [np.stack([apart + rng.normal(0, 1.0, n) - 40, np.full(n, -40.0)], axis=1) for _ in self.accuracy]
        return {"task": task, "crows_pairs": [pa.table({"item_id": ids, "logprobs": lists(own)}) for own in pairs]}


def draw_bias(rng: np.random.Generator, n: int) -> dict[str, list[pa.Table]]:
    """Item tables of the bias sets of two trials. A term of StereoSet has three contexts; its number is of terms."""
    ids = pa.array([f"i{i}" for i in range(n)])
    triple = pa.array([f"i{i}" for i in range(3 * n)])
    tables: dict[str, list[pa.Table]] = defaultdict(list)
    apart, of_term = rng.normal(0.4, 1.0, n), np.repeat(rng.normal(0.3, 0.5, n), 3)
    labels = np.array(["a", "b", "c"])
    gold, ambiguous = rng.integers(3, size=n), np.arange(n) % 2 == 0
    for _ in range(2):
        for name in ("crows_pairs", "pairs"):
            pair = np.stack([apart + rng.normal(0, 1.0, n) - 40, np.full(n, -40.0)], axis=1)
            tables[name].append(pa.table({"item_id": ids, "logprobs": lists(pair)}))
        fillings = np.stack([of_term, np.zeros(3 * n), np.full(3 * n, -1.5)], axis=1) + rng.normal(0, 1, (3 * n, 3))
        terms = pa.array([f"term {i // 3}" for i in range(3 * n)])
        tables["stereoset"].append(pa.table({"item_id": triple, "target": terms, "logprobs": lists(fillings)}))
        answers = rng.normal(0, 1, (n, 3)) + np.array([0.3, 0.0, 0.6]) * ambiguous[:, None]
        answers[~ambiguous, 0] += 1.0
        columns = {"item_id": ids, "condition": pa.array(np.where(ambiguous, "ambig", "disambig").tolist())}
        columns |= {"label": pa.array(np.where(ambiguous, 2, gold % 2)), "biased": pa.array(np.zeros(n, dtype=int))}
        tables["bbq"].append(pa.table({**columns, "unknown": pa.array(np.full(n, 2)), "logprobs": lists(answers)}))
        before = rng.normal(0, 1.0, (n, 3)) + 2.0 * np.eye(3)[gold]
        after = before + rng.normal(0, 0.5, (n, 3))
        both = [values - np.log(np.exp(values).sum(axis=1, keepdims=True)) for values in (before, after)]
        columns = {"item_id": ids, "label": pa.array(labels[gold].tolist())}
        columns["prediction"] = pa.array(labels[before.argmax(1)].tolist())
        tables["swap"].append(pa.table({**columns, "logprobs": lists(both[0]), "swapped_logprobs": lists(both[1])}))
    return dict(tables)


def lists(values: np.ndarray) -> pa.Array:
    """(items, width) as a column of lists."""
    ends = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values.ravel()))


Draw = Callable[[np.random.Generator, int], dict[str, list[pa.Table]]]


@cache
def truths(draw: Draw, metrics: tuple[str, ...], labels: tuple[str, ...], n: int = 20_000, times: int = 30) -> Any:
    """Metric → (trials,) values over very many items."""
    sums: dict[str, Any] = {}
    units: dict[str, int] = {}
    for at in range(times):
        tables = {name: align(given) for name, given in draw(np.random.default_rng([7, at]), n).items()}
        for name in metrics:
            columns = ESTIMATORS[name].columns(tables[ESTIMATORS[name].dataset], labels)
            sums[name] = sums.get(name, 0.0) + columns.sum(axis=1, dtype=np.float64)
            units[name] = units.get(name, 0) + columns.shape[1]
    return {name: ESTIMATORS[name].value(sums[name], np.array(float(units[name]))) for name in metrics}


@cache
def objective(name: str, task: str, schema: str = "label", bias: str = "fast") -> Objective:
    """One that ships, as a sweep of that task has it."""
    from sweeps.compose.compose import compose

    data = [f"data.schema={schema}"] if schema != "label" else []
    return compose([f"objective={name}", f"task={task}", f"bias={bias}", *data]).objective


def rows_of(metrics: Any, number: int) -> list[Row]:
    return [
        Row("trial", f"t{i:04}", "completed", 1, 0, True, metrics={k: float(v[i]) for k, v in metrics.items()})
        for i in range(number)
    ]


def compared(
    tables: dict[str, list[pa.Table]], metrics: Sequence[str], goal: Objective, labels: Sequence[str], by: str | None,
    order: Sequence[int] | None = None, **more: Any,
) -> Any:  # fmt: skip
    """What a ranking computes of item tables, without its tests."""
    number = len(next(iter(tables.values())))
    named = {
        dataset: {f"t{i:04}": table for i, table in enumerate(given)}
        for dataset, given in tables.items()
        if any(ESTIMATORS[metric].dataset == dataset for metric in metrics)
    }
    rows = rows_of({}, number)
    rows = [rows[i] for i in order] if order is not None else rows
    scored, labels = side_by_side(rows, named, metrics, goal, labels, by)
    return figures(scored, labels, by, **more)


@dataclass
class Count:
    """Intervals of one cell."""

    samples: int = 0
    printed: int = 0
    covering: int = 0
    apart_printed: int = 0
    apart_covering: int = 0

    def add(self, found: Any, truth: float, apart: float) -> None:
        self.samples += 1
        if math.isfinite(found.low[0]):
            self.printed += 1
            self.covering += bool(found.low[0] - 1e-9 <= truth <= found.high[0] + 1e-9)
        if math.isfinite(found.behind_low[1]):
            self.apart_printed += 1
            self.apart_covering += bool(found.behind_low[1] - 1e-9 <= apart <= found.behind_high[1] + 1e-9)


Job = tuple[str, Any, int, int, int]  # kind, setting, n, samples, seed


def coverage_of(job: Job) -> dict[tuple[str, Any, int], Count]:
    """One cell: (what ranks, setting, n) → its intervals."""
    kind, setting, n, samples, seed = job
    rng = np.random.default_rng([seed, n])
    goals: dict[str, Objective] = {}
    if kind == "bias":
        draw, metrics, labels = draw_bias, BIAS, ("a", "b", "c")
    elif kind == "unlabelled":
        world = World(accuracy=(0.0, 0.0), uneven=setting)
        draw, metrics, labels = world.draw, (*UNLABELLED, "bias.crows_pairs.distance"), ()
        schemas = {"completion": ("balanced", "single"), "text": ("balanced", "single")}
        goals = {
            f"{name}, {schema}": objective(name, "completion", schema)
            for schema, some in schemas.items()
            for name in some
        }
    else:
        share, accuracy = setting
        world = World(SHARES[share], (accuracy, accuracy - 0.03))
        draw, metrics, labels = world.draw, (*TASK_METRICS, "bias.crows_pairs.distance"), world.labels
        goals = {"balanced, classification": objective("balanced", "classification")}
        goals |= {f"{name}, completion": objective(name, "completion") for name in
                  ("balanced", "single", "guarded", "pareto", "quality_first")}  # fmt: skip
    truth = truths(draw, metrics, labels)
    counts: dict[tuple[str, Any, int], Count] = defaultdict(Count)
    single = Objective("", 0.0, ())
    for _ in range(samples):
        tables = draw(rng, n)
        for name in metrics:
            if name == "bias.crows_pairs.distance" and kind != "bias":
                continue
            better = {"high": 1.0, "low": -1.0}.get(str(metric_better(name)))
            values = truth[name] * better if better else -abs(truth[name] - float(metric_better(name)))
            found = compared(tables, [name], single, labels, name)
            counts[name, setting, n].add(found, truth[name][0], values[0] - values[1])
        for name, goal in goals.items():
            found = compared(tables, [term.metric for term in goal.terms], goal, labels, None)
            number = scores(goal, truth)
            counts[name, setting, n].add(found, float(number[0]), float(number[0] - number[1]))
    return dict(counts)


def metric_better(name: str) -> Any:
    from analysis.metrics import METRICS

    return METRICS[name].better


def run(work: Callable[[Any], Any], jobs: Sequence[Any], processes: int) -> Iterable[Any]:
    if processes == 1:
        return map(work, jobs)
    with get_context("spawn").Pool(processes) as pool:
        return pool.map(work, jobs, chunksize=1)


def percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else "–"


def coverage(samples: int, processes: int, kinds: Sequence[str] = ("task", "unlabelled", "bias")) -> None:
    """Shares of the intervals that have the truth inside, and how many are printed."""
    settings: dict[str, list[Any]] = {
        "task": [(share, accuracy) for share in SHARES for accuracy in ACCURACIES],
        "unlabelled": [0.3, 0.6],
        "bias": [""],
    }
    jobs = [(kind, setting, n, samples, i) for i, (kind, setting) in
            enumerate((kind, setting) for kind in kinds for setting in settings[kind]) for n in SIZES]  # fmt: skip
    counts: dict[Any, Count] = {}
    for found in run(coverage_of, jobs, processes):
        counts |= found
    print("\n| what ranks | items | " + " | ".join(f"n = {n}" for n in SIZES) + " |")
    print("|---|---|" + "---|" * len(SIZES))
    for name, setting in dict.fromkeys((name, setting) for name, setting, _ in counts):
        cells = []
        for n in SIZES:
            at = counts[name, setting, n]
            cell = "none" if at.printed < 0.02 * at.samples or at.printed < 20 else (
                f"{percent(at.covering, at.printed)}, {percent(at.apart_covering, at.apart_printed)}"
            )  # fmt: skip
            shown = f" ({percent(at.printed, at.samples)} %)" if cell != "none" and at.printed < at.samples else ""
            cells.append(cell + shown)
        where = f"{setting[0]}, accuracy {setting[1]}" if isinstance(setting, tuple) else f"{setting}"
        print(f"| {name} | {where} | " + " | ".join(cells) + " |", flush=True)
    whole = [at for at in counts.values() if at.printed >= max(20, 0.02 * at.samples)]
    for title, shares in (
        ("the figure", [at.covering / at.printed for at in whole]),
        ("the difference", [at.apart_covering / at.apart_printed for at in whole if at.apart_printed]),
    ):
        inside = sum(0.93 <= share <= 0.97 for share in shares)
        print(f"{title}: {inside} of {len(shares)} cells in 93 to 97 %, from {min(shares):.3f} to {max(shares):.3f},"
              f" mean {np.mean(shares):.3f}")  # fmt: skip


CHOICES: dict[str, tuple[float, ...]] = {
    "8 equal": (0.8,) * 8,
    "32 equal": (0.8,) * 32,
    "60 equal": (0.8,) * 60,
    "32, 8 copies of each of 4": (0.8,) * 4,
    "8, one better by 5 points": (0.85, *(0.8,) * 7),
    "32, one better by 5 points": (0.85, *(0.8,) * 31),
    "32, normal, 2 points apart": tuple(0.8 + 0.02 * x for x in np.random.default_rng(3).standard_normal(32)),
}


def chosen_of(job: tuple[str, str, int, int]) -> Any:
    """(samples, 3 figures, 3): shown and corrected minus the truth of the chosen trial, and whether it is covered."""
    choice, share, n, samples = job
    goal = objective("balanced", "classification")
    world = World(SHARES[share], CHOICES[choice])
    names = ("accuracy", "macro_f1")
    truth = world.truths()
    rng, found = np.random.default_rng(n), []
    for _ in range(samples):
        tables = world.draw(rng, n)
        task, at = tables["task"], {name: truth[name] for name in names}
        if "copies" in choice:
            task, at = [table for table in task for _ in range(8)], {k: np.repeat(v, 8) for k, v in at.items()}
        aligned = align(task)
        values = {
            name: ESTIMATORS[name].value(
                ESTIMATORS[name].columns(aligned, world.labels).sum(axis=1, dtype=np.float64), np.array(float(n))
            )
            for name in names
        }
        order = np.argsort(-scores(goal, values), kind="stable")
        got = compared({"task": task}, names, goal, world.labels, None, order, trials=range(len(task)))
        if not math.isfinite(got.low[0]):
            continue  # a label has too few items: nothing is printed
        best = order[0]
        right = {**{k: v[best] for k, v in at.items()}, "objective": scores(goal, at)[best]}
        shown = {**{k: v[best] for k, v in values.items()}, "objective": scores(goal, values)[best]}
        covered = got.low[0] <= right["objective"] <= got.high[0]
        found.append([(shown[k] - right[k], shown[k] - got.optimism[k] - right[k], covered) for k in right])
    return np.array(found, dtype=float).reshape(-1, 3, 3)


def chosen(samples: int, processes: int) -> None:
    """What the best shows beyond the truth, and what is left of that after the correction."""
    jobs = [(choice, share, n, samples) for choice in CHOICES for share, n in
            (("4 equal", 100), ("4 equal", 400), ("8 skewed", 400), ("8 skewed", 1000), ("90/8/2", 400))]  # fmt: skip
    print(
        "\n| chosen among | classes, items | accuracy: shown, corrected | macro-F1 | objective | own interval covers |"
    )
    print("|---|---|---|---|---|---|")
    worst = 0.0
    for (choice, share, n, _), got in zip(jobs, run(chosen_of, jobs, processes), strict=True):
        if len(got) < 20:
            print(f"| {choice} | {share}, {n} | none | none | none | none |")
            continue
        mean, error = 100 * got.mean(axis=0), 100 * got[:, :, 1].std(axis=0) / math.sqrt(len(got))
        worst = max(worst, float(abs(mean[:, 1]).max()))
        cells = [f"{m[0]:+.2f}, **{m[1]:+.2f}** ± {e:.2f}" for m, e in zip(mean, error, strict=True)]
        print(f"| {choice} | {share}, {n} | {' | '.join(cells)} | {mean[2, 2]:.1f} % |", flush=True)
    print(f"corrected minus the truth, in points (± standard error of the simulation); the largest: {worst:.2f}")


def stopped(samples: int, processes: int) -> None:
    """60 trials, of which the 15 best on the rung subset complete: with and without counting those left behind."""
    print("\n| items, of them at rungs | shown | corrected as if 15 were all | corrected |\n|---|---|---|---|")
    for (n, rung), got in zip(
        ((160, 64), (400, 128), (1000, 256)),
        run(stopped_of, [(n, rung, samples) for n, rung in ((160, 64), (400, 128), (1000, 256))], processes),
        strict=True,
    ):
        mean, error = 100 * got.mean(axis=0), 100 * got.std(axis=0) / math.sqrt(len(got))
        print(f"| {n}, {rung} | " + " | ".join(f"{m:+.2f} ± {e:.2f}" for m, e in zip(mean, error, strict=True)) + " |")


def stopped_of(job: tuple[int, int, int]) -> Any:
    n, rung, samples = job
    goal = objective("balanced", "classification")
    world = World(SHARES["4 equal"], (0.8,) * 60)
    names = ("accuracy", "macro_f1")
    truth = float(scores(goal, {name: given[0] for name, given in world.truths().items()}))
    rng, found = np.random.default_rng(n), []
    for _ in range(samples):
        task = world.draw(rng, n)["task"]
        right = np.array([table["prediction"].to_numpy() == table["label"].to_numpy() for table in task])[:, :rung]
        early = np.where(rng.random(right.shape) < 0.7, right, rng.random(right.shape) < 0.8)  # before the last rung
        task = [task[i] for i in np.argsort(-early.mean(axis=1))[:15]]
        columns = {name: ESTIMATORS[name].columns(align(task), world.labels).sum(axis=1, dtype=float) for name in names}
        values = scores(goal, {name: ESTIMATORS[name].value(own, np.array(float(n))) for name, own in columns.items()})
        order = np.argsort(-values, kind="stable")
        excess = []
        for left in (0, 45):
            got = compared(
                {"task": task},
                names,
                goal,
                world.labels,
                None,
                order,
                trials=range(15),
                left_behind=left,
                part=rung / n,
            )
            excess.append(got.optimism["objective"])
        found.append([values[order[0]] - truth - off for off in (0.0, *excess)])
    return np.array(found)


def folder_of(
    root: Path, world: World, rng: np.random.Generator, n: int, goal: Objective
) -> tuple[SweepFolder, list[Row]]:
    """A sweep folder with the item tables of completed trials, and their rows, the best first."""
    folder, rows = SweepFolder(root), []
    tables = world.draw(rng, n)
    for i, table in enumerate(tables["task"]):
        files = folder.trial(f"t{i:04}")
        files.write_items("task", "validation", 1, table.to_pydict())
        sums = {
            name: ESTIMATORS[name].columns(align([table]), world.labels).sum(axis=1, dtype=float)
            for name in ("accuracy", "macro_f1")
        }
        metrics = {k: float(ESTIMATORS[k].value(v, np.array(float(n)))[0]) for k, v in sums.items()}
        rows.append(Row("trial", files.trial_id, "completed", 1, n, True, {"i": i}, metrics, goal.score(metrics)))
    return folder, sorted(rows, key=lambda row: -row.objective)


def named_of(job: tuple[tuple[float, ...], int, int, str | None]) -> bool:
    """Whether a sweep of such trials names a winner, and the first of them."""
    accuracies, n, seed, by = job
    goal, world = objective("balanced", "classification"), World(SHARES["4 equal"], accuracies)
    os.fsync = lambda descriptor: None  # type: ignore[assignment]  # nothing here must survive a crash
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as root:
        folder, rows = folder_of(Path(root), world, np.random.default_rng(seed), n, goal)
        rows = sorted(rows, key=lambda row: -row.metrics[by]) if by else rows
        found = judge(folder, rows, goal, world.labels, by)
        return found is not None and found.winner is not None and (len(set(accuracies)) == 1 or found.winner == "t0000")


def winners(samples: int, processes: int) -> None:
    """How often a winner is named: among equals never, where there is one as often as the items allow."""
    print("\n| trials | items | by the objective | by accuracy |\n|---|---|---|---|")
    for title, accuracies, n in (
        ("32 equal", (0.8,) * 32, 300),
        ("one better by 5 points than 7", (0.85, *(0.8,) * 7), 500),
        ("one better by 5 points than 31", (0.85, *(0.8,) * 31), 500),
        ("one better by 8 points than 31", (0.88, *(0.8,) * 31), 500),
    ):
        cells = []
        for by in (None, "accuracy"):
            named = list(run(named_of, [(accuracies, n, seed, by) for seed in range(samples)], processes))
            cells.append(f"{100 * np.mean(named):.1f} %")
        print(f"| {title} | {n} | {' | '.join(cells)} |", flush=True)


def seeds_of(job: tuple[int, int, int]) -> Any:
    """(samples, 2) whether a configuration's mean, and the difference of two, is covered; and p of the difference."""
    n, seeds, samples = job
    goal, rng, found = objective("single", "classification"), np.random.default_rng([n, seeds]), []
    for _ in range(samples):
        configurations = 6
        of_runs = np.clip(0.8 + 0.02 * rng.standard_normal(configurations * seeds), 0.0, 1.0)
        world = World(SHARES["4 equal"], tuple(of_runs))
        tables = world.draw(rng, n)["task"]
        runs = [Row("trial", f"t{i:04}", "completed", 1) for i in range(len(tables))]
        rows = [replace(runs[c * seeds], seeds=tuple(runs[c * seeds : (c + 1) * seeds])) for c in range(configurations)]
        named = {"task": {f"t{i:04}": table for i, table in enumerate(tables)}}
        scored, labels = side_by_side(rows, named, ["accuracy"], goal, world.labels, "accuracy")
        got = figures(scored, labels, "accuracy")
        found.append((got.low[0] <= 0.8 <= got.high[0], got.behind_low[1] <= 0.0 <= got.behind_high[1]))
    return np.array(found, dtype=float)


def seeds(samples: int, processes: int) -> None:
    """Configurations of several seeds: their mean over items and seeds, a seed's accuracy varying by 2 points."""
    jobs = [(n, k, samples) for n in (160, 400, 1000) for k in (2, 3)]
    print("\n| items | seeds | mean covered | difference of two covered |\n|---|---|---|---|")
    for (n, k, _), got in zip(jobs, run(seeds_of, jobs, processes), strict=True):
        print(f"| {n} | {k} | {100 * got[:, 0].mean():.1f} % | {100 * got[:, 1].mean():.1f} % |")


PARTS: dict[str, tuple[Callable[[int, int], None], int]] = {
    "coverage": (coverage, 1000),
    "chosen": (chosen, 200),
    "stopped": (stopped, 300),
    "winners": (winners, 200),
    "seeds": (seeds, 1000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="a tenth of the samples")
    parser.add_argument("--share", type=float, default=1.0, help="of the samples")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    for part in given.parts:
        work, samples = PARTS[part]
        samples = max(10, round(samples * given.share * (0.1 if given.quick else 1.0)))
        began = time.monotonic()
        print(f"\n## {part}: {samples} samples a cell", flush=True)
        work(samples, given.processes)
        print(f"({time.monotonic() - began:.0f} s on {given.processes} processes)", flush=True)


if __name__ == "__main__":
    main()
