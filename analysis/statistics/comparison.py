"""How sure a ranking is: the best row against each other one, on the items that both were scored on.

- Intervals: from the influence of each item, by score (``analysis/statistics/intervals.py``). Where none would cover,
  there is none, and ``Judgement.without_interval`` says why.
- Tests: McNemar's where accuracy ranks (exact), else a paired permutation test
  (``scipy.stats.permutation_test``): the two rows' answers are exchanged on random items. Where no exchange is as
  extreme as the observed difference, the normal tail of the permutation distribution gives p: with a thousand rivals,
  1/1,999 would be too coarse to correct.
- Holm's correction over all rivals: a row is *tied* with the best where its corrected p is 0.05 or more.
  That the best beats *all* rivals needs every one of the tests and so no correction (the intersection-union test,
  Berger 1982, "Multiparameter hypothesis testing and acceptance sampling", Technometrics 24, 295-300): where all are
  below 0.05 before it, the best is the winner and nothing is tied.
- The winner's curse: ``analysis/statistics/selection.py``. The best row's own interval has the corrected one in it.
- A row that stands for a configuration of several seeds has their means as figures, and an interval and a t-test that
  have the seeds' own variance in them.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from analysis.errors import DataError, LorasweepError
from analysis.folder import SweepFolder
from analysis.item_sums import TASK
from analysis.metrics import METRICS
from analysis.objective import Objective
from analysis.rows import Row
from analysis.statistics.estimators import ESTIMATORS, Array, Scored, scores
from analysis.statistics.intervals import Spread, lacking, spread
from analysis.statistics.items import align, groups, read_tables
from analysis.statistics.ranked import Ranked
from analysis.statistics.selection import SCORE, optimism

LEVEL = 0.05
RESAMPLES = 1_999
_AT_ONCE = 1 << 22  # sums over items (a resample, a row and a column each) that are in memory at a time


@dataclass(frozen=True)
class Standing:
    """One row beside the best.

    Attributes:
        low, high: 95 % interval of what ranks the row: its score, or the metric in its unit. That of the best trial
            reaches to where its correction for having been chosen has its end. NaN where there is none.
        behind: the best's number minus this row's; 0 for the best itself.
        behind_low, behind_high: its paired 95 % interval; NaN where there is none.
        error: its standard error.
        p: of the paired test that the two are equal; 1 for the best itself.
        adjusted: after Holm's correction.
        n: items that both were scored on.
        rival: a trial; a baseline is no rival of the best trial, and takes no part in the correction.
    """

    low: float
    high: float
    behind: float
    behind_low: float
    behind_high: float
    error: float
    p: float
    adjusted: float
    n: int
    rival: bool = True


@dataclass(frozen=True)
class Judgement:
    """What a ranking may claim.

    Attributes:
        what: ``objective``, or the metric that ranks.
        best: trial id of the row with the best number.
        standings: trial id → how it stands beside the best; of rows with item tables.
        corrected: metric (and ``objective``) → the best's figure, corrected for having been chosen.
        test: which paired test.
        fixed: metrics of the objective that cannot be resampled, and stay at their measured value.
        lacking: trial id → why it is not compared.
        without_interval: what ranks, or a metric → why it has no interval, a clause such as "label spam has 2 items".
        looked_at: configurations that took part in the choice, those that were stopped early included; 0: not known.
    """

    what: str
    best: str
    standings: dict[str, Standing]
    corrected: dict[str, float] = field(default_factory=dict)
    test: str = "permutation test"
    fixed: tuple[str, ...] = ()
    lacking: dict[str, str] = field(default_factory=dict)
    without_interval: dict[str, str] = field(default_factory=dict)
    looked_at: int = 0

    @property
    def tied(self) -> list[str]:
        """The rows that cannot be told from the best, without itself."""
        rivals = {name: at for name, at in self.standings.items() if name != self.best and at.rival}
        if all(at.p < LEVEL for at in rivals.values()):
            return []
        return [name for name, at in rivals.items() if at.adjusted >= LEVEL]

    @property
    def winner(self) -> str | None:
        """The best, where it is told apart from every rival; None where it is not, or a rival has no item table."""
        return None if self.tied or self.lacking else self.best


def judge(
    folder: SweepFolder,
    rows: Sequence[Row],
    objective: Objective,
    labels: Sequence[str],
    by: str | None = None,
    stopped: Sequence[Row] = (),
) -> Judgement | None:
    """Compare rows that were all scored on all validation items.

    Args:
        rows: the best trial first. Baselines among them get an interval and an uncorrected test.
        objective: what ranks them, restricted to what was measured.
        labels: of the task; macro-F1 averages over all of them. Where empty, those that the tables have.
        by: a metric that ranks instead.
        stopped: trials that were stopped early: their scores on the rung subset took part in the choice.

    Returns:
        None where there is no rival, or the best's item table cannot be used.
    """
    if len(rows) < 2:
        return None
    metrics = [by] if by else [term.metric for term in objective.terms]
    best = rows[0].trial_id
    tables: dict[str, dict[str, Any]] = {}
    lacking_tables: dict[str, str] = {}
    runs = {run.trial_id: row.trial_id for row in rows for run in _runs(row)}
    for dataset in sorted({ESTIMATORS[name].dataset for name in metrics if name in ESTIMATORS}):
        of_runs, without = read_tables(folder, [run for row in rows for run in _runs(row)], dataset)
        if all(run.trial_id in of_runs for run in _runs(rows[0])):  # else its metrics stay as measured
            tables[dataset] = of_runs
            lacking_tables |= {runs[run]: why for run, why in without.items()}
    usable = {row.trial_id: row for row in rows if row.trial_id not in lacking_tables}
    if not tables or len(usable) < 2:
        return None
    trials = [row for row in rows if row.kind == "trial"]
    looked_at = configurations([*trials, *stopped])
    left_behind = looked_at - configurations(trials)
    seen = sum(min(row.n_items, rows[0].n_items) for row in stopped)
    part = seen / (len(stopped) * rows[0].n_items) if seen else 1.0
    judged: dict[str, Standing] = {}
    corrected: dict[str, float] = {}
    without_interval: dict[str, str] = {}
    main = TASK if TASK in tables else next(iter(tables))
    for names in groups({name: tables[main][_runs(row)[0].trial_id] for name, row in usable.items()}, best):
        of_group = [usable[name] for name in names]
        chosen_among = [i for i, row in enumerate(of_group) if row.kind == "trial"]
        try:
            together, known = side_by_side(of_group, tables, metrics, objective, labels, by)
            found = figures(together, known, by, chosen_among, left_behind, part)
            standings = _standings(names, together, by, found)
        except (LorasweepError, KeyError, ValueError) as error:
            lacking_tables |= dict.fromkeys(names[1:], " ".join(str(error).split()))
            continue
        if not judged:  # the first group: the rows that were scored on the same items as the best
            without_interval = found.without_interval
            shown = {name: rows[0].metrics.get(name, math.nan) for name in metrics} | {SCORE: rows[0].objective}
            corrected = {
                name: shown[name] - excess
                for name, excess in found.optimism.items()
                if math.isfinite(shown[name]) and (name != SCORE or not by)
            }
        judged = standings | judged
    if len(judged) < 2:
        return None
    judged = {name: replace(at, rival=usable[name].kind == "trial") for name, at in judged.items()}
    seeds = any(len(row.seeds) > 1 for row in usable.values())
    test = "t-test over items and seeds" if seeds else "McNemar's test" if by == "accuracy" else "permutation test"
    return Judgement(
        by or SCORE,
        best,
        _holm(judged, best),
        corrected,
        test,
        tuple(name for name in metrics if not _resampled(name, tables)),
        lacking_tables,
        without_interval,
        looked_at,
    )


def _runs(row: Row) -> tuple[Row, ...]:
    return row.seeds or (row,)


def configurations(rows: Iterable[Row]) -> int:
    """How many different configurations the rows have; a row whose config is not known counts as one of its own."""
    known = [tuple(sorted((path, repr(value)) for path, value in row.config.items())) for row in rows]
    return len(set(filter(None, known))) + sum(not config for config in known)


def side_by_side(
    rows: Sequence[Row],
    tables: Mapping[str, Mapping[str, Any]],
    metrics: Sequence[str],
    objective: Objective,
    labels: Sequence[str],
    by: str | None,
) -> tuple[Scored, Sequence[str]]:
    """The rows' runs side by side, and the labels.

    Args:
        rows: each with its runs, where it has several seeds.
        tables: data set → trial id → item table.
        metrics: that are compared.
        objective: what ranks them.
        labels: of the task; where empty, those that the tables have.
        by: a metric that ranks instead.
    """
    runs = [(number, run) for number, row in enumerate(rows) for run in row.seeds or (row,)]
    aligned = {dataset: align([read[run.trial_id] for _, run in runs]) for dataset, read in tables.items()}
    labelled = TASK in aligned and "prediction" in aligned[TASK].tables[0].column_names
    labels = labels or (aligned[TASK].texts("label", "prediction") if labelled else ())
    columns = {
        name: ESTIMATORS[name].columns(aligned[ESTIMATORS[name].dataset], labels).astype(np.float32)
        for name in metrics
        if _resampled(name, tables)
    }
    fixed = {
        name: np.array([run.metrics.get(name, math.nan) for _, run in runs])
        for name in metrics
        if not _resampled(name, tables)
    }
    sizes = {ESTIMATORS[name].dataset: given.shape[1] for name, given in columns.items()}
    classes = aligned[TASK].first_codes("label", labels) if labelled and labels and TASK in sizes else None
    score = (lambda values: _goodness(by, values[by])) if by else (lambda values: scores(objective, values))
    owners = np.array([number for number, _ in runs]) if len(runs) > len(rows) else None
    return Scored(sizes, columns, fixed, score, owners, classes), labels


def _resampled(metric: str, tables: Mapping[str, Any]) -> bool:
    return metric in ESTIMATORS and ESTIMATORS[metric].dataset in tables


def _goodness(metric: str, values: Array) -> Array:
    """Higher is better, in the metric's unit."""
    better = METRICS[metric].better
    if isinstance(better, float):
        return -np.abs(values - better)
    return values if better == "high" else -values


@dataclass(frozen=True)
class Figures:
    """How sure what ranks some rows is, by the influence of each item: nothing here is a test.

    Attributes:
        numbers: (rows,) what ranks, higher is better.
        low, high, behind_low, behind_high, errors: (rows,), as in ``Standing``.
        freedom: (rows,) degrees of freedom of the errors.
        optimism: metric, and ``objective`` → by how much the first row's is too high, for having been chosen.
        without_interval: as in ``Judgement``.
    """

    numbers: Array
    low: Array
    high: Array
    behind_low: Array
    behind_high: Array
    errors: Array
    freedom: Array
    optimism: dict[str, float]
    without_interval: dict[str, str]


def figures(
    scored: Scored,
    labels: Sequence[str],
    by: str | None = None,
    trials: Sequence[int] = (),
    left_behind: int = 0,
    part: float = 1.0,
) -> Figures:
    """Intervals of rows, and what being chosen does to the first.

    Args:
        scored: the rows, the best first.
        labels: of the task.
        by: the metric that ranks, instead of the score.
        trials: numbers of the rows that it was chosen among.
        left_behind: further configurations that it was chosen among: trials that were stopped early.
        part: the share of the items that those were scored on.
    """
    if min(scored.sizes.values()) < 2:
        raise DataError("One item that both were scored on says nothing about others.")
    whole = scored.weighted({name: np.ones((1, n)) for name, n in scored.sizes.items()})
    numbers = scored.mean(scored.score(whole))[:, 0]
    spreads = {name: spread(scored, name) for name in scored.columns}
    without = {name: why for name in [*scored.columns, *scored.fixed] if (why := lacking(scored, name, labels))}
    hidden = np.full(len(numbers), any(name in without for name in scored.columns))
    for name, given in spreads.items():
        if given.uneven.any() and name not in without:
            items = scored.sizes[ESTIMATORS[name].dataset]
            without[name] = f"a few of the {items} items make up most of how it varies"
        hidden = hidden | given.uneven
    slopes = _slopes(scored, spreads)
    excess = optimism(scored, spreads, slopes, trials, left_behind, part) if len(trials) > 1 else {}
    ranks = Ranked(scored, spreads, slopes, numbers)
    low, high, behind_low, behind_high, errors, freedom = (
        ranks.of_metric(by, excess.get(by, 0.0)) if by in spreads else ranks.of_score(excess.get(SCORE, 0.0))
    )
    low, high = np.where(hidden, math.nan, low), np.where(hidden, math.nan, high)
    hidden = hidden | hidden[0]
    behind_low, behind_high = np.where(hidden, math.nan, behind_low), np.where(hidden, math.nan, behind_high)
    behind_low[0] = behind_high[0] = 0.0
    if hidden[0] and not by:
        why = next(name for name in scored.columns if name in without)
        without[SCORE] = f"it is made of {why}, and {without[why]}"
    return Figures(numbers, low, high, behind_low, behind_high, errors, freedom, excess, without)


def _standings(names: Sequence[str], scored: Scored, by: str | None, found: Figures) -> dict[str, Standing]:
    if scored.owners is not None:
        from scipy.special import stdtr

        apart = abs(found.numbers[0] - found.numbers)
        errors = np.divide(apart, found.errors, out=np.zeros_like(apart), where=found.errors > 0)
        p = 2 * stdtr(found.freedom, -errors)
        p[0] = 1.0
    else:
        p = np.concatenate([[1.0], _mcnemar(scored) if by == "accuracy" else _permutation(scored, found.numbers)])
    behind = found.numbers[0] - found.numbers
    n = scored.sizes.get(TASK, next(iter(scored.sizes.values())))
    table = np.array([found.low, found.high, behind, found.behind_low, found.behind_high, found.errors, p, p])
    return {name: Standing(*map(float, column), n) for name, column in zip(names, table.T, strict=True)}  # type: ignore[arg-type, call-arg]


def _slopes(scored: Scored, spreads: Mapping[str, Spread]) -> dict[str, Array]:
    """Metric → (rows,) by how much the score rises with it, over one error to both sides.

    A score with steps (``lexicographic``) or edges (a maximum) has no derivative; over an error it has a slope.
    """
    values = {name: given.shown(given.quantity) for name, given in spreads.items()}
    values |= {name: scored.mean(given) for name, given in scored.fixed.items()}
    slopes = {}
    for name, given in spreads.items():
        error = np.sqrt(given.variance)
        error = np.where(np.isfinite(error) & (error > 0), error, 1e-6)
        above, below = (scored.score({**values, name: values[name] + side * error}) for side in (1.0, -1.0))
        slopes[name] = (above - below) / (2 * error)
    return slopes


def _permutation(scored: Scored, whole: Array) -> Array:
    """p of each row but the first, two-sided."""
    from scipy.stats import norm, permutation_test

    ends = np.cumsum(list(scored.sizes.values()))

    def apart(mask: Array, _: Array, axis: int = -1) -> Array:
        """(…, others) difference of the two numbers with answers exchanged where the mask is 1."""
        rows = mask.reshape(-1, mask.shape[-1])
        masks = dict(zip(scored.sizes, np.split(rows, ends[:-1], axis=1), strict=True))
        first, other = scored.exchanged(masks)
        return (scored.score(first) - scored.score(other)).T.reshape(*mask.shape[:-1], -1)

    zeros = np.zeros(ends[-1])  # under the null the two are exchangeable on each item: pairs of 0 and 1, shuffled
    exchanges = permutation_test(
        (zeros, zeros + 1), apart, permutation_type="samples", vectorized=True, n_resamples=RESAMPLES,
        batch=max(1, _AT_ONCE // scored.width), rng=np.random.default_rng(0),
    )  # fmt: skip
    spread = exchanges.null_distribution.std(axis=0, ddof=1)
    seen = np.abs(whole[0] - whole[1:])
    tail = 2 * norm.sf(np.divide(seen, spread, out=np.zeros_like(seen), where=spread > 0))
    p = np.where(exchanges.pvalue <= 2 / (RESAMPLES + 1), tail, exchanges.pvalue)
    return np.where(spread > 0, np.minimum(p, 1.0), 1.0)  # the same answers everywhere: no difference to test


def _mcnemar(scored: Scored) -> Array:
    """Exact p of each row but the first, from the items that only one of the two has right."""
    from scipy.stats import binom

    right = scored.columns["accuracy"][..., 0] > 0.5
    only_best = (right[0] & ~right[1:]).sum(axis=1)
    only_other = (~right[0] & right[1:]).sum(axis=1)
    return np.minimum(2 * binom.cdf(np.minimum(only_best, only_other), only_best + only_other, 0.5), 1.0)


def _holm(standings: Mapping[str, Standing], best: str) -> dict[str, Standing]:
    rivals = [name for name, standing in standings.items() if name != best and standing.rival]
    after = dict(zip(rivals, holm([standings[name].p for name in rivals]), strict=True))
    return {name: replace(standing, adjusted=after.get(name, standing.p)) for name, standing in standings.items()}


def holm(p: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979, "A simple sequentially rejective multiple test procedure",
    Scandinavian Journal of Statistics 6, 65-70): the k-th smallest of m times m - k + 1, never below a smaller one's.
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values)
    times = np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(times * values[order]), 1.0)
    return list(map(float, adjusted))
