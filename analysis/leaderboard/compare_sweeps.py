"""Several sweeps together: one ranking of all their trials, or their best trials and configs side by side.

Trials of two sweeps can be compared where they were scored on the same data (one fingerprint). Perplexity is a figure
per token, so it is comparable within one tokenizer only; across models, bits per byte is.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from analysis.errors import ConfigError, DataError, FolderError
from analysis.folder import State, SweepFolder, TrialFolder
from analysis.leaderboard.baselines import INCOMPARABLE, compared_metrics, difference
from analysis.leaderboard.ranking import Ranking, judged, metrics_to_rank_by, objective_of, ordered, ranked, rescored
from analysis.leaderboard.seeds import runs
from analysis.metric_words import words_of
from analysis.metrics import METRICS, as_shown
from analysis.rows import Row, best_trial, sweep_yaml
from analysis.searched_values import at, leaves

PER_TOKEN = ("perplexity", "completion_perplexity")
_APART = ("sweep", "search", "ray", "resources", "tracking")  # parts of the config that change no trial


class SweepFolders(SweepFolder):
    """Several sweep folders as one; a trial's id is ``<sweep>/<trial>``.

    Args:
        folders: at least one. Those of one name are told apart by the folders they lie in.
    """

    def __init__(self, folders: Sequence[SweepFolder]):
        super().__init__(folders[0].root)
        self.by_name = dict(zip(_names(folders), folders, strict=True))

    def trial(self, trial_id: str) -> TrialFolder:
        """The files of a trial, ``<sweep>/<trial>``."""
        name, _, own = trial_id.rpartition("/")
        return self.by_name[name].trial(own)

    def baseline(self, name: str) -> TrialFolder:
        """The files of a baseline, ``<sweep>/<name>``."""
        sweep, _, own = name.rpartition("/")
        return self.by_name[sweep].baseline(own)


def _names(folders: Sequence[SweepFolder]) -> list[str]:
    names = [folder.name for folder in folders]
    if len(set(names)) == len(names):
        return names
    paths = [folder.root.parts for folder in folders]
    depth = 2
    while len({parts[-depth:] for parts in paths}) < len(paths) and depth < max(map(len, paths)):
        depth += 1
    longer = [":".join(parts[-depth:]) for parts in paths]
    if len(set(longer)) < len(longer):
        raise FolderError(f"{folders[0].root}: given more than once. Give each sweep once.")
    return longer


@dataclass(frozen=True)
class JointRanking:
    """One ranking of the trials of several sweeps.

    Attributes:
        folders: where their files are.
        ranking: trial ids are ``<sweep>/<trial>``.
    """

    folders: SweepFolders
    ranking: Ranking


def rank_together(folders: Sequence[SweepFolder], by: Sequence[str] = ()) -> JointRanking:
    """Rank the trials of several sweeps as one list.

    Args:
        folders: of the sweeps. One that cannot be read is left out, with a note.
        by: metrics to rank by, the first deciding; empty: the objective of the first sweep.

    Raises:
        DataError: where the sweeps were scored on different data.
        ConfigError: for a ranking by perplexity over different models.
        FolderError: for a folder that is given twice, or where none can be read.
    """
    together = SweepFolders(folders)
    manifests: dict[str, dict[str, Any]] = {}
    rows: list[Row] = []
    notes: list[str] = []
    for name, folder in list(together.by_name.items()):
        try:
            own = ordered(folder)
            manifests[name] = sweep_yaml(folder)
        except (FolderError, ConfigError) as error:
            notes.append(f"{name} is left out: {error}")
            del together.by_name[name]
            continue
        notes += own.notes
        rows += [_of_sweep(name, row) for row in own.rows]
    if not manifests:
        raise FolderError("None of the sweeps can be ranked. " + " ".join(notes))
    folders = list(together.by_name.values())
    _same_data(manifests)
    names = metrics_to_rank_by(by, {name for row in rows for name in row.metrics})
    objective, left_out = objective_of(folders[0], rows)
    used = names or [term.metric for term in objective.terms]
    _one_tokenizer(manifests, used)
    others = [name for name, folder in together.by_name.items() if _objective(folder) != _objective(folders[0])]
    if others and not by:
        first = next(iter(together.by_name))
        notes.append(f"Ranked by the objective of {first}; {', '.join(others)} had another one.")
    ranking = Ranking(rescored(rows, objective, names), objective, left_out, tuple(names), notes=tuple(notes))
    labels = list(dict.fromkeys(str(x) for m in manifests.values() for x in at(m, "data", "labels") or []))
    return JointRanking(together, judged(together, ranking, labels))


def _of_sweep(name: str, row: Row) -> Row:
    """A row as it is called among those of several sweeps."""
    seeds, uncounted = ([_of_sweep(name, it) for it in own] for own in (row.seeds, row.uncounted))
    return replace(row, trial_id=f"{name}/{row.trial_id}", seeds=tuple(seeds), uncounted=tuple(uncounted))


def _objective(folder: SweepFolder) -> Any:
    return at(sweep_yaml(folder), "config", "objective")


def _same_data(manifests: Mapping[str, Mapping[str, Any]]) -> None:
    prints = {
        name: at(content, "fingerprints", "data") or at(content, "data", "fingerprint")
        for name, content in manifests.items()
    }
    known = {name: value for name, value in prints.items() if value}
    if len(set(known.values())) > 1:
        listed = ", ".join(f"{name} {str(value)[:12]}" for name, value in known.items())
        raise DataError(
            f"The sweeps were not run on the same data (fingerprints: {listed}), so their scores cannot be ranked"
            " together. `lorasweep compare` shows them side by side."
        )


def _one_tokenizer(manifests: Mapping[str, Mapping[str, Any]], metrics: Sequence[str]) -> None:
    models = {name: _model(content) for name, content in manifests.items()}
    wrong = [name for name in metrics if name in PER_TOKEN]
    if wrong and len(set(models.values())) > 1:
        listed = ", ".join(f"{name} {model}" for name, model in models.items())
        raise ConfigError(
            f"{wrong[0]} counts by token, and the sweeps have different models ({listed}), so it cannot rank them"
            " together. Use --by bits_per_byte."
        )


def _model(content: Mapping[str, Any]) -> str:
    model = at(content, "config", "model") or {}
    parts = [model.get("package") or model.get("path") or model.get("name"), model.get("revision")]
    return "@".join(str(part) for part in parts if part)


@dataclass(frozen=True)
class Side:
    """One sweep beside others.

    Attributes:
        name: of the sweep.
        folder: its files.
        ranking: of its trials.
        content: of its ``sweep.yaml``.
        best: its best completed trial, if any.
    """

    name: str
    folder: SweepFolder
    ranking: Ranking
    content: Mapping[str, Any]
    best: Row | None


@dataclass(frozen=True)
class Comparison:
    """Sweeps side by side.

    Attributes:
        names: of the sweeps.
        table: (head, a cell a sweep).
        changed: (config path, a value a sweep), of what differs between their configs.
        sentences: the bests against the first sweep's, and warnings.
    """

    names: list[str]
    table: list[tuple[str, list[str]]]
    changed: list[tuple[str, list[str]]]
    sentences: list[str]


def compare(folders: Sequence[SweepFolder]) -> Comparison:
    """Put sweeps side by side: their data and models, their best trials, and whether these can be told apart.

    Args:
        folders: of the sweeps, at least two.

    Raises:
        FolderError: for a folder that is given twice or cannot be read.
    """
    together = SweepFolders(folders)
    sides = []
    for name, folder in together.by_name.items():
        ranking = ranked(folder)
        sides.append(Side(name, folder, ranking, sweep_yaml(folder), best_trial(ranking.rows)))
    table = [
        ("model", [_model(s.content) or "?" for s in sides]),
        ("data", [str(at(s.content, "data", "fingerprint") or "?")[:12] for s in sides]),
        ("trials", [_counts(s.ranking.rows) for s in sides]),
        ("best", [s.best.trial_id if s.best else "-" for s in sides]),
        ("tied with it", [str(len(s.ranking.judgement.tied)) if s.ranking.judgement else "-" for s in sides]),
    ]
    sentences, different = [], False
    if len({at(s.content, "data", "fingerprint") for s in sides}) > 1:
        different = True
        sentences.append("The sweeps were not run on the same data: their figures say nothing about each other.")
    several_models = len({_model(s.content) for s in sides}) > 1
    asked = {term.metric for s in sides for term in s.ranking.objective.terms}
    for name, metric in METRICS.items():
        if metric.better is None or not any(s.best and name in s.best.metrics for s in sides):
            continue
        if not metric.shown and name not in asked:
            continue
        if several_models and name in PER_TOKEN:
            continue
        table.append(
            (metric.head, [as_shown(name, s.best.metrics.get(name, math.nan) if s.best else math.nan) for s in sides])
        )
    if several_models:
        sentences.append(
            "The models differ, and so may their tokenizers: perplexity is left out, bits per byte compares."
        )
    searched = list(dict.fromkeys(path for s in sides if s.best for path in s.best.config))
    for path in searched:
        table.append((path, [_value(s.best.config.get(path)) if s.best else "-" for s in sides]))
    if not different:
        sentences += _against_first(together, sides)
    return Comparison([s.name for s in sides], table, _changed(sides), sentences)


def _against_first(together: SweepFolders, sides: Sequence[Side]) -> Iterator[str]:
    """The bests of the others against the first sweep's, in what ranks there."""
    first = sides[0]
    for other in sides[1:]:
        if first.best is None or other.best is None:
            missing = first if first.best is None else other
            yield f"{missing.name} has no completed trial to compare."
            continue
        one, two = _of_sweep(first.name, first.best), _of_sweep(other.name, other.best)
        there = [it for it in compared_metrics(first.folder, first.best) if it in two.metrics]
        if not there:
            yield f"{one.trial_id} and {two.trial_id} cannot be compared: they have no metric that ranks in common."
            continue
        words = words_of(there[0])
        try:
            apart = difference(together, one, two, there[0])
        except INCOMPARABLE as error:
            yield f"{one.trial_id} and {two.trial_id} cannot be compared: {str(error).splitlines()[0]}"
            continue
        size = words.size(apart.mean)
        if words.lower:
            told = f"{size} {'better' if apart.mean >= 0 else 'worse'}"
        else:
            told = f"{'+' if apart.mean >= 0 else '-'}{size}"
        told += f", paired 95 % interval {words.interval(apart.low, apart.high)} on {apart.n} items"
        if math.isnan(apart.low) or apart.low <= 0.0 <= apart.high:
            yield f"{one.trial_id} and {two.trial_id} cannot be told apart: {told}."
        else:
            yield f"{one.trial_id} is {'better' if apart.mean > 0 else 'worse'} than {two.trial_id}: {told}."


def _changed(sides: Sequence[Side]) -> list[tuple[str, list[str]]]:
    flat = [dict(leaves(at(s.content, "config") or {})) for s in sides]
    paths = list(dict.fromkeys(path for own in flat for path in own if path.split(".")[0] not in _APART))
    rows = [(path, [_value(own.get(path)) for own in flat]) for path in paths]
    return [(path, values) for path, values in rows if len(set(values)) > 1]


def _counts(rows: Sequence[Row]) -> str:
    trials = [row for row in rows if row.kind == "trial"]
    done = sum(row.status == State.COMPLETED for row in trials)
    seeds = f", {len(runs(trials))} runs" if len(runs(trials)) > len(trials) else ""
    return f"{len(trials)} ({done} completed{seeds})"


def _value(value: Any) -> str:
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
