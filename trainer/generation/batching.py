"""How rows of a model can be continued in one batch: found by trying it, since no list of architectures is complete.

Most models count positions, mask padding and keep the same caches, so that rows of any length go together. Some, such
as RWKV, take no mask, or go wrong where several rows are continued from a cache.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from trainer.generation.decoding_pass import Ends, Line, decode
from trainer.models.base_model import BaseModel, Batching
from trainer.outcomes import out_of_memory, raise_device_fault

_LONG, _SHORT, _NEW = 7, 4, 3  # tokens of two prompts, and of an answer
_ROUNDING = (1e-3, 0.1)  # share of the logits' size, in float32 and below it (trainer/models/behaviour.py)
_BEST_FIRST = (Batching(), Batching(left_padding=False), Batching(cache=False), Batching(False, False))


def batching_of(base: BaseModel) -> Batching:
    """How rows of a base model can be continued together. Tried once, with no adapter in effect.

    Args:
        base: a causal model, in evaluation mode.
    """
    if base.batching is None:
        tokens = base.ordinary_tokens()
        long = tuple(tokens[i % len(tokens)] for i in range(_LONG))
        short = long[::-1][:_SHORT]
        alone = _logits(base, [short], Batching(cache=False))[0]
        size = (alone - alone.mean(-1, keepdim=True)).nan_to_num().abs().max()
        coarse = base.autocast is not None or base.model.dtype is not torch.float32 or base.precision in ("nf4", "int8")

        def agrees(way: Batching) -> bool:
            beside = long if way.left_padding else long[:_SHORT]
            try:
                together = _logits(base, [beside, short], way)[1]
            except Exception as error:  # of the model's own code, which may raise anything
                raise_device_fault(error)
                if out_of_memory(error):
                    raise
                return False
            return bool((together - alone).nan_to_num().abs().max() <= _ROUNDING[coarse] * size)

        base.batching = next(filter(agrees, _BEST_FIRST), _BEST_FIRST[-1])
    return base.batching


def _logits(base: BaseModel, prompts: list[tuple[int, ...]], way: Batching) -> torch.Tensor:
    """(prompts, new tokens, vocabulary) of the passes that write some tokens, the same after each prompt."""
    seen: list[torch.Tensor] = []
    following = base.ordinary_tokens()[0]

    def choose(logits: torch.Tensor, lines: Sequence[Line]) -> torch.Tensor:
        seen.append(logits)
        return torch.full((len(logits),), following, device=logits.device)

    model: Any = base.model
    settings = GenerationConfig(max_new_tokens=_NEW, pad_token_id=base.pad_token, use_cache=way.cache)
    ends = Ends((), lambda prompt, tokens: False, [_NEW] * len(prompts))
    decode(base, model, prompts, 1, lambda rows: contextlib.nullcontext(), settings, choose, ends)
    return torch.stack(seen, 1)
