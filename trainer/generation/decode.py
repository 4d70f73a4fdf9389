"""The answers that a model writes after prompts, of all slots that are scored together in the same batches.

Greedy, or drawn by seed: what an answer's noise is does not depend on who else is in the batch. Or constrained to
given answers, such as labels. Whatever a model's ``generation_config.json`` says of sampling and penalties, it does not
count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from trainer.generation.batching import batching_of
from trainer.generation.decoding_pass import Ends, Line, decode
from trainer.generation.endings import AnswerText, Tokens, continuations, end_tokens
from trainer.generation.token_choice import drawn, likeliest, uniform
from trainer.likelihood.log_likelihood import Route, computed, in_batches, inner_model
from trainer.models.base_model import BaseModel

# Tokens whose keys and values are in memory at once, padding and those to be written included, at most.
_PASS = {"cpu": 1 << 13, "cuda": 1 << 16}


@dataclass(frozen=True)
class Decoding:
    """How answers are written.

    Attributes:
        max_new_tokens: of an answer, at most.
        stop: strings before which an answer ends.
        temperature: that logits are divided by; 0: the likeliest token, always.
        top_p: share of the probability from which a token is drawn, the likeliest tokens first.
        seed: of the drawing.
    """

    max_new_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Written:
    """An answer.

    Attributes:
        tokens: what was written, without the end-of-text token; with a stop string, to the token that completed it.
        text: the same as text, cut before a stop string, without special tokens and white space at the ends.
        finished: whether it ended by itself, or by a stop string, and not for want of room.
    """

    tokens: Tokens
    text: str
    finished: bool


@torch.inference_mode()
def write(
    base: BaseModel,
    model: torch.nn.Module,
    prompts: Sequence[Tokens],
    keys: Sequence[str],
    decoding: Decoding,
    batch_size: int,
    allowed: Sequence[tuple[Tokens, ...]] | None = None,
) -> list[Written]:
    """What a model writes after each prompt.

    Args:
        base: arithmetic, tokenizer, processes.
        model: the base model, the same with an adapter, or a slot of a pack; in evaluation mode.
        prompts: any number, in any order; none empty, and each shorter than the model's window.
        keys: an id of each prompt. What is drawn for an answer depends on seed, key and model alone.
        decoding: how.
        batch_size: prompts a pass, of each slot, at most.
        allowed: of each prompt the answers that may be written, as tokens; None: any. Then the likeliest token is
            chosen among those that go on with one of them, and of those that begin another one each is closed by the
            end-of-text token.

    Raises:
        ValueError: for a prompt that is empty or leaves no room in the window.
    """
    for prompt in prompts:
        if not 1 <= len(prompt) < base.window:
            raise ValueError(f"a prompt of {len(prompt)} tokens: expected 1 to {base.window - 1}, the model's window")
    written: list[Written] = computed(
        model,
        ("written", tuple(prompts), tuple(keys), decoding, batch_size, allowed and tuple(allowed)),
        partial(_write, base, inner_model(base, model), prompts, keys, decoding, batch_size, allowed),
    )
    return written


def _write(
    base: BaseModel,
    model: Any,
    prompts: Sequence[Tokens],
    keys: Sequence[str],
    decoding: Decoding,
    batch_size: int,
    allowed: Sequence[tuple[Tokens, ...]] | None,
    slots: int,
    route: Route,
) -> list[list[Written]]:
    """The answers by slot and prompt."""
    texts = AnswerText(base.tokenizer, decoding.stop)
    following = None if allowed is None else [continuations(answers) for answers in allowed]
    ending = end_tokens(base)
    if allowed is not None:  # there only the tokenizer's own closes a label, and others may be part of one
        ending = frozenset({base.tokenizer.eos_token_id} - {None})
    way = batching_of(base)
    settings = GenerationConfig(
        use_cache=way.cache,
        do_sample=decoding.temperature > 0,
        max_new_tokens=decoding.max_new_tokens,
        pad_token_id=base.pad_token,
        **({"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0} if decoding.temperature else {}),
    )

    def score(batch: list[int]) -> list[Line]:
        def choose(logits: torch.Tensor, lines: Sequence[Line]) -> torch.Tensor:
            if following is not None:
                # a row that has ended but cannot leave the batch gets any token
                options = [following[batch[line.prompt]](tuple(line.tokens)) or (0,) for line in lines]
                return likeliest(logits, options)
            if not decoding.temperature:
                return likeliest(logits)
            noise = [uniform(decoding.seed, keys[batch[line.prompt]], len(line.tokens)) for line in lines]
            return drawn(logits, noise)

        def complete(prompt: int, tokens: Tokens) -> bool:
            if following is not None:
                return not following[batch[prompt]](tokens)
            return texts.stopped(tokens)

        own = [prompts[i] for i in batch]
        limits = [min(decoding.max_new_tokens, base.window - len(prompt)) for prompt in own]
        return decode(base, model, own, slots, route, settings, choose, Ends(ending, complete, limits))

    # of each slot's answer to each prompt: how many tokens, whether it finished, and the tokens
    result = np.zeros((slots, len(prompts), 2 + decoding.max_new_tokens), dtype=np.int64)

    def keep(batch: list[int], lines: list[Line]) -> None:
        for line in lines:
            numbers = [len(line.tokens), int(line.finished), *line.tokens]
            result[line.slot, batch[line.prompt], : len(numbers)] = numbers

    for group in _groups(prompts, decoding.max_new_tokens, way.left_padding):
        room = slots * (len(prompts[group[0]]) + decoding.max_new_tokens)
        size = min(batch_size, max(1, _PASS.get(base.device.type, _PASS["cpu"]) // room))
        in_batches(base, group, size, score, keep)

    def answer(numbers: list[int]) -> Written:
        tokens = tuple(numbers[2 : 2 + numbers[0]])
        return Written(tokens, texts.text(tokens), bool(numbers[1]))

    return [[answer(numbers) for numbers in of_slot] for of_slot in base.ranks.sum_array(result).tolist()]


def _groups(prompts: Sequence[Tokens], new: int, ragged: bool) -> list[list[int]]:
    """Prompts by length, the longest first, cut where a batch of one size would be mostly padding.

    Args:
        prompts: of all batches.
        new: tokens of an answer, at most.
        ragged: whether prompts of different length go together.
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):
        longest = len(prompts[groups[-1][0]]) if groups else 0
        near = 2 * (len(prompts[i]) + new) >= longest + new if ragged else len(prompts[i]) == longest
        if groups and near:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
