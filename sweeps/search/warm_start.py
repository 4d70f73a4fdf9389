"""``search.warm_start``: what earlier sweeps found out enters a new study, without being trained again.

A trial is carried over where it is a point of the new space: every searched key has a value there that the space holds
(one that was fixed there counts as well as one that was searched), and every key that only the earlier sweep searched
has the value that is fixed now. Its metrics are scored with the new objective. What is carried over is written to
``study/asks.jsonl``, so that a resume needs no old folder.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from analysis import fast_yaml
from analysis.errors import ConfigError
from analysis.folder import MetricsRow, State, SweepFolder, TrialFolder
from analysis.objective import Objective
from analysis.rows import configuration_id
from sweeps.config import SweepConfig
from sweeps.space.dimensions import Scalar, Space, active, flatten

# Parts of the config whose difference makes scores incomparable to the eye, but not useless to a sampler.
_NAMED = ("model", "data", "task", "train", "eval", "precision", "lora", "optim")
_IGNORED = ("trial_id", "seed")


@dataclass(frozen=True)
class Earlier:
    """A trial of an earlier sweep.

    Attributes:
        source: the sweep's folder and the trial's id, such as ``runs/first/t0003``.
        values: dotted path → value, as the new space would have suggested it.
        rungs: step → objective.
        completed: else it was stopped early.
        losses: of the objective's terms at its best rung.
        mean: objective of a configuration of several seeds; ``rungs`` are then the first seed's.
    """

    source: str
    values: dict[str, Scalar]
    rungs: dict[int, float | None]
    completed: bool
    losses: tuple[float, ...] = ()
    mean: float | None = None

    @property
    def objective(self) -> float | None:
        if self.mean is not None:
            return self.mean
        scores = [score for score in self.rungs.values() if score is not None]
        return max(scores, default=None)


def carried_over(
    runs: Sequence[str],
    space: Space,
    config: Mapping[str, Any],
    objective: Objective,
) -> tuple[list[Earlier], list[str]]:
    """The trials of earlier sweeps that fit, and sentences on what was carried over, left out, and differs.

    Args:
        runs: sweep folders.
        space: the new one.
        config: the new sweep's, resolved and nested.
        objective: the new one.

    Raises:
        FolderError: where a folder is no sweep.
        ConfigError: where nothing of a sweep fits.
    """
    earlier: list[Earlier] = []
    notes: list[str] = []
    for given in runs:
        run = given.rstrip("/")
        folder = SweepFolder.open(run)
        kept, left, differs = _of(folder, run, space, config, objective)
        if not kept:
            why = "; ".join(f"{why} ({n} trials)" for why, n in left.most_common()) or "it has no ended trial"
            raise ConfigError(
                f"search.warm_start: nothing of {run} fits this sweep's space: {why}. Change the space, or do without."
            )
        out = f" Left out: {'; '.join(f'{why} ({n})' for why, n in left.most_common())}." if left else ""
        other = f" These differ: {', '.join(sorted(differs)[:8])}." if differs else ""
        notes.append(f"Carried over from {run}: {len(kept)} of {len(kept) + left.total()} trials.{out}{other}")
        earlier += kept
    return earlier, notes


def to_carry(records: Sequence[Mapping[str, Any]], config: SweepConfig) -> list[str]:
    """The folders of ``search.warm_start`` whose trials ``study/asks.jsonl`` does not hold yet."""
    known = {str(line["source"]).rsplit("/", 1)[0] for line in records if line["event"] == "warm"}
    return [run for run in config.search.warm_start if run.rstrip("/") not in known]


def _of(
    folder: SweepFolder,
    run: str,
    space: Space,
    config: Mapping[str, Any],
    objective: Objective,
) -> tuple[list[Earlier], Counter[str], set[str]]:
    kept: list[Earlier] = []
    left: Counter[str] = Counter()
    differs: set[str] = set()
    now = dict(flatten({name: config[name] for name in config if name.split(".")[0] in _NAMED}))
    for trial, *others in configurations_of(folder):
        state = state_over_seeds(trial, others)
        if state not in (State.COMPLETED, State.STOPPED_EARLY) or not trial.config_file.exists():
            left[f"{state.value.replace('_', ' ')}"] += 1
            continue
        then = dict(flatten(fast_yaml.load(trial.config_file.read_text())))
        values, why = _point(space, then)
        searched = set(_searched(folder))
        fixed_now = {path for path in searched - set(space) if path in now and now[path] != then.get(path)}
        if fixed_now and not why:
            path = sorted(fixed_now)[0]
            why = f"{path}={then.get(path)} there, {now[path]} here"
        rungs, losses = rungs_of(trial, objective)
        mean = None
        if others and state is State.COMPLETED:
            mean, losses = over_seeds([trial, *others], objective)
        if not why and not any(value is not None for value in rungs.values()):
            why = "a metric of this objective was not measured"
        if why:
            left[why] += 1
            continue
        differs |= {
            path for path, value in now.items() if path not in space and path in then and then[path] != value
        } - set(_IGNORED)
        kept.append(Earlier(f"{run}/{trial.trial_id}", values, rungs, state is State.COMPLETED, losses, mean))
    return kept, left, differs


def configurations_of(folder: SweepFolder) -> list[list[TrialFolder]]:
    """The trials of a sweep, the seeds of each configuration together (``search.repeats``), the first one first."""
    seeds: dict[str, list[TrialFolder]] = {}
    for trial in sorted(folder.trials(), key=lambda trial: (len(trial.trial_id), trial.trial_id)):
        seeds.setdefault(configuration_id(trial.trial_id), []).append(trial)
    return [seeds[name] for name in sorted(seeds)]


def state_over_seeds(first: TrialFolder, others: Sequence[TrialFolder]) -> State:
    """How a configuration ended: one seed that diverged or ran out of memory counts for all, as in its own sweep."""
    state = first.read_status().state
    ended = [seed.read_status().state for seed in others] if state is State.COMPLETED else []
    return next((bad for bad in (State.OUT_OF_MEMORY, State.DIVERGED) if bad in ended), state)


def over_seeds(seeds: Sequence[TrialFolder], objective: Objective) -> tuple[float | None, tuple[float, ...]]:
    """Objective and losses of a configuration at its best rungs: means over the seeds that completed."""
    done = [rungs_of(seed, objective) for seed in seeds if seed.read_status().state is State.COMPLETED]
    scores = [[value for value in rungs.values() if value is not None] for rungs, _ in done]
    best = [max(values) for values in scores if values]
    losses = [own for _, own in done if own]
    return fmean(best) if best else None, tuple(map(fmean, zip(*losses, strict=True)))


def _searched(folder: SweepFolder) -> list[str]:
    manifest = fast_yaml.load(folder.sweep_file.read_text())
    return list(manifest.get("space") or {})


def _point(space: Space, then: Mapping[str, Any]) -> tuple[dict[str, Scalar], str]:
    """The trial's values as a point of the space, and why it is none, or ""."""
    values: dict[str, Scalar] = {}
    for path, dimension in space.items():
        if not active(dimension, values):
            continue
        if path not in then:
            return {}, f"{path} is not in its config"
        if not dimension.holds(then[path]):
            return {}, f"{path}={then[path]} is outside the space"
        values[path] = dimension.own(then[path])
    return values, ""


def rungs_of(trial: TrialFolder, objective: Objective) -> tuple[dict[int, float | None], tuple[float, ...]]:
    """The objective by step, None where a metric is missing, and the losses of the terms at the best rung."""
    rows: list[MetricsRow] = [row for row in trial.read_metrics() if not row.final]
    scores = {row.step: objective.score(row.metrics) for row in rows}
    finite = [row for row in rows if math.isfinite(scores[row.step])]
    best = max(finite, key=lambda row: scores[row.step], default=None)
    losses = tuple(objective.losses(best.metrics)) if best else ()
    return {step: value if math.isfinite(value) else None for step, value in scores.items()}, losses
