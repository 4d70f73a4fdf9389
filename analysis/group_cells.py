"""Gaps between groups: rates by group and label, which of them are over enough rows, and what chance alone would show.

A gap is the largest rate of a group minus the smallest, of several classes (each against the rest) the largest: a
maximum of differences. With few rows it is large where nothing differs, so it comes with what fair predictions would
score, a standard error, and an upper bound. Everything is computed from counts of rows by label, group and prediction.

A rate over fewer than ``least`` rows takes no part. Pure numpy: trainer and analysis use it alike.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.shares import wilson
from analysis.text.listing import listed

Array = np.ndarray
LEAST = 10  # rows that a rate is over, unless a config says otherwise (BENCHMARKS.md, "Gaps between groups")
ONE_SIDED = 1.6448536269514722  # 95 % of a normal distribution lie below
KINDS = ("predicted", "recognised", "mistaken")
_RATE = {
    "predicted": "group {group}",
    "recognised": "group {group} with label {label}",
    "mistaken": "group {group} with another label than {label}",
}
FIGURES = {
    "equalized_odds": ("recognised", "mistaken"),
    "demographic_parity": ("predicted",),
    "tpr_gap": ("recognised",),
}


@dataclass(frozen=True)
class Cells:
    """Rows of a task counted by label, group and prediction; those without a group are left out.

    Attributes:
        labels: those that some row has.
        groups: those that some row has.
        counts: (labels, groups, labels + 1) rows; the last column is a prediction that is none of the labels.
    """

    labels: tuple[str, ...]
    groups: tuple[str, ...]
    counts: Array

    @classmethod
    def of(cls, gold: Sequence[str], predicted: Sequence[str], groups: Sequence[str | None]) -> "Cells":
        """Count rows.

        Args:
            gold: labels.
            predicted: predicted labels.
            groups: a group each; None for none.
        """
        rows = [(y, group, p) for y, p, group in zip(gold, predicted, groups, strict=True) if group is not None]
        labels = tuple(sorted({y for y, _, _ in rows}))
        names = tuple(sorted({group for _, group, _ in rows}))
        counts = np.zeros((len(labels), len(names), len(labels) + 1), dtype=np.int64)
        at, group_at = ({name: i for i, name in enumerate(known)} for known in (labels, names))
        places = [(at[y], group_at[group], at.get(p, len(labels))) for y, group, p in rows]
        np.add.at(counts, tuple(np.array(places, dtype=np.int64).reshape(-1, 3).T), 1)
        return cls(labels, names, counts)

    def sizes(self) -> dict[str, Array]:
        """Kind of rate → (labels, groups) rows that it is over."""
        return rates(self.counts)[1]

    def taking_part(self, least: int = LEAST) -> dict[str, Array]:
        """Kind of rate → (labels, groups) whether it is over at least ``least`` rows, and so is that of another group.

        This is the rule of which cells take part: it depends on labels and groups, not on predictions.
        """
        enough = {kind: n >= max(least, 1) for kind, n in self.sizes().items()}
        return {kind: there & (there.sum(axis=1, keepdims=True) >= 2) for kind, there in enough.items()}

    def left_out(self, least: int = LEAST) -> list[tuple[str, str, int]]:
        """Group, label and rows of each cell of true positives that has too few, the smallest first."""
        n = self.sizes()["recognised"]
        cells = [
            (group, label, int(n[y, g])) for y, label in enumerate(self.labels) for g, group in enumerate(self.groups)
        ]
        return sorted((cell for cell in cells if cell[2] < least), key=lambda cell: cell[2])

    def left_out_named(self, least: int = LEAST, most: int = 6) -> str:
        """``left_out`` in words, ``most`` of them by name; empty where there is none."""
        few = self.left_out(least)
        named = [f"{group} with label {label} ({n})" for group, label, n in few]
        return listed(named, most, last=", ", rest="more") if named else ""

    def measurable(self, least: int = LEAST) -> list[str]:
        """The figures that two groups have enough rows for; equalized odds need true positives as well as false."""
        part = self.taking_part(least)
        return [name for name, kinds in FIGURES.items() if part[kinds[0]].any()]

    def smallest(self, figure: str, least: int = LEAST) -> tuple[str, int]:
        """Which rate of those that a figure is made of is over the fewest rows, in words, and how many those are."""
        part, sizes = self.taking_part(least), self.sizes()
        each = [(kind, y, g) for kind in FIGURES[figure] for y, g in np.argwhere(part[kind])]
        kind, y, g = min(each, key=lambda rate: int(sizes[rate[0]][rate[1:]]))  # of equals the first
        n = int(sizes[kind][y, g])
        return _RATE[kind].format(group=self.groups[g], label=self.labels[y]), n


def rates(counts: Array) -> tuple[dict[str, Array], dict[str, Array]]:
    """Rates and the rows that they are over.

    Args:
        counts: (…, labels, groups, labels + 1), as of ``Cells``.

    Returns:
        Kind of rate → (…, labels, groups), twice. ``predicted``: rate of predicting the label among all rows of the
        group; ``recognised``: among those that have it (true positives); ``mistaken``: among the others (false ones).
        NaN where there is no row.
    """
    n_labels = counts.shape[-3]
    having = counts.sum(axis=-1)
    of_group = having.sum(axis=-2, keepdims=True)
    named = np.swapaxes(counts.sum(axis=-3)[..., :n_labels], -1, -2)
    right = np.einsum("...ygy->...yg", counts[..., :n_labels])
    above = {"predicted": named, "recognised": right, "mistaken": named - right}
    below = {"predicted": np.broadcast_to(of_group, having.shape), "recognised": having, "mistaken": of_group - having}
    with np.errstate(invalid="ignore", divide="ignore"):
        return {kind: above[kind] / below[kind] for kind in KINDS}, below


def class_gaps(values: Array, part: Array) -> Array:
    """(…, labels) largest minus smallest rate of the groups that take part; NaN where none do.

    Args:
        values: (…, labels, groups) rates of one kind.
        part: (labels, groups) which take part.
    """
    high = np.where(part, values, -math.inf).max(axis=-1, initial=-math.inf)
    low = np.where(part, values, math.inf).min(axis=-1, initial=math.inf)
    with np.errstate(invalid="ignore"):
        return np.where(part.any(axis=-1), high - low, math.nan)


def gaps(counts: Array, part: Mapping[str, Array], figures: Sequence[str]) -> dict[str, Array]:
    """Figure → (…) the largest gap over its kinds of rates and their classes.

    Args:
        counts: (…, labels, groups, labels + 1), as of ``Cells``; may be resamples of those that ``part`` is of.
        part: as of ``Cells.taking_part``.
        figures: among ``Cells.measurable``.
    """
    values, _ = rates(counts)
    of_kind = {kind: np.where(part[kind].any(axis=-1), class_gaps(values[kind], part[kind]), 0.0) for kind in KINDS}
    return {name: np.max([of_kind[kind].max(axis=-1) for kind in FIGURES[name]], axis=0) for name in figures}


def upper_bounds(
    counts: Array, part: Mapping[str, Array], figures: Sequence[str], z: float = ONE_SIDED
) -> dict[str, float]:
    """Figure → a value that the true gap is below with 95 % confidence.

    The largest of the bounds of all differences between two groups' rates. It holds without a correction for their
    number: the largest true difference is below its own bound in 95 % of samples, and the largest bound is no smaller
    (the intersection-union argument, Berger 1982). The bound of a difference is Newcombe's, from Wilson's limits of
    both rates (Newcombe 1998, "Interval estimation for the difference between independent proportions", Statistics in
    Medicine 17, 873-890, method 10), which is above 0 also where both rates are 0 or 1.

    Args:
        counts: (labels, groups, labels + 1), as of ``Cells``.
        part: as of ``Cells.taking_part``.
        figures: among ``Cells.measurable``.
        z: quantile of the normal distribution.
    """
    values, sizes = rates(counts)
    of_kind = {}
    for kind in KINDS:
        low, high = wilson(values[kind], sizes[kind], z)
        p = np.where(part[kind], values[kind], math.nan)
        apart = p[:, :, None] - p[:, None, :] + np.hypot((high - p)[:, :, None], (p - low)[:, None, :])
        apart[:, np.arange(p.shape[1]), np.arange(p.shape[1])] = math.nan  # a group against itself
        of_kind[kind] = float(np.nanmax(apart)) if np.isfinite(apart).any() else 0.0
    return {name: min(1.0, max(of_kind[kind] for kind in FIGURES[name])) for name in figures}


def least_bound(n: int, z: float = ONE_SIDED) -> float:
    """The lowest upper bound that any predictions can have where the smallest rate is over ``n`` rows.

    Wilson's limit of a rate of 0 out of ``n``: all groups' rates are then 0, or all 1.
    """
    return z * z / (n + z * z)


def fair_gaps(counts: Array, part: Mapping[str, Array], figures: Sequence[str], n: int = 500) -> dict[str, Array]:
    """Figure → (n,) gaps of predictions that are fair by construction, and of the same sizes.

    Groups are exchanged at random: within each label for gaps of true and false positives, among all rows
    for demographic parity. An exchange leaves how often each label is predicted, and so is a draw from hypergeometric
    distributions: rows need not be shuffled.

    Args:
        counts: (labels, groups, labels + 1), as of ``Cells``.
        part: as of ``Cells.taking_part``.
        figures: among ``Cells.measurable``.
        n: exchanges; the same in every trial.
    """
    rng = np.random.default_rng(0)
    within = [name for name in figures if "predicted" not in FIGURES[name]]
    fair = gaps(exchanged(counts, n, rng), part, within) if within else {}
    if len(within) < len(figures):
        of_group = np.zeros_like(counts)
        of_group[0] = counts.sum(axis=0)  # demographic parity knows no labels
        fair |= gaps(exchanged(of_group, n, rng), part, [name for name in figures if name not in within])
    return {name: fair[name] for name in figures}


def exchanged(counts: Array, n: int = 500, rng: np.random.Generator | None = None) -> Array:
    """(n, labels, groups, labels + 1) counts with groups exchanged at random among the rows of a label.

    Args:
        counts: (labels, groups, labels + 1), as of ``Cells``.
        n: exchanges.
        rng: what draws them; by default the same in every trial.
    """
    rng = rng or np.random.default_rng(0)
    answers = counts.shape[-1]
    drawn = np.zeros((n, *counts.shape), dtype=np.int64)
    rest = np.broadcast_to(counts.sum(axis=1), (n, len(counts), answers)).copy()
    for g in range(counts.shape[1]):
        wanted = np.broadcast_to(counts[:, g].sum(axis=-1), (n, len(counts))).copy()
        behind = rest.sum(axis=-1)
        for a in range(answers):
            behind = behind - rest[..., a]
            drawn[..., g, a] = rng.hypergeometric(rest[..., a], behind, wanted)
            wanted -= drawn[..., g, a]
        rest -= drawn[:, :, g]
    return drawn


def gap_errors(counts: Array, part: Mapping[str, Array], figures: Sequence[str], n: int = 200) -> dict[str, float]:
    """Figure → standard error of the largest gap, by a parametric bootstrap of each group's predictions by label.

    A cell's predictions are drawn anew from its own shares, with one row more that is spread over all labels: a rate
    of 0 or 1 in a small cell is not taken for certain, so that an error is 0 nowhere.

    Args:
        counts: (labels, groups, labels + 1), as of ``Cells``.
        part: as of ``Cells.taking_part``.
        figures: among ``Cells.measurable``.
        n: samples; the same in every trial.
    """
    rng = np.random.default_rng(0)
    rows = counts.sum(axis=-1)
    answers = counts.shape[-1] if counts[..., -1].any() or len(counts) < 2 else len(counts)
    shares = np.zeros(counts.shape)
    shares[..., :answers] = (counts[..., :answers] + 1.0 / answers) / (rows[..., None] + 1.0)
    drawn = rng.multinomial(rows, shares, size=(n, *rows.shape))
    return {name: float(values.std(ddof=1)) for name, values in gaps(drawn, part, figures).items()}
