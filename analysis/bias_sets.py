"""The bias sets that there are: titles, config keys, and the rows that they bring to the metric table.

How items are loaded and scored stands in ``trainer/evaluation/bias/``, in a module a set; here is what ranking,
config checks and reports know, so that an old sweep folder can be ranked without torch. To add a set, add an entry
here and a module there.
"""

from dataclasses import replace

from analysis.item_sums import (
    absolute_preference,
    bbq,
    flip_rate,
    preference,
    preferred_share,
    stereoset,
    swap_gap,
)
from analysis.metric_types import LABELLED, BiasSet, Metric

_PERCENT, _SHARE = (0.0, 100.0), (0.0, 1.0)


def _error(decimals: int = 3) -> Metric:
    """The row of a standard error."""
    return Metric("±", None, decimals, (0.0, float("inf")))


def _pairs(name: str, *, pct: str, distance: str, signed: str, absolute: str) -> dict[str, Metric]:
    """The rows of a set of sentence pairs, by their headings. Differences are in nats."""
    return {
        "pct": Metric(pct, 50.0, 1, _PERCENT, error="stderr", estimator=preferred_share(name)),
        "stderr": _error(1),  # of pct, in points
        "distance": Metric(distance, "low", 1, (0.0, 50.0), estimator=preferred_share(name, neutral=50)),
        "signed": Metric(signed, 0.0, estimator=preference(name), scale=(-5.0, 5.0)),
        "abs": Metric(
            absolute, "low", range=(0.0, float("inf")), estimator=absolute_preference(name), scale=(0.0, 10.0)
        ),
    }


def _gap(name: str, head: str) -> dict[str, Metric]:
    """The rows of a gap between groups (``analysis/group_cells.py``)."""
    fair = (f"{name}_fair", f"{name}_fair_high")
    return {
        name: Metric(
            head, "low", range=_SHARE, error=f"{name}_stderr", upper=f"{name}_upper", floor=f"{name}_floor", fair=fair
        ),
        f"{name}_stderr": _error(),
        f"{name}_upper": Metric("≤", None, range=_SHARE),
        fair[0]: Metric("if fair", None, range=_SHARE),
        fair[1]: Metric("if fair ≤", None, range=_SHARE),
        f"{name}_floor": Metric("≤ at best", None, range=_SHARE),
    }


_PAIR_COLUMNS = ("label", "prediction")

CROWS_PAIRS = BiasSet(
    "crows_pairs",
    "CrowS-Pairs",
    _pairs("crows_pairs", pct="CrowS", distance="bias", signed="signed", absolute="|diff|"),
    columns=_PAIR_COLUMNS,
)
HEADLINE = CROWS_PAIRS  # the one that the verdict and the report's plot by category speak of
_ALL = (
    CROWS_PAIRS,
    BiasSet(
        "stereoset",
        "StereoSet",
        {
            "ss": Metric("SS", 50.0, 1, _PERCENT, error="ss_stderr", estimator=stereoset("ss")),
            "ss_stderr": _error(1),
            "lms": Metric("LMS", "high", 1, _PERCENT, error="lms_stderr", estimator=stereoset("lms")),
            "lms_stderr": _error(1),
            "icat": Metric("ICAT", "high", 1, _PERCENT, error="icat_stderr", estimator=stereoset("icat")),
            "icat_stderr": _error(1),
        },
        columns=("group", "target", "logprobs"),
    ),
    BiasSet(
        "bbq",
        "BBQ",
        {
            "s_dis": Metric("s_DIS", 0.0, range=(-1.0, 1.0), error="s_dis_stderr", estimator=bbq("s_dis")),
            "s_dis_stderr": _error(),
            "s_amb": Metric("s_AMB", 0.0, range=(-1.0, 1.0), error="s_amb_stderr", estimator=bbq("s_amb")),
            "s_amb_stderr": _error(),
            "accuracy": Metric("BBQ acc", "high", range=_SHARE, error="accuracy_stderr", estimator=bbq("accuracy")),
            "accuracy_stderr": _error(),
        },
        columns=("group", "condition", "label", "biased", "unknown", "logprobs"),
    ),
    BiasSet(
        "pairs",
        "own pairs",
        _pairs("pairs", pct="own pairs", distance="own bias", signed="own signed", absolute="own |diff|"),
        switch="bias.pairs_file",
        columns=_PAIR_COLUMNS,
        subject="A pairs file",
    ),
    BiasSet(
        "swap",
        "Swapped names and group terms",
        {
            "flip_rate": Metric("flips", "low", range=_SHARE, error="flip_rate_stderr", estimator=flip_rate()),
            "flip_rate_stderr": _error(),
            "gap": Metric("swap gap", "low", range=_SHARE, error="gap_stderr", estimator=swap_gap()),
            "gap_stderr": _error(),
        },
        tasks=LABELLED,
        columns=("label", "prediction", "swapped_prediction", "logprobs", "swapped_logprobs"),
        category="",
    ),
    BiasSet(
        "group",
        "Gaps between groups",
        {
            **_gap("equalized_odds", "eq odds"),
            **_gap("demographic_parity", "dem par"),
            **_gap("tpr_gap", "TPR gap"),
        },
        tasks=LABELLED,
        switch="data.group",
        table="task",
        columns=("label", "prediction"),
        category="",
    ),
)
BIAS_SETS = {bias_set.name: bias_set for bias_set in _ALL}


def bias_metrics() -> dict[str, Metric]:
    """The rows of the metric table that the sets bring, by full name."""
    return {
        bias_set.metric(figure): replace(
            metric,
            tasks=bias_set.tasks,
            switch=bias_set.path,
            error=bias_set.metric(metric.error) if metric.error else "",
            upper=bias_set.metric(metric.upper) if metric.upper else "",
            floor=bias_set.metric(metric.floor) if metric.floor else "",
            fair=tuple(map(bias_set.metric, metric.fair)),
        )
        for bias_set in BIAS_SETS.values()
        for figure, metric in bias_set.metrics.items()
    }
