"""One batched scorer of log-likelihoods, shared by labels, perplexity and bias.

Rows are padded on the right, where a causal model cannot see it; requests whose input begins another's share its row
(all single-token labels of a prompt, and the prompt's own perplexity, cost one row); rows are batched by length.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trainer.models import BaseModel

_POSITIONS = 2048  # positions whose logits are turned to float32 at a time: the vocabulary is the large dimension


@dataclass(frozen=True)
class Request:
    """The log-probability of ``tokens[start:]`` given ``tokens[:start]``; ``start`` is at least 1."""

    tokens: tuple[int, ...]
    start: int


@torch.inference_mode()
def log_likelihoods(
    base: BaseModel, model: torch.nn.Module, requests: Sequence[Request], batch_size: int
) -> list[list[float]]:
    """Log-probability, in nats, of each asked token.

    Args:
        base: arithmetic and padding token.
        model: the base model, or the same with an adapter; in evaluation mode.
        requests: any number, in any order.
        batch_size: rows a forward pass.

    Returns:
        For each request ``len(tokens) - start`` values.

    Raises:
        ValueError: for a request without context or without tokens to score.
    """
    for request in requests:
        if not 1 <= request.start < len(request.tokens):
            raise ValueError(
                "a request needs context and at least one token to score,"
                f" got start={request.start} of {len(request.tokens)}"
            )
    rows, row_of = _share_rows([request.tokens[:-1] for request in requests])
    asked: list[list[int]] = [[] for _ in rows]
    for i, row in enumerate(row_of):
        asked[row].append(i)
    order = sorted(range(len(rows)), key=lambda r: -len(rows[r]))
    scores: list[list[float]] = [[] for _ in requests]
    for at in range(0, len(order), batch_size):
        batch = order[at : at + batch_size]
        _score_batch(
            base, model, [rows[r] for r in batch], [[(i, requests[i]) for i in asked[r]] for r in batch], scores
        )
    return scores


def _share_rows(inputs: list[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], list[int]]:
    """Distinct inputs that begin no other, and for each input the one that begins with it.

    In sorted order an input that begins another stands directly before one that it begins.
    """
    distinct = sorted(set(inputs))
    host = dict.fromkeys(distinct, -1)
    rows: list[tuple[int, ...]] = []
    for i in range(len(distinct) - 1, -1, -1):
        tokens = distinct[i]
        following = distinct[i + 1] if i + 1 < len(distinct) else ()
        if following[: len(tokens)] == tokens:
            host[tokens] = host[following]
        else:
            host[tokens] = len(rows)
            rows.append(tokens)
    return rows, [host[tokens] for tokens in inputs]


def _score_batch(
    base: BaseModel,
    model: torch.nn.Module,
    rows: list[tuple[int, ...]],
    asked: list[list[tuple[int, Request]]],
    scores: list[list[float]],
) -> None:
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), base.tokenizer.pad_token_id)
    for r, row in enumerate(rows):
        ids[r, : len(row)] = torch.tensor(row)
    first = min(request.start for group in asked for _, request in group) - 1
    with base.arithmetic():
        logits = model(input_ids=ids.to(base.device), logits_to_keep=width - first, use_cache=False).logits
    offset = width - logits.shape[1]  # a model that ignores logits_to_keep returns all positions
    where = [
        (r, i, p)
        for r, group in enumerate(asked)
        for i, request in group
        for p in range(request.start, len(request.tokens))
    ]
    wanted = {i: request.tokens for group in asked for i, request in group}
    for at in range(0, len(where), _POSITIONS):
        part = where[at : at + _POSITIONS]
        at_rows = torch.tensor([r for r, _, _ in part], device=logits.device)
        at_positions = torch.tensor([p - 1 - offset for _, _, p in part], device=logits.device)
        targets = torch.tensor([wanted[i][p] for _, i, p in part], device=logits.device)
        chosen = logits[at_rows, at_positions].float()  # (positions, vocabulary)
        values = chosen.gather(1, targets[:, None]).squeeze(1) - chosen.logsumexp(1)
        for (_, i, _), value in zip(part, values.tolist(), strict=True):
            scores[i].append(value)
