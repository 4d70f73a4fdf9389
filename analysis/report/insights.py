"""What mattered in a sweep: hyperparameter importance, the effect of each searched value, and where trials diverged.

Trials that a scheduler stopped have a score of fewer steps than those that went on, so all are compared by their score
at the first rung, which each of them reached, unless enough completed to compare those alone.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analysis.folder import MetricsRow, State
from analysis.report.optuna_study import paths, study_of
from analysis.rows import Row

if TYPE_CHECKING:
    import optuna

ENOUGH = 20  # completed trials, to leave the stopped ones out
PER_PARAMETER = 10  # trials a searched value, below which importances are hardly more than noise
_BINS = 4


@dataclass(frozen=True)
class Importance:
    """How much of the spread of scores each searched path explains; shares add up to 1.

    Attributes:
        shares: path → share, the largest first; empty where it cannot be computed.
        method: ``fANOVA`` or ``PED-ANOVA``.
        trials: how many it is from.
        basis: what the trials are compared by, in words.
        warning: empty where there is nothing to warn of.
    """

    shares: dict[str, float]
    method: str
    trials: int
    basis: str
    warning: str


@dataclass(frozen=True)
class Level:
    """Trials that share a value (or a range of values) of a searched path.

    Attributes:
        label: the value or range.
        trials: how many.
        ended: state → how many ended so.
        medians: metric → median at the basis of comparison; NaN where there is none.
        best: the best objective at the basis of comparison.
    """

    label: str
    trials: int
    ended: dict[str, int]
    medians: dict[str, float]
    best: float


@dataclass(frozen=True)
class Basis:
    """By what trials are compared: their final scoring, or the first rung that all reached.

    Attributes:
        words: for people.
        metrics: trial id → metrics there.
        values: trial id → objective there.
    """

    words: str
    metrics: dict[str, Mapping[str, float]]
    values: dict[str, float]


def basis(rows: Sequence[Row], curves: Mapping[str, Sequence[MetricsRow]], score: Any) -> Basis:
    """What to compare trials by.

    Args:
        rows: trials.
        curves: trial id → its evaluations.
        score: metrics → objective.
    """
    finals = {row.trial_id: row.metrics for row in rows if row.status == State.COMPLETED and row.final}
    rungs = [row.step for own in curves.values() for row in own if not row.final]
    if len(finals) >= ENOUGH or not rungs or len(finals) == len(rows):
        return Basis("the final scoring of completed trials", dict(finals), {k: score(m) for k, m in finals.items()})
    first = min(rungs)
    at_first_rung: dict[str, Mapping[str, float]] = {}
    for name, own in curves.items():
        at = [row for row in own if row.step == first and not row.final]
        if at:
            at_first_rung[name] = at[-1].metrics
    return Basis(
        f"the score at step {first}, which each of them reached",
        at_first_rung,
        {k: score(m) for k, m in at_first_rung.items()},
    )


def importance(study: "optuna.Study", words: str) -> Importance:
    """How much of the spread of scores each searched value explains.

    Method: fANOVA (Hutter, Hoos and Leyton-Brown 2014, "An efficient approach for assessing hyperparameter
    importance", ICML); PED-ANOVA (Watanabe, Bansal and Hutter 2023, arXiv 2304.10255) where some value was not set in
    every trial.

    Args:
        study: complete trials only.
        words: what they are compared by.
    """
    import warnings

    from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances

    trials = study.get_trials(deepcopy=False)
    everywhere = set.intersection(*(set(trial.params) for trial in trials)) if trials else set()
    searched = {name for trial in trials for name in trial.params}
    fanova = bool(everywhere) and everywhere == searched
    method = "fANOVA" if fanova else "PED-ANOVA"
    values = {trial.value for trial in trials}
    if len(trials) < 4 or len(values) < 2 or not searched:
        return Importance({}, method, len(trials), words, f"Too few trials were scored to tell ({len(trials)}).")
    evaluator: Any = FanovaImportanceEvaluator(seed=0) if fanova else PedAnovaImportanceEvaluator()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            shares = get_param_importances(study, evaluator=evaluator)
        except (ValueError, RuntimeError, ZeroDivisionError) as error:
            return Importance({}, method, len(trials), words, f"It could not be computed: {error}")
    steady = PER_PARAMETER * max(len(searched), 1)
    warning = ""
    if len(trials) < steady:
        warning = (
            f"From {len(trials)} trials of {len(searched)} searched values: take it for a hint. About {steady} trials"
            " make it steady."
        )
    finite = {name: share for name, share in shares.items() if math.isfinite(share)}
    return Importance(finite, method, len(trials), words, warning)


def importance_of(
    name: str, rows: Sequence[Row], space: Mapping[str, Any], by: Basis
) -> tuple[Importance, "optuna.Study"]:
    """Importances, and the Optuna study that they are from.

    Args:
        name: of the sweep.
        rows: trials.
        space: ``space`` of ``sweep.yaml``.
        by: what the trials are compared by.
    """
    study = study_of(name, rows, space, by.values)
    return importance(study, by.words), study


def effects(rows: Sequence[Row], by: Basis, metrics: Sequence[str]) -> dict[str, list[Level]]:
    """Searched path → its levels in order. A path with many numbers is cut at its quartiles.

    Args:
        rows: trials.
        by: what the trials are compared by.
        metrics: whose medians each level gets.
    """
    return {path: [_level(label, group, by, metrics) for label, group in _levels(rows, path)] for path in paths(rows)}


def _levels(rows: Sequence[Row], path: str) -> list[tuple[str, list[Row]]]:
    known = [row for row in rows if row.config.get(path) is not None]
    values = sorted({row.config[path] for row in known}, key=lambda value: (isinstance(value, str), value))
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if not numbers or len(values) <= 8:
        return [(short_value(value), [row for row in known if row.config[path] == value]) for value in values]
    ordered = sorted(known, key=lambda row: row.config[path])
    size = math.ceil(len(ordered) / _BINS)
    parts = [ordered[at : at + size] for at in range(0, len(ordered), size)]
    return [(f"{short_value(part[0].config[path])} – {short_value(part[-1].config[path])}", part) for part in parts]


def _level(label: str, group: Sequence[Row], by: Basis, metrics: Sequence[str]) -> Level:
    ended: dict[str, int] = {}
    for row in group:
        ended[row.status] = ended.get(row.status, 0) + 1
    scored = [by.metrics[row.trial_id] for row in group if row.trial_id in by.metrics]
    medians = {}
    for name in metrics:
        finite = [values[name] for values in scored if math.isfinite(values.get(name, math.nan))]
        medians[name] = statistics.median(finite) if finite else math.nan
    best = [by.values[row.trial_id] for row in group if math.isfinite(by.values.get(row.trial_id, math.nan))]
    return Level(label, len(group), ended, medians, max(best, default=math.nan))


def diverged(rows: Sequence[Row]) -> list[Row]:
    """Trials that diverged or ran out of memory."""
    return [row for row in rows if row.status in (State.DIVERGED, State.OUT_OF_MEMORY)]


def short_value(value: Any) -> str:
    """A searched value, short: 2.4e-4, 16, sqrt."""
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    if value and not 0.001 <= abs(value) < 10_000:
        mantissa, exponent = f"{value:.2g}".split("e") if "e" in f"{value:.2g}" else f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.3g}"
