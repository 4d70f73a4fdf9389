"""What the metric table has of each metric (``Metric``) and of each bias set (``BiasSet``). Standard library only."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from analysis.item_sums import Estimator

# Kinds of task. A task of completion is named by the schema of its rows (trainer/data/schemas.py).
LABELLED = ("classification", "label")  # rows with a label: a task head, or a decoder that continues a prompt
UNLABELLED = ("completion", "chat", "text")
DECODERS = ("label", *UNLABELLED)
ALL_KINDS = ("classification", *DECODERS)
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")


def in_order(labels: Iterable[str]) -> list[str]:
    """Labels without repetition, sorted: by value where all are numbers (2 before 10), else as text.

    So are classes numbered, as pandas and scikit-learn number those of the same file.
    """
    distinct = sorted(set(labels))
    return sorted(distinct, key=float) if all(map(_NUMBER.fullmatch, distinct)) else distinct


@dataclass(frozen=True)
class Metric:
    """How a metric is shown, compared and resampled.

    Attributes:
        head: of its column in a table.
        better: ``high``, ``low``, a value to be near to, or None for one that does not rank trials.
        decimals: shown; None for four significant digits.
        range: the lowest and the highest value that it can have; infinite where there is no end.
        tasks: kinds of task of which every rung yields it; empty: no rung does (a figure of finalists).
        error: name of the metric that is its standard error.
        upper: name of the metric that is its upper bound, 95 % sure: what constraints hold against ``at_most``.
        floor: name of the metric that is the lowest such bound that the scored rows could give.
        fair: names of the metrics that are its mean and its 95 % quantile where nothing but chance is at work.
        estimator: how it is computed from sums over items; None: it stays as measured when others are resampled.
        switch: config path that turns it on, such as ``bias.stereoset``; empty: it is always on.
        scale: ends of the scale of a term of the objective that gives none; None: the range.
        shown: whether the table in a terminal has it where nobody asked for it, by the objective or ``--by``.
        own: a user's, from a config (``eval.metrics``), rather than of the table.
    """

    head: str
    better: str | float | None
    decimals: int | None = 3
    range: tuple[float, float] = (-math.inf, math.inf)
    tasks: tuple[str, ...] = ()
    error: str = ""
    estimator: Estimator | None = None
    switch: str = ""
    upper: str = ""
    floor: str = ""
    fair: tuple[str, ...] = ()
    scale: tuple[float, float] | None = None
    shown: bool = True
    own: bool = False


@dataclass(frozen=True)
class BiasSet:
    """What all but its scoring has to know of a bias set; ``trainer/evaluation/bias/registry.py`` has the scoring.

    Attributes:
        name: its metrics are ``bias.<name>.<figure>``.
        title: in tables and messages.
        metrics: figure → its row of the metric table, where ``error`` and the like are names of other figures;
            ``tasks`` and ``switch`` are those of the set.
        tasks: kinds of task that it exists for.
        switch: config path that turns it on, by a number of items or a file; empty: ``bias.<name>``. ``BiasConfig``
            gets a key for each switch below ``bias`` that it does not have.
        table: item table that its figures are computed from; empty: one of its own, of its name.
        columns: of that table, beside ``item_id``: what estimators and ``lorasweep breakdown`` read.
        category: column by which ``lorasweep breakdown`` splits it; empty: it does not.
        subject: what begins a sentence about it; empty: the title.
    """

    name: str
    title: str
    metrics: Mapping[str, Metric]
    tasks: tuple[str, ...] = DECODERS
    switch: str = ""
    table: str = ""
    columns: tuple[str, ...] = ()
    category: str = "group"
    subject: str = ""

    @property
    def path(self) -> str:
        """Config path of its switch."""
        return self.switch or f"bias.{self.name}"

    @property
    def item_table(self) -> str:
        """Name of the item table that its figures are computed from."""
        return self.table or self.name

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Its metrics by their full names, in the order of the table."""
        return tuple(self.metric(figure) for figure in self.metrics)

    def metric(self, figure: str) -> str:
        """The full name of the metric of a figure, such as ``bias.stereoset.ss``."""
        return f"bias.{self.name}.{figure}"

    def value(self, **sections: Any) -> Any:
        """What its switch is set to.

        Args:
            sections: config sections by name; ``bias`` and ``data`` are read.
        """
        section, key = self.path.split(".")
        return getattr(sections[section], key)
