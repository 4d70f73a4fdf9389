"""Scoring a model on the task and on bias: the metrics of a rung, and the per-item scores behind them."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trainer import bias
from trainer.config import TrialConfig
from trainer.crows_pairs import Pair
from trainer.data import Row
from trainer.encode import Encoded, label_tokens
from trainer.likelihood import likelihood_items
from trainer.models import BaseModel
from trainer.schemas import LABELLED, WITHOUT_LABELS
from trainer.scoring import Request, class_logprobs, log_likelihoods

CLASSIFICATION = ("accuracy", "macro_f1", "log_loss")
PAIRS = "crows_pairs"
COMPLETION = (*CLASSIFICATION, "perplexity", "completion_perplexity", "bits_per_byte")


TEXT_COLUMNS = ("nll", "n_tokens", "n_bytes", "completion_nll", "completion_tokens")


@dataclass(frozen=True)
class Validation:
    """What a trial is scored on: tokenised once for a task, tokenizer and length."""

    rows: list[Row]
    encoded: list[Encoded]
    labels: tuple[str, ...]
    rung: list[int]
    pairs: list[Pair]
    schema: str = LABELLED


@dataclass(frozen=True)
class Evaluation:
    """Metrics by name, and item tables by data set (see CONTRACTS: ``items/``)."""

    metrics: dict[str, float]
    tables: dict[str, dict[str, list[Any]]]
    n_items: int


def metric_names(trial: TrialConfig) -> tuple[str, ...]:
    """The metrics that a trial of this task yields, in every rung."""
    if trial.task.name == "classification":
        return CLASSIFICATION
    names = WITHOUT_LABELS.get(trial.data.schema or LABELLED, COMPLETION)
    return names + (bias.NAMES if trial.bias.crows_pairs else ())


def evaluate(
    base: BaseModel,
    model: torch.nn.Module,
    trial: TrialConfig,
    validation: Validation,
    indices: list[int],
    known: Evaluation | None = None,
) -> Evaluation:
    """Score ``indices`` of the validation rows, and the bias pairs.

    Args:
        base: arithmetic and tokenizer.
        model: the base model, or the same with an adapter.
        trial: task, bias, batch size.
        validation: rows, tokens and pairs.
        indices: rows to score; the item table has their order.
        known: an evaluation of the same weights on some of the rows: those, and the bias pairs, are not scored again.

    Returns:
        Values that are not finite become NaN metrics: the caller decides what that means for the trial.
    """
    was_training = model.training
    model.eval()
    try:
        scored = set(known.tables["task"]["item_id"]) if known else set()
        missing = [i for i in indices if validation.rows[i].item_id not in scored]
        tables = {}
        items = _score_items(base, model, trial, validation, missing)
        tables["task"] = _joined(items, known.tables["task"], indices, validation) if known else items
        if trial.task.name == "completion" and validation.pairs:
            if known:
                tables[PAIRS] = known.tables[PAIRS]
            else:
                tables[PAIRS] = bias.score_pairs(base, model, validation.pairs, trial.eval.batch_size)
        return Evaluation(metrics_of(tables, validation.labels), tables, len(indices))
    finally:
        model.train(was_training)


def restricted(evaluation: Evaluation, validation: Validation, indices: list[int]) -> Evaluation:
    """The evaluation of some of its task rows, from its item tables: nothing is scored. Bias tables stay whole."""
    items = evaluation.tables["task"]
    places = {item: i for i, item in enumerate(items["item_id"])}
    kept = [places[validation.rows[i].item_id] for i in indices]
    tables = evaluation.tables | {"task": {name: [column[i] for i in kept] for name, column in items.items()}}
    return Evaluation(metrics_of(tables, validation.labels), tables, len(indices))


def metrics_of(tables: dict[str, dict[str, list[Any]]], labels: tuple[str, ...]) -> dict[str, float]:
    """All metrics of an evaluation, from its item tables alone."""
    items = tables["task"]
    metrics: dict[str, float] = {}
    if labels:
        gold = np.array([labels.index(label) for label in items["label"]])
        metrics = class_metrics(np.array(items["logprobs"], dtype=np.float64), gold, len(labels))
    if not labels or "completion_nll" in items:
        metrics |= text_metrics(items)
    if not labels and "completion_nll" in items:
        metrics["completion_loss"] = sum(items["completion_nll"]) / sum(items["completion_tokens"])
    if PAIRS in tables:
        metrics |= bias.pair_metrics(tables[PAIRS]["logprobs"])
    return metrics


def _score_items(
    base: BaseModel, model: torch.nn.Module, trial: TrialConfig, validation: Validation, indices: list[int]
) -> dict[str, list[Any]]:
    """The item table of some validation rows."""
    encoded = [validation.encoded[i] for i in indices]
    if not validation.labels:
        rows = [validation.rows[i] for i in indices]
        return likelihood_items(base, model, validation.schema, rows, encoded, trial.eval.batch_size)
    columns: dict[str, list[Any]] = {
        "item_id": [validation.rows[i].item_id for i in indices],
        "group": [validation.rows[i].group for i in indices],
        "label": [validation.labels[row.target] for row in encoded],
    }
    if trial.task.name == "classification":
        logprobs = class_logprobs(base, model, [row.context for row in encoded], trial.eval.batch_size)
        columns["nll"] = [-float(values[row.target]) for values, row in zip(logprobs, encoded, strict=True)]
        columns["n_tokens"] = [len(row.context) for row in encoded]
        columns["n_bytes"] = [len(validation.rows[i].text.encode()) for i in indices]
    else:
        logprobs, text = _completion_logprobs(base, model, trial, validation, encoded)
        columns |= text
    columns["prediction"] = [validation.labels[int(i)] for i in logprobs.argmax(1)] if encoded else []
    columns["logprobs"] = logprobs.tolist()
    return columns


def _joined(
    fresh: dict[str, list[Any]], known: dict[str, list[Any]], indices: list[int], validation: Validation
) -> dict[str, list[Any]]:
    """One item table of two, in the order of ``indices``."""
    places = {item: (table, i) for table in (known, fresh) for i, item in enumerate(table["item_id"])}
    rows = [places[validation.rows[i].item_id] for i in indices]
    return {name: [table[name][i] for table, i in rows] for name in fresh}


def class_metrics(logprobs: np.ndarray, gold: np.ndarray, n_labels: int) -> dict[str, float]:
    """Accuracy, macro-F1 and log loss.

    Args:
        logprobs: (rows, classes) log-probabilities, normalised over the classes.
        gold: (rows,) indices.
        n_labels: classes; macro-F1 averages over all of them, also those absent here.
    """
    from sklearn.metrics import accuracy_score, f1_score, log_loss

    if not np.isfinite(logprobs).all():
        return dict.fromkeys(CLASSIFICATION, math.nan)
    predicted = logprobs.argmax(1)
    classes = list(range(n_labels))
    probabilities = np.exp(logprobs)
    probabilities /= probabilities.sum(1, keepdims=True)
    return {
        "accuracy": float(accuracy_score(gold, predicted)),
        "macro_f1": float(f1_score(gold, predicted, labels=classes, average="macro", zero_division=0)),
        "log_loss": float(log_loss(gold, probabilities, labels=classes)),
    }


def text_metrics(text: dict[str, list[Any]]) -> dict[str, float]:
    """Perplexities and bits per byte from sums over the whole set, never from averages of batches.

    Args:
        text: per row ``nll`` (nats) over ``n_tokens`` tokens that spell ``n_bytes`` bytes, and ``completion_nll`` over
            ``completion_tokens`` of them, where there are: the label's, or those that bear loss.
    """
    nll, tokens, n_bytes = sum(text["nll"]), sum(text["n_tokens"]), sum(text["n_bytes"])
    metrics = {
        "perplexity": _exp(nll / tokens),
        "bits_per_byte": nll / (math.log(2) * n_bytes) if math.isfinite(nll) else math.nan,
    }
    if "completion_nll" in text:
        metrics["completion_perplexity"] = _exp(sum(text["completion_nll"]) / sum(text["completion_tokens"]))
    return metrics


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.nan  # beyond float64: as good as not finite


def _completion_logprobs(
    base: BaseModel, model: torch.nn.Module, trial: TrialConfig, validation: Validation, encoded: list[Encoded]
) -> tuple[np.ndarray, dict[str, list[Any]]]:
    """(rows, classes) log-probabilities of the labels, and the likelihood of each row with its own label."""
    labels = label_tokens(base.tokenizer, validation.labels)
    requests = []
    for row in encoded:
        requests += [Request(row.context + label, len(row.context)) for label in labels]
        requests.append(Request(row.context + row.completion, 1))
    scores = log_likelihoods(base, model, requests, trial.eval.batch_size)
    per_row = len(labels) + 1
    raw = np.empty((len(encoded), len(labels)))
    text: dict[str, list[Any]] = {
        name: [] for name in ("nll", "n_tokens", "n_bytes", "completion_nll", "completion_tokens")
    }
    for r, row in enumerate(encoded):
        *by_label, whole = scores[r * per_row : (r + 1) * per_row]
        mean = trial.task.normalization == "token"
        raw[r] = [sum(values) / (len(values) if mean else 1) for values in by_label]
        text["nll"].append(-sum(whole))
        text["n_tokens"].append(len(whole))
        text["n_bytes"].append(row.n_bytes)
        text["completion_nll"].append(-sum(whole[-len(row.completion) :]))
        text["completion_tokens"].append(len(row.completion))
    with np.errstate(invalid="ignore"):  # rows that are not finite stay so, and are found by class_metrics
        return raw - np.logaddexp.reduce(raw, axis=1, keepdims=True), text
