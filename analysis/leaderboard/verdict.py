"""The verdict on a sweep: whether its best trial beats the best baseline, what to change, and what bias does."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from analysis.bias_sets import HEADLINE
from analysis.errors import ConfigError, LorasweepError
from analysis.folder import State, SweepFolder
from analysis.leaderboard.advice import advice
from analysis.leaderboard.claims import claims
from analysis.leaderboard.group_gaps import gap_sentences
from analysis.leaderboard.ranking import objective_of
from analysis.rows import Row, first_completed, read_sweep, row_files
from analysis.statistics.paired import Difference, item_scores, paired_difference

if TYPE_CHECKING:
    from analysis.statistics.comparison import Judgement

UNTUNED = "zero_shot"
_NO_EVIDENCE = "No evidence that fine-tuning beats"
_SKEWED = 2.0  # the most frequent label to the rarest, in items: from here on accuracy may hide what macro-F1 shows
_INCOMPARABLE = (LorasweepError, OSError, ValueError, KeyError, TypeError, ZeroDivisionError)  # item tables of two rows


def verdict(folder: SweepFolder, rows: Sequence[Row], judgement: "Judgement | None" = None) -> str:
    """One sentence a line: the best trial against the best baseline with a paired interval, what to change, then bias.

    Best is a baseline in what the sentence is about: accuracy, or, of rows without labels, the loss. Where some labels
    are much rarer than others and macro-F1 ranks, there is a sentence about that too, or alone where it ranks alone.

    Args:
        folder: its item tables give the interval.
        rows: ranked; the first completed trial is the best.
        judgement: how sure that is.
    """
    best = first_completed(rows)
    baselines = _baselines(rows)
    if best is None:
        baseline = max(baselines, key=_quality, default=None)  # of equals, the better ranked
        return "\n".join([_none_completed(rows), *([_accuracy_of(baseline)] if baseline else [])])
    if baselines:
        compared = [
            _against(folder, best, _strongest(baselines, metric), len(baselines), metric)
            for metric in _compared(folder, best, judgement)
        ]
        lines = sorted(compared, key=lambda line: not line.startswith(_NO_EVIDENCE))  # what shows no gain comes first
        if lines[0].startswith(_NO_EVIDENCE):
            lines.append(advice(folder, best))
    else:
        lines = [_without_baseline(best, rows)]
    if best.broken:
        lines.append(f"No completed trial keeps the constraints. Of {best.trial_id}: {'; '.join(best.broken)}.")
    rivals = sum(row.kind == "trial" and row.status == State.COMPLETED for row in rows)
    if judgement is not None:
        lines += claims(rows, judgement)
    elif rivals > 1:
        lines.append(
            f"{best.trial_id} was chosen among {rivals} completed trials on these same items:"
            " expect a little less on new ones."
        )
    untuned = next((row for row in rows if row.kind == "baseline" and row.trial_id == UNTUNED), None)
    _, left_out = objective_of(folder, rows)
    if left_out:
        lines.append(f"The ranking leaves out what was not measured: {', '.join(left_out)}.")
    return "\n".join(lines + _bias(best, untuned) + gap_sentences(folder, best))


def beats_baselines(folder: SweepFolder, rows: Sequence[Row], judgement: "Judgement | None" = None) -> bool | None:
    """Whether the best trial is shown to beat every baseline, in all that is compared; None where they cannot be.

    Args:
        folder: its item tables decide.
        rows: ranked.
        judgement: of the same ranking; it says which metric ranks.
    """
    best, baselines = first_completed(rows), _baselines(rows)
    if best is None or not baselines:
        return None
    try:
        return all(
            _difference(folder, best, _strongest(baselines, metric), metric).low > 0.0
            for metric in _compared(folder, best, judgement)
        )
    except _INCOMPARABLE:
        return None


def _strongest(baselines: Sequence[Row], metric: str) -> Row:
    """The best in a metric; of equals, the simplest, then the better ranked."""
    quality = _macro_f1 if metric == "macro_f1" else _quality
    return max(baselines, key=lambda row: (quality(row), row.trial_id == "majority", row.trial_id == "linear"))


def _compared(folder: SweepFolder, best: Row, judgement: "Judgement | None") -> list[str]:
    """``accuracy`` (for rows without labels: the loss), ``macro_f1`` or both: what ranks, where the two may differ."""
    if not _labelled(best) or "macro_f1" not in best.metrics or not _skewed(folder, best):
        return ["accuracy"]
    by = judgement.what if judgement is not None else "objective"
    try:
        ranks = [term.metric for term in objective_of(folder, [best])[0].terms] if by == "objective" else [by]
    except LorasweepError:
        ranks = []
    return [name for name in ("accuracy", "macro_f1") if name in ranks] or ["accuracy"]


def _skewed(folder: SweepFolder, best: Row) -> bool:
    try:
        labels = row_files(folder, best).read_items("task", "validation", best.step)["label"]
        counts = Counter(map(str, labels))
        sizes = [counts[label] for label in read_sweep(folder).labels or counts]
    except _INCOMPARABLE:
        return False
    return bool(sizes) and max(sizes) >= _SKEWED * min(sizes)


def _difference(folder: SweepFolder, best: Row, baseline: Row, metric: str) -> Difference:
    """The best trial's figure minus the baseline's, with its paired 95 % interval.

    Raises:
        LorasweepError, OSError, ValueError, KeyError, TypeError: where the item tables cannot be compared.
    """
    if metric != "macro_f1":
        return paired_difference(_scores(folder, best), _scores(folder, baseline))
    from analysis.statistics.comparison import judge

    judged = judge(folder, [best, baseline], objective_of(folder, [best])[0], read_sweep(folder).labels, metric)
    if judged is None or baseline.trial_id not in judged.standings:
        raise ConfigError("their item tables have no scored item in common, or cannot be read")
    at = judged.standings[baseline.trial_id]
    return Difference(at.behind, at.behind_low, at.behind_high, at.n)


def _baselines(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.kind == "baseline" and row.status == State.COMPLETED and row.final]


def _against(folder: SweepFolder, best: Row, baseline: Row, of: int, metric: str) -> str:
    trial, other = f"The best trial, {best.trial_id},", _name(baseline)
    other = f"the best of {of} baselines, {other}," if of > 1 else other
    of_f1 = metric == "macro_f1"
    figures = " against ".join(_percent(_macro_f1(row)) if of_f1 else _figure(row) for row in (best, baseline))
    labelled, quality = _labelled(best), "macro-F1" if of_f1 else "accuracy"
    try:
        difference = _difference(folder, best, baseline, metric)
    except _INCOMPARABLE as error:
        why = str(error).splitlines()[0] if isinstance(error, LorasweepError) else f"{type(error).__name__}: {error}"
        return (
            f"{trial} has {quality if labelled else 'a loss of'} {figures} of {other}. There is no interval, because"
            f" the item scores cannot be compared: {why}"
        )
    size = (
        f"{abs(100 * difference.mean):.1f} points of {quality}"
        if labelled
        else f"{abs(difference.mean):.3f} nats of loss"
    )
    interval = _interval(difference, best, baseline)
    if difference.low > 0.0:
        return f"{trial} beats {other} by {size} ({figures}); {interval}"
    if difference.mean == 0.0:
        opening = f"{_lower(trial)} has the same {quality if labelled else 'loss'} as {other} ({figures})"
    else:
        side = (
            ("above" if difference.mean > 0.0 else "below")
            if labelled
            else ("better than" if difference.mean > 0.0 else "worse than")
        )
        opening = f"{_lower(trial)} is {size} {side} {other} ({figures})"
    return f"{_NO_EVIDENCE} {_way(baseline)}: {opening}; {interval}"


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def _interval(difference: Difference, best: Row, baseline: Row) -> str:
    items = f"{difference.n} item{'s' if difference.n != 1 else ''}"
    if difference.n < max(best.n_items, baseline.n_items):
        items += " that both were scored on"
    if math.isnan(difference.low):
        return f"one item gives no interval ({items})."
    ends = f"[{100 * difference.low:.1f}, {100 * difference.high:.1f}] points on {items}"
    if not _labelled(best):
        ends = f"[{difference.low:.3f}, {difference.high:.3f}] nats a token on {items}, each item counting alike"
    ends = f"paired 95 % interval {ends}"
    if difference.low <= 0.0 <= difference.high:
        return f"{ends}: it includes zero, so the difference may be chance."
    return f"{ends}."


def _without_baseline(best: Row, rows: Sequence[Row]) -> str:
    line = f"The best trial, {best.trial_id}, {_has(best)} on {best.n_items} items."
    waiting = sorted((row for row in rows if row.kind == "baseline"), key=lambda row: row.trial_id != UNTUNED)
    if waiting:
        first = waiting[0]
        why = f" ({first.reason})" if first.reason else ""
        return f"{line} {_opening(first)} is there to compare it with, but is {_words(first.status)}{why}."
    return f"{line} There is no baseline to compare it with: baselines=[{UNTUNED}] scores the untuned model too."


def _none_completed(rows: Sequence[Row]) -> str:
    counts = Counter(row.status for row in rows if row.kind == "trial")
    if not counts:
        return "No trial has started."
    scored = [row for row in rows if row.kind == "trial" and row.status == State.COMPLETED]
    if scored:
        return "No trial has been scored on all validation items: " + "; ".join(sorted({row.reason for row in scored}))
    return "No trial has completed: " + ", ".join(f"{n} {_words(status)}" for status, n in counts.items()) + "."


def _accuracy_of(baseline: Row) -> str:
    return f"{_opening(baseline)} {_has(baseline)} on {baseline.n_items} items."


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


def _scores(folder: SweepFolder, row: Row) -> dict[str, float]:
    """Item id → 1 where the prediction is the label, else 0; without labels minus the loss, in nats a token."""
    return item_scores(row_files(folder, row).read_items("task", "validation", row.step))


def _labelled(row: Row) -> bool:
    return "accuracy" in row.metrics or _loss(row) is None


def _loss(row: Row) -> float | None:
    """In nats a token, of what bears loss in training; of schema text, of all tokens."""
    if "completion_loss" in row.metrics:
        return row.metrics["completion_loss"]
    perplexity = row.metrics.get("perplexity", math.nan)
    return math.log(perplexity) if "accuracy" not in row.metrics and perplexity > 0 else None


def _figure(row: Row) -> str:
    loss = _loss(row)
    return _percent(_accuracy(row)) if _labelled(row) or loss is None else f"{loss:.3f}"


def _has(row: Row) -> str:
    return f"has accuracy {_figure(row)}" if _labelled(row) else f"has a loss of {_figure(row)} nats a token"


def _accuracy(row: Row) -> float:
    return row.metrics.get("accuracy", math.nan)


def _macro_f1(row: Row) -> float:
    value = row.metrics.get("macro_f1", math.nan)
    return value if math.isfinite(value) else -math.inf


def _quality(row: Row) -> float:
    loss = _loss(row)
    value = _accuracy(row) if _labelled(row) or loss is None else -loss
    return value if math.isfinite(value) else -math.inf


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %" if math.isfinite(value) else "not known"


def _name(row: Row) -> str:
    kind, _, precision = row.trial_id.partition("@")
    if kind == UNTUNED:
        return f"the untuned model ({precision})" if precision else "the untuned model"
    return f"the baseline {row.trial_id}"


def _way(row: Row) -> str:
    """What one would do instead of fine-tuning, as part of a sentence."""
    kind = row.trial_id.partition("@")[0]
    ways = {
        "majority": "naming the most frequent label",
        "linear": "counting words",
        "frozen": "a linear classifier on the frozen model",
        UNTUNED: "leaving the model as it is",
        "few_shot": "prompting with a few examples",
        "retrieval": "asking the nearest training rows",
    }
    return ways.get(kind, f"the baseline {kind}")


def _opening(row: Row) -> str:
    name = _name(row)
    return name[0].upper() + name[1:]


def _words(status: str) -> str:
    return status.replace("_", " ")
