"""The metric table: every metric that a sweep can yield, in the order of tables, and all that is known of it.

To add a metric, compute it (``trainer/evaluation/quality_metrics.py`` for figures of the task's rows) and give it a row
here: its checks in configs, its place in leaderboards, ``rank --by``, and its intervals follow from the row. The rows
of bias sets stand in ``analysis/bias_sets.py``.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from analysis import item_sums as sums
from analysis.bias_sets import bias_metrics
from analysis.item_sums import Estimator
from analysis.metric_types import DECODERS, LABELLED, Metric

_SHARE = (0.0, 1.0)
_UP = (0.0, math.inf)
_COMPLETIONS = ("completion", "chat")
_WITH_COMPLETION = ("label", *_COMPLETIONS)
_BITS = math.log(2)  # nats


def _written(
    head: str,
    figure: str,
    better: str | None = "high",
    decimals: int = 3,
    tasks: tuple[str, ...] = _COMPLETIONS,
    shown: bool = False,
    bounds: tuple[float, float] = _SHARE,
    estimator: Estimator | None = None,
    scale: tuple[float, float] | None = None,
) -> Metric:
    """A figure of written answers: the mean of its column in their item table, unless an estimator is given."""
    made = estimator or sums.mean_of(figure, sums.GENERATED, bounds)
    switch = "eval.generate"
    return Metric(head, better, decimals, bounds, tasks, estimator=made, switch=switch, scale=scale, shown=shown)


_PERCENT = (0.0, 100.0)
_WRITTEN = {
    # of rows with labels, in free answers: an invalid one is wrong
    "generate.accuracy": _written(
        "written", "", tasks=("label",), shown=True, estimator=sums.accuracy("prediction", sums.GENERATED)
    ),
    "generate.invalid": _written(
        "invalid", "", "low", tasks=("label",), shown=True, estimator=sums.invalid_share("prediction", sums.GENERATED)
    ),
    "generate.constrained_accuracy": _written(
        "of labels", "", tasks=("label",), shown=True, estimator=sums.accuracy("constrained", sums.GENERATED)
    ),
    "generate.label_in_text": _written("in text", "label_in_text", tasks=("label",)),
    "generate.no_label": _written("no label", "no_label", "low", tasks=("label",)),
    # of rows with a reference text
    "generate.exact_match": _written("exact", "exact_match", shown=True),
    "generate.token_f1": _written("token F1", "token_f1", shown=True),
    "generate.choice": _written("choice", "choice"),
    "generate.number": _written("number", "number"),
    "generate.regex": _written("regex", "regex", shown=True),
    "generate.json_valid": _written("JSON", "json_valid"),
    "generate.json_schema": _written("schema", "json_schema", shown=True),
    "generate.json_f1": _written("JSON F1", "json_f1"),
    "generate.rouge_1": _written("ROUGE-1", "rouge_1"),
    "generate.rouge_2": _written("ROUGE-2", "rouge_2"),
    "generate.rouge_l": _written("ROUGE-L", "rouge_l", shown=True),
    # in percent, as sacrebleu and what is published has them
    "generate.bleu": _written("BLEU", "bleu", decimals=1, bounds=_PERCENT, estimator=sums.bleu("bleu", sums.GENERATED)),
    "generate.chrf": _written("chrF", "chrf", decimals=1, bounds=_PERCENT, estimator=sums.chrf("chrf", sums.GENERATED)),
    "generate.code": _written("code", "code", shown=True),
    # neither better nor worse by themselves: an objective must say what to be near to, or which way
    "generate.length": _written("length", "n_tokens", None, 1, bounds=_UP, scale=(0.0, 256.0)),
    "generate.refusal": _written("refusals", "refusal", None),
    "generate.judge": Metric(
        "judged",
        "high",
        range=_SHARE,
        tasks=_COMPLETIONS,
        estimator=sums.mean_of("judge", sums.GENERATED, _SHARE),
        switch="eval.judge",
    ),
    "generate.judge.consistency": Metric(
        "judge sure",
        None,
        range=_SHARE,
        tasks=_COMPLETIONS,
        estimator=sums.mean_of("judge_consistent", sums.GENERATED, _SHARE),
        switch="eval.judge",
        shown=False,
    ),
    "generate.repetition": _written("repeats", "repetition", "low"),
    "generate.finished": _written("finished", "finished"),
}

_BUILT_IN = {
    "accuracy": Metric("acc", "high", range=_SHARE, tasks=LABELLED, estimator=sums.accuracy()),
    "macro_f1": Metric("F1", "high", range=_SHARE, tasks=LABELLED, estimator=sums.macro_f1()),
    # of one label a row, micro-F1 is accuracy by another name
    "micro_f1": Metric("micro F1", "high", range=_SHARE, tasks=LABELLED, estimator=sums.accuracy(), shown=False),
    "weighted_f1": Metric("wtd F1", "high", range=_SHARE, tasks=LABELLED, estimator=sums.weighted_f1(), shown=False),
    "balanced_accuracy": Metric("bal acc", "high", range=_SHARE, tasks=LABELLED, estimator=sums.balanced_accuracy()),
    "mcc": Metric("MCC", "high", range=(-1.0, 1.0), tasks=LABELLED, estimator=sums.mcc()),
    "log_loss": Metric("log loss", "low", range=_UP, tasks=LABELLED, estimator=sums.log_loss(), scale=(0.0, 5.0)),
    # of two classes at most 1
    "brier": Metric("Brier", "low", range=(0.0, 2.0), tasks=LABELLED, estimator=sums.brier()),
    # calibration error in 15 bins of equal width
    "ece": Metric("ECE", "low", range=_SHARE, tasks=LABELLED, estimator=sums.calibration_error()),
    # distinct labels among the predictions: 1 says that a trial still names one class for all rows
    "classes_predicted": Metric("classes", None, 0, (1.0, math.inf), LABELLED),
    "completion_loss": Metric(
        "loss",
        "low",
        range=_UP,
        tasks=_COMPLETIONS,
        estimator=sums.ratio_of("completion_nll", "completion_tokens"),
        scale=(0.0, 8.0),
    ),
    **_WRITTEN,
    "perplexity": Metric(
        "ppl",
        "low",
        None,
        (1.0, math.inf),
        DECODERS,
        estimator=sums.perplexity_of("nll", "n_tokens"),
        scale=(1.0, 100.0),
    ),
    "completion_perplexity": Metric(
        "label ppl",
        "low",
        None,
        (1.0, math.inf),
        _WITH_COMPLETION,
        estimator=sums.perplexity_of("completion_nll", "completion_tokens"),
        scale=(1.0, 100.0),
    ),
    "bits_per_byte": Metric(
        "bits/B",
        "low",
        range=_UP,
        tasks=DECODERS,
        estimator=sums.ratio_of("nll", "n_bytes", unit=_BITS),
        scale=(0.0, 8.0),  # 8 bits are the text itself
    ),
    **bias_metrics(),
}


class MetricTable(Mapping[str, Metric]):
    """Name → metric: those of this module, and behind them those that a config brings (``eval.metrics``)."""

    def __init__(self) -> None:
        self._own: dict[str, Metric] = {}

    def declare(self, own: Mapping[str, Metric]) -> None:
        """Add metrics of a config, or of a stored sweep; one of the same name is replaced.

        Raises:
            ValueError: for the name of a built-in metric.
        """
        if taken := own.keys() & _BUILT_IN.keys():
            raise ValueError(f"{', '.join(sorted(taken))}: a built-in metric has this name")
        self._own |= own

    def __getitem__(self, name: str) -> Metric:
        return _BUILT_IN[name] if name in _BUILT_IN else self._own[name]

    def __iter__(self) -> Iterator[str]:
        yield from _BUILT_IN
        yield from self._own

    def __len__(self) -> int:
        return len(_BUILT_IN) + len(self._own)


METRICS = MetricTable()


def own_metrics(entries: Mapping[str, Any]) -> dict[str, Metric]:
    """Rows of the table for a config's ``eval.metrics``.

    Args:
        entries: name → its settings, of which ``better``, ``range`` and ``figures`` are read: as a sweep's config has
            them, complete. An entry that is no mapping is left out.

    Returns:
        ``generate.<name>``, or ``generate.<name>.<figure>`` for each figure; the column in the item table of answers is
        called alike, without ``generate.``.
    """
    made = {}
    for name, entry in entries.items():
        if not isinstance(entry, Mapping):
            continue
        figures = entry.get("figures") or {"": entry}
        for figure in figures:
            said = figures[figure] if isinstance(figures, Mapping) else entry
            better, ends = said.get("better", "high"), ends_of(said.get("range"))
            column = f"{name}.{figure}" if figure else str(name)
            made[f"generate.{column}"] = Metric(
                column,
                better if isinstance(better, str) else float(better),
                range=ends,
                tasks=_WITH_COMPLETION,
                estimator=sums.mean_of(column, sums.GENERATED, ends),
                switch="eval.generate",
                own=True,
            )
    return made


def ends_of(given: Sequence[float | None] | None) -> tuple[float, float]:
    """The lowest and the highest value of a range in a config, infinite where it has none."""
    low, high = given or (None, None)
    return (-math.inf if low is None else float(low), math.inf if high is None else float(high))


def ranking_metrics() -> tuple[str, ...]:
    """Names of the metrics that rank trials."""
    return tuple(name for name, metric in METRICS.items() if metric.better is not None)


ALIASES = {
    "acc": "accuracy",
    "f1": "macro_f1",
    "f1_macro": "macro_f1",  # scikit-learn's names
    "f1_micro": "micro_f1",
    "f1_weighted": "weighted_f1",
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
    below = [known for known in ranking_metrics() if known.startswith(f"{name}.")]
    return f"{name}.distance" if f"{name}.distance" in below else below[0] if len(below) == 1 else name


def one_class(metrics: Mapping[str, float]) -> bool:
    """Whether the predictions behind these metrics are one label for all rows: nothing has been learnt yet."""
    return metrics.get("classes_predicted", math.inf) <= 1


def scale(name: str) -> tuple[float, float]:
    """The ends of a metric's scale, for a term of the objective that gives none; (0, 1) where there is none.

    Of a metric that can grow without end it is what sweeps usually see; values beyond it order all the same.
    """
    if name not in METRICS:
        return _SHARE
    low, high = METRICS[name].scale or METRICS[name].range
    return (low, high) if math.isfinite(low) and math.isfinite(high) else _SHARE


def direction(name: str) -> tuple[str, float | None] | None:
    """Which way a metric is better, as a term of the objective says it.

    Returns:
        ``max``, ``min`` or ``target``, and the value to be near to where it is ``target``; None for a metric that does
        not rank trials, or that is not in the table.
    """
    better = METRICS[name].better if name in METRICS else None
    if isinstance(better, float):
        return "target", better
    return {"high": ("max", None), "low": ("min", None)}.get(str(better))


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
