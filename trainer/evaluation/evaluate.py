"""Scoring a model on the task and on bias: the metrics of a rung, and the per-item scores behind them."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from analysis import metric_types
from analysis.item_sums import GENERATED
from analysis.metrics import METRICS
from trainer.answers.answer import without_thoughts
from trainer.answers.text_metrics import absent as absent_figures
from trainer.config import BiasConfig, TrialConfig
from trainer.data.dataset import Row
from trainer.data.encode import Encoded
from trainer.data.schemas import LABELLED
from trainer.evaluation.bias.items import BiasItems
from trainer.evaluation.bias.registry import scorings
from trainer.evaluation.bias.score import bias_metrics, score_bias
from trainer.evaluation.generate import ToAnswer, answered, figures_of
from trainer.evaluation.quality_metrics import class_metrics, text_metrics
from trainer.likelihood.log_likelihood import Request, class_logprobs, log_likelihoods
from trainer.likelihood.unlabelled import likelihood_items
from trainer.models.base_model import BaseModel


@dataclass(frozen=True)
class Validation:
    """What a trial is scored on: tokenised once for a task, tokenizer and length.

    Attributes:
        rows: of the split, all of them.
        encoded: the same, as tokens.
        labels: names of the classes; empty where rows have no labels.
        rung: indices of the rows that are scored at rungs.
        bias: what bias is measured on.
        schema: of the rows.
        split: ``validation`` or ``test``.
        settings: config of bias, for figures that depend on more than items.
        to_answer: what the model is to write answers to; nothing where ``eval.generate`` is false.
    """

    rows: list[Row]
    encoded: list[Encoded]
    labels: tuple[str, ...]
    rung: list[int]
    bias: BiasItems = field(default_factory=BiasItems)
    schema: str = LABELLED
    split: str = "validation"
    settings: BiasConfig = field(default_factory=BiasConfig)
    to_answer: ToAnswer = field(default_factory=ToAnswer)


@dataclass(frozen=True)
class Evaluation:
    """What scoring gave.

    Attributes:
        metrics: name → value; NaN where a score is not finite.
        tables: ``task`` or name of a bias set → its item table: column → a value for each item. Stored in ``items/``.
        n_items: rows of the task that were scored.
        missing: metric that could not be computed, through no fault of the weights → why, a sentence.
        answer_seconds: that writing took; of slots that wrote together, the first has all of it.
    """

    metrics: dict[str, float]
    tables: dict[str, dict[str, list[Any]]]
    n_items: int
    missing: dict[str, str] = field(default_factory=dict)
    answer_seconds: float = 0.0


def evaluate(
    base: BaseModel,
    model: torch.nn.Module,
    trial: TrialConfig,
    validation: Validation,
    indices: list[int],
    known: Evaluation | None = None,
    moment: str = "",
) -> Evaluation:
    """Score ``indices`` of the validation rows, and the bias items; and let the model answer prompts of the split.

    Args:
        base: arithmetic and tokenizer.
        model: the base model, or the same with an adapter.
        trial: task, bias, batch size.
        validation: rows, tokens and bias items.
        indices: rows to score; the item table has their order.
        known: an evaluation of the same weights on some of the rows: those, and the bias items, are not scored again.
        moment: ``rung`` or ``final``: which prompts are answered; "": none.

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
        if known:
            tables |= {name: table for name, table in known.tables.items() if name not in ("task", GENERATED)}
        else:

            def label_scores(encoded: list[Encoded]) -> np.ndarray:
                return label_logprobs(base, model, trial, validation.labels, encoded)

            tables |= score_bias(base, model, validation.bias, validation.labels, label_scores, trial.eval.batch_size)
        reasons: dict[str, str] = {}
        taken = 0.0
        if moment and (prompts := validation.to_answer.at(moment)):
            written = answered(
                base,
                model,
                trial,
                prompts,
                validation.rows,
                validation.encoded,
                validation.labels,
                validation.to_answer,
                moment,
                known.tables.get(GENERATED) if known else None,
            )
            tables[GENERATED], reasons, taken = written.table, written.missing, written.seconds
        metrics = metrics_of(tables, validation.labels, validation.settings)
        return Evaluation(metrics, tables, len(indices), reasons, taken)
    finally:
        model.train(was_training)


def absent_metrics(trial: TrialConfig, validation: Validation) -> dict[str, str]:
    """Metric that the config asks for and that these rows cannot give → why. Nothing is scored for it.

    What the rows of a rung cannot give counts as absent too, because trials could not be compared by it there.
    """
    absent: dict[str, str] = {}
    rung = [validation.rows[i] for i in validation.rung]
    for name, scoring in scorings().items():
        if not validation.labels and scoring.declared.tasks == metric_types.LABELLED:
            why = "rows without labels have no prediction that could change or differ"
            absent |= dict.fromkeys(scoring.declared.metric_names, why)
        else:
            absent |= scoring.absent(trial, validation.bias.of(name), rung)
    if prompts := validation.to_answer.at("rung"):
        references = [without_thoughts(it.reference) for it in prompts]
        rows = [validation.rows[it.row].columns for it in prompts]
        absent |= absent_figures(references, rows, trial.eval, validation.labels)
    return absent


def bias_notes(trial: TrialConfig, validation: Validation) -> list[str]:
    """What to know of bias figures on these rows before anything is scored, a sentence each."""
    if not validation.labels:
        return []
    rung = [validation.rows[i] for i in validation.rung]
    return [note for scoring in scorings().values() for note in scoring.notes(trial, rung, validation.rows)]


def restricted(evaluation: Evaluation, validation: Validation, indices: list[int]) -> Evaluation:
    """The evaluation of some of its task rows, from its item tables: nothing is scored. Bias tables stay whole."""
    tables = dict(evaluation.tables)
    if items := tables.get("task"):
        places = {item: i for i, item in enumerate(items["item_id"])}
        kept = [places[validation.rows[i].item_id] for i in indices]
        tables["task"] = {name: [column[i] for i in kept] for name, column in items.items()}
    if (answers := tables.pop(GENERATED, None)) and validation.to_answer.at_rungs:
        wanted = {prompt.item_id for prompt in validation.to_answer.at("rung")}
        there = [i for i, item in enumerate(answers["item_id"]) if item in wanted]
        tables[GENERATED] = {name: [column[i] for i in there] for name, column in answers.items()}
    metrics = metrics_of(tables, validation.labels, validation.settings)
    return Evaluation(metrics, tables, len(indices), evaluation.missing)


def metrics_of(
    tables: dict[str, dict[str, list[Any]]], labels: tuple[str, ...], settings: BiasConfig
) -> dict[str, float]:
    """All metrics of an evaluation, from its item tables alone, in the order of ``analysis/metrics.py``.

    Args:
        tables: ``task`` or name of a bias set → its item table.
        labels: names of the classes; empty where rows have none.
        settings: config of bias.

    Raises:
        ValueError: for a metric without a row in that table.
    """
    items = tables.get("task", {})  # saved answers have none
    metrics: dict[str, float] = {}
    if not items:
        return figures_of(tables)
    if labels:
        gold = np.array([labels.index(label) for label in items["label"]])
        metrics = class_metrics(np.array(items["logprobs"], dtype=np.float64), gold, len(labels))
    if not labels or "completion_nll" in items:
        metrics |= text_metrics(items)
    if not labels and "completion_nll" in items:
        metrics["completion_loss"] = sum(items["completion_nll"]) / sum(items["completion_tokens"])
    metrics |= figures_of(tables)
    metrics |= bias_metrics(tables, labels, settings)
    if unknown := metrics.keys() - METRICS.keys():
        raise ValueError(f"no row in analysis/metrics.py or analysis/bias_sets.py: {', '.join(sorted(unknown))}")
    return {name: metrics[name] for name in METRICS if name in metrics}


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


def label_logprobs(
    base: BaseModel, model: torch.nn.Module, trial: TrialConfig, labels: tuple[str, ...], encoded: list[Encoded]
) -> np.ndarray:
    """(rows, classes) log-probabilities of the labels, normalised over them; not finite where a score is not."""
    if trial.task.name == "classification":
        return class_logprobs(base, model, [row.context for row in encoded], trial.eval.batch_size)
    requests = [request for row in encoded for request in _choices(row)]
    scores = log_likelihoods(base, model, requests, trial.eval.batch_size)
    rows = [scores[r * len(labels) : (r + 1) * len(labels)] for r in range(len(encoded))]
    return _normalised(rows, trial.task.normalization)


def _choices(row: Encoded) -> list[Request]:
    """What to score for a row's labels."""
    return [Request(context + label, len(context)) for context, label in row.choices]


def _normalised(scores: list[list[list[float]]], normalization: str) -> np.ndarray:
    """(rows, classes) from the token log-probabilities of each label."""
    raw = np.array(
        [[sum(values) / (len(values) if normalization == "token" else 1) for values in row] for row in scores]
    )
    with np.errstate(invalid="ignore"):  # rows that are not finite stay so: class_metrics gives NaN for them
        return raw - np.logaddexp.reduce(raw, axis=1, keepdims=True) if len(scores) else np.empty((0, 0))


def _joined(
    fresh: dict[str, list[Any]], known: dict[str, list[Any]], indices: list[int], validation: Validation
) -> dict[str, list[Any]]:
    """One item table of two, in the order of ``indices``."""
    places = {item: (table, i) for table in (known, fresh) for i, item in enumerate(table["item_id"])}
    rows = [places[validation.rows[i].item_id] for i in indices]
    return {name: [table[name][i] for table, i in rows] for name in fresh}


def _completion_logprobs(
    base: BaseModel, model: torch.nn.Module, trial: TrialConfig, validation: Validation, encoded: list[Encoded]
) -> tuple[np.ndarray, dict[str, list[Any]]]:
    """(rows, classes) log-probabilities of the labels, and the likelihood of each row with its own label."""
    requests = []
    for row in encoded:
        requests += _choices(row)
        requests.append(Request(row.context + row.completion, row.start))
    scores = log_likelihoods(base, model, requests, trial.eval.batch_size)
    per_row = len(validation.labels) + 1
    of_labels = []
    text: dict[str, list[Any]] = {
        name: [] for name in ("nll", "n_tokens", "n_bytes", "completion_nll", "completion_tokens")
    }
    for r, row in enumerate(encoded):
        *by_label, whole = scores[r * per_row : (r + 1) * per_row]
        of_labels.append(by_label)
        text["nll"].append(-sum(whole))
        text["n_tokens"].append(len(whole))
        text["n_bytes"].append(row.n_bytes)
        text["completion_nll"].append(-sum(whole[-len(row.completion) :]))
        text["completion_tokens"].append(len(row.completion))
    return _normalised(of_labels, trial.task.normalization), text
