"""Logits of a language model at chosen positions only: they are the largest tensor, and few are needed."""

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch.utils.checkpoint import checkpoint

_LOGITS = 1 << 26  # numbers of a chunk of logits: 256 MiB in float32
# Numbers of logits whose losses are taken at a time: on a CPU what fits its caches. A GPU is given all at once.
_AT_ONCE = {"cpu": 1 << 20}


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

    def token_losses(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of each position, in chunks whose logits are computed again in the backward pass.

        A position's loss does not depend on the others, so that a pack's slots share one pass over all of them.

        Args:
            hidden: (positions, width)
            targets: (positions,) token ids.

        Returns:
            (positions,) in nats, float32.
        """
        size = max(1, _LOGITS // self.vocabulary)
        if len(targets) <= size:  # with one chunk, computing it twice saves no memory
            return self._losses(hidden, targets)
        # split() instead of slices: the gradient of each slice would be a tensor of zeros as large as the whole
        chunks = zip(hidden.split(size), targets.split(size), strict=True)
        return torch.cat([checkpoint(self._losses, part, target, use_reentrant=False) for part, target in chunks])

    def _losses(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with self.base.arithmetic():
            logits = self.logits(hidden)
        most = max(1, _AT_ONCE.get(logits.device.type, logits.numel()) // logits.shape[-1])
        parts = zip(logits.split(most), targets.split(most), strict=True)
        losses = [torch.nn.functional.cross_entropy(part.float(), own, reduction="none") for part, own in parts]
        return losses[0] if len(losses) == 1 else torch.cat(losses)


def weighted_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None, ignore_index: int = -100
) -> torch.Tensor:
    """Cross-entropy summed over rows, each times its weight; in float32, in nats.

    Without weights it is PyTorch's own sum.

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
