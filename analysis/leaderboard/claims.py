"""Sentences on how sure a ranking is: whether there is a winner, who is tied, what to expect on new items."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from analysis.leaderboard.power_words import power_sentences
from analysis.metric_words import SCORE, words_of
from analysis.metrics import METRICS
from analysis.objective import Objective
from analysis.rows import Row
from analysis.text.listing import listed

if TYPE_CHECKING:
    from analysis.statistics.comparison import Judgement, Standing


def claims(rows: Sequence[Row], judgement: "Judgement", objective: Objective | None = None) -> list[str]:
    """Sentences on how sure a ranking is.

    Args:
        rows: ranked.
        judgement: of the same ranking.
        objective: of the same ranking, without what was not measured; it gives differences their unit.
    """
    lines = [_standing(rows, judgement)]
    if judgement.tied:
        lines += power_sentences(rows, judgement, objective)
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
    lines += _without_interval(judgement.without_interval)
    if judgement.fixed:
        lines.append(f"Taken as measured, without sampling error: {', '.join(judgement.fixed)}.")
    if judgement.lacking:
        names = listed(list(judgement.lacking))
        lines.append(f"Not compared, for want of item scores: {names} ({next(iter(judgement.lacking.values()))})")
    return lines


def _rivals(judgement: "Judgement") -> "dict[str, Standing]":
    return {name: at for name, at in judgement.standings.items() if at.rival and name != judgement.best}


def _standing(rows: Sequence[Row], judgement: "Judgement") -> str:
    best, tied, rivals = judgement.best, judgement.tied, _rivals(judgement)
    n = judgement.standings[best].n
    if not rivals:
        return f"{best} has no rival to be compared with."
    if not tied:
        worst = max(at.p for at in rivals.values())
        p_value = f"p {worst:.2g}" if len(rivals) == 1 else f"largest p {worst:.2g}"
        others = "the other completed trial" if len(rivals) == 1 else f"each of {len(rivals)} other completed trials"
        return f"{best} is better than {others} on {n} items ({judgement.test}, {p_value})."
    order = [row.trial_id for row in rows if row.trial_id in tied]
    correction = ", Holm's correction" if len(rivals) > 1 else ""
    return (
        f"No winner: {best} has the best {words_of(judgement.what).name}, but cannot be"
        f" told from {listed(order)} on {n} items ({judgement.test}{correction})."
    )


def corrected(rows: Sequence[Row], judgement: "Judgement") -> str:
    """A sentence on what the best trial was chosen among, and what to expect of it on new items.

    Args:
        rows: ranked.
        judgement: of the same ranking.
    """
    from analysis.statistics.comparison import configurations

    best = next(row for row in rows if row.trial_id == judgement.best)
    name = next((name for name in judgement.corrected if name in best.metrics and name in METRICS), None)
    of_ranking = {*judgement.standings, *judgement.lacking}
    trials = [row for row in rows if row.kind == "trial" and row.trial_id in of_ranking]
    ended = configurations(trials)
    looked_at = max(judgement.looked_at, ended)
    parts = [f"{ended} ran to the end"]
    if ended < len(trials):
        more = len(trials) - ended
        parts.append(f"{more} more {'was a copy' if more == 1 else 'were copies'}")
    if stopped := looked_at - ended:
        parts.append(f"{stopped} {'was' if stopped == 1 else 'were'} stopped early")
    among = f"{looked_at} configuration{'s' if looked_at > 1 else ''} on these same items"
    if len(parts) > 1:
        among += f" ({', '.join(parts)})"
    if name is None:
        return f"{judgement.best} was chosen among {among}: expect a little less on new ones." if looked_at > 1 else ""
    words = words_of(name)
    shown, expected = (words.value(value) for value in (best.metrics[name], judgement.corrected[name]))
    return (
        f"{judgement.best} was chosen among {among}; corrected for that, expect"
        f" {name} of about {expected} on new ones (shown: {shown})."
    )


def _without_interval(reasons: Mapping[str, str]) -> list[str]:
    """A sentence for each reason why there is no interval; of the score's, where that names a metric's already."""
    by_reason: dict[str, list[str]] = {}
    for name, why in reasons.items():
        if name == SCORE or why not in reasons.get(SCORE, ""):
            by_reason.setdefault(why, []).append("the score" if name == SCORE else name)
    return [f"There is no 95 % interval of {listed(names)}: {why}." for why, names in by_reason.items()]
