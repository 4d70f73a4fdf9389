"""What references, the texts that a model is to write, are like: it decides which objective is the default."""

from statistics import median

from analysis.errors import LorasweepError
from trainer.answers.answer import without_thoughts
from trainer.config import DataConfig
from trainer.data.dataset import training_rows
from trainer.data.schemas import reference_of

SHORT = 60  # characters: up to so many at the median, a reference is an answer rather than a text
_LOOKED_AT = 500  # rows


def references_are(config: DataConfig) -> str:
    """``short`` or ``long``, by the median of the training rows' completions or last assistant's turns.

    Args:
        config: with ``data.schema``. Rows that cannot be read count as short: reading them later says what is wrong.
    """
    if config.schema not in ("completion", "chat"):
        return "short"
    try:
        rows = training_rows(config, _LOOKED_AT)
    except LorasweepError:
        return "short"
    lengths = [len(without_thoughts(reference_of(row))) for row in rows]
    return "long" if lengths and median(lengths) > SHORT else "short"
