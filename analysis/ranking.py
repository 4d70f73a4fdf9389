"""The order of a leaderboard.

Ranked are first the rows that were scored on all validation items, completed trials and baselines alike; then those
scored on the rung subset (stopped early, running); then, in the same two classes, the trials that break a constraint;
then diverged, out of memory, failed, unreadable and pending ones. Within a class the objective decides, and between
equals the trial id. Constraints are for trials: baselines are what they are compared with.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from analysis.constraints import Constraints
from analysis.errors import ConfigError, did_you_mean
from analysis.folder import State, SweepFolder
from analysis.metrics import METRICS, RANKABLE, badness
from analysis.objective import Objective
from analysis.rows import UNKNOWN, Row, read_rows, read_sweep

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


def build(folder: SweepFolder, by: Sequence[str] | None = None) -> list[Row]:
    """The rows of a sweep folder, ranked.

    Args:
        folder: may be half written; what a trial's files lack stands in its row's ``reason``.
        by: metrics to rank by, the first deciding, instead of the objective.

    Raises:
        FolderError: where ``sweep.yaml`` cannot be read.
        ConfigError: for a metric in ``by`` that is unknown or not measured in this sweep, or for an objective in
            ``sweep.yaml`` that is not one.
    """
    rows = read_rows(folder, read_sweep(folder).searched)
    names = _checked(by or [], {name for row in rows for name in row.metrics})
    objective, _ = objective_of(folder, rows)
    rows = constrained([_scored(row, objective) for row in rows], constraints_of(folder), folder)

    def place(row: Row) -> tuple[int, list[float], str, str]:
        scored_on_all = row.status == State.COMPLETED and row.final
        kept = 0 if scored_on_all else _CLASSES[row.status]
        order = [badness(name, row.metrics.get(name, math.nan)) for name in names]
        if not names:
            order = [-row.objective if math.isfinite(row.objective) else math.inf]
        return kept + _INFEASIBLE * bool(row.broken), order, row.trial_id, row.kind

    return [replace(row, rank=rank) for rank, row in enumerate(sorted(rows, key=place), start=1)]


def objective_of(folder: SweepFolder, rows: Iterable[Row]) -> tuple[Objective, list[str]]:
    """What the rows are ranked by, and the metrics of the sweep's objective that were not measured: they are left out.

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
    """Baseline → its metrics on all validation items, or on the rung subset (on all where only those are there)."""
    found: dict[str, Mapping[str, float]] = {}
    for name in names:
        scored = folder.baseline(name).read_metrics()
        fitting = [row for row in scored if row.final == final] or scored
        if fitting:
            found[name] = fitting[-1].metrics
    return found


def _checked(by: Sequence[str], there: set[str]) -> list[str]:
    """The names to rank by, of the metrics that are there. Raises ConfigError for one that cannot."""
    names = [name.strip() for name in by]
    rankable = [name for name in RANKABLE if name in there] or RANKABLE
    for name in names:
        if name not in RANKABLE:
            raise ConfigError(f"--by: '{name}' is not a metric to rank by. {did_you_mean(name, rankable)}")
        if there and name not in there:
            raise ConfigError(f"--by: {name} is not measured in this sweep. There are: {', '.join(rankable)}.")
    return names


def _scored(row: Row, objective: Objective) -> Row:
    """The row with its objective, or with the reason why there is none though it was scored."""
    score = objective.score(row.metrics)
    expected = row.status in (State.COMPLETED, State.STOPPED_EARLY, State.RUNNING)  # others say why
    if not row.metrics or not expected or math.isfinite(score):
        return replace(row, objective=score)
    lacking = [t.metric for t in objective.terms if not math.isfinite(row.metrics.get(t.metric, math.nan))]
    note = f"no objective: {', '.join(lacking)} missing or not finite"
    return replace(row, objective=math.nan, reason=f"{row.reason}; {note}" if row.reason else note)
