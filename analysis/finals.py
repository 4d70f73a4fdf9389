"""The final scores of a sweep: its best trials, trained again with other seeds and scored on the test split.

Read from ``finals/`` of a sweep folder, which ``lorasweep finalize`` writes. A trial that was chosen by its validation
figure has one that is too good on average (the winner's curse). The test figure beside it shows by how much.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

from analysis.errors import LorasweepError
from analysis.folder import MetricsRow, State, SweepFolder, TrialFolder, read_lines
from analysis.metrics import METRICS, as_shown
from analysis.rows import read_sweep
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
        hits: item id → 1 where the prediction on the test item was right, else 0; without labels minus its loss.
    """

    name: str
    status: str
    reason: str = ""
    validation: Mapping[str, float] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)
    n_items: int = 0
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
class Finals:
    """Everything in ``finals/``: finalists in the order of their test accuracy, baselines, and the looks.

    ``terms`` are the metrics of the sweep's objective: they are shown, whichever they are.
    """

    finalists: tuple[Finalist, ...]
    baselines: tuple[Final, ...]
    looks: tuple[Look, ...]
    terms: tuple[str, ...] = ()


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
    measure = _measure(finalists)
    sign = -1.0 if METRICS[measure].better == "high" else 1.0

    def place(finalist: Finalist) -> tuple[float, str]:
        mean = finalist.mean(measure)
        return sign * mean if math.isfinite(mean) else math.inf, finalist.trial_id

    terms = (read_sweep(folder).objective.get("terms") or {}).values() if finalists else ()
    return Finals(
        tuple(sorted(finalists, key=place)),
        tuple(baselines),
        read_looks(folder),
        tuple(str(term["metric"]) for term in terms),
    )


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
        files.trial_id, status, reason, validation, test.metrics if test else {}, test.n_items if test else 0, hits
    )


def _selected(folder: SweepFolder, trial_id: str) -> Mapping[str, float]:
    rows = [row for row in folder.trial(trial_id).read_metrics() if row.final]
    return rows[-1].metrics if rows else {}


def _measure(finalists: Sequence[Finalist]) -> str:
    """What finalists are put in order by: accuracy; without labels the loss."""
    there = {name for finalist in finalists for run in finalist.runs for name in run.test}
    return next((name for name in ("accuracy", "completion_loss", "perplexity") if name in there), "accuracy")


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
    best, *others = finals.finalists
    n = max((run.n_items for run in best.runs), default=0)
    sentences = [f"Mean ± standard deviation over seeds; {n} test items. No figure here was used to choose anything."]
    if len(best.values("accuracy")) and "accuracy" in best.selected:
        fall = 100 * (best.selected["accuracy"] - best.mean("accuracy"))
        sentences.append(
            f"{best.trial_id} had {100 * best.selected['accuracy']:.1f} % accuracy in the sweep that chose it, and has"
            f" {100 * best.mean('accuracy'):.1f} % on the test split: {abs(fall):.1f} points"
            f" {'less' if fall >= 0 else 'more'}."
        )
    for baseline in finals.baselines:
        sentences += _compared(best, baseline.name, baseline.hits, "baseline ")
    for other in others:
        sentences += _compared(best, other.trial_id, other.hits(), "")
    for finalist in finals.finalists:
        for run in finalist.runs:
            if run.status != State.COMPLETED or not run.test:
                why = f": {run.reason}" if run.reason else ""
                sentences.append(f"{run.name} is not in these figures: {run.status.replace('_', ' ')}{why}.")
    return sentences + looks_sentences(finals.looks)


def _compared(best: Finalist, name: str, hits: Mapping[str, float], kind: str) -> list[str]:
    mine = best.hits()
    if not mine or not hits:
        return []
    try:
        difference: Difference = paired_difference(mine, hits)
    except LorasweepError as error:
        return [f"{best.trial_id} and {kind}{name} cannot be compared: {error}"]
    labelled = bool(best.values("accuracy"))
    side = (
        ("above" if difference.mean >= 0 else "below")
        if labelled
        else ("better than" if difference.mean >= 0 else "worse than")
    )
    scale, unit, size = (100, "points", "points of accuracy") if labelled else (1, "nats a token", "nats of loss")
    sure = "" if difference.low > 0 or difference.high < 0 else " It includes zero: the difference may be chance."
    low, high, mean = (
        f"{scale * value:.{1 if labelled else 3}f}" for value in (difference.low, difference.high, abs(difference.mean))
    )
    return [
        f"On the test split {best.trial_id} is {mean} {size} {side} {kind}{name};"
        f" paired 95 % interval [{low}, {high}] {unit} on {difference.n} items.{sure}"
    ]


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
