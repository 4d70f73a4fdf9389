"""Names of everything that a trial is measured by: the one list that scoring, the config's checks and the docs share.

Without torch, so that a config is checked in no time. ``analysis/metrics.py`` says how each is shown and compared.
"""

from trainer.config import BiasConfig, DataConfig, TaskConfig
from trainer.data.schemas import LABELLED, WITHOUT_LABELS

QUALITY = ("accuracy", "balanced_accuracy", "macro_f1", "mcc", "log_loss", "brier", "ece")
TEXT = ("perplexity", "bits_per_byte", "completion_perplexity")


def _with_errors(prefix: str, *figures: str) -> tuple[str, ...]:
    """Each figure, followed by its standard error."""
    return tuple(f"bias.{prefix}.{name}" for figure in figures for name in (figure, f"{figure}_stderr"))


CROWS_PAIRS = tuple(f"bias.crows_pairs.{part}" for part in ("pct", "distance", "signed", "abs", "stderr"))
OWN_PAIRS = tuple(name.replace("crows_pairs", "pairs") for name in CROWS_PAIRS)
STEREOSET = _with_errors("stereoset", "ss", "lms", "icat")
BBQ = _with_errors("bbq", "s_dis", "s_amb", "accuracy")
SWAP = _with_errors("swap", "flip_rate", "gap")
GROUP = _with_errors("group", "equalized_odds", "demographic_parity", "tpr_gap")


def metric_names(task: TaskConfig, bias: BiasConfig, data: DataConfig) -> tuple[str, ...]:
    """The metrics that every rung of a trial yields; those of the swap only where rows have something to swap."""
    decoder = task.name != "classification"
    schema = data.schema or LABELLED
    labels = schema not in WITHOUT_LABELS or not decoder
    names = QUALITY + (TEXT if decoder else ()) if labels else WITHOUT_LABELS[schema]
    for measured, group in (
        (decoder and bias.crows_pairs, CROWS_PAIRS),
        (decoder and bias.pairs_file, OWN_PAIRS),
        (decoder and bias.stereoset, STEREOSET),
        (decoder and bias.bbq, BBQ),
        (labels and bias.swap, SWAP),
        (labels and data.group, GROUP),
    ):
        names += group if measured else ()
    return names
