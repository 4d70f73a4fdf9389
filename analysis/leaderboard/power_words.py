"""Sentences on how large a difference some items could have shown, and how many would show the one that was seen."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import TYPE_CHECKING

from analysis.metric_words import SCORE, MetricWords, words_of
from analysis.metrics import METRICS
from analysis.objective import Objective
from analysis.rows import Row

if TYPE_CHECKING:
    from analysis.statistics.comparison import Judgement, Standing


@dataclass(frozen=True)
class Scale:
    """How differences of what ranks are told.

    Attributes:
        words: of the metric whose unit they have.
        factor: from what ranks to that metric.
    """

    words: MetricWords
    factor: float

    def amount(self, difference: float) -> str:
        """The size of a difference, with its unit."""
        own = self.words.amount(self.factor * difference)
        if self.words.metric == SCORE:
            return f"{own} of the score"
        return own if self.words.unit else f"{own} in {self.words.name}"


def scale_of(judgement: "Judgement", objective: Objective | None) -> Scale:
    """Of an objective with one term, differences are told in the unit of its metric; of several, as the score's."""
    terms = objective.terms if objective is not None and judgement.what == SCORE else ()
    if len(terms) == 1 and terms[0].target is None and terms[0].metric in METRICS:
        return Scale(words_of(terms[0].metric), terms[0].high - terms[0].low)
    return Scale(words_of(judgement.what), 1.0)


def power_sentences(rows: Sequence[Row], judgement: "Judgement", objective: Objective | None = None) -> list[str]:
    """What these items could have shown, of the best and the next best that is not told from it.

    Args:
        rows: ranked.
        judgement: of the same ranking, with no winner.
        objective: of the same ranking; it gives differences their unit.
    """
    scale, by_id = scale_of(judgement, objective), {row.trial_id: row for row in rows}
    name, at = _nearest(judgement, judgement.tied)
    if any(len(by_id[it].seeds) > 1 for it in (judgement.best, name)):
        return _seeds(by_id, judgement, name, scale)
    if not math.isfinite(at.error):
        return []
    if at.error == 0.0 and at.behind == 0.0:
        return [f"{judgement.best} and {name} answered alike on all {at.n} items: more like them would show nothing."]
    largest, needed = _reach(judgement, at, at.n, scale)
    if not largest:
        return []
    start = f"These {at.n:,} items could have shown a difference of {largest} to {name} (80 % power)"
    if at.behind == 0.0:
        return [f"{start}; the two score the same."]
    return [f"{start}; the one seen, {scale.amount(at.behind)}, would take {items_words(needed)}."]


def foretold(judgement: "Judgement", n: int, objective: Objective | None = None) -> str:
    """A warning that so many items are not likely to show the difference that others showed; empty where they are.

    Args:
        judgement: of the two or more that are to be compared, on the items of before.
        n: items that they are to be compared on.
        objective: what ranks them; it gives differences their unit.
    """
    scale = scale_of(judgement, objective)
    name, at = _nearest(judgement, [it for it in judgement.standings if it != judgement.best])
    if not math.isfinite(at.error) or at.error == 0.0:
        return ""
    largest, needed = _reach(judgement, at, n, scale)
    if not largest or (needed is not None and needed <= n):
        return ""
    start = f"{n:,} test items can show a difference of {largest} between {judgement.best} and {name} (80 % power)"
    if at.behind == 0.0:
        return f"{start}; on the validation items the two score the same."
    return f"{start}; {scale.amount(at.behind)}, as on the validation items, would take {items_words(needed)}."


def _nearest(judgement: "Judgement", names: Sequence[str]) -> "tuple[str, Standing]":
    name = min(names, key=lambda it: (abs(judgement.standings[it].behind), it))
    return name, judgement.standings[name]


def _reach(judgement: "Judgement", at: "Standing", n: int, scale: Scale) -> tuple[str, int | None]:
    """The smallest difference that n items find, in words, and how many items would find the one that was seen."""
    from analysis.statistics.power import could_have_shown, items_needed, mean_square

    shares = judgement.test.startswith("McNemar")
    square = mean_square(at.behind, at.error, at.n)
    largest = could_have_shown(square, n, shares)
    return "" if math.isnan(largest) else scale.amount(largest), items_needed(at.behind, square, shares)


def items_words(needed: int | None) -> str:
    """How many items it would take: ``about 2,700 items``."""
    from analysis.statistics.power import rounded

    return f"about {rounded(needed)} items" if needed else "more than 1,000,000 items"


def _seeds(rows: Mapping[str, Row], judgement: "Judgement", name: str, scale: Scale) -> list[str]:
    """How many seeds would tell the best two configurations apart, by how far seeds of one lie apart."""

    def values(row: Row) -> list[float]:
        of = (it.objective if judgement.what == SCORE else it.metrics.get(judgement.what, math.nan) for it in row.seeds)
        return [value for value in of if math.isfinite(value)]

    best, other = values(rows[judgement.best]), values(rows[name])
    sentence = seeds_sentence([values(row) for row in rows.values()], (judgement.best, best), (name, other), scale)
    return [f"{sentence}, and items enough."] if sentence else []


def seeds_sentence(
    several: Sequence[Sequence[float]],
    best: tuple[str, Sequence[float]],
    other: tuple[str, Sequence[float]],
    scale: Scale,
    option: str = "search.repeats=",
) -> str:
    """How many seeds would tell two configurations apart, without a full stop; empty where that is not known.

    Args:
        several: what ranks, of the seeds of each configuration; the deviation is pooled over them.
        best, other: name and values of the two.
        scale: how differences are told.
        option: what sets the number of seeds.
    """
    from analysis.statistics.power import seeds_needed

    freedom = sum(len(own) - 1 for own in several if len(own) > 1)
    if not freedom or not best[1] or not other[1]:
        return ""
    deviation = math.sqrt(sum((len(own) - 1) * variance(own) for own in several if len(own) > 1) / freedom)
    apart = fmean(best[1]) - fmean(other[1])
    seeds = seeds_needed(apart, deviation)
    more = f"about {seeds} seeds of each ({option}{seeds})" if seeds else "more than 1,000 seeds of each"
    return (
        f"Seeds of one configuration differ by {scale.amount(deviation)} (standard deviation): to tell {best[0]} from"
        f" {other[0]}, {scale.amount(apart)} apart, would take {more}"
    )
