"""The bias sets: how the items of each are loaded and scored, and which figures come out. Without torch.

A set is an entry of ``analysis/bias_sets.py``, which says what it is called and measures, and a ``BiasScoring`` of the
same name in the tuple ``SCORINGS`` of a module in this folder. Nothing else names a set: scoring, config checks,
``lorasweep check``, ``fetch``, ``breakdown``, rankings and reports go through both.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np

from analysis.bias_sets import BIAS_SETS
from analysis.metric_types import BiasSet
from trainer.assets.packages import PACKAGES
from trainer.assets.wheels import Package
from trainer.config import BiasConfig, TaskConfig, TrialConfig
from trainer.data.dataset import Row
from trainer.data.encode import Encoded

Table = dict[str, list[Any]]  # an item table: column → a value for each item
Report = Callable[[str], None]  # is given a line for the user, such as that a download begins


class Scorer(Protocol):
    """A model that scores texts and rows of the task."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the task's classes; empty where rows have none."""

    def sentences(self, sentences: list[str]) -> tuple[list[float], list[int]]:
        """Summed log-probability, in nats, and number of tokens of each sentence after an empty context."""

    def continuations(self, prompts: list[str], texts: list[str]) -> tuple[list[float], list[int]]:
        """The same of each text after the prompt in the same place."""

    def label_logprobs(self, rows: list[Encoded]) -> np.ndarray:
        """(rows, classes) log-probabilities of the labels, normalised over them."""


@dataclass(frozen=True)
class TaskRows:
    """Rows of the task, for a set that is made of them.

    Attributes:
        rows: as read.
        encoded: the same, as tokens.
        labels, tokenizer, task, max_length: as they were encoded with.
    """

    rows: Sequence[Row]
    encoded: Sequence[Encoded]
    labels: tuple[str, ...]
    tokenizer: Any
    task: TaskConfig
    max_length: int


def _no_sentences(items: list[Any]) -> dict[str, str]:
    return {}


def _no_notes(trial: TrialConfig, rung: Sequence[Row], rows: Sequence[Row]) -> list[str]:
    return []


def _nothing_absent(trial: TrialConfig, items: list[Any], rung: Sequence[Row]) -> dict[str, str]:
    return {}


@dataclass(frozen=True)
class BiasScoring:
    """How a bias set is measured. Its items come from ``load`` or ``from_rows``; with neither, from the task's table.

    Attributes:
        name: of its entry in ``analysis/bias_sets.py``, and of its item table.
        figures: item table, the task's labels and the config of bias → metric, by its full name → value.
        load: value of its config key → items: fixed, stratified, the same in every trial. May fetch packages.
        from_rows: rows of the split that is scored, and the value of its config key → items.
        score: items → item table, a row for each: ``item_id``, and the columns that ``figures`` reads.
        sentences: items → what ``lorasweep check`` looks for among the training rows: where it stands → sentence.
        packages: that ``load`` fetches: of ``trainer/assets/packages.py``, or its own.
        absent: metrics that these items, or the rows of a rung, cannot give → why.
        notes: trial, the rows of a rung and all rows → what to know of figures on them, a sentence each.
    """

    name: str
    figures: Callable[[Table, tuple[str, ...], BiasConfig], dict[str, float]]
    load: Callable[[Any, Report], list[Any]] | None = None
    from_rows: Callable[[TaskRows, int], list[Any]] | None = None
    score: Callable[[list[Any], Scorer], Table] | None = None
    sentences: Callable[[list[Any]], dict[str, str]] = _no_sentences
    packages: tuple[Package, ...] = ()
    absent: Callable[[TrialConfig, list[Any], Sequence[Row]], dict[str, str]] = _nothing_absent
    notes: Callable[[TrialConfig, Sequence[Row], Sequence[Row]], list[str]] = _no_notes

    @property
    def declared(self) -> BiasSet:
        """Its entry in ``analysis/bias_sets.py``."""
        return BIAS_SETS[self.name]


@cache
def scorings() -> Mapping[str, BiasScoring]:
    """Name → bias set, in the order of ``analysis/bias_sets.py``.

    Raises:
        ValueError: for a set that is declared and has no module here, or the reverse.
    """
    package = __name__.rpartition(".")[0]
    folder = importlib.import_module(package).__path__
    modules = [importlib.import_module(f"{package}.{name}") for name in _names_of(folder)]
    known = {scoring.name: scoring for module in modules for scoring in getattr(module, "SCORINGS", ())}
    if unmatched := known.keys() ^ BIAS_SETS.keys():
        raise ValueError(
            f"bias sets without their counterpart: {', '.join(sorted(unmatched))}. Each needs an entry in"
            " analysis/bias_sets.py and a BiasScoring in SCORINGS of a module in trainer/evaluation/bias/."
        )
    return {name: known[name] for name in BIAS_SETS}


def packages() -> dict[str, Package]:
    """Name → every package that can be fetched: models, data, and those that bias sets bring."""
    return {**PACKAGES, **{package.name: package for scoring in scorings().values() for package in scoring.packages}}


def _names_of(folder: Sequence[str]) -> list[str]:
    """Modules beside this one, without it and without ``score``, which needs torch."""
    names = [module.name for module in pkgutil.iter_modules(folder)]
    return sorted(name for name in names if name not in ("registry", "items", "score"))
