"""In sentences, what differs between a sweep whose processes were killed and stopped, and the same one undisturbed."""

import csv
import json
import math
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from analysis.folder import ENDED, SweepFolder, TrialFolder, read_lines
from tests.wandb_server import ServedRun

_OF_ITS_TIMES = re.compile(r"seconds|tokens_per")  # columns of the leaderboard that no two sweeps share


def asked(folder: SweepFolder) -> dict[str, Any]:
    """The values that were suggested, by trial."""
    return {line["trial_id"]: line["values"] for line in read_lines(folder.asks_file) if line["event"] == "ask"}


def tells(folder: SweepFolder) -> Counter[str]:
    """How often the sampler was told of each trial's end."""
    return Counter(line["trial_id"] for line in read_lines(folder.asks_file) if line["event"] == "tell")


def differences(cut: SweepFolder, whole: SweepFolder, rel: float) -> Iterator[str]:
    """Values, curves, states, adapters, ranking, and that each trial was told once.

    Args:
        cut: of the sweep that was disturbed.
        whole: of the one that was not.
        rel: by which metrics and weights may differ; 0: not at all.
    """
    if asked(cut) != asked(whole):
        yield f"values: {_changed(asked(cut), asked(whole))}"
    for line in read_lines(cut.asks_file):  # a trial that is gone on with is asked for again, with its values
        if line["event"] == "ask" and line["values"] != asked(cut)[line["trial_id"]]:
            yield f"{line['trial_id']} was asked for with {line['values']} too"
    if set(tells(cut).values()) != {1} or tells(cut) != tells(whole):
        yield f"told: {tells(cut)} and not {tells(whole)}"
    trials, expected = ({files.trial_id: files for files in folder.trials()} for folder in (cut, whole))
    if list(trials) != list(expected):
        yield f"trials: {list(trials)} and not {list(expected)}"
    for trial_id in [name for name in trials if name in expected]:
        for line in _trial(trials[trial_id], expected[trial_id], rel):
            yield f"{trial_id}: {line}"
    if rel == 0 and (ranking(cut) != ranking(whole)):
        yield f"ranking: {ranking(cut)} and not {ranking(whole)}"
    elif [row["status"] for row in ranking(cut)] != [row["status"] for row in ranking(whole)]:
        yield "ranking: other states"


def ranking(folder: SweepFolder) -> list[dict[str, str]]:
    """The leaderboard without what is of a sweep's own times."""
    if not folder.leaderboard_file.exists():
        return []
    with folder.leaderboard_file.open(newline="") as file:
        return [{k: v for k, v in row.items() if not _OF_ITS_TIMES.search(k)} for row in csv.DictReader(file)]


def _trial(cut: TrialFolder, whole: TrialFolder, rel: float) -> Iterator[str]:
    status, wanted = cut.read_status(), whole.read_status()
    if (status.state, status.step, status.reason) != (wanted.state, wanted.step, wanted.reason):
        yield f"{status} and not {wanted}"
    if cut.checkpoints_dir.exists():
        yield "checkpoints are left"
    rows, those = ([(row.step, row.final, row.n_items, row.tokens) for row in it.read_metrics()] for it in (cut, whole))
    if rows != those:
        yield f"rungs (step, final, items, tokens) {rows} and not {those}"
        return
    for row, that in zip(cut.read_metrics(), whole.read_metrics(), strict=True):
        for name in row.metrics.keys() | that.metrics.keys():
            value, right = row.metrics.get(name), that.metrics.get(name)
            if not _same(value, right, rel):
                yield f"{name} at step {row.step} is {value} and not {right}"
    yield from _adapter(cut.adapter_dir, whole.adapter_dir, rel)


def _adapter(cut: Path, whole: Path, rel: float) -> Iterator[str]:
    names, wanted = ({str(file.relative_to(it)) for file in it.rglob("*")} for it in (cut, whole))
    if names != wanted:
        yield f"the adapter's files are {sorted(names)} and not {sorted(wanted)}"
        return
    for name in sorted(names):
        here, there = cut / name, whole / name
        if name.endswith(".safetensors"):
            tensors, those = load_file(here), load_file(there)
            if tensors.keys() != those.keys():
                yield f"{name} has {sorted(tensors)} and not {sorted(those)}"
            for key in tensors.keys() & those.keys():
                if not _same_weights(tensors[key], those[key], rel):
                    yield f"{key} in {name} differs by {np.abs(tensors[key] - those[key]).max():.3g}"
        elif name == "adapter_config.json":
            settings, those = _adapter_config(here), _adapter_config(there)
            if settings != those:
                yield f"{name}: {_changed(settings, those)}"
        elif here.is_file() and here.read_bytes() != there.read_bytes():
            yield f"{name} of the adapter differs"


def _adapter_config(file: Path) -> dict[str, Any]:
    """PEFT holds the names of modules in a set, whose order is each process's own."""
    settings: dict[str, Any] = json.loads(file.read_text())
    return {name: sorted(value) if name == "target_modules" else value for name, value in settings.items()}


def _same_weights(a: Any, b: Any, rel: float) -> bool:
    if rel == 0:
        return (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes())
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=rel, atol=rel * float(np.abs(b).max() or 1)))


def _same(a: Any, b: Any, rel: float) -> bool:
    if a is None or b is None:
        return a is b
    return (math.isnan(a) and math.isnan(b)) or a == b or math.isclose(a, b, rel_tol=rel)


def _changed(here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    names = [name for name in sorted({*here, *there}) if here.get(name) != there.get(name)]
    return "; ".join(f"{name}: {here.get(name)} and not {there.get(name)}" for name in names)


# --- what W&B shows


@dataclass
class Shown:
    """One trial, or whatever else has a run, as W&B shows it once all is uploaded.

    Attributes:
        ids: of its runs.
        points: of their histories.
        summary: the last one.
    """

    ids: set[str] = field(default_factory=set)
    points: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)


def shown_offline(folder: SweepFolder) -> dict[str, Shown]:
    """By name, the files of one run id as `wandb sync` would put them together."""
    from wandb.util import get_core_path

    found: dict[str, Shown] = {}
    for file in sorted(folder.root.glob("wandb/**/*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        command = [get_core_path(), "leet", "inspect", "--no-observability", "--json", "--run-file", str(file)]
        said = subprocess.run([*command, str(file.parent.parent)], capture_output=True, text=True, check=False).stdout
        records = [json.loads(line) for line in said.splitlines()]
        run = next((record["run"] for record in records if record["type"] == "run"), None)
        if run is None:  # killed before it had written anything
            continue
        shown = found.setdefault(run["display_name"], Shown())
        shown.ids.add(run["run_id"])
        shown.points += [record["history"]["item"] for record in records if record["type"] == "history"]
        for record in records:
            if record["type"] == "summary":
                shown.summary |= record["summary"]["update"]
    return found


def shown_online(runs: Iterable[ServedRun]) -> dict[str, Shown]:
    """By name, what the server has."""
    found: dict[str, Shown] = {}
    for run in runs:
        shown = found.setdefault(run.display_name, Shown())
        shown.ids.add(run.name)
        shown.points += run.history
        shown.summary |= run.summary
    return found


def wandb_faults(folder: SweepFolder, shown: Mapping[str, Shown]) -> Iterator[str]:
    """Where a trial has not exactly one run, with each of its rungs once, as recorded, and its end."""
    for files in folder.trials():
        run = shown.get(files.trial_id)
        if run is None:
            yield f"W&B: {files.trial_id} has no run"
            continue
        if len(run.ids) != 1:
            yield f"W&B: {files.trial_id} has {len(run.ids)} runs, {sorted(run.ids)}"
        rungs = {row.step: row.metrics for row in files.read_metrics() if not row.final}
        # A trial's table of predictions is a point without a step, and without metrics.
        points = [point for point in run.points if any(name in point for metrics in rungs.values() for name in metrics)]
        steps = Counter(point.get("step") for point in points)
        if missing := sorted(rungs.keys() - steps.keys()):
            yield f"W&B: {files.trial_id} lacks the rungs {missing} of {sorted(rungs)}"
        if more := {step: times for step, times in steps.items() if times > 1 or step not in rungs}:
            yield f"W&B: {files.trial_id} has points twice, or of steps that are none of its rungs: {more}"
        for point in points:
            metrics = rungs.get(point.get("step", -1), {})
            other = [k for k, v in metrics.items() if math.isfinite(v) and not _same(point.get(k), v, 1e-12)]
            if other:
                yield f"W&B: {files.trial_id} at step {point['step']} has other values of {sorted(other)}"
        state = files.read_status().state
        if state in ENDED and run.summary.get("state") != str(state):
            yield f"W&B: {files.trial_id} is {run.summary.get('state')} and not {state}"
