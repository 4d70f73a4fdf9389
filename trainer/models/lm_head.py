"""Logits of a language model at chosen positions only: they are the largest tensor, and few are needed."""

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch.utils.checkpoint import checkpoint

_LOGITS = 1 << 26  # numbers of a chunk of logits: 256 MiB in float32


class CausalModel(Protocol):
    """What is needed of a base model (``trainer/models/base_model.py``)."""

    @property
    def model(self) -> Any: ...

    @property
    def device(self) -> torch.device: ...

    def arithmetic(self) -> AbstractContextManager[Any]:
        """The autocast context of every forward."""


class TokenLogits:
    """A causal model cut in two: hidden states of all positions, then logits of some.

    Where the two parts do not give what the whole gives (a model with steps of its own after the head), the whole is
    used, and all logits are in memory at once.

    Args:
        base: the base model; adapters on it take part.
    """

    def __init__(self, base: CausalModel):
        self.base = base
        text_config = base.model.config.get_text_config()
        self.softcap = getattr(text_config, "final_logit_softcapping", None)
        self.vocabulary = int(text_config.vocab_size)
        self.separable = self.head is not None and self.body is not None and self._agrees()

    @property
    def head(self) -> Any:
        """The output layer; PEFT may have put a trained copy in its place."""
        return self.base.model.get_output_embeddings()

    @property
    def body(self) -> Any:
        """The model without its output layer; None where it is not to be had."""
        return getattr(self.base.model, self.base.model.base_model_prefix, None)

    @torch.no_grad()
    def _agrees(self) -> bool:
        ids = torch.arange(4, device=self.base.device).view(1, 4) % self.vocabulary
        with self.base.arithmetic():
            try:
                hidden = self.body(input_ids=ids, use_cache=False)[0]
                parts = self._head(hidden)
            except (TypeError, AttributeError, RuntimeError):
                return False
            whole = self.base.model(input_ids=ids, use_cache=False).logits
        return parts.shape == whole.shape and torch.equal(parts, whole)

    def _head(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(hidden)
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    def hidden(self, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Hidden states of all positions.

        Args:
            ids: (rows, tokens) token ids.
            mask: (rows, tokens), 0 at padding; None without padding.

        Returns:
            (rows, tokens, width); where the model cannot be cut, its logits, (rows, tokens, vocabulary).
        """
        if self.separable:
            hidden: torch.Tensor = self.body(input_ids=ids, attention_mask=mask, use_cache=False)[0]
            return hidden
        whole: torch.Tensor = self.base.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return whole

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(positions, vocabulary) of chosen hidden states, (positions, width)."""
        return self._head(hidden) if self.separable else hidden

    def summed(
        self, hidden: torch.Tensor, targets: torch.Tensor, counts: list[int], weights: list[torch.Tensor | None]
    ) -> list[torch.Tensor]:
        """Cross-entropy summed over each slot's positions, in chunks whose logits are computed again in the backward.

        Args:
            hidden: (positions, width), sorted by slot.
            targets: (positions,) token ids.
            counts: positions of each slot.
            weights: of each slot's positions in its sum; None where all are 1.

        Returns:
            For each slot a scalar, in nats.
        """
        size = max(1, _LOGITS // self.vocabulary)
        sums: list[torch.Tensor | None] = [None] * len(counts)
        ends = torch.tensor(counts).cumsum(0).tolist()
        for at in range(0, len(targets), size):
            stop = min(at + size, len(targets))
            pieces = []
            for k, (count, end) in enumerate(zip(counts, ends, strict=True)):
                first, last = max(at, end - count), min(stop, end)
                if first < last:
                    weight = weights[k]
                    part = None if weight is None else weight[first - end + count : last - end + count]
                    pieces.append((k, first - at, last - at, part))
            arguments = (hidden[at:stop], targets[at:stop], [piece[1:] for piece in pieces])
            whole = at == 0 and stop == len(targets)  # with one chunk, computing it twice saves no memory
            losses = self._chunk(*arguments) if whole else checkpoint(self._chunk, *arguments, use_reentrant=False)
            for (k, *_), loss in zip(pieces, losses, strict=True):
                before = sums[k]
                sums[k] = loss if before is None else before + loss
        return [hidden.new_zeros(()) if loss is None else loss for loss in sums]

    def _chunk(
        self, hidden: torch.Tensor, targets: torch.Tensor, pieces: list[tuple[int, int, torch.Tensor | None]]
    ) -> tuple[torch.Tensor, ...]:
        with self.base.arithmetic():
            logits = self.logits(hidden)
        return tuple(
            weighted_cross_entropy(logits[first:last], targets[first:last], weights) for first, last, weights in pieces
        )


def weighted_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None, ignore_index: int = -100
) -> torch.Tensor:
    """Cross-entropy summed over rows, each times its weight; in float32, in nats.

    Without weights it is PyTorch's own sum, so that a neighbour with weights changes no bit of it.

    Args:
        logits: (rows, classes)
        targets: (rows,) class indices.
        weights: (rows,), or None where all are 1.
        ignore_index: target of rows that do not count.
    """
    if weights is None:
        return torch.nn.functional.cross_entropy(logits.float(), targets, ignore_index=ignore_index, reduction="sum")
    each = torch.nn.functional.cross_entropy(logits.float(), targets, ignore_index=ignore_index, reduction="none")
    return (each * weights).sum()
