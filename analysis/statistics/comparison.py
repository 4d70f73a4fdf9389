"""How sure a ranking is: the best row against each other one, on the items that both were scored on.

- Intervals: paired bootstrap by ``scipy.stats.bootstrap``. Items (and bias pairs, independently) are resampled, and
  the number that ranks is computed anew for every row from the same resample.
- Tests: McNemar's where accuracy ranks (exact), else a paired permutation test
  (``scipy.stats.permutation_test``): the two rows' answers are exchanged on random items. Where no exchange is as
  extreme as the observed difference, the normal tail of the permutation distribution gives p: with a thousand rivals,
  1/1,999 would be too coarse to correct.
- Holm's correction over all rivals: a row is *tied* with the best where its corrected p is 0.05 or more.
  That the best beats *all* rivals needs every one of the tests and so no correction (the intersection-union test,
  Berger 1982, "Multiparameter hypothesis testing and acceptance sampling", Technometrics 24, 295-300): where all are
  below 0.05 before it, the best is the winner and nothing is tied.
- The winner's curse: the bootstrap-bias-corrected estimate of Tsamardinos, Greasidou and Borboudakis 2018
  ("Bootstrapping the out-of-sample predictions for efficient and accurate cross-validation", Machine Learning 107,
  1895-1922).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from analysis.errors import LorasweepError
from analysis.folder import SweepFolder
from analysis.item_sums import TASK
from analysis.metrics import METRICS
from analysis.objective import Objective
from analysis.rows import Row
from analysis.statistics.estimators import ESTIMATORS, Array, Scored, scores
from analysis.statistics.items import align, groups, read_tables

LEVEL = 0.05
RESAMPLES = 1_999
_AT_ONCE = 1 << 25  # sums over items (a resample, a row and a column each) that are in memory at a time


@dataclass(frozen=True)
class Standing:
    """One row beside the best.

    Attributes:
        low, high: 95 % interval of the row's own number.
        behind: the best's number minus this row's; 0 for the best itself.
        behind_low, behind_high: its paired 95 % interval.
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
    lacking: dict[str, str] = {}
    for dataset in sorted({ESTIMATORS[name].dataset for name in metrics if name in ESTIMATORS}):
        of_rows, without = read_tables(folder, rows, dataset)
        if best in of_rows:  # else its metrics stay as measured
            tables[dataset] = of_rows
            lacking |= without
    usable = {row.trial_id: row for row in rows if row.trial_id not in lacking}
    if not tables or len(usable) < 2:
        return None
    judged: dict[str, Standing] = {}
    corrected: dict[str, float] = {}
    main = TASK if TASK in tables else next(iter(tables))
    for names in groups({name: tables[main][name] for name in usable}, best):
        try:
            together = _scored([usable[name] for name in names], tables, metrics, objective, labels, by)
            standings = _standings(names, together, by)  # refuses a single item
        except (LorasweepError, KeyError, ValueError) as error:
            lacking |= dict.fromkeys(names[1:], " ".join(str(error).split()))
            continue
        judged |= standings
        if not corrected:  # of the first group: the rows that were scored on the same items as the best
            trials = [i for i, name in enumerate(names) if usable[name].kind == "trial"]
            corrected = _corrected(together, trials) if len(trials) > 1 else {}
    if len(judged) < 2:
        return None
    judged = {name: replace(at, rival=usable[name].kind == "trial") for name, at in judged.items()}
    return Judgement(
        by or "objective",
        best,
        _holm(judged, best),
        corrected,
        "McNemar's test" if by == "accuracy" else "permutation test",
        tuple(name for name in metrics if not _resampled(name, tables)),
        lacking,
        looked_at=configurations([*(row for row in rows if row.kind == "trial"), *stopped]),
    )


def configurations(rows: Iterable[Row]) -> int:
    """How many different configurations the rows have; a row whose config is not known counts as one of its own."""
    known = [tuple(sorted((path, repr(value)) for path, value in row.config.items())) for row in rows]
    return len(set(filter(None, known))) + sum(not config for config in known)


def _scored(
    rows: Sequence[Row],
    tables: Mapping[str, Mapping[str, Any]],
    metrics: Sequence[str],
    objective: Objective,
    labels: Sequence[str],
    by: str | None,
) -> Scored:
    aligned = {dataset: align([read[row.trial_id] for row in rows]) for dataset, read in tables.items()}
    labels = labels or (
        aligned[TASK].texts("label", "prediction")
        if TASK in aligned and "prediction" in aligned[TASK].tables[0].column_names
        else ()
    )
    columns = {
        name: ESTIMATORS[name].columns(aligned[ESTIMATORS[name].dataset], labels).astype(np.float32)
        for name in metrics
        if _resampled(name, tables)
    }
    fixed = {
        name: np.array([row.metrics.get(name, math.nan) for row in rows])
        for name in metrics
        if not _resampled(name, tables)
    }
    score = (lambda values: _goodness(by, values[by])) if by else (lambda values: scores(objective, values))
    return Scored({name: items.n for name, items in aligned.items()}, columns, fixed, score)


def _resampled(metric: str, tables: Mapping[str, Any]) -> bool:
    return metric in ESTIMATORS and ESTIMATORS[metric].dataset in tables


def _goodness(metric: str, values: Array) -> Array:
    """Higher is better, in the metric's unit."""
    better = METRICS[metric].better
    if isinstance(better, float):
        return -np.abs(values - better)
    return values if better == "high" else -values


def _standings(names: Sequence[str], scored: Scored, by: str | None) -> dict[str, Standing]:
    from scipy.stats import bootstrap

    datasets = list(scored.sizes)

    def numbers(*drawn: Array, axis: int = -1) -> Array:
        """(rows, …) from drawn places, one array a data set: (…, items)."""
        shape = drawn[0].shape[:-1]
        counts = {
            name: _counts(places.reshape(-1, places.shape[-1])) for name, places in zip(datasets, drawn, strict=True)
        }
        return scored.score(scored.weighted(counts)).reshape(-1, *shape)

    places = tuple(np.arange(scored.sizes[name]) for name in datasets)
    whole = numbers(*(own[None] for own in places))[:, 0]
    resampled = bootstrap(
        places, numbers, n_resamples=RESAMPLES, batch=max(1, _AT_ONCE // scored.width), method="percentile",
        vectorized=True, rng=np.random.default_rng(0),
    )  # fmt: skip
    low, high = resampled.confidence_interval
    apart = resampled.bootstrap_distribution[:1] - resampled.bootstrap_distribution
    behind_low, behind_high = np.quantile(apart, [0.025, 0.975], axis=1)
    errors = apart.std(axis=1, ddof=1)
    p = np.concatenate([[1.0], _mcnemar(scored) if by == "accuracy" else _permutation(scored, whole)])
    n = scored.sizes.get(TASK, next(iter(scored.sizes.values())))
    columns = np.array([low, high, whole[0] - whole, behind_low, behind_high, errors, p, p])
    return {name: Standing(*map(float, column), n) for name, column in zip(names, columns.T, strict=True)}  # type: ignore[arg-type, call-arg]


def _counts(places: Array) -> Array:
    """(resamples, items) how often each item was drawn."""
    resamples, n = places.shape
    flat = (places.astype(np.int64) + np.arange(resamples)[:, None] * n).ravel()
    return np.bincount(flat, minlength=resamples * n).reshape(resamples, n)


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


def _corrected(scored: Scored, trials: Sequence[int], resamples: int = 500) -> dict[str, float]:
    """What the chosen row is to be expected to show on items that did not take part in choosing it.

    In each bootstrap resample the row with the best number is chosen, and judged by the items that were not drawn; the
    estimate is the mean over resamples.
    """
    rng = np.random.default_rng(0)
    drawn = {name: _counts(rng.integers(n, size=(resamples, n))) for name, n in scored.sizes.items()}
    inside = scored.score(scored.weighted(drawn))[trials]
    values = scored.weighted({name: (counts == 0).astype(np.int64) for name, counts in drawn.items()})
    chosen, each = np.array(trials)[np.nanargmax(inside, axis=0)], np.arange(resamples)
    values["objective"] = scored.score(values)
    return {name: float(np.nanmean(given[chosen, each])) for name, given in values.items()}
