"""Whether a model goes on with a row that is padded on the left as it does without padding: found by trying it.

Most do: positions are counted and padding is masked. Some, such as RWKV, take no mask.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from transformers import GenerationConfig

from trainer.generation.decoding_pass import Ends, Line, decode
from trainer.models.base_model import BaseModel

_LONG, _SHORT, _NEW = 7, 4, 2
_ROUNDING = (1e-3, 0.1)  # share of the logits' size, in float32 and below it (trainer/models/behaviour.py)


def padding_is_unseen(base: BaseModel) -> bool:
    """Whether rows may be padded on the left. Tried once for a base model, with no adapter in effect.

    Args:
        base: a causal model, in evaluation mode.
    """
    if base.left_padding is None:
        base.left_padding = _tried(base)
    return base.left_padding


def _tried(base: BaseModel) -> bool:
    tokens = base.ordinary_tokens()
    long = tuple(tokens[i % len(tokens)] for i in range(_LONG))
    short = long[::-1][:_SHORT]
    padded, alone = _logits(base, [long, short])[1], _logits(base, [short])[0]
    moved = (padded - alone).nan_to_num().abs().max()
    size = (alone - alone.mean(-1, keepdim=True)).nan_to_num().abs().max()
    coarse = base.autocast is not None or base.model.dtype is not torch.float32 or base.precision in ("nf4", "int8")
    return bool(moved <= _ROUNDING[coarse] * size)


def _logits(base: BaseModel, prompts: list[tuple[int, ...]]) -> torch.Tensor:
    """(prompts, new tokens, vocabulary) of the passes that write some tokens, the same after each prompt."""
    seen: list[torch.Tensor] = []
    following = base.ordinary_tokens()[0]

    def choose(logits: torch.Tensor, lines: Sequence[Line]) -> torch.Tensor:
        seen.append(logits)
        return torch.full((len(logits),), following, device=logits.device)

    model: Any = base.model
    settings = GenerationConfig(do_sample=False, max_new_tokens=_NEW, pad_token_id=base.pad_token)
    ends = Ends((), lambda prompt, tokens: False, [_NEW] * len(prompts))
    decode(base, model, prompts, 1, lambda rows: nullcontext(), settings, choose, ends)
    return torch.stack(seen, 1)
