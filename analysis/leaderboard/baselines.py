"""Which baseline a sweep's best trial is compared with, in which metric, and what sentences call it."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import yaml

from analysis import fast_yaml
from analysis.errors import ConfigError, LorasweepError
from analysis.folder import State, SweepFolder
from analysis.leaderboard.ranking import objective_of
from analysis.leaderboard.seeds import mean_over_seeds
from analysis.metrics import METRICS, badness
from analysis.rows import Row, read_sweep, row_files, sweep_yaml
from analysis.statistics.paired import Difference, item_scores, paired_difference

if TYPE_CHECKING:
    from analysis.statistics.comparison import Judgement

UNTUNED = "zero_shot"
HEAD = "head"  # key of a baseline's config.yaml: what the head is that it was scored with
UNTRAINED = "untrained"
_SKEWED = 2.0  # the most frequent label to the rarest, in items: from here on accuracy may hide what macro-F1 shows
_LOSSES = ("completion_loss", "bits_per_byte", "perplexity")  # of rows without labels, where nothing else ranks
INCOMPARABLE = (LorasweepError, OSError, ValueError, KeyError, TypeError, ZeroDivisionError)  # item tables of two rows


def scored(rows: Sequence[Row]) -> list[Row]:
    """The baselines that were scored on all validation items."""
    return [row for row in rows if row.kind == "baseline" and row.status == State.COMPLETED and row.final]


def having(baselines: Sequence[Row], metric: str) -> list[Row]:
    """Those that have a metric: counting words has no perplexity."""
    return [row for row in baselines if badness(metric, row.metrics.get(metric, float("nan"))) < float("inf")]


def strongest(baselines: Sequence[Row], metric: str) -> Row:
    """The best in a metric; of equals the simplest, then the better ranked.

    Args:
        baselines: ranked, at least one.
        metric: that ranks.
    """

    def place(row: Row) -> tuple[float, bool, bool]:
        worse = badness(metric, row.metrics.get(metric, float("nan")))
        return worse, row.trial_id != "majority", row.trial_id != "linear"

    return min(baselines, key=place)


def compared_metrics(folder: SweepFolder, best: Row, judgement: "Judgement | None" = None) -> list[str]:
    """The metrics in which the best trial is compared with a baseline: what ranks, and accuracy where there are labels.

    Of an objective of several terms, it is accuracy or macro-F1 where they are among them, else the first one that is
    no bias figure. Where the labels are about equally frequent, accuracy speaks for macro-F1 too.

    Args:
        folder: of the sweep.
        best: its best trial.
        judgement: it says which metric ranks, where that is not the objective.
    """
    by = judgement.what if judgement is not None else "objective"
    try:
        terms = [term.metric for term in objective_of(folder, [best])[0].terms] if by == "objective" else [by]
    except LorasweepError:
        terms = []
    terms = [name for name in terms if name in best.metrics and METRICS[name].better is not None]
    if not labelled(best):
        return sorted(terms, key=_is_bias)[:1] or [name for name in _LOSSES if name in best.metrics][:1]
    skewed = "macro_f1" in best.metrics and _skewed(folder, best)
    known: list[str] = [name for name in ("accuracy", "macro_f1") if name in terms and (skewed or name == "accuracy")]
    if known or "macro_f1" in terms:
        return known or ["accuracy"]
    return [*sorted(terms, key=_is_bias)[:1], "accuracy"]


def _is_bias(metric: str) -> bool:
    return metric.startswith("bias.")


def labelled(row: Row) -> bool:
    """Whether it was scored on rows with labels."""
    return "accuracy" in row.metrics or not any(name in row.metrics for name in _LOSSES)


def most_frequent(folder: SweepFolder, row: Row) -> tuple[str, float]:
    """The most frequent label of the items that a row was scored on, and its share; ("", 0) where that is not known."""
    counts = _label_counts(folder, row)
    if not counts:
        return "", 0.0
    label, n = max(counts.items(), key=lambda it: it[1])
    return label, n / sum(counts.values())


def _skewed(folder: SweepFolder, best: Row) -> bool:
    counts = _label_counts(folder, best)
    try:
        sizes = [counts[label] for label in read_sweep(folder).labels or counts]
    except LorasweepError:
        return False
    return bool(sizes) and max(sizes) >= _SKEWED * min(sizes)


def _label_counts(folder: SweepFolder, row: Row) -> Counter[str]:
    try:
        return Counter(map(str, row_files(folder, row).read_items("task", "validation", row.step)["label"]))
    except INCOMPARABLE:
        return Counter()


def difference(folder: SweepFolder, best: Row, other: Row, metric: str) -> Difference:
    """How much better one row is than another in a metric, with its paired 95 % interval (NaN where there is none).

    Args:
        folder: where the item tables of both are.
        best: the one.
        other: what it is compared with.
        metric: that ranks; the difference is in its unit.

    Raises:
        LorasweepError, OSError, ValueError, KeyError, TypeError: where the item tables cannot be compared.
    """
    if metric == "accuracy":
        return paired_difference(_scores(folder, best), _scores(folder, other))
    from analysis.statistics.comparison import judge

    judged = judge(folder, [best, other], objective_of(folder, [best])[0], read_sweep(folder).labels, metric)
    if judged is None or other.trial_id not in judged.standings:
        paired_difference(_scores(folder, best), _scores(folder, other))  # what it cannot read, it says
        raise ConfigError(f"{metric} cannot be computed again from their item tables.")
    at = judged.standings[other.trial_id]
    if at.behind_low != at.behind_low and (why := judged.without_interval.get(metric)):
        raise ConfigError(f"{why}.")
    return Difference(at.behind, at.behind_low, at.behind_high, at.n)


def _scores(folder: SweepFolder, row: Row) -> dict[str, float]:
    """Item id → 1 where the prediction is the label, else 0; without labels minus the loss. The seeds' mean."""
    return mean_over_seeds(
        row, lambda run: item_scores(row_files(folder, run).read_items("task", "validation", run.step))
    )


def untrained_head(folder: SweepFolder, row: Row) -> bool:
    """Whether a row is a model with a head of random values, as where training begins: it can only guess.

    A folder that does not say so, from a version that did not write it, has one where the task is classification.

    Args:
        folder: of the sweep.
        row: of a baseline.
    """
    if row.kind != "baseline" or row.trial_id.partition("@")[0] != UNTUNED:
        return False
    try:
        config = fast_yaml.load(row_files(folder, row).config_file.read_bytes())
        written = config.get(HEAD) if isinstance(config, dict) else None
    except (OSError, ValueError, yaml.YAMLError):
        written = None
    return written == UNTRAINED if written is not None else _task(folder) == "classification"


def _task(folder: SweepFolder) -> Any:
    try:
        config = sweep_yaml(folder).get("config")
    except LorasweepError:
        return None
    task = config.get("task") if isinstance(config, dict) else None
    return task.get("name") if isinstance(task, dict) else None


def name_of(folder: SweepFolder, row: Row) -> str:
    """What a sentence calls a baseline: ``the untuned model``, ``the baseline few_shot@nf4``."""
    kind, _, precision = row.trial_id.rpartition("/")[2].partition("@")
    if kind == UNTUNED:
        model = "the model with an untrained head" if untrained_head(folder, row) else "the untuned model"
        return f"{model} ({precision})" if precision else model
    return f"the baseline {row.trial_id}"


def way_of(folder: SweepFolder, row: Row) -> str:
    """What one would do instead of fine-tuning, as part of a sentence."""
    kind = row.trial_id.partition("@")[0]
    ways = {
        "majority": "naming the most frequent label",
        "linear": "counting words",
        "frozen": "a linear classifier on the frozen model",
        UNTUNED: "an untrained head" if untrained_head(folder, row) else "leaving the model as it is",
        "few_shot": "prompting with a few examples",
        "retrieval": "asking the nearest training rows",
    }
    return ways.get(kind, f"the baseline {kind}")
