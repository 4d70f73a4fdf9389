"""The final scores of a sweep: its best trials, trained again with other seeds and scored on the test split.

Read from ``finals/`` of a sweep folder, which ``lorasweep finalize`` writes. A trial that was chosen by its validation
figure has one that is too good on average (the winner's curse). The test figure beside it shows by how much.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev

from analysis.errors import LorasweepError
from analysis.folder import MetricsRow, State, SweepFolder, TrialFolder, read_lines
from analysis.leaderboard.baselines import INCOMPARABLE, compared_metrics, difference, name_of
from analysis.leaderboard.power_words import Scale, items_words, seeds_sentence
from analysis.metric_words import words_of
from analysis.metrics import METRICS, as_shown
from analysis.rows import Row, configuration_id, read_sweep
from analysis.statistics.paired import Difference, item_scores, paired_difference

SEED = "-seed"  # between a trial's id and the seed in the name of a final
SHOWN = ("accuracy", "macro_f1", "log_loss", "completion_loss", "perplexity", "bits_per_byte")


@dataclass(frozen=True)
class Final:
    """One finalist with one seed, or a baseline.

    Attributes:
        name: such as ``t0003-seed1``, or the baseline's.
        status: a ``State``.
        reason: why it ended so.
        validation: metrics on all validation items.
        test: metrics on the test items; empty where it was not scored on them yet.
        n_items: test items.
        step: of what was scored on them.
        hits: item id → 1 where the prediction on the test item was right, else 0; without labels minus its loss.
    """

    name: str
    status: str
    reason: str = ""
    validation: Mapping[str, float] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)
    n_items: int = 0
    step: int = 0
    hits: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Finalist:
    """A trial of the sweep that was trained again, and its final scores.

    Attributes:
        trial_id: as in the leaderboard.
        selected: its metrics in the sweep, by which it was chosen.
        runs: one for each seed.
    """

    trial_id: str
    selected: Mapping[str, float]
    runs: tuple[Final, ...]

    def values(self, metric: str, split: str = "test") -> list[float]:
        """A metric's values, of the seeds that have it.

        Args:
            metric: its name.
            split: ``test`` or ``validation``.
        """
        values = (getattr(run, split).get(metric, math.nan) for run in self.runs)
        return [value for value in values if math.isfinite(value)]

    def mean(self, metric: str, split: str = "test") -> float:
        """Mean of a metric over the seeds; NaN for none. Arguments as of ``values``."""
        values = self.values(metric, split)
        return fmean(values) if values else math.nan

    def sd(self, metric: str, split: str = "test") -> float:
        """Sample standard deviation of a metric over the seeds; NaN for fewer than two. Arguments as of ``values``."""
        values = self.values(metric, split)
        return stdev(values) if len(values) > 1 else math.nan

    def hits(self) -> dict[str, float]:
        """Item id → share of the seeds that were right on it; without labels their mean score."""
        scored = [run.hits for run in self.runs if run.hits]
        common = set.intersection(*(set(hits) for hits in scored)) if scored else set()
        return {item: fmean(hits[item] for hits in scored) for item in sorted(common)}


@dataclass(frozen=True)
class Look:
    """One run of ``lorasweep finalize``: somebody looked at the test split.

    Attributes:
        number: from 1.
        time: when it began, as ISO 8601.
        user: who ran it.
        command: as typed.
        finalists: trials that were to be scored.
        finished: whether the run came to its end.
    """

    number: int
    time: str
    user: str
    command: str
    finalists: tuple[str, ...]
    finished: bool


@dataclass(frozen=True)
class Comparison:
    """The first finalist against another one or a baseline, on the test items.

    Attributes:
        metric: in which they are compared.
        other: name of the other, as a sentence has it.
        difference: the first's minus the other's, higher is better; None where they cannot be compared.
        why: why not.
        error: standard error of the difference; NaN where it is not known.
        finalist: the other one, where it is a finalist.
    """

    metric: str
    other: str
    difference: Difference | None
    why: str = ""
    error: float = math.nan
    finalist: Finalist | None = None


@dataclass(frozen=True)
class Finals:
    """Everything in ``finals/``.

    Attributes:
        finalists: in the order of the first metric on the test items.
        baselines: scored on the test items.
        looks: at the test split.
        comparisons: of the first finalist with each other one and each baseline, in what ranks.
        terms: metrics of the sweep's objective: they are shown, whichever they are.
    """

    finalists: tuple[Finalist, ...]
    baselines: tuple[Final, ...]
    looks: tuple[Look, ...]
    comparisons: tuple[Comparison, ...] = ()
    terms: tuple[str, ...] = ()


class _TestItems(TrialFolder):
    """A final whose items are those of the test split, whatever split is asked for."""

    def items_file(self, dataset: str, split: str, step: int) -> Path:
        return super().items_file(dataset, "test", step)


class _TestSplit(SweepFolder):
    """A sweep folder whose trials and baselines are the finals, so that the ranking's comparisons read them."""

    def trial(self, trial_id: str) -> TrialFolder:
        return _TestItems(self.final(trial_id).root)

    def baseline(self, name: str) -> TrialFolder:
        return self.trial(name)


def read_finals(folder: SweepFolder) -> Finals:
    """What a sweep folder holds of final scores; empty where ``lorasweep finalize`` was not run."""
    runs: dict[str, list[Final]] = {}
    baselines = []
    for files in folder.finals():
        trial_id, separator, _ = files.trial_id.rpartition(SEED)
        if separator:
            runs.setdefault(trial_id, []).append(_final(files))
        else:
            baselines.append(_final(files))
    finalists = [Finalist(trial_id, _selected(folder, trial_id), tuple(finals)) for trial_id, finals in runs.items()]
    metrics = _metrics(folder, finalists)
    measure = metrics[0] if metrics else "accuracy"
    sign = -1.0 if METRICS[measure].better == "high" else 1.0

    def place(finalist: Finalist) -> tuple[float, str]:
        mean = finalist.mean(measure)
        return sign * mean if math.isfinite(mean) else math.inf, finalist.trial_id

    placed = sorted(finalists, key=place)
    compared = _comparisons(folder, placed, baselines, metrics) if placed else []
    terms = (read_sweep(folder).objective.get("terms") or {}).values() if finalists else ()
    return Finals(
        tuple(placed),
        tuple(baselines),
        read_looks(folder),
        tuple(compared),
        tuple(str(term["metric"]) for term in terms),
    )


def _row(kind: str, name: str, runs: Sequence[Final]) -> Row | None:
    """Scored runs as a row of a ranking: their means, with a row for each; None where none was scored on the test."""
    rows = [
        Row(kind, run.name, State.COMPLETED, run.step, run.n_items, True, {}, dict(run.test))
        for run in runs
        if run.test
    ]
    if len(rows) < 2:
        return rows[0] if rows else None
    means = {metric: fmean(row.metrics.get(metric, math.nan) for row in rows) for metric in rows[0].metrics}
    return Row(
        kind, rows[0].trial_id, State.COMPLETED, rows[0].step, rows[0].n_items, True, {}, means, seeds=tuple(rows)
    )


def _metrics(folder: SweepFolder, finalists: Sequence[Finalist]) -> list[str]:
    """The metrics in which finalists are compared, as the best trial of a sweep is; what ranks is the first."""
    scored = [row for it in finalists if (row := _row("trial", it.trial_id, it.runs)) is not None]
    return compared_metrics(_TestSplit(folder.root), scored[0]) if scored else []


def _comparisons(
    folder: SweepFolder, finalists: Sequence[Finalist], baselines: Sequence[Final], metrics: Sequence[str]
) -> list[Comparison]:
    best, *others = finalists
    compared = []
    for metric in metrics:
        for baseline in baselines:
            row = _row("baseline", baseline.name, [baseline])
            if row is not None and math.isfinite(row.metrics.get(metric, math.nan)):
                name = name_of(_TestSplit(folder.root), row)
                compared.append(_compare(folder, best, row, name, metric, baseline.hits))
        for other in others:
            row = _row("trial", other.trial_id, other.runs)
            if row is not None:
                compared.append(_compare(folder, best, row, other.trial_id, metric, other.hits(), other))
    return compared


def _compare(
    folder: SweepFolder,
    best: Finalist,
    other: Row,
    name: str,
    metric: str,
    hits: Mapping[str, float],
    finalist: Finalist | None = None,
) -> Comparison:
    mine = _row("trial", best.trial_id, best.runs)
    assert mine is not None, "the best finalist is one that was scored"
    try:
        if metric != "accuracy":
            apart = difference(_TestSplit(folder.root), mine, other, metric)
            return Comparison(metric, name, apart, "", (apart.high - apart.low) / (2 * 1.96), finalist)
        own = best.hits()
        apart = paired_difference(own, hits)
    except INCOMPARABLE as error:
        return Comparison(metric, name, None, str(error).splitlines()[0], finalist=finalist)
    each = [own[item] - hits[item] for item in own.keys() & hits.keys()]
    of_mean = stdev(each) / math.sqrt(len(each)) if len(each) > 1 else math.nan
    return Comparison(metric, name, apart, "", of_mean, finalist)


def read_looks(folder: SweepFolder) -> tuple[Look, ...]:
    """Who looked at the test split, in order."""
    looks: dict[int, Look] = {}
    for record in read_lines(folder.looks_file):
        try:
            number, event = int(record["look"]), record["event"]
            if event == "began":
                who = (str(record["time"]), str(record["user"]), str(record["command"]))
                looks[number] = Look(number, *who, tuple(map(str, record["finalists"])), False)
            elif event == "finished" and number in looks:
                before = looks[number]
                looks[number] = Look(number, before.time, before.user, before.command, before.finalists, True)
        except (KeyError, TypeError, ValueError):
            continue  # a line that was edited by hand
    return tuple(looks[number] for number in sorted(looks))


def _final(files: TrialFolder) -> Final:
    try:
        last = files.read_status()
        status, reason = str(last.state), last.reason
    except LorasweepError as error:
        status, reason = "unknown", str(error)
    rows = [row for row in files.read_metrics() if row.final]
    by_split: dict[str, MetricsRow] = {row.split: row for row in rows}
    test = by_split.get("test")
    hits: dict[str, float] = {}
    if test is not None:
        try:
            hits = item_scores(files.read_items("task", "test", test.step))
        except (LorasweepError, KeyError, ValueError, OSError) as error:
            reason = f"{reason}; " * bool(reason) + f"its test items cannot be read ({error})"
    validation = by_split["validation"].metrics if "validation" in by_split else {}
    return Final(
        files.trial_id,
        status,
        reason,
        validation,
        test.metrics if test else {},
        test.n_items if test else 0,
        test.step if test else 0,
        hits,
    )


def _selected(folder: SweepFolder, trial_id: str) -> Mapping[str, float]:
    """Of a configuration of several seeds the mean."""
    seeds = [files for files in folder.trials() if configuration_id(files.trial_id) == trial_id]
    finals = [[row for row in files.read_metrics() if row.final] for files in seeds]
    scored = [rows[-1].metrics for rows in finals if rows]
    names = dict.fromkeys(name for metrics in scored for name in metrics)
    return {name: fmean(metrics.get(name, math.nan) for metrics in scored) for name in names}


def report(finals: Finals) -> str:
    """The final scores as text: a table, intervals on the test items, and who looked at the test split."""
    if not finals.finalists:
        return "There are no final scores."
    measured = {name for finalist in finals.finalists for run in finalist.runs for name in run.test}
    metrics = [
        name for name in METRICS if name in measured and (name in SHOWN or name.startswith(("bias.", "generate.")))
    ]
    metrics = [name for name in metrics if not name.endswith((".stderr", ".distance", "_floor"))]
    metrics = [name for name in METRICS if name in metrics or (name in finals.terms and name in measured)]
    heads = ["trial", "seeds", "metric", "in the sweep", "validation", "test"]
    lines = [heads]
    for finalist in finals.finalists:
        done = sum(bool(run.test) for run in finalist.runs)
        for i, name in enumerate(metrics):
            first = [finalist.trial_id, f"{done} of {len(finalist.runs)}"] if i == 0 else ["", ""]
            validation = _spread(finalist.mean(name, "validation"), finalist.sd(name, "validation"), name)
            test = _spread(finalist.mean(name), finalist.sd(name), name)
            lines.append([*first, name, as_shown(name, finalist.selected.get(name, math.nan)), validation, test])
    for baseline in finals.baselines:
        shown = [name for name in metrics if name in baseline.test]
        for i, name in enumerate(shown):
            first = [baseline.name, "-"] if i == 0 else ["", ""]
            lines.append([*first, name, "-", "-", as_shown(name, baseline.test[name])])
    widths = [max(len(line[c]) for line in lines) for c in range(len(heads))]
    table = [
        "  ".join(
            cell.ljust(w) if c < 3 else cell.rjust(w) for c, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    table.insert(1, "-" * len(max(table, key=len)))
    return "\n".join([*table, "", *_sentences(finals)])


def _sentences(finals: Finals) -> list[str]:
    best = finals.finalists[0]
    n = max((run.n_items for run in best.runs), default=0)
    sentences = [f"Mean ± standard deviation over seeds; {n} test items. No figure here was used to choose anything."]
    if len(best.values("accuracy")) and "accuracy" in best.selected:
        fall = 100 * (best.selected["accuracy"] - best.mean("accuracy"))
        sentences.append(
            f"{best.trial_id} had {100 * best.selected['accuracy']:.1f} % accuracy in the sweep that chose it, and has"
            f" {100 * best.mean('accuracy'):.1f} % on the test split: {abs(fall):.1f} points"
            f" {'less' if fall >= 0 else 'more'}."
        )
    for comparison in finals.comparisons:
        sentences += _compared(finals, best, comparison)
    for finalist in finals.finalists:
        for run in finalist.runs:
            if run.status != State.COMPLETED or not run.test:
                why = f": {run.reason}" if run.reason else ""
                sentences.append(f"{run.name} is not in these figures: {run.status.replace('_', ' ')}{why}.")
    return sentences + looks_sentences(finals.looks)


def _compared(finals: Finals, best: Finalist, comparison: Comparison) -> list[str]:
    """A comparison, and where it shows no difference what these items, and more seeds, could show."""
    other, words = comparison.other, words_of(comparison.metric)
    apart = comparison.difference
    if apart is None:
        return [f"{best.trial_id} and {other} cannot be compared in {words.name}: {comparison.why}"]
    above, below = ("better than", "worse than") if words.lower else ("above", "below")
    sure = apart.low > 0 or apart.high < 0
    chance = "" if sure else " It includes zero: the difference may be chance."
    said = [
        f"On the test split {best.trial_id} is {words.size(apart.mean)} {above if apart.mean >= 0 else below} {other};"
        f" paired 95 % interval {words.interval(apart.low, apart.high)} on {apart.n} items.{chance}"
    ]
    return said if sure else said + _power(finals, best, comparison)


def _power(finals: Finals, best: Finalist, comparison: Comparison) -> list[str]:
    from analysis.statistics.power import could_have_shown, items_needed, mean_square

    apart, scale, said = comparison.difference, Scale(words_of(comparison.metric), 1.0), []
    if apart is None:
        return []
    if math.isfinite(comparison.error) and comparison.error > 0:
        square = mean_square(apart.mean, comparison.error, apart.n)
        largest = could_have_shown(square, apart.n)
        needed = items_needed(apart.mean, square)
        seen = f"; the one seen would take {items_words(needed)}" if apart.mean else ""
        if math.isfinite(largest):
            said.append(
                f"These {apart.n:,} items could have shown a difference of {scale.amount(largest)} (80 % power){seen}."
            )
    if comparison.finalist is not None:
        values = [it.values(comparison.metric) for it in finals.finalists]
        first, second = ((it.trial_id, it.values(comparison.metric)) for it in (best, comparison.finalist))
        sentence = seeds_sentence(values, first, second, scale, "--seeds ")
        said += [f"{sentence}."] if sentence else []
    return said


def looks_sentences(looks: Sequence[Look]) -> list[str]:
    """A sentence on who looked at the test split, and a warning where that was more than once."""
    if len(looks) < 2:
        return [f"Test split looked at once, {looks[0].time} by {looks[0].user}." for looks in [looks] if looks]
    listed = "; ".join(f"{look.number}: {look.time} by {look.user} ({', '.join(look.finalists)})" for look in looks)
    return [
        f"The test split was looked at {len(looks)} times ({listed}). Each look after the first makes its figures"
        " less of a test: what was chosen after one is chosen with it."
    ]


def _spread(mean: float, sd: float, name: str) -> str:
    return as_shown(name, mean) + (f" ± {as_shown(name, sd)}" if math.isfinite(sd) else "")
