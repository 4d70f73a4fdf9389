"""Runs as the sweep folder has them: what trackers are told of a trial, a baseline or the sweep when it has ended.

The folder is complete whatever happened to a tracker, so a run that it lacks is written from here.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from analysis import fast_yaml
from analysis.errors import FolderError
from analysis.folder import ENDED, State, SweepFolder, TrialFolder, read_lines
from analysis.leaderboard.ranking import objective_of
from analysis.leaderboard.seeds import best_seed, spread
from analysis.rows import Row, best_trial, configuration_id
from sweeps.tracking.base import SWEEP_RUN, Adapter, Outcome, Point, Run, Table
from sweeps.tracking.tables import answers, charts, leaderboard_table, predictions


@dataclass(frozen=True)
class Story:
    """A whole run: what it is, its points in ``run.earlier``, and how it ended."""

    run: Run
    outcome: Outcome


@dataclass(frozen=True)
class Due:
    """A run that every tracker should have, and how to make its story."""

    name: str
    stamp: str
    story: Callable[[], Story]


def stamp(name: str, outcome: Outcome) -> str:
    """What a run is complete of; empty for one that goes on. The sweep's changes with its leaderboard."""
    if outcome.state is State.RUNNING:
        return ""
    if name != SWEEP_RUN:
        return str(outcome.state)
    shown = sorted((key, repr(value)) for key, value in {**outcome.facts, **outcome.metrics}.items())
    return hashlib.sha256(repr(shown).encode()).hexdigest()[:16]


class PastRuns:
    """What the folder holds of the runs of a sweep.

    Args:
        folder: the sweep's.
        baseline_configs: name → what trackers show as its config.
        repeats: seeds of each configuration; with several, a run's config says of which ``configuration`` it is.
    """

    def __init__(
        self, folder: SweepFolder, baseline_configs: Mapping[str, Mapping[str, Any]] | None = None, repeats: int = 1
    ) -> None:
        self._folder, self._baseline_configs, self._repeats = folder, baseline_configs or {}, repeats

    def due(self) -> Iterator[Due]:
        """Each trial that has ended, and each baseline that was scored."""
        for files in self._folder.trials():
            if (state := _state(files)) in ENDED:
                yield Due(files.trial_id, str(state), partial(self._trial, files))
        for files in self._folder.baselines():
            if _state(files) is State.COMPLETED and files.read_metrics():
                yield Due(files.trial_id, str(State.COMPLETED), partial(self._baseline, files))

    def points(self, trial_id: str) -> list[Point]:
        """The curves of a trial, in the order in which they came: rungs, and exchanges of a population."""
        files = self._folder.trial(trial_id)
        exchanges = list(read_lines(files.lineage_file))
        points: list[Point] = []
        for row in files.read_metrics():
            if row.final:
                continue
            values = {"tokens": row.tokens, "seconds": row.seconds, "n_items": row.n_items} | floats(row.metrics)
            if (trial_id, row.step) in self._rungs:
                values["objective"] = self._rungs[trial_id, row.step]
            points.append((row.step, values))
            points += [
                (row.step, exchange_point(line["parent"], line["old"], line["new"]))
                for line in exchanges
                if line["step"] == row.step
            ]
        return points

    def _trial(self, files: TrialFolder) -> Story:
        name, status, rows = files.trial_id, files.read_status(), files.read_metrics()
        facts: dict[str, Any] = {"state": str(status.state), "reason": status.reason, "step": status.step}
        facts |= {"tokens": rows[-1].tokens, "seconds": rows[-1].seconds, "n_items": rows[-1].n_items} if rows else {}
        facts |= {"where": status.where} if status.where else {}
        objective = self._ends.get(name, math.nan)
        scores = {"objective": objective} | floats(rows[-1].metrics if rows else {})
        finals = [row.step for row in rows if row.final]
        outcome = trial_outcome(files, status.state, facts, scores, finals)
        config = fast_yaml.load(files.config_file.read_text()) if files.config_file.exists() else {}
        if self._repeats > 1:
            config = {**config, "configuration": configuration_id(name)}
        return Story(Run(name, "trial", config, self._values.get(name, {}), tuple(self.points(name))), outcome)

    def _baseline(self, files: TrialFolder) -> Story:
        config = self._baseline_configs.get(files.trial_id, {})
        return baseline_story(self._folder, files.trial_id, files.read_metrics()[-1].metrics, config)

    @cached_property
    def _records(self) -> list[dict[str, Any]]:
        return [record for record in read_lines(self._folder.asks_file) if record.get("trial_id")]

    @cached_property
    def _rungs(self) -> dict[tuple[str, int], float]:
        rungs = (record for record in self._records if record["event"] == "rung")
        return {(str(it["trial_id"]), int(it["step"])): _number(it["objective"]) for it in rungs}

    @cached_property
    def _ends(self) -> dict[str, float]:
        tells = (record for record in self._records if record["event"] == "tell")
        return {str(it["trial_id"]): _number(it["objective"]) for it in tells}

    @cached_property
    def _values(self) -> dict[str, dict[str, Any]]:
        return {str(it["trial_id"]): dict(it["values"]) for it in self._records if it["event"] == "ask"}


def trial_outcome(
    files: TrialFolder, state: State, facts: Mapping[str, Any], scores: Mapping[str, float], finals: Sequence[int]
) -> Outcome:
    """The outcome of a trial with its tables and its adapter.

    Args:
        files: of the trial.
        state: in which it ended.
        facts, scores: as of ``Outcome``.
        finals: steps at which it was scored on all items.
    """
    tables: dict[str, Callable[[int | None], Table]] = {}
    if state is State.COMPLETED and finals:
        tables["predictions"] = partial(predictions, files, finals[-1])
        tables["answers"] = partial(answers, files, finals[-1])
    adapter = Adapter(files.trial_id, files.adapter_dir) if state is State.COMPLETED else None
    return Outcome(state, facts, scores, tables, adapter=adapter)


def baseline_story(folder: SweepFolder, name: str, metrics: Mapping[str, float], config: Mapping[str, Any]) -> Story:
    """One run of kind ``baseline``, with one point at step 0."""
    scores = floats(metrics)
    tables = {"answers": partial(answers, folder.baseline(name), 0)}
    outcome = Outcome(State.COMPLETED, {"state": str(State.COMPLETED)}, scores, tables)
    return Story(Run(name, "baseline", dict(config), earlier=((0, scores),)), outcome)


def sweep_story(
    folder: SweepFolder, rows: Sequence[Row], config: Mapping[str, Any], figures: Mapping[str, Mapping[str, Any]]
) -> Story:
    """One run of kind ``sweep``: the leaderboard, charts, counts, and the best trial's adapter.

    Args:
        folder: the sweep's.
        rows: the leaderboard, ranked.
        config: of the whole sweep, resolved.
        figures: Plotly's, as JSON, by key.
    """
    trials = [row for row in rows if row.kind == "trial"]
    best = best_trial(rows)
    facts: dict[str, Any] = {f"trials.{state}": n for state, n in Counter(str(r.status) for r in trials).items()}
    scores: dict[str, float] = {}
    adapter = None
    if best is not None:
        facts["best.trial"] = best.trial_id
        scores = {"best.objective": best.objective}
        scores |= {f"best.{name}": value for name, value in floats(best.metrics).items()}
        facts |= {"best.seeds": len(best.seeds), "best.sd": spread(best)} if len(best.seeds) > 1 else {}
        seed = best_seed(best)
        adapter = Adapter(
            seed.trial_id,
            folder.trial(seed.trial_id).adapter_dir,
            {"trial": seed.trial_id, "objective": seed.objective, "values": seed.config, "metrics": seed.metrics},
        )

    def leaderboard(most: int | None) -> Table:
        columns, cells = leaderboard_table(rows)
        return columns, cells[:most]

    outcome = Outcome(State.COMPLETED, facts, scores, {"leaderboard": leaderboard}, dict(figures), adapter)
    return Story(Run(SWEEP_RUN, "sweep", dict(config)), outcome)


def sweep_due(folder: SweepFolder, rows: Sequence[Row], config: Mapping[str, Any]) -> Due:
    """The run ``sweep`` of a sweep that is over for now, as ``sweep_story`` has it."""
    objective, _ = objective_of(folder, list(rows))
    story = sweep_story(folder, rows, config, charts(rows, objective))
    return Due(SWEEP_RUN, stamp(SWEEP_RUN, story.outcome), lambda: story)


def exchange_point(parent: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """A trial of a population goes on from another one's weights: its parent, and its new values as a curve."""
    point: dict[str, Any] = {"parent": parent}
    point |= {f"old.{path}": value for path, value in old.items()}
    return point | {f"new.{path}": value for path, value in new.items()}


def floats(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def _state(files: TrialFolder) -> State | None:
    try:
        return files.read_status().state
    except FolderError:
        return None


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
