"""The verdict on a sweep: whether its best trial beats the best baseline, what to change, and what bias does."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from analysis.bias_sets import HEADLINE
from analysis.errors import LorasweepError
from analysis.folder import State, SweepFolder
from analysis.leaderboard.advice import advice
from analysis.leaderboard.baselines import (
    INCOMPARABLE,
    UNTUNED,
    compared_metrics,
    difference,
    having,
    labelled,
    most_frequent,
    name_of,
    scored,
    strongest,
    way_of,
)
from analysis.leaderboard.claims import claims
from analysis.leaderboard.group_gaps import gap_sentences
from analysis.leaderboard.ranking import objective_of
from analysis.metric_words import MetricWords, words_of
from analysis.rows import Row, best_trial, rankable, row_files, sweep_yaml
from analysis.statistics.paired import Difference

if TYPE_CHECKING:
    from analysis.statistics.comparison import Judgement

_JUDGED = "generate.judge"
_NO_EVIDENCE = "No evidence that fine-tuning beats"


def verdict(folder: SweepFolder, rows: Sequence[Row], judgement: "Judgement | None" = None) -> str:
    """One sentence a line: the best trial against the best baseline with a paired interval, what to change, then bias.

    Compared is in what ranks, with the baseline that is best in that; where the sentence is about another metric than
    accuracy, rows with labels have one about accuracy too, with the baseline that is most accurate.

    Args:
        folder: its item tables give the interval.
        rows: ranked; the first completed trial is the best.
        judgement: how sure that is.
    """
    best = best_trial(rows, _by(judgement))
    baselines = scored(rows)
    if best is None:
        return "\n".join([_none_completed(rows), *_baseline_alone(folder, baselines), *judge_sentences(folder, rows)])
    compared = [
        _against(folder, best, strongest(there, metric), len(there), metric)
        for metric in compared_metrics(folder, best, judgement)
        if (there := having(baselines, metric))
    ]
    if compared:
        lines = sorted(compared, key=lambda line: not line.startswith(_NO_EVIDENCE))  # what shows no gain comes first
        if lines[0].startswith(_NO_EVIDENCE):
            lines.append(advice(folder, best))
    else:
        lines = [_without_baseline(folder, best, rows)]
    lines += _better_guess(folder, baselines)
    if best.broken:
        lines.append(f"No completed trial keeps the constraints. Of {best.trial_id}: {'; '.join(best.broken)}.")
    rivals = sum(row.kind == "trial" and rankable(row, _by(judgement)) for row in rows)
    objective, left_out = objective_of(folder, rows)
    if judgement is not None:
        lines += claims(rows, judgement, objective)
    elif rivals > 1:
        lines.append(
            f"{best.trial_id} was chosen among {rivals} completed trials on these same items:"
            " expect a little less on new ones."
        )
        lines += _no_items(folder, best)
    untuned = next((row for row in rows if row.kind == "baseline" and row.trial_id == UNTUNED), None)
    if left_out:
        lines.append(f"The ranking leaves out what was not measured: {', '.join(left_out)}.")
    return "\n".join(lines + judge_sentences(folder, rows) + _bias(best, untuned) + gap_sentences(folder, best))


def judge_sentences(folder: SweepFolder, rows: Sequence[Row]) -> list[str]:
    """How far the judge agrees with people, where a row has a judged figure: it is to stand beside each."""
    if not any(_JUDGED in row.metrics for row in rows):
        return []
    data = sweep_yaml(folder).get("data")
    note = data.get("judge") if isinstance(data, dict) else None
    return [str(note or "The judge is not calibrated.")]


def beats_baselines(folder: SweepFolder, rows: Sequence[Row], judgement: "Judgement | None" = None) -> bool | None:
    """Whether the best trial is shown to beat every baseline, in all that is compared; None where they cannot be.

    Args:
        folder: its item tables decide.
        rows: ranked.
        judgement: of the same ranking; it says which metric ranks.
    """
    best, baselines = best_trial(rows, _by(judgement)), scored(rows)
    if best is None:
        return None
    metrics = [metric for metric in compared_metrics(folder, best, judgement) if having(baselines, metric)]
    if not metrics:
        return None
    try:
        return all(
            difference(folder, best, strongest(having(baselines, metric), metric), metric).low > 0.0
            for metric in metrics
        )
    except INCOMPARABLE:
        return None


def _by(judgement: "Judgement | None") -> list[str]:
    return [] if judgement is None or judgement.what == "objective" else [judgement.what]


def _against(folder: SweepFolder, best: Row, baseline: Row, of: int, metric: str) -> str:
    trial, other, words = f"The best trial, {best.trial_id},", name_of(folder, baseline), words_of(metric)
    other = f"the best of {of} baselines, {other}," if of > 1 else other
    figures = " against ".join(words.value(row.metrics.get(metric, math.nan)) for row in (best, baseline))
    try:
        apart = difference(folder, best, baseline, metric)
    except INCOMPARABLE as error:
        why = str(error).splitlines()[0] if isinstance(error, LorasweepError) else f"{type(error).__name__}: {error}"
        what = "a loss of" if metric == "completion_loss" else words.name
        return f"{trial} has {what} {figures} of {other.rstrip(',')}. There is no interval of the difference: {why}"
    interval = _interval(apart, best, baseline, words)
    if apart.low > 0.0:
        return f"{trial} beats {other} by {words.size(apart.mean)} ({figures}); {interval}"
    if apart.mean == 0.0:
        opening = f"{_lower(trial)} has the same {words.name} as {other} ({figures})"
    else:
        above, below = ("better than", "worse than") if words.lower else ("above", "below")
        side = above if apart.mean > 0.0 else below
        opening = f"{_lower(trial)} is {words.size(apart.mean)} {side} {other} ({figures})"
    return f"{_NO_EVIDENCE} {way_of(folder, baseline)}: {opening}; {interval}"


def _better_guess(folder: SweepFolder, baselines: Sequence[Row]) -> list[str]:
    """Says so where even the best baseline is worse than one label for all items: to beat it shows nothing."""
    there = having(baselines, "accuracy")
    if not there:
        return []
    baseline = strongest(there, "accuracy")
    label, share = most_frequent(folder, baseline)
    if share <= baseline.metrics["accuracy"]:
        return []
    add = "" if any(row.trial_id == "majority" for row in there) else ": baselines=[majority] is one"
    return [
        f"The most frequent label, {label}, is right on {100 * share:.1f} % of the items, and none of the baselines is"
        f" as good{add}."
    ]


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def _interval(apart: Difference, best: Row, baseline: Row, words: MetricWords) -> str:
    items = f"{apart.n} item{'s' if apart.n != 1 else ''}"
    if apart.n < max(best.n_items, baseline.n_items) and not words.metric.startswith("bias."):
        items += " that both were scored on"
    if math.isnan(apart.low):
        return f"one item gives no interval ({items})."
    ends = f"paired 95 % interval {words.interval(apart.low, apart.high)} on {items}"
    if apart.low <= 0.0 <= apart.high:
        return f"{ends}: it includes zero, so the difference may be chance."
    return f"{ends}."


def _without_baseline(folder: SweepFolder, best: Row, rows: Sequence[Row]) -> str:
    line = f"The best trial, {best.trial_id}, {_has(folder, best)} on {best.n_items} items."
    waiting = sorted((row for row in rows if row.kind == "baseline"), key=lambda row: row.trial_id != UNTUNED)
    if waiting:
        first = waiting[0]
        why = f" ({first.reason})" if first.reason else ""
        return f"{line} {_opening(folder, first)} is there to compare it with, but is {_words(first.status)}{why}."
    some = (f"{UNTUNED},majority,linear", "some") if labelled(best) else (UNTUNED, "the untuned model")
    return f"{line} There is no baseline to compare it with: baselines=[{some[0]}] scores {some[1]} too."


def _no_items(folder: SweepFolder, best: Row) -> list[str]:
    """Why trials cannot be tested against each other, where the best one's item table cannot be read."""
    try:
        for run in best.seeds or (best,):
            row_files(folder, run).read_items("task", "validation", run.step)
    except INCOMPARABLE as error:
        return [f"There are no intervals, and nothing is tested: {str(error).splitlines()[0]}"]
    return []


def _none_completed(rows: Sequence[Row]) -> str:
    counts = Counter(row.status for row in rows if row.kind == "trial")
    if not counts:
        return "No trial has started."
    completed = [row for row in rows if row.kind == "trial" and row.status == State.COMPLETED]
    if completed:
        unranked = sorted({row.reason for row in completed if row.final})
        if unranked:  # it was scored, and nothing came of it
            return "No trial has a score to rank by: " + "; ".join(unranked) + "."
        return "No trial has been scored on all validation items: " + "; ".join(
            sorted({row.reason for row in completed})
        )
    return "No trial has completed: " + ", ".join(f"{n} {_words(status)}" for status, n in counts.items()) + "."


def _baseline_alone(folder: SweepFolder, baselines: Sequence[Row]) -> list[str]:
    """The best baseline's figure, where there is no trial to compare it with."""
    metric = compared_metrics(folder, baselines[0])[-1:] if baselines else []
    if not metric or not (there := having(baselines, metric[0])):
        return []
    baseline = strongest(there, metric[0])
    return [f"{_opening(folder, baseline)} {_has(folder, baseline)} on {baseline.n_items} items."]


def _bias(best: Row, untuned: Row | None) -> list[str]:
    """The headline bias set of the best trial beside the untuned model's; nothing where it was not measured."""
    own = _preference(best)
    if own is None:
        return []
    beside = _preference(untuned) if untuned else None
    compared = f"; the untuned model {beside}" if beside else ""
    return [f"{HEADLINE.title} (50 % shows no preference; ± standard error): {best.trial_id} {own}{compared}."]


def _preference(row: Row) -> str | None:
    share = row.metrics.get(HEADLINE.metric("pct"), math.nan)
    error = row.metrics.get(HEADLINE.metric("stderr"), math.nan)
    if not math.isfinite(share):
        return None
    return f"{share:.1f} %" + (f" ± {error:.1f}" if math.isfinite(error) else "")


def _has(folder: SweepFolder, row: Row) -> str:
    metric = (compared_metrics(folder, row) or ["accuracy"])[-1]
    return f"has {words_of(metric).has(row.metrics.get(metric, math.nan))}"


def _opening(folder: SweepFolder, row: Row) -> str:
    name = name_of(folder, row)
    return name[0].upper() + name[1:]


def _words(status: str) -> str:
    return status.replace("_", " ")
