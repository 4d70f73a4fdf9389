"""What a model writes for the rows that are scored: prompts answered, answers read and scored, as one item table.

Likelihoods rank trials of rows with labels; what a user of a model sees is what it writes. Rows without labels: the
answer, compared with the reference by every metric that these rows and the config can give
(``trainer/answers/text_metrics.py``), by a user's own metrics and by a judge. Rows with labels: *constrained*, only
tokens that go on with some label are allowed, so that every answer is a label; and *free*, where an answer whose first
line is not a label (letter case and the mark at its end aside) is invalid, and wrong.
"""

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from analysis.item_sums import GENERATED
from trainer.answers import text_metrics
from trainer.answers.answer import Answer, without_thoughts
from trainer.answers.judge import Judge
from trainer.answers.own_metrics import OwnMetrics
from trainer.config import EvalConfig, TrialConfig
from trainer.data.encode import Encoded
from trainer.data.schemas import Row
from trainer.data.text_tokens import common
from trainer.evaluation.judging import judged
from trainer.generation.decode import Decoding, Written, write
from trainer.generation.prompts import Prompt
from trainer.models.base_model import BaseModel

SPARE = 4  # tokens beyond the longest label: a free answer that only begins with a label is not taken for it
_WRITTEN = ("generated", "n_tokens", "finished", "prediction", "constrained")  # columns that only the model can give

Table = dict[str, list[Any]]
Tokens = tuple[int, ...]


@dataclass(frozen=True)
class ToAnswer:
    """Which rows are answered, and how.

    Attributes:
        prompts: of the rows that are answered at a trial's end, in the order of the rows.
        at_rungs: places of the rows that are answered at rungs too.
        max_new_tokens: of an answer.
        own: the config's own metrics, asked in processes of their own.
        stop: texts at which an answer ends, beside ``eval.stop``.
        judge: compares answers with others; None: there is none.
        untuned: item id → what the untuned model wrote, as far as it was asked for.
    """

    prompts: tuple[Prompt, ...] = ()
    at_rungs: frozenset[int] = frozenset()
    max_new_tokens: int = 0
    own: OwnMetrics = field(default_factory=lambda: OwnMetrics({}))
    stop: tuple[str, ...] = ()
    judge: Judge | None = None
    untuned: dict[str, str] = field(default_factory=dict)

    def at(self, moment: str) -> list[Prompt]:
        """The prompts of a ``rung``, or of the end (``final``)."""
        return [it for it in self.prompts if moment == "final" or it.row in self.at_rungs]


@dataclass(frozen=True)
class Answered:
    """An item table of answers, metric → why it has no value (a sentence), and seconds that writing took."""

    table: Table
    missing: dict[str, str]
    seconds: float


def answered(
    base: BaseModel,
    model: torch.nn.Module,
    trial: TrialConfig,
    prompts: Sequence[Prompt],
    rows: Sequence[Row],
    encoded: Sequence[Encoded],
    labels: tuple[str, ...],
    how: ToAnswer,
    moment: str,
    known: Table | None = None,
) -> Answered:
    """Let a model answer prompts, and score what it writes.

    Args:
        base: arithmetic and tokenizer.
        model: the base model, a PEFT model on it, or a slot of a pack; in evaluation mode.
        trial: a completion task.
        prompts: what is to be answered.
        rows: of the split, as read.
        encoded: the same as tokens.
        labels: names of the classes; empty where rows have none.
        how: length of answers, own metrics.
        moment: ``rung`` or ``final``.
        known: a table of the same weights: items that it has are not answered again.
    """
    places = {item: i for i, item in enumerate(known["item_id"])} if known else {}
    fresh = [prompt for prompt in prompts if prompt.item_id not in places]
    began = time.monotonic()
    written = _write(base, model, trial, fresh, encoded, labels, how) if fresh else {}
    seconds = time.monotonic() - began
    places_fresh = {prompt.item_id: i for i, prompt in enumerate(fresh)}
    table: Table = {
        "item_id": [prompt.item_id for prompt in prompts],
        "prompt": [prompt.text for prompt in prompts],
        "label": [prompt.reference for prompt in prompts],
    }
    for name in _WRITTEN:
        if name in (written if fresh or known is None else known):
            table[name] = [
                written[name][places_fresh[it.item_id]] if known is None or it.item_id in places_fresh
                else known[name][places[it.item_id]]
                for it in prompts
            ]  # fmt: skip
    answers = [
        Answer(
            it.item_id,
            it.text,
            without_thoughts(it.reference),
            without_thoughts(text),
            n,
            finished,
            rows[it.row].columns,
        )
        for it, text, n, finished in zip(prompts, table["generated"], table["n_tokens"], table["finished"], strict=True)
    ]
    table |= text_metrics.columns(answers, trial.eval, labels)
    own, missing = how.own.columns(answers)
    table |= own
    asked = moment == "final" or trial.eval.judge.at == "rung"
    if how.judge is not None and asked:
        decoding = decoding_of(trial.eval, trial.seed, how.max_new_tokens, how.stop)
        columns, why = judged(
            how.judge,
            trial.eval.judge,
            base,
            model,
            prompts,
            answers,
            how.untuned,
            decoding,
            trial.eval.batch_size,
        )
        table |= columns
        missing |= why
    return Answered(table, missing, seconds)


def written_before(
    prompts: Sequence[Prompt], texts: Mapping[str, str], tokenizer: Any, labels: tuple[str, ...]
) -> Table:
    """Answers that another system wrote as what ``answered`` knows already.

    Args:
        prompts: what was to be answered.
        texts: item id → the answer.
        tokenizer: of the base model, which counts their tokens.
        labels: names of the classes; empty without labels.
    """
    said = [texts[prompt.item_id].strip() for prompt in prompts]
    table: Table = {"item_id": [prompt.item_id for prompt in prompts], "generated": said}
    table["n_tokens"] = [len(ids) for ids in tokenizer(said, add_special_tokens=False).input_ids]
    table["finished"] = [True] * len(said)
    if labels:
        table["prediction"] = [as_label(text, labels) for text in said]
    return table


def _write(
    base: BaseModel,
    model: torch.nn.Module,
    trial: TrialConfig,
    prompts: Sequence[Prompt],
    encoded: Sequence[Encoded],
    labels: tuple[str, ...],
    how: ToAnswer,
) -> Table:
    """The columns that the model gives."""
    keys, size = [prompt.item_id for prompt in prompts], trial.eval.batch_size
    decoding = decoding_of(trial.eval, trial.seed, how.max_new_tokens, how.stop)
    free = write(base, model, [prompt.tokens for prompt in prompts], keys, decoding, size)
    table = _columns(free)
    if labels:
        table["prediction"] = [as_label(answer.text, labels) for answer in free]
        begun, tokens = [], []
        for prompt in prompts:
            beginning, of_row = answers_of(encoded[prompt.row])
            begun.append(beginning)
            tokens.append(of_row)
        longest = max((len(label) for of_row in tokens for label in of_row), default=1)
        forced = write(base, model, begun, keys, Decoding(longest), size, tokens)
        table["constrained"] = [labels[_which(new.tokens, of)] for new, of in zip(forced, tokens, strict=True)]
    return table


def _columns(answers: Sequence[Written]) -> Table:
    return {
        "generated": [answer.text for answer in answers],
        "n_tokens": [len(answer.tokens) for answer in answers],
        "finished": [answer.finished for answer in answers],
    }


def decoding_of(settings: EvalConfig, seed: int, max_new_tokens: int, stop: tuple[str, ...] = ()) -> Decoding:
    """How answers are written by a config; without temperature the seed takes no part."""
    seed = seed if settings.temperature else 0
    return Decoding(max_new_tokens, (*settings.stop, *stop), settings.temperature, settings.top_p, seed)


def figures_of(tables: Mapping[str, Mapping[str, list[Any]]]) -> dict[str, float]:
    """The figures of the item table of answers, where there is one; without those that no item has."""
    if GENERATED not in tables:
        return {}
    return {name: x for name, x in text_metrics.figures(tables[GENERATED]).items() if math.isfinite(x)}


def answers_of(row: Encoded) -> tuple[Tokens, tuple[Tokens, ...]]:
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


def as_label(text: str, labels: Sequence[str]) -> str | None:
    """The label that an answer's first line names, thoughts aside; None where it names none."""
    line = (without_thoughts(text).strip().splitlines() or [""])[0].strip()
    for read in (line, re.sub(r"[.,;:!]+$", "", line).strip()):
        if read in labels:
            return read
        alike = [label for label in labels if label.casefold() == read.casefold()]
        if len(alike) == 1:
            return alike[0]
    return None
