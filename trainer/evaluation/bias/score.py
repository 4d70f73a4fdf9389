"""Scoring a model on bias items, and the figures that the scores give. The sets are those of ``registry.py``.

Figures on a few hundred items are noisy (Blodgett et al. 2021), so trials are compared on the same fixed ones, and each
figure has its standard error.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trainer.config import BiasConfig
from trainer.data.encode import Encoded
from trainer.data.text_tokens import first_token_after, text_tokens
from trainer.evaluation.bias.items import BiasItems
from trainer.evaluation.bias.registry import Table, scorings
from trainer.likelihood.log_likelihood import Request, log_likelihoods
from trainer.likelihood.sliding_windows import sliding
from trainer.models.base_model import BaseModel

LabelScores = Callable[[list[Encoded]], np.ndarray]  # (rows, classes) log-probabilities


def _no_label_scores(rows: list[Encoded]) -> np.ndarray:
    raise ValueError("no scores of labels were given to this scorer")


@dataclass(frozen=True)
class ModelScorer:
    """A model as bias sets see it (``registry.Scorer``).

    Attributes:
        base: arithmetic, tokenizer and window.
        model: the base model, or the same with an adapter; in evaluation mode.
        batch_size: rows a forward pass.
        labels: names of the task's classes.
        score_labels: scores rows of the task.
    """

    base: BaseModel
    model: torch.nn.Module
    batch_size: int
    labels: tuple[str, ...] = ()
    score_labels: LabelScores = _no_label_scores

    def sentences(self, sentences: list[str]) -> tuple[list[float], list[int]]:
        """Summed log-probability, in nats, and number of tokens of each sentence after an empty context.

        One that is longer than the model's window is scored in sliding windows: no token is left out.
        """
        prefix = empty_context(self.base.tokenizer)
        ids = self.base.tokenizer(sentences, add_special_tokens=False).input_ids
        return self._sums([((prefix, *tokens), 1) for tokens in ids]), [len(tokens) for tokens in ids]

    def continuations(self, prompts: list[str], texts: list[str]) -> tuple[list[float], list[int]]:
        """Summed log-probability, in nats, and number of tokens of each text after the prompt in the same place."""
        tokenizer = self.base.tokenizer
        wholes = text_tokens(tokenizer, [prompt + text for prompt, text in zip(prompts, texts, strict=True)])
        starts = [
            max(1, first_token_after(tokenizer, whole, prompt)) for whole, prompt in zip(wholes, prompts, strict=True)
        ]
        sums = self._sums([(whole.ids, start) for whole, start in zip(wholes, starts, strict=True)])
        return sums, [len(whole.ids) - start for whole, start in zip(wholes, starts, strict=True)]

    def label_logprobs(self, rows: list[Encoded]) -> np.ndarray:
        """(rows, classes) log-probabilities of the labels, normalised over them."""
        return self.score_labels(rows)

    def _sums(self, texts: list[tuple[tuple[int, ...], int]]) -> list[float]:
        """For each text, given as its tokens and where scoring begins, the sum over the tokens from there on."""
        window = self.base.window
        parts = [sliding(tokens, start, window, window // 2) for tokens, start in texts]
        requests: list[Request] = [request for part in parts for request in part]
        values = iter(log_likelihoods(self.base, self.model, requests, self.batch_size))
        return [sum(sum(next(values)) for _ in part) for part in parts]


def score_bias(
    base: BaseModel,
    model: torch.nn.Module,
    items: BiasItems,
    labels: tuple[str, ...],
    label_scores: LabelScores,
    batch_size: int,
) -> dict[str, Table]:
    """Item tables by set.

    Args:
        base: arithmetic and tokenizer.
        model: the base model, or the same with an adapter; in evaluation mode.
        items: what to score.
        labels: class names.
        label_scores: scores rows of the task, for sets that are made of them.
        batch_size: rows a forward pass.
    """
    scorer = ModelScorer(base, model, batch_size, labels, label_scores)
    tables = {}
    for name in items.tables():
        score = scorings()[name].score
        if score is not None:
            tables[name] = score(items.of(name), scorer)
    return tables


def bias_metrics(tables: Mapping[str, Table], labels: tuple[str, ...], settings: BiasConfig) -> dict[str, float]:
    """All bias figures of an evaluation, from its item tables.

    Args:
        tables: by set, and the task's.
        labels: class names.
        settings: config of bias.
    """
    metrics: dict[str, float] = {}
    for scoring in scorings().values():
        table = tables.get(scoring.declared.item_table)
        if table is not None:
            metrics |= scoring.figures(table, labels, settings)
    return metrics


def empty_context(tokenizer: Any) -> int:
    """The token that stands for an empty context: begin of text, else end of text."""
    token: int | None = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if token is None:
        raise ValueError("the tokenizer has neither a begin-of-text nor an end-of-text token")
    return token
