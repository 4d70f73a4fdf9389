"""Sentences on how sure a ranking is: whether there is a winner, who is tied, what to expect on new items."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from analysis.metrics import METRICS
from analysis.rows import Row

if TYPE_CHECKING:
    from analysis.statistics.comparison import Judgement

_SHARES = ("accuracy", "macro_f1")


def claims(rows: Sequence[Row], judgement: "Judgement") -> list[str]:
    """Sentences on how sure a ranking is.

    Args:
        rows: ranked.
        judgement: of the same ranking.
    """
    lines = [_standing(rows, judgement)]
    first = next((row for row in rows if row.trial_id in judgement.standings and row.kind == "trial"), None)
    best = next(row for row in rows if row.trial_id == judgement.best)
    if first is not None and first is not best:
        lines.append(
            f"{first.trial_id} ({first.objective:.3f}) stands before {best.trial_id} ({best.objective:.3f}), which has"
            " the best score: the two are within one standard error, and its adapter is smaller or was trained faster."
        )
    expected = corrected(rows, judgement)
    if expected:
        lines.append(expected)
    if judgement.fixed:
        lines.append(f"Taken as measured, without sampling error: {', '.join(judgement.fixed)}.")
    if judgement.lacking:
        names = _listed(list(judgement.lacking))
        lines.append(f"Not compared, for want of item scores: {names} ({next(iter(judgement.lacking.values()))})")
    return lines


def _standing(rows: Sequence[Row], judgement: "Judgement") -> str:
    best, tied = judgement.best, judgement.tied
    rivals = {name: at for name, at in judgement.standings.items() if at.rival and name != best}
    n = judgement.standings[best].n
    if not rivals:
        return f"{best} has no rival to be compared with."
    if not tied:
        worst = max(at.p for at in rivals.values())
        p_value = f"p {worst:.2g}" if len(rivals) == 1 else f"largest p {worst:.2g}"
        others = "the other completed trial" if len(rivals) == 1 else f"each of {len(rivals)} other completed trials"
        return f"{best} is better than {others} on {n} items ({judgement.test}, {p_value})."
    order = [row.trial_id for row in rows if row.trial_id in tied]
    return (
        f"No winner: {best} has the best {'score' if judgement.what == 'objective' else judgement.what}, but cannot be"
        f" told from {_listed(order)} on {n} items ({judgement.test}, Holm's correction)."
    )


def corrected(rows: Sequence[Row], judgement: "Judgement") -> str:
    """A sentence on what to expect of the best trial on new items; empty where that is not known.

    Args:
        rows: ranked.
        judgement: of the same ranking.
    """
    best = next(row for row in rows if row.trial_id == judgement.best)
    name = next((name for name in judgement.corrected if name in best.metrics and name in METRICS), None)
    if name is None:
        return ""
    trials = sum(at.rival for at in judgement.standings.values())
    shown, expected = (_figure(name, value) for value in (best.metrics[name], judgement.corrected[name]))
    return (
        f"{judgement.best} was chosen among {trials} completed trials on these same items; corrected for that, expect"
        f" {name} of about {expected} on new ones (shown: {shown})."
    )


def _figure(name: str, value: float) -> str:
    return f"{100 * value:.1f} %" if name in _SHARES else f"{value:.3g}"


def _listed(names: Sequence[str], most: int = 4) -> str:
    if len(names) <= most:
        return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]
    return ", ".join(names[:most]) + f" and {len(names) - most} others"
