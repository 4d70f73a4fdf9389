"""Metrics in sentences: what one is called, its value, and the size of a difference in it, each with its unit."""

import math
from dataclasses import dataclass

from analysis.metrics import METRICS, as_shown

SCORE = "objective"  # the number that ranks, in the place of a metric's name
_NAMES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "micro_f1": "micro-F1",
    "weighted_f1": "weighted F1",
    "balanced_accuracy": "balanced accuracy",
    "mcc": "MCC",
    "log_loss": "log loss",
    "brier": "Brier score",
    "ece": "calibration error",
    "completion_loss": "loss",
    "perplexity": "perplexity",
    "completion_perplexity": "perplexity of the labels",
    "bits_per_byte": "bits a byte",
    "generate.accuracy": "accuracy of the written labels",
    "generate.invalid": "the share of invalid answers",
    "generate.constrained_accuracy": "accuracy of the written labels, constrained to them",
    "generate.label_in_text": "accuracy of the labels named in answers",
    "generate.no_label": "the share of answers that name no label",
    "generate.exact_match": "exact match",
    "generate.token_f1": "token F1",
    "generate.choice": "right choices",
    "generate.number": "right numbers",
    "generate.regex": "matches of the regular expression",
    "generate.json_valid": "answers with JSON",
    "generate.json_schema": "answers that keep the JSON schema",
    "generate.json_f1": "F1 of JSON fields",
    "generate.rouge_1": "ROUGE-1",
    "generate.rouge_2": "ROUGE-2",
    "generate.rouge_l": "ROUGE-L",
    "generate.bleu": "BLEU",
    "generate.chrf": "chrF",
    "generate.code": "code that passes its tests",
    "generate.length": "length of answers",
    "generate.refusal": "the share of refusals",
    "generate.repetition": "repetition",
    "generate.finished": "answers that end by themselves",
    "bias.crows_pairs.distance": "distance from 50 % on CrowS-Pairs",
    SCORE: "score",
}
_PERCENT = ("accuracy", "macro_f1", "micro_f1", "weighted_f1", "balanced_accuracy")  # shown as such in sentences
_UNITS = {
    "completion_loss": "nats a token",
    "log_loss": "nats",
    "bits_per_byte": "bits a byte",
    "generate.length": "tokens",
}
_OF_ITSELF = ("completion_loss", "bits_per_byte")  # whose unit says what it is of


@dataclass(frozen=True)
class MetricWords:
    """How sentences speak of a metric.

    Attributes:
        metric: its name in the metric table, or ``objective``.
        name: what it is called.
        unit: of differences in it; empty where it has none.
        scale: from the metric's own unit to that of differences.
        digits: of differences, after the point.
        lower: whether less of it is better.
    """

    metric: str
    name: str
    unit: str
    scale: float
    digits: int
    lower: bool

    def value(self, value: float) -> str:
        """A value as it is shown: ``87.5 %``, ``1.500``."""
        if not math.isfinite(value):
            return "not known"
        if self.metric in _PERCENT:
            return f"{100 * value:.1f} %"
        return f"{value:.3f}" if self.metric not in METRICS else as_shown(self.metric, value)

    def has(self, value: float) -> str:
        """What a row has: ``accuracy 87.5 %``, ``a loss of 1.500 nats a token``."""
        if self.metric == "completion_loss":
            return f"a loss of {self.value(value)} nats a token"
        return (
            f"{self.value(value)} bits a byte" if self.metric == "bits_per_byte" else f"{self.name} {self.value(value)}"
        )

    def amount(self, difference: float) -> str:
        """The size of a difference: ``2.1 points``, ``0.021 nats a token``, ``0.021``."""
        size, least = abs(self.scale * difference), 10.0**-self.digits
        shown = f"less than {least:g}" if 0.0 < size < least / 2 else f"{size:.{self.digits}f}"
        return f"{shown} {self.unit}".rstrip()

    def size(self, difference: float) -> str:
        """The size of a difference, and of what: ``2.1 points of accuracy``, ``0.021 nats a token``."""
        amount = self.amount(difference)
        return amount if self.metric in _OF_ITSELF else f"{amount} {'of' if self.unit else 'in'} {self.name}"

    def interval(self, low: float, high: float) -> str:
        """Two ends of an interval of a difference, with the unit."""
        low, high = self.scale * low, self.scale * high
        return f"[{low:.{self.digits}f}, {high:.{self.digits}f}] {self.unit}".rstrip()


def words_of(metric: str) -> MetricWords:
    """How sentences speak of a metric, or of the score (``SCORE``).

    Args:
        metric: its name.
    """
    row = METRICS.get(metric)
    low, high = row.range if row is not None else (0.0, 1.0)
    name = _NAMES.get(metric, metric)
    lower = row is not None and row.better != "high"
    if metric != SCORE and row is not None and metric != "brier" and (low, high) == (0.0, 1.0):
        return MetricWords(metric, name, "points", 100.0, 1, lower)
    if metric in METRICS and 50.0 <= high - low <= 100.0:  # percent already
        return MetricWords(metric, name, "points", 1.0, 1, lower)
    return MetricWords(metric, name, _UNITS.get(metric, ""), 1.0, 3, lower)
