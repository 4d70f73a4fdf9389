"""The verdict on a sweep in sentences: whether its best trial beats the best baseline, and what bias does."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from analysis.bias_sets import HEADLINE
from analysis.errors import LorasweepError
from analysis.folder import State, SweepFolder
from analysis.leaderboard.claims import claims
from analysis.leaderboard.ranking import objective_of
from analysis.rows import Row, first_completed, row_files
from analysis.statistics.paired import Difference, item_scores, paired_difference

if TYPE_CHECKING:
    from analysis.statistics.comparison import Judgement

UNTUNED = "zero_shot"


def verdict(folder: SweepFolder, rows: Sequence[Row], judgement: "Judgement | None" = None) -> str:
    """One sentence a line: the best trial against the best baseline with a paired interval, then bias.

    Best is a baseline in what the sentence is about: accuracy, or, of rows without labels, the loss.

    Args:
        folder: its item tables give the interval.
        rows: ranked; the first completed trial is the best.
        judgement: how sure that is.
    """
    best = first_completed(rows)
    baselines = _baselines(rows)
    baseline = max(baselines, key=_quality, default=None)  # of equals, the better ranked
    if best is None:
        return "\n".join([_none_completed(rows), *([_accuracy_of(baseline)] if baseline else [])])
    against = _against(folder, best, baseline, len(baselines)) if baseline else _without_baseline(best, rows)
    lines = [against]
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
    return "\n".join(lines + _bias(best, untuned))


def beats_baselines(folder: SweepFolder, rows: Sequence[Row]) -> bool | None:
    """Whether the best trial is shown to beat the best baseline; None where the two cannot be compared.

    Args:
        folder: its item tables decide.
        rows: ranked.
    """
    best, baseline = first_completed(rows), max(_baselines(rows), key=_quality, default=None)
    if best is None or baseline is None:
        return None
    try:
        return paired_difference(_scores(folder, best), _scores(folder, baseline)).low > 0.0
    except (LorasweepError, OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None


def _baselines(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.kind == "baseline" and row.status == State.COMPLETED and row.final]


def _against(folder: SweepFolder, best: Row, baseline: Row, of: int) -> str:
    trial, other = f"The best trial, {best.trial_id},", _name(baseline)
    other = f"the best of {of} baselines, {other}," if of > 1 else other
    figures = f"{_figure(best)} against {_figure(baseline)}"
    labelled = _labelled(best)
    try:
        difference = paired_difference(_scores(folder, best), _scores(folder, baseline))
    except (LorasweepError, OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        why = str(error).splitlines()[0] if isinstance(error, LorasweepError) else f"{type(error).__name__}: {error}"
        return (
            f"{trial} has {'accuracy' if labelled else 'a loss of'} {figures} of {other}. There is no interval, because"
            f" the item scores cannot be compared: {why}"
        )
    size = (
        f"{abs(100 * difference.mean):.1f} points of accuracy"
        if labelled
        else f"{abs(difference.mean):.3f} nats of loss"
    )
    interval = _interval(difference, best, baseline)
    if difference.low > 0.0:
        return f"{trial} beats {other} by {size} ({figures}); {interval}"
    if difference.mean == 0.0:
        opening = f"{_lower(trial)} has the same {'accuracy' if labelled else 'loss'} as {other} ({figures})"
    else:
        side = (
            ("above" if difference.mean > 0.0 else "below")
            if labelled
            else ("better than" if difference.mean > 0.0 else "worse than")
        )
        opening = f"{_lower(trial)} is {size} {side} {other} ({figures})"
    return f"No evidence that fine-tuning beats {_way(baseline)}: {opening}; {interval}"


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
