"""Scores of rows without labels: how likely each row is, and each row's completion or assistant's turns."""

from typing import Any

import torch

from trainer.data.encode import Encoded
from trainer.data.schemas import Row
from trainer.likelihood.log_likelihood import Request, log_likelihoods
from trainer.models.base_model import BaseModel


def likelihood_items(
    base: BaseModel,
    model: torch.nn.Module,
    schema: str,
    rows: list[Row],
    encoded: list[Encoded],
    batch_size: int,
) -> dict[str, list[Any]]:
    """The item table of rows of schema completion, chat or text.

    Args:
        base: arithmetic and padding token.
        model: the base model, or the same with an adapter; in evaluation mode.
        schema: of the rows.
        rows: one for each of ``encoded``.
        encoded: their tokens.
        batch_size: rows a forward pass.

    Returns:
        ``item_id``, ``group``, ``nll`` (nats) over ``n_tokens`` tokens that spell ``n_bytes`` bytes, and, but for
        schema text, ``completion_nll`` over ``completion_tokens`` of them: those that bear loss in training.
    """
    scores = log_likelihoods(base, model, [Request(row.tokens, row.start) for row in encoded], batch_size)
    table: dict[str, list[Any]] = {
        "item_id": [row.item_id for row in rows],
        "group": [row.group for row in rows],
        "nll": [-sum(values) for values in scores],
        "n_tokens": [len(values) for values in scores],
        "n_bytes": [row.n_bytes for row in encoded],
    }
    if schema != "text":
        table["completion_nll"] = [-_borne(row, values) for row, values in zip(encoded, scores, strict=True)]
        table["completion_tokens"] = [row.n_bearing for row in encoded]
    return table


def _borne(row: Encoded, values: list[float]) -> float:
    """The sum over the tokens that bear loss; ``values`` are of all from ``start`` on."""
    completion = values[len(row.context) - row.start :]
    if row.bears is None:
        return sum(completion)
    return sum(value for value, bears in zip(completion, row.bears, strict=True) if bears)
