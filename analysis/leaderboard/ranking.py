"""The ranking of a sweep's trials and baselines.

The seeds of one configuration (``search.repeats``) are one row, their mean (``analysis/leaderboard/seeds.py``). Ranked
are first the rows that were scored on all validation items, completed trials and baselines alike; then those scored on
the rung subset (stopped early, running), and configurations whose seeds have not all ended; then, in the same two
classes, the trials that break a constraint; then diverged, out of memory, failed, unreadable and pending ones. Within a
class the objective decides (with ``objective.method=pareto`` the Pareto front first), and between equals the trial id.
The first completed trial with a finite number is the best one (``analysis.rows.best_trial``), for every command. With
``objective.ties=cost`` the cheapest stands first among trials that are tied with the best and within one standard error
of it. Constraints are for trials: baselines are what they are compared with.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING

from analysis.constraints import Constraints
from analysis.errors import ConfigError, did_you_mean
from analysis.folder import State, SweepFolder
from analysis.leaderboard.seeds import configurations, seeds_expected
from analysis.metrics import METRICS, badness, full_name, ranking_metrics
from analysis.objective import Objective, against_metric
from analysis.rows import UNKNOWN, Row, adapter_parameters, rankable, read_rows, read_sweep

if TYPE_CHECKING:
    from analysis.statistics.comparison import Judgement

_CLASSES = {
    State.COMPLETED: 1,  # 0 with its final scoring
    State.STOPPED_EARLY: 1,
    State.RUNNING: 1,
    State.DIVERGED: 4,
    State.OUT_OF_MEMORY: 5,
    State.FAILED: 6,
    UNKNOWN: 7,
    State.PENDING: 8,
}
_INFEASIBLE = 2  # added to classes 0 and 1


@dataclass(frozen=True)
class Ranking:
    """A sweep's rows in order, and how sure that order is.

    Attributes:
        rows: the best first.
        objective: what they are ranked by, without what was not measured.
        left_out: the metrics of that.
        by: metrics that rank instead.
        judgement: the best trial against the others; None where there is nothing to compare.
        notes: what to keep in mind, a sentence each.
    """

    rows: list[Row]
    objective: Objective
    left_out: list[str]
    by: tuple[str, ...] = ()
    judgement: "Judgement | None" = None
    notes: tuple[str, ...] = ()


def build(folder: SweepFolder, by: Sequence[str] | None = None) -> list[Row]:
    """The rows of a sweep folder in the order of ``ranked``, without comparisons where the order does not need them.

    This is for use while a sweep runs, where comparing all trials after each that ends would cost too much.

    Args:
        folder: may be half written.
        by: metrics to rank by, the first deciding, instead of the objective.

    Raises:
        FolderError, ConfigError: as ``ranked``.
    """
    ranking = ordered(folder, by)
    if ranking.by or ranking.objective.ties != "cost":
        return ranking.rows
    return judged(folder, ranking, read_sweep(folder).labels).rows  # who is tied decides who stands first


def ranked(folder: SweepFolder, by: Sequence[str] | None = None) -> Ranking:
    """The rows of a sweep folder, ranked and compared: intervals, ties with the best trial, and ties broken by cost.

    Args:
        folder: may be half written; what a trial's files lack stands in its row's ``reason``.
        by: metrics to rank by, the first deciding, instead of the objective.

    Raises:
        FolderError: where ``sweep.yaml`` cannot be read.
        ConfigError: for a metric in ``by`` that is unknown or not measured in this sweep, or for an objective in
            ``sweep.yaml`` that is not one.
    """
    return judged(folder, ordered(folder, by), read_sweep(folder).labels)


def judged(folder: SweepFolder, ranking: Ranking, labels: Sequence[str]) -> Ranking:
    """A ranking with its comparisons.

    Args:
        folder: where the item tables of its rows are.
        ranking: in order.
        labels: of the task.
    """
    rows = [row for row in ranking.rows if rankable(row, ranking.by) and not row.broken]
    trials = [row for row in rows if row.kind == "trial"]
    if not trials:
        return ranking
    import numpy as np

    from analysis.statistics.comparison import judge

    # Word counts have no sentence pairs to prefer: a baseline without such a number has no part in a comparison by it.
    needed = ranking.by[:1] or [term.metric for term in ranking.objective.terms]
    baselines = [row for row in rows if row.kind == "baseline" and not _lacking(row, needed)]
    compared = [*trials, *baselines]
    stopped = [row for row in ranking.rows if row.status == State.STOPPED_EARLY and row.kind == "trial"]
    with np.errstate(all="ignore"):  # what cannot be computed is NaN, and a judgement says so
        judgement = judge(folder, compared, ranking.objective, labels, ranking.by[0] if ranking.by else None, stopped)
    if judgement is None:
        return ranking
    tied = {judgement.best, *judgement.tied} if judgement.tied else set()
    marked = []
    for row in ranking.rows:
        at = judgement.standings.get(row.trial_id)
        if at is not None and (row.kind == "trial" or not at.rival):
            row = replace(row, low=at.low, high=at.high, p=at.adjusted, tied=row.trial_id in tied)
        marked.append(row)
    if not ranking.by and ranking.objective.ties == "cost":
        marked = _cheapest_first(folder, marked, judgement)
    marked = [row if row.rank == rank else replace(row, rank=rank) for rank, row in enumerate(marked, start=1)]
    return replace(ranking, rows=marked, judgement=judgement)


def ordered(folder: SweepFolder, by: Sequence[str] | None = None) -> Ranking:
    """The rows of a sweep folder in order, without comparisons. Arguments and errors as of ``ranked``."""
    sweep = read_sweep(folder)
    rows = read_rows(folder, sweep.searched)
    names = metrics_to_rank_by(by or [], {name for row in rows for name in row.metrics})
    objective, left_out = objective_of(folder, rows)
    rows = configurations([_scored(row, objective) for row in rows], seeds_expected(folder, sweep.repeats))
    rows = constrained(rows, constraints_of(folder), folder)
    notes = (*([sweep.note] if sweep.note else []), *_reversed(objective))
    return Ranking(in_order(rows, objective, names), objective, left_out, tuple(names), notes=notes)


def in_order(rows: Iterable[Row], objective: Objective, by: Sequence[str]) -> list[Row]:
    """Rows with their front and rank, the best first.

    Args:
        rows: scored, and judged by the constraints.
        objective: of the ranking.
        by: metrics that rank instead.
    """

    def place(row: Row) -> tuple[int, list[float], str, str]:
        scored_on_all = row.status == State.COMPLETED and row.final
        kept = 0 if scored_on_all else _CLASSES[row.status]
        order = [badness(name, row.metrics.get(name, math.nan)) for name in by]
        if not by:
            order = [-row.objective if math.isfinite(row.objective) else math.inf]
            if objective.method == "pareto":
                order = [row.front or math.inf, *order]
        return kept + _INFEASIBLE * bool(row.broken), order, row.trial_id, row.kind

    placed = sorted(_on_fronts(list(rows), objective), key=place)
    return [replace(row, rank=rank) for rank, row in enumerate(placed, start=1)]


def rescored(rows: Iterable[Row], objective: Objective, by: Sequence[str]) -> list[Row]:
    """Rows of several sweeps as one list, scored by one objective, the best first.

    Args:
        rows: with the metrics of their sweeps; configurations of several seeds as such.
        objective: that scores all of them.
        by: metrics that rank instead.
    """
    return in_order([_again(row, objective) for row in rows], objective, by)


def _again(row: Row, objective: Objective) -> Row:
    """A row that another objective scored before."""
    seeds = tuple(_again(seed, objective) for seed in row.seeds)
    scores = [seed.objective for seed in seeds] or [objective.score(row.metrics)]
    return replace(row, objective=fmean(scores), seeds=seeds, front=0)


def _losses(row: Row, objective: Objective) -> list[float]:
    """Of the objective's terms; of a configuration of several seeds their means, as the sampler is told them."""
    return list(map(fmean, zip(*(objective.losses(seed.metrics) for seed in row.seeds or (row,)), strict=True)))


def _on_fronts(rows: list[Row], objective: Objective) -> list[Row]:
    """The rows scored on all validation items that keep the constraints, with their Pareto front."""
    if len(objective.terms) < 2:
        return rows
    places = [i for i, row in enumerate(rows) if row.status == State.COMPLETED and row.final and not row.broken]
    if not places:
        return rows
    from analysis.statistics.pareto import fronts

    numbers = fronts([_losses(rows[i], objective) for i in places])
    front = dict(zip(places, numbers, strict=True))
    return [replace(row, front=front[i]) if i in front else row for i, row in enumerate(rows)]


def _cheapest_first(folder: SweepFolder, rows: list[Row], judgement: "Judgement") -> list[Row]:
    """First the trial with the fewest adapter parameters, then the shortest time, of those tied with the best and
    within one standard error of it. The others stay in the order of their numbers.

    The one-standard-error rule (Breiman et al. 1984, "Classification and regression trees", section 3.4.3), with the
    error of the paired difference.
    """
    near = {judgement.best} | {
        name for name in judgement.tied if judgement.standings[name].behind <= judgement.standings[name].error
    }
    places = [i for i, row in enumerate(rows) if row.kind == "trial" and row.trial_id in near]
    costs = {i: (adapter_parameters(folder.trial(rows[i].trial_id)), rows[i].seconds) for i in places}
    if any(math.isnan(value) for cost in costs.values() for value in cost):
        return rows  # unknown costs cannot be compared
    cheapest = min(places, key=lambda i: (costs[i], i))
    return [
        *rows[: places[0]],
        rows[cheapest],
        *(row for i, row in enumerate(rows[places[0] :], places[0]) if i != cheapest),
    ]


def _reversed(objective: Objective) -> list[str]:
    """A sentence on each term that an earlier version took the wrong way: it kept the direction of another metric."""
    return [
        f"This sweep's objective takes {term.metric} the wrong way (objective.terms.{term.name}.direction="
        f"{term.direction}): it is {better}. To rank by it: --by {term.metric}"
        for term in objective.terms
        if (better := against_metric(term.metric, term.direction))
    ]


def objective_of(folder: SweepFolder, rows: Iterable[Row]) -> tuple[Objective, list[str]]:
    """What the rows are ranked by.

    Args:
        folder: of the sweep.
        rows: with their metrics.

    Returns:
        The sweep's objective without the terms that were not measured, and the metrics of those terms.

    Raises:
        FolderError: where ``sweep.yaml`` cannot be read.
        ConfigError: where what it has as objective is not one.
    """
    measured = {name for row in rows for name in row.metrics}
    try:
        objective = Objective.from_config(read_sweep(folder).objective)
        if not any(term.metric in measured for term in objective.terms):
            return objective, []  # nothing to rank yet
        return objective.restricted(measured, measured | METRICS.keys())
    except ConfigError as error:
        raise ConfigError(f"{folder.sweep_file}: config.{error}") from None


def constraints_of(folder: SweepFolder) -> Constraints:
    """What trials of this sweep have to keep. Raises FolderError or ConfigError as ``objective_of`` does."""
    try:
        return Constraints.from_config(read_sweep(folder).objective)
    except ConfigError as error:
        raise ConfigError(f"{folder.sweep_file}: config.{error}") from None


def constrained(rows: Sequence[Row], constraints: Constraints, folder: SweepFolder) -> list[Row]:
    """The rows, each scored trial with the constraints that it breaks.

    A trial that was scored on the rung subset is compared with the baseline's scores on that subset.

    Args:
        rows: with their metrics.
        constraints: of the sweep.
        folder: of the sweep; holds the baselines' scores.
    """
    if not constraints.items:
        return list(rows)
    references = {final: baselines_metrics(folder, constraints.baselines, final) for final in (True, False)}
    judged = []
    for row in rows:
        if row.kind == "trial" and row.metrics and _CLASSES[row.status] <= 1:
            broken = constraints.broken(row.metrics, references[row.final])
            reason = "; ".join([*([row.reason] if row.reason else []), *broken])
            row = replace(row, broken=tuple(broken), reason=reason)
        judged.append(row)
    return judged


def baselines_metrics(folder: SweepFolder, names: Iterable[str], final: bool) -> dict[str, Mapping[str, float]]:
    """Baseline → its metrics.

    Args:
        folder: of the sweep.
        names: of baselines; those without scores are left out.
        final: metrics on all validation items, rather than on the rung subset (on all where only those are there).
    """
    metrics: dict[str, Mapping[str, float]] = {}
    for name in names:
        scored = folder.baseline(name).read_metrics()
        fitting = [row for row in scored if row.final == final] or scored
        if fitting:
            metrics[name] = fitting[-1].metrics
    return metrics


def metrics_to_rank_by(by: Sequence[str], measured: set[str]) -> list[str]:
    """Full names of the metrics to rank by.

    Args:
        by: as the user wrote them.
        measured: metrics that some row has.

    Raises:
        ConfigError: for a metric that is unknown, cannot be ranked by, or was not measured.
    """
    names = [full_name(name.strip()) for name in by]
    known = ranking_metrics()
    there = [name for name in known if name in measured] or known
    for name in names:
        if name not in known:
            raise ConfigError(f"--by: '{name}' is not a metric to rank by. {did_you_mean(name, there)}")
        if measured and name not in measured:
            raise ConfigError(f"--by: {name} is not measured in this sweep. There are: {', '.join(there)}.")
    return names


def _lacking(row: Row, metrics: Iterable[str]) -> list[str]:
    return [name for name in metrics if not math.isfinite(row.metrics.get(name, math.nan))]


def _scored(row: Row, objective: Objective) -> Row:
    """The row with its objective, or with the reason why there is none though it was scored."""
    score = objective.score(row.metrics)
    expected = row.status in (State.COMPLETED, State.STOPPED_EARLY, State.RUNNING)  # others say why
    if not row.metrics or not expected or math.isfinite(score):
        return replace(row, objective=score)
    lacking = _lacking(row, [term.metric for term in objective.terms])
    note = f"no objective: {', '.join(lacking)} missing or not finite"
    return replace(row, objective=math.nan, reason=f"{row.reason}; {note}" if row.reason else note)
