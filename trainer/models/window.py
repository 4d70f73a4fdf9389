"""How many tokens of a row a base model reads so that its result is right and depends on that row alone."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

UNLIMITED = 1 << 20


def window(model: PreTrainedModel) -> int:
    """Tokens that a model reads at once; UNLIMITED where nothing names a limit.

    ``max_position_embeddings`` alone promises too much of two kinds of models. RoBERTa and its kin count positions from
    behind the padding token's, so their 514 positions hold rows of 512 tokens. LongRoPE (Phi-3 and later) rotates every
    row of a batch otherwise as soon as one of them is longer than the original window: a row's result would depend on
    its neighbours, so the original window is the limit.
    """
    config = model.config.get_text_config()
    limit = int(getattr(config, "max_position_embeddings", None) or 0)
    limit = limit if limit > 0 else UNLIMITED  # XLNet's is -1
    for rope in _ropes(config):
        if rope.get("rope_type") == "longrope":
            limit = min(limit, int(rope.get("original_max_position_embeddings") or limit))
    for name, module in model.named_modules():
        counted = isinstance(module, nn.Embedding) and "position" in name.rpartition(".")[2]
        if counted and module.padding_idx is not None:
            limit = min(limit, module.num_embeddings - module.padding_idx - 1)
    return limit


def _ropes(config: Any) -> Iterator[Mapping[str, Any]]:
    """The settings of rotary positions: one for all layers, or one for each kind of layer."""
    settings = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in settings:
        yield settings
    else:
        yield from (each for each in settings.values() if isinstance(each, Mapping))
