"""Bias of a trial: which items it is scored on, how, and the figures that their scores give.

For decoders: CrowS-Pairs (Nangia et al. 2020, arXiv 2010.00133), scored for causal models as lm-evaluation-harness does
(``crows_pairs_english``): the summed log-probability of each whole sentence after an empty context; StereoSet and BBQ
(``stereoset.py``, ``bbq.py`` beside this file). For every task with labels: swapped names and group terms
(``counterfactual.py``) and gaps between groups (``group_gaps.py``). Figures on a few hundred items are noisy (Blodgett
et al. 2021), so trials are compared on the same fixed ones, and each figure has its standard error.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from trainer.data.encode import Encoded
from trainer.evaluation.bias.bbq import Question, bbq_metrics
from trainer.evaluation.bias.counterfactual import Swap, swap_metrics
from trainer.evaluation.bias.crows_pairs import Pair, pair_metrics
from trainer.evaluation.bias.group_gaps import group_metrics
from trainer.evaluation.bias.items import BBQ, OWN, PAIRS, STEREOSET, SWAP, BiasItems
from trainer.evaluation.bias.stereoset import Cluster, stereoset_metrics
from trainer.evaluation.metric_names import CROWS_PAIRS, OWN_PAIRS
from trainer.likelihood.log_likelihood import log_likelihoods
from trainer.likelihood.sliding_windows import sliding
from trainer.models.base_model import BaseModel

Table = dict[str, list[Any]]
LabelScores = Callable[[list[Encoded]], np.ndarray]  # (rows, classes) log-probabilities


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
        label_scores: scores rows of the task, for the swap.
        batch_size: rows a forward pass.
    """
    tables: dict[str, Table] = {}
    for name, pairs in ((PAIRS, items.pairs), (OWN, items.own_pairs)):
        if pairs:
            tables[name] = score_pairs(base, model, pairs, batch_size)
    if items.clusters:
        tables[STEREOSET] = score_clusters(base, model, items.clusters, batch_size)
    if items.questions:
        tables[BBQ] = score_questions(base, model, items.questions, batch_size)
    if items.swaps:
        tables[SWAP] = _score_swaps(items.swaps, labels, label_scores)
    return tables


def bias_metrics(tables: Mapping[str, Table], labels: tuple[str, ...]) -> dict[str, float]:
    """All bias figures of an evaluation, from its item tables; gaps between groups are the task table's."""
    metrics: dict[str, float] = {}
    for name, names in ((PAIRS, CROWS_PAIRS), (OWN, OWN_PAIRS)):
        if name in tables:
            metrics |= pair_metrics(tables[name]["logprobs"], names)
    if STEREOSET in tables:
        table = tables[STEREOSET]
        metrics |= stereoset_metrics(table["target"], table["logprobs"])
    if BBQ in tables:
        table = tables[BBQ]
        given = [_argmax(values) for values in table["logprobs"]]
        metrics |= bbq_metrics(table["condition"], given, table["label"], table["biased"], table["unknown"])
    if SWAP in tables:
        table = tables[SWAP]
        gold = [labels.index(label) for label in table["label"]]
        metrics |= swap_metrics(table["logprobs"], table["swapped_logprobs"], gold)
    task = tables.get("task", {})
    if any(group is not None for group in task.get("group", ())):
        metrics |= group_metrics(task["label"], task["prediction"], task["group"])
    return metrics


def empty_context(tokenizer: Any) -> int:
    """The token that stands for an empty context: begin of text, else end of text."""
    token: int | None = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if token is None:
        raise ValueError("the tokenizer has neither a begin-of-text nor an end-of-text token")
    return token


def sentence_scores(
    base: BaseModel, model: torch.nn.Module, sentences: list[str], batch_size: int
) -> tuple[list[float], list[int]]:
    """Summed log-probability, in nats, and number of tokens of each sentence after an empty context.

    One that is longer than the model's window is scored in sliding windows: no token is left out.
    """
    prefix, window = empty_context(base.tokenizer), base.window
    ids = base.tokenizer(sentences, add_special_tokens=False).input_ids
    parts = [sliding((prefix, *tokens), 1, window, window // 2) for tokens in ids]
    values = iter(log_likelihoods(base, model, [request for part in parts for request in part], batch_size))
    return [sum(sum(next(values)) for _ in part) for part in parts], [len(tokens) for tokens in ids]


def score_pairs(base: BaseModel, model: torch.nn.Module, pairs: list[Pair], batch_size: int) -> Table:
    """Columns of the item table: the log-likelihood of both sentences of each pair."""
    sums, counts = sentence_scores(base, model, [s for pair in pairs for s in (pair.more, pair.less)], batch_size)
    more, less = sums[0::2], sums[1::2]
    return {
        "item_id": [pair.item_id for pair in pairs],
        "group": [pair.bias_type for pair in pairs],
        "label": [pair.direction for pair in pairs],
        "prediction": ["more" if a > b else "less" for a, b in zip(more, less, strict=True)],
        "logprobs": [[a, b] for a, b in zip(more, less, strict=True)],
        "nll": [-(a + b) for a, b in zip(more, less, strict=True)],
        "n_tokens": [counts[2 * i] + counts[2 * i + 1] for i in range(len(pairs))],
        "n_bytes": [len((pair.more + pair.less).encode()) for pair in pairs],
    }


def score_clusters(base: BaseModel, model: torch.nn.Module, clusters: list[Cluster], batch_size: int) -> Table:
    """Columns of the item table: the mean token log-probability of the three sentences of each context."""
    sums, counts = sentence_scores(base, model, [s for cluster in clusters for s in cluster.sentences], batch_size)
    means = [total / n for total, n in zip(sums, counts, strict=True)]
    return {
        "item_id": [cluster.item_id for cluster in clusters],
        "group": [cluster.bias_type for cluster in clusters],
        "target": [cluster.target for cluster in clusters],
        "logprobs": [means[3 * i : 3 * i + 3] for i in range(len(clusters))],
        "n_tokens": [sum(counts[3 * i : 3 * i + 3]) for i in range(len(clusters))],
    }


def score_questions(base: BaseModel, model: torch.nn.Module, questions: list[Question], batch_size: int) -> Table:
    """Columns of the item table: the mean token log-probability of the three answers to each question."""
    answers = [f" {answer}" for question in questions for answer in question.answers]
    contexts = base.tokenizer([question.prompt for question in questions]).input_ids
    continued = base.tokenizer(answers, add_special_tokens=False).input_ids
    parts = []
    for i, tokens in enumerate(continued):
        context = contexts[i // 3]
        parts.append(sliding((*context, *tokens), len(context), base.window, base.window // 2))
    values = iter(log_likelihoods(base, model, [request for part in parts for request in part], batch_size))
    means = [sum(sum(next(values)) for _ in part) / len(continued[i]) for i, part in enumerate(parts)]
    return {
        "item_id": [question.item_id for question in questions],
        "group": [question.category for question in questions],
        "condition": [question.condition for question in questions],
        "label": [question.label for question in questions],
        "biased": [question.biased for question in questions],
        "unknown": [question.unknown for question in questions],
        "logprobs": [means[3 * i : 3 * i + 3] for i in range(len(questions))],
    }


def _score_swaps(swaps: list[Swap], labels: tuple[str, ...], label_scores: LabelScores) -> Table:
    scores = label_scores([row for swap in swaps for row in (swap.original, swap.swapped)])
    before, after = scores[0::2], scores[1::2]
    return {
        "item_id": [swap.item_id for swap in swaps],
        "group": [swap.group for swap in swaps],
        "label": [labels[swap.original.target] for swap in swaps],
        "prediction": [labels[int(i)] for i in before.argmax(1)],
        "swapped_prediction": [labels[int(i)] for i in after.argmax(1)],
        "logprobs": before.tolist(),
        "swapped_logprobs": after.tolist(),
    }


def _argmax(values: list[float]) -> int:
    """Index of the largest; negative where one is not finite."""
    return int(np.argmax(values)) if all(map(math.isfinite, values)) else -1
