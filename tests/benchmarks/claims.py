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
    def labels(self) -> list[str]:
        return [f"class {i}" for i in range(len(self.shares))]

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


def truths(draw: Draw, metrics: Sequence[str], labels: Sequence[str], n: int = 20_000, times: int = 15) -> Any:
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
        draw, metrics, labels = draw_bias, BIAS, ["a", "b", "c"]
    elif kind == "unlabelled":
        world = World(accuracy=(0.0, 0.0), uneven=setting)
        draw, metrics, labels = world.draw, (*UNLABELLED, "bias.crows_pairs.distance"), []
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
        "task": [(share, accuracy) for share in SHARES for accuracy in ACCURACIES], "unlabelled": [0.3, 0.6], "bias": [""]
    }  # fmt: skip
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
