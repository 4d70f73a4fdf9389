"""Answers that a model writes, for finalists: constrained to the labels, and free.

Likelihoods rank trials; what a user of the model sees is what it writes. Decoding is greedy, in batches padded on the
left. *Constrained*: only tokens that go on with some label are allowed, so that every answer is a label. *Free*: any
token; an answer whose first line is not a label (letter case and the mark at its end aside) is invalid, and wrong.
Tasks without labels are compared with the reference text: exact match, and ROUGE-L.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from transformers import GenerationConfig

from trainer.answers import rouge, squad
from trainer.config import TrialConfig
from trainer.data.encode import Encoded
from trainer.data.text_tokens import common, text_tokens
from trainer.evaluation.evaluate import Evaluation, Validation
from trainer.models.base_model import BaseModel

LABELLED = ("generate.accuracy", "generate.invalid", "generate.constrained_accuracy")
TABLE = "generated"  # item table: item_id, label, generated, prediction, constrained; without labels rouge_l
_SPARE = 4  # tokens beyond the longest label: a free answer that only begins with a label is not taken for it

Tokens = tuple[int, ...]


def with_answers(
    evaluation: Evaluation, base: BaseModel, model: torch.nn.Module, trial: TrialConfig, validation: Validation
) -> Evaluation:
    """The evaluation with the metrics and the item table of ``answers``."""
    metrics, table = answers(base, model, trial, validation)
    return replace(evaluation, metrics=evaluation.metrics | metrics, tables=evaluation.tables | {TABLE: table})


def answers(
    base: BaseModel, model: torch.nn.Module, trial: TrialConfig, validation: Validation
) -> tuple[dict[str, float], dict[str, list[Any]]]:
    """Metrics and item table of what the model writes after each row's prompt.

    Args:
        base: arithmetic and tokenizer.
        model: the base model, or a PEFT model on it, in evaluation mode.
        trial: a completion task; ``eval.max_new_tokens`` counts where there are no labels.
        validation: rows as tokens, of whichever split.
    """
    ids = [row.item_id for row in validation.rows]
    batch_size = trial.eval.batch_size
    if not validation.labels:
        reference = [text_of(base, row.completion) for row in validation.encoded]
        contexts = [row.context for row in validation.encoded]
        most = trial.eval.max_new_tokens or 32
        written = [text_of(base, new) for new in greedy(base, model, contexts, most, batch_size)]
        pairs = list(zip(written, reference, strict=True))
        each = {
            "exact_match": [squad.exact_match(a, b) for a, b in pairs],
            "rouge_l": [rouge.rouge_l(rouge.words(a), rouge.words(b)) for a, b in pairs],
        }
        metrics = {f"generate.{name}": sum(values) / len(values) for name, values in each.items()}
        return metrics, {"item_id": ids, "label": reference, "generated": written, **each}
    labels = validation.labels
    begun, tokens = zip(*map(_answers_of, validation.encoded), strict=True)
    longest = max(len(label) for of_row in tokens for label in of_row)
    end = base.tokenizer.eos_token_id
    tables = cache(lambda of_row: continuations(of_row, end))
    forced = greedy(base, model, begun, longest + 1, batch_size, lambda i, new: tables(tokens[i])(new))
    constrained = [labels[_which(new, of_row)] for new, of_row in zip(forced, tokens, strict=True)]
    prompts = [made.ids for made in text_tokens(base.tokenizer, [row.text for row in validation.encoded])]
    written = [text_of(base, new) for new in greedy(base, model, prompts, longest + _SPARE, batch_size)]
    read = [as_label(text, labels) for text in written]
    gold = [labels[row.target] for row in validation.encoded]
    n = len(gold)
    metrics = {
        "generate.accuracy": sum(a == b for a, b in zip(read, gold, strict=True)) / n,
        "generate.invalid": sum(answer is None for answer in read) / n,
        "generate.constrained_accuracy": sum(a == b for a, b in zip(constrained, gold, strict=True)) / n,
    }
    table: dict[str, list[Any]] = {
        "item_id": ids,
        "label": gold,
        "generated": written,
        "prediction": read,
        "constrained": constrained,
    }
    return metrics, table


@torch.inference_mode()
def greedy(
    base: BaseModel,
    model: Any,
    contexts: Sequence[Tokens],
    most: int,
    batch_size: int,
    allowed: Callable[[int, Tokens], list[int]] | None = None,
) -> list[Tokens]:
    """The tokens that a model writes after each context, the end-of-text token left out.

    Args:
        base: arithmetic and tokenizer.
        model: with ``generate``.
        contexts: prompts, in any order.
        most: new tokens, at most.
        batch_size: prompts a pass; they are sorted by length, and padded on the left.
        allowed: index of the prompt, and tokens written so far → the tokens that may come next; None: all may.
    """
    tokenizer = base.tokenizer
    order = sorted(range(len(contexts)), key=lambda i: -len(contexts[i]))
    result: list[Tokens] = [()] * len(contexts)
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=most,
        pad_token_id=base.pad_token,
        eos_token_id=tokenizer.eos_token_id,
    )
    for at in range(0, len(order), batch_size):
        batch = order[at : at + batch_size]
        width = len(contexts[batch[0]])
        ids = torch.full((len(batch), width), base.pad_token)
        mask = torch.zeros((len(batch), width), dtype=torch.long)
        for r, i in enumerate(batch):
            ids[r, width - len(contexts[i]) :] = torch.tensor(contexts[i])
            mask[r, width - len(contexts[i]) :] = 1
        options: dict[str, Any] = {}
        if allowed is not None:
            options["prefix_allowed_tokens_fn"] = lambda r, row, batch=batch, width=width: allowed(
                batch[r], tuple(row[width:].tolist())
            )
        with base.arithmetic(), _without_defaults(base.model, settings):
            whole = model.generate(
                input_ids=ids.to(base.device),
                attention_mask=mask.to(base.device),
                generation_config=settings,
                **options,
            )
        for i, new in zip(batch, whole[:, width:].tolist(), strict=True):
            stop = new.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in new else len(new)
            result[i] = tuple(new[:stop])
    return result


def _answers_of(row: Encoded) -> tuple[Tokens, tuple[Tokens, ...]]:
    """The tokens with which a prompt begins whatever label follows, and how each label goes on from there."""
    first = row.choices[0][0] + row.choices[0][1]
    n = min(common(first, context) for context, _ in row.choices)
    return first[:n], tuple((context + label)[n:] for context, label in row.choices)


@contextlib.contextmanager
def _without_defaults(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """Keep a model's ``generation_config.json`` from filling settings up: its repetition penalty is not greedy."""
    own, model.generation_config = model.generation_config, settings
    try:
        yield
    finally:
        model.generation_config = own


def continuations(labels: Sequence[Tokens], end: int) -> Callable[[Tokens], list[int]]:
    """Tokens written so far → those that may come next, so that the answer is one of the labels.

    After the beginning of one or more labels: the next token of each of these. After a whole label: the end of text.

    Args:
        labels: tokens, none of which begins another (see ``as_labels``).
        end: the end-of-text token.
    """
    following: dict[Tokens, set[int]] = {}
    for label in labels:
        for i, token in enumerate(label):
            following.setdefault(label[:i], set()).add(token)
    table = {begun: sorted(tokens) for begun, tokens in following.items()}
    return lambda begun: table.get(begun, [end])


def _which(new: Tokens, labels: Sequence[Tokens]) -> int:
    """Index of the label that constrained decoding wrote.

    Args:
        new: tokens written, without the end-of-text token.
        labels: tokens; where one begins another, it ends in the end-of-text token (see ``as_labels``).
    """
    for i, label in enumerate(labels):
        if new in (label, label[:-1]) and (new == label or label[:-1] not in labels):
            return i
    raise ValueError(f"{new} is none of the labels' tokens")


def text_of(base: BaseModel, tokens: Tokens) -> str:
    """The text that tokens spell, without special tokens and white space at the ends."""
    text: str = base.tokenizer.decode(list(tokens), skip_special_tokens=True)
    return text.strip()


def as_label(text: str, labels: Sequence[str]) -> str | None:
    """The label that an answer's first line names; None where it names none."""
    line = (text.strip().splitlines() or [""])[0].strip()
    for read in (line, re.sub(r"[.,;:!]+$", "", line).strip()):
        if read in labels:
            return read
        alike = [label for label in labels if label.casefold() == read.casefold()]
        if len(alike) == 1:
            return alike[0]
    return None
