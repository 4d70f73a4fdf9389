"""Mitigation of bias in the training rows: counterfactual copies, and weights in the loss.

Copies: Lu et al. 2018 (arXiv 1807.11714). Weights: Kamiran and Calders 2012 ("Data preprocessing techniques for
classification without discrimination", Knowledge and Information Systems 33), here with an exponent. What is known of
their effect is mixed: see conf/mitigation/default.yaml.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from analysis.errors import DataError
from trainer.data.counterfactual_text import swap_terms
from trainer.data.dataset import Row
from trainer.data.subsets import fixed_draw

SWAP_SEED = 0  # fixed: which name replaces which is part of the data, not of the trial


def counterfactual_copies(rows: Sequence[Row], ratio: float) -> list[Row]:
    """Swapped copies of a share of the rows that have something to swap; they keep label and group.

    A smaller share is a part of a larger one.

    Args:
        rows: training rows.
        ratio: from 0 to 1.

    Raises:
        DataError: where a ratio above 0 finds no row with a name, pronoun or group term.
    """
    if not ratio:
        return []
    swapped = {i: copy for i, row in enumerate(rows) if (copy := _swapped(row)) is not None}
    if not swapped:
        raise DataError(
            f"mitigation.augment={ratio:g}: no training row holds a name, pronoun or group term that could be swapped"
            " (trainer/data/counterfactual_text.py knows English ones). Leave it at 0."
        )
    places = sorted(swapped)
    drawn = fixed_draw([rows[i].item_id for i in places], max(1, round(ratio * len(places))), SWAP_SEED)
    return [swapped[places[i]] for i in drawn]


def _swapped(row: Row) -> Row | None:
    """The row with all its texts swapped but the label; None where nothing changes."""

    def swap(text: Any) -> Any:
        return (swap_terms(text, SWAP_SEED) or text) if isinstance(text, str) else text

    messages = tuple(message | {"content": swap(message["content"])} for message in row.messages)
    copy = replace(row, text=swap(row.text), completion=swap(row.completion), messages=messages)
    return replace(copy, item_id=f"{row.item_id}-swapped") if copy != row else None


def row_weights(rows: Sequence[Row], alpha: float) -> list[float]:
    """The weight of each row in the loss: 1 / P(label, group)^alpha, normalised to a mean of 1.

    Args:
        rows: training rows; P is their own. Rows of a label without a group count as a group.
        alpha: the exponent, ``mitigation.reweight``; 0 gives equal weights.
    """
    cells = Counter((row.label, row.group) for row in rows)
    raw = [(cells[row.label, row.group] / len(rows)) ** -alpha for row in rows]
    mean = sum(raw) / len(raw)
    return [weight / mean for weight in raw]
