"""The judge of a sweep (``eval.judge``): made once for a device, asked about what a model wrote."""

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from trainer.answers.answer import Answer, without_thoughts
from trainer.answers.judge import CONSISTENT, METRIC, PARSED, VALUE, Judge
from trainer.answers.judge_server import JudgeServer, Reply
from trainer.config import JudgeConfig, ModelConfig
from trainer.generation.decode import Decoding, write
from trainer.generation.prompts import Prompt
from trainer.models.base_model import BaseModel, load_base

_VERDICT = 16  # tokens of a local judge's reply
_AT_ONCE = 16  # prompts
_COLUMNS = (VALUE, CONSISTENT, PARSED)


def make_judge(settings: JudgeConfig, precision: str, device: torch.device) -> Judge:
    """A judge that asks a server, or a model that is loaded beside the base model.

    Args:
        settings: ``eval.judge``, with ``server`` or ``path``.
        precision: of a local judge, that of the trials.
        device: where a local judge is loaded.

    Raises:
        LorasweepError: for an address, a key or a model that cannot be used.
    """
    if settings.server:
        return Judge(settings, JudgeServer(settings).ask)
    base = load_base(ModelConfig(source="local", path=settings.path), precision, "completion", (), device)
    return Judge(settings, lambda prompts: ask_model(base, prompts))


def ask_model(base: BaseModel, prompts: Sequence[str]) -> list[Reply]:
    """What a local model says to prompts, greedily; as the user's message where it has a chat template."""
    tokenizer: Any = base.tokenizer
    if tokenizer.chat_template:
        rows = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=True, return_dict=True
            )["input_ids"]
            for text in prompts
        ]
    else:
        rows = tokenizer(list(prompts)).input_ids
    room = base.window - _VERDICT
    if longest := max((len(row) for row in rows if len(row) > room), default=0):
        fault = f"has a window of {base.window} tokens, and what it is asked takes {longest}"
        return [Reply(fault=fault)] * len(rows)
    keys = [str(i) for i in range(len(rows))]
    said = write(base, base.model, [tuple(row) for row in rows], keys, Decoding(_VERDICT), _AT_ONCE)
    return [Reply(answer.text) for answer in said]


def judged(
    judge: Judge,
    settings: JudgeConfig,
    base: BaseModel,
    model: torch.nn.Module,
    prompts: Sequence[Prompt],
    answers: Sequence[Answer],
    untuned: dict[str, str],
    decoding: Decoding,
    batch_size: int,
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """The judge's columns of the item table of answers, or metric → why it has none.

    Of several processes of a trial the first one asks.

    Args:
        judge: to be asked.
        settings: ``eval.judge``.
        base: the trial's base model.
        model: what wrote the answers.
        prompts: of the answers.
        answers: in the same order.
        untuned: item id → what the untuned model wrote; what lacks is written and added.
        decoding: how answers are written.
        batch_size: prompts a pass.
    """
    if settings.against == "zero_shot":
        texts = _untuned(base, model, prompts, untuned, decoding, batch_size)
        against = [without_thoughts(text) for text in texts]
    else:
        against = [answer.reference for answer in answers]
    ranks = base.ranks
    columns: dict[str, list[float]] = {}
    missing: dict[str, str] = {}
    if ranks.rank == 0:
        columns, missing = judge.judged(answers, against)
    if ranks.alone:
        return columns, missing
    width = len(answers)
    shared = np.zeros(1 + len(_COLUMNS) * width)
    if columns:
        shared = np.array([1.0, *(value for name in _COLUMNS for value in columns[name])])
    shared = ranks.sum_array(shared)
    if not shared[0]:
        return {}, missing or {METRIC: "the judge gave no verdicts to the trial's first process"}
    return {name: shared[1 + i * width : 1 + (i + 1) * width].tolist() for i, name in enumerate(_COLUMNS)}, {}


def _untuned(
    base: BaseModel,
    model: torch.nn.Module,
    prompts: Sequence[Prompt],
    known: dict[str, str],
    decoding: Decoding,
    batch_size: int,
) -> list[str]:
    """What the base model without an adapter writes: in a pack, rows that are routed to no slot meet none."""
    new = [prompt for prompt in prompts if prompt.item_id not in known]
    off = model.disable_adapter() if isinstance(model, PeftModel) else contextlib.nullcontext()
    plain: Any = model.get_base_model() if isinstance(model, PeftModel) else base.model
    with off:
        written = write(
            base, plain, [it.tokens for it in new], [it.item_id for it in new], decoding, batch_size
        )  # fmt: skip
    known.update({prompt.item_id: answer.text for prompt, answer in zip(new, written, strict=True)})
    return [known[prompt.item_id] for prompt in prompts]
