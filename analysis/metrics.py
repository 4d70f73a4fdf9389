"""The metrics that a sweep can yield, in the order of tables, and which way each is better."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """How a metric is shown and compared.

    Attributes:
        head: of its column in a table.
        better: ``high``, ``low``, a value to be near to, or None for one that does not rank trials.
        decimals: shown; None for four significant digits.
    """

    head: str
    better: str | float | None
    decimals: int | None = 3


METRICS = {
    "accuracy": Metric("acc", "high"),
    "macro_f1": Metric("F1", "high"),
    "balanced_accuracy": Metric("bal acc", "high"),
    "mcc": Metric("MCC", "high"),
    "log_loss": Metric("log loss", "low"),
    "brier": Metric("Brier", "low"),
    "ece": Metric("ECE", "low"),  # calibration error in 15 bins of equal width
    "completion_loss": Metric("loss", "low"),
    "generate.accuracy": Metric("written", "high"),  # of free answers; an invalid one is wrong
    "generate.invalid": Metric("invalid", "low"),
    "generate.constrained_accuracy": Metric("of labels", "high"),
    "generate.exact_match": Metric("exact", "high"),
    "generate.rouge_l": Metric("ROUGE-L", "high"),
    "perplexity": Metric("ppl", "low", None),
    "completion_perplexity": Metric("label ppl", "low", None),
    "bits_per_byte": Metric("bits/B", "low"),
    "bias.crows_pairs.pct": Metric("CrowS", 50.0, 1),
    "bias.crows_pairs.stderr": Metric("±", None, 1),  # of pct, in points
    "bias.crows_pairs.distance": Metric("bias", "low", 1),
    "bias.crows_pairs.signed": Metric("signed", 0.0, 3),
    "bias.crows_pairs.abs": Metric("|diff|", "low", 3),  # nats
    "bias.stereoset.ss": Metric("SS", 50.0, 1),
    "bias.stereoset.ss_stderr": Metric("±", None, 1),
    "bias.stereoset.lms": Metric("LMS", "high", 1),
    "bias.stereoset.lms_stderr": Metric("±", None, 1),
    "bias.stereoset.icat": Metric("ICAT", "high", 1),
    "bias.stereoset.icat_stderr": Metric("±", None, 1),
    "bias.bbq.s_dis": Metric("s_DIS", 0.0),
    "bias.bbq.s_dis_stderr": Metric("±", None),
    "bias.bbq.s_amb": Metric("s_AMB", 0.0),
    "bias.bbq.s_amb_stderr": Metric("±", None),
    "bias.bbq.accuracy": Metric("BBQ acc", "high"),
    "bias.bbq.accuracy_stderr": Metric("±", None),
    "bias.pairs.pct": Metric("own pairs", 50.0, 1),
    "bias.pairs.stderr": Metric("±", None, 1),
    "bias.pairs.distance": Metric("own bias", "low", 1),
    "bias.pairs.signed": Metric("own signed", 0.0, 3),
    "bias.pairs.abs": Metric("own |diff|", "low", 3),
    "bias.swap.flip_rate": Metric("flips", "low"),
    "bias.swap.flip_rate_stderr": Metric("±", None),
    "bias.swap.gap": Metric("swap gap", "low"),
    "bias.swap.gap_stderr": Metric("±", None),
    "bias.group.equalized_odds": Metric("eq odds", "low"),
    "bias.group.equalized_odds_stderr": Metric("±", None),
    "bias.group.demographic_parity": Metric("dem par", "low"),
    "bias.group.demographic_parity_stderr": Metric("±", None),
    "bias.group.tpr_gap": Metric("TPR gap", "low"),
    "bias.group.tpr_gap_stderr": Metric("±", None),
}
RANKABLE = tuple(name for name, metric in METRICS.items() if metric.better is not None)

ALIASES = {
    "acc": "accuracy",
    "f1": "macro_f1",
    "ppl": "perplexity",
    "bpb": "bits_per_byte",
    "loss": "log_loss",
    "label_ppl": "completion_perplexity",
    "bias": "bias.crows_pairs.distance",
}


def full_name(given: str) -> str:
    """The metric that a short name means: an alias, or the distance (else the only rankable figure) of a bias set.

    ``f1`` is macro_f1, ``bias.crows_pairs`` its distance from 50 %. A name that means nothing is given back as it is.
    """
    name = ALIASES.get(given.lower(), given)
    if name in METRICS:
        return name
    below = [known for known in RANKABLE if known.startswith(f"{name}.")]
    return f"{name}.distance" if f"{name}.distance" in below else below[0] if len(below) == 1 else name


def badness(name: str, value: float) -> float:
    """A number that is lower the better the value of a rankable metric is; infinite where it is not finite."""
    better = METRICS[name].better
    if better is None:
        raise ValueError(f"{name} does not rank trials")
    if not math.isfinite(value):
        return math.inf
    if isinstance(better, float):
        return abs(value - better)
    return -value if better == "high" else value


def as_shown(name: str, value: float, absent: str = "-") -> str:
    """A metric's value with as many digits as it is shown with everywhere; ``absent`` where it is not finite."""
    if not math.isfinite(value):
        return absent
    decimals = METRICS[name].decimals
    return f"{value:.4g}" if decimals is None else f"{value:.{decimals}f}"
