"""Answers that a model writes, for finalists: constrained to the labels, and free.

Likelihoods rank trials; what a user of the model sees is what it writes. Decoding is greedy. *Constrained*: only
tokens that go on with some label are allowed, so that every answer is a label. *Free*: any token; an answer whose first
line is not a label (letter case and the mark at its end aside) is invalid, and wrong. Tasks without labels are compared
with the reference text: exact match, and ROUGE-L.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from trainer.config import TrialConfig
from trainer.data.encode import Encoded
from trainer.data.text_tokens import common, text_tokens
from trainer.evaluation.evaluate import Evaluation, Validation
from trainer.evaluation.rouge import rouge_l
from trainer.generation.decode import Decoding, write
from trainer.models.base_model import BaseModel

LABELLED = ("generate.accuracy", "generate.invalid", "generate.constrained_accuracy")
FREE = ("generate.exact_match", "generate.rouge_l")
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
        decoding = Decoding(trial.eval.max_new_tokens)
        written = [answer.text for answer in write(base, model, contexts, ids, decoding, batch_size)]
        metrics = dict(zip(FREE, (exact_match(written, reference), rouge_l(written, reference)), strict=True))
        each = [rouge_l([a], [b]) for a, b in zip(written, reference, strict=True)]
        return metrics, {"item_id": ids, "label": reference, "generated": written, "rouge_l": each}
    labels = validation.labels
    begun, tokens = zip(*map(_answers_of, validation.encoded), strict=True)
    longest = max(len(label) for of_row in tokens for label in of_row)
    forced = write(base, model, begun, ids, Decoding(longest), batch_size, tokens)
    constrained = [labels[_which(new.tokens, of_row)] for new, of_row in zip(forced, tokens, strict=True)]
    prompts = [made.ids for made in text_tokens(base.tokenizer, [row.text for row in validation.encoded])]
    free = write(base, model, prompts, ids, Decoding(longest + _SPARE), batch_size)
    written = [answer.text for answer in free]
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


def _answers_of(row: Encoded) -> tuple[Tokens, tuple[Tokens, ...]]:
    """The tokens with which a prompt begins whatever label follows, and how each label goes on from there."""
    first = row.choices[0][0] + row.choices[0][1]
    n = min(common(first, context) for context, _ in row.choices)
    return first[:n], tuple((context + label)[n:] for context, label in row.choices)


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


def exact_match(written: Sequence[str], reference: Sequence[str]) -> float:
    """Share of the texts that equal the reference in the same place, white space at the ends aside."""
    return sum(a.strip() == b.strip() for a, b in zip(written, reference, strict=True)) / len(reference)
