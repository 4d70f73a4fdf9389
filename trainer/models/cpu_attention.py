"""Attention for training on a CPU in bf16, where PyTorch's own is slow for short rows.

The backward pass of ``scaled_dot_product_attention`` in bf16 takes 0.1 ms a row and head on a CPU with AMX, however
short the row is: five times as long as in float32 at 64 tokens, as long at 256 (PyTorch 2.13; BENCHMARKS.md).
"""

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_NAME = "sdpa_in_float32_for_short_rows"
_SHORT = 192  # tokens


def short_rows_in_float32(model: PreTrainedModel) -> None:
    """Let a bf16 model on a CPU attend in float32 where rows are short and gradients are wanted.

    A model that does not use PyTorch's attention stays as it is.
    """
    if model.config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    model.set_attn_implementation(_NAME)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """``query``, ``key``, ``value``: (rows, heads, tokens, features). Returns (rows, tokens, heads, features)."""
    if not torch.is_grad_enabled() or query.shape[2] > _SHORT:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast("cpu", enabled=False):
        attended, _ = sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), attention_mask, **options
        )
    return attended.to(query.dtype), None
