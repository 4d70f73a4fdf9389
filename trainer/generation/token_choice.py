"""The next token of each answer: the likeliest, or one drawn with noise that depends on the answer alone."""

from collections.abc import Collection, Sequence
from hashlib import sha256

import torch


def likeliest(logits: torch.Tensor, allowed: Sequence[Collection[int]] | None = None) -> torch.Tensor:
    """(rows,) the token with the highest logit, the first of equals.

    Args:
        logits: (rows, vocabulary)
        allowed: of each row the tokens that may come, at least one; None: all may.
    """
    if allowed is not None:
        places = [(row, token) for row, tokens in enumerate(allowed) for token in tokens]
        rows, tokens = torch.tensor(places, device=logits.device).T
        only = torch.full_like(logits, -torch.inf)
        only[rows, tokens] = logits[rows, tokens]
        logits = only
    return logits.argmax(-1)


def drawn(logits: torch.Tensor, uniform: Sequence[float]) -> torch.Tensor:
    """(rows,) a token of each row's distribution, by inverting its cumulative sum in the vocabulary's order.

    Args:
        logits: (rows, vocabulary), after temperature and top-p; -inf where a token cannot come.
        uniform: (rows,) in [0, 1).
    """
    mass = logits.double().softmax(-1).cumsum(-1)
    at = torch.tensor(uniform, dtype=mass.dtype, device=mass.device)[:, None] * mass[:, -1:]
    # the first token whose sum is above: one without probability adds nothing to it, so that it is never the first
    return torch.searchsorted(mass, at, right=True).clamp_(max=logits.shape[-1] - 1).squeeze(1)


def uniform(seed: int, key: str, position: int) -> float:
    """A number in [0, 1) that depends on the arguments and on nothing else.

    Args:
        seed: of the sampling.
        key: of the answer.
        position: of the token in the answer.
    """
    digest = sha256(f"{seed}:{position}:{key}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)
