"""Scores the baselines that fine-tuning has to beat, by the code and on the items that trials are scored by.

- ``majority``: the share of each label among the training rows, whatever the text;
- ``linear``: logistic regression on the words and pairs of words of the training rows;
- ``frozen``: logistic regression on the mean last hidden state of the untuned model;
- ``zero_shot``: the untuned model. In classification its head is the one that trials start from: the checkpoint's own,
  or a seeded random one, whose row only shows where training began;
- ``few_shot``: the untuned model with the same labelled examples before every item;
- ``answers``: what another system wrote, from a file;
- ``retrieval``: the untuned model with the nearest training rows before each item. A classification head reads no
  prompt: there it is the vote of the nearest training rows, weighted by similarity.
"""

import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from analysis import fast_yaml
from analysis.folder import MetricsRow, State, Status, TrialFolder, atomic_write
from analysis.item_sums import GENERATED
from trainer.answers.saved import read_saved
from trainer.config import Baseline, TrialConfig
from trainer.data.dataset import Row
from trainer.data.encode import Encoded, as_labels
from trainer.data.text_tokens import text_tokens
from trainer.device_cache import DeviceCache
from trainer.evaluation.bias.score import score_bias
from trainer.evaluation.evaluate import Evaluation, Validation, evaluate, metrics_of, restricted
from trainer.evaluation.generate import answered, figures_of, written_before
from trainer.few_shot import SEPARATOR, few_shot_rows, mean_states, nearest, with_answers, with_examples
from trainer.linear_classifier import LinearFit, of_states, of_words
from trainer.models.lora import add_adapter, remove_adapter

_UNTRAINED = "its head is untrained: it shows where training begins, and only guesses"


def score_baseline(
    device_cache: DeviceCache, baseline: Baseline, folder: TrialFolder, validation: Validation | None = None
) -> MetricsRow:
    """Score a baseline on all validation items and the bias sets; write config, row, items and, last, the status.

    Args:
        device_cache: base models and data of this device.
        baseline: its kind, model, data and settings.
        folder: of the baseline; emptied first, as a worker that died may have left a part.
        validation: rows to score in place of the validation rows, such as the test split.
    """
    started = time.monotonic()
    shutil.rmtree(folder.root, ignore_errors=True)
    rows = validation or device_cache.validation(baseline.trial)
    split = rows.split
    evaluation, note = _evaluated(device_cache, baseline, rows)
    settings = asdict(baseline.trial) | {"baseline": baseline.kind}
    if baseline.kind == "zero_shot" and baseline.trial.task.name == "classification":
        settings["head"] = "untrained" if device_cache.base(baseline.trial).fresh else "own"
    if baseline.kind in ("few_shot", "retrieval"):
        settings[baseline.kind] = asdict(getattr(baseline, baseline.kind))
    atomic_write(folder.config_file, fast_yaml.dump(settings))
    for dataset, columns in evaluation.tables.items():
        folder.write_items(dataset, split, 0, columns)
    seconds = time.monotonic() - started
    if rows.rung:  # constraints compare trials at their rungs with it
        rung = restricted(evaluation, rows, rows.rung)
        folder.append_metrics(MetricsRow(folder.trial_id, 0, 0, seconds, False, rung.n_items, rung.metrics))
    missing = evaluation.missing
    row = MetricsRow(
        folder.trial_id,
        0,
        0,
        seconds,
        True,
        evaluation.n_items,
        evaluation.metrics,
        split,
        missing=missing,
        answer_seconds=evaluation.answer_seconds,
    )
    folder.append_metrics(row)
    folder.write_status(Status(State.COMPLETED, note))
    return row


def _evaluated(device_cache: DeviceCache, baseline: Baseline, validation: Validation) -> tuple[Evaluation, str]:
    """The evaluation, and a note on it for the reader of the leaderboard, if any."""
    trial = baseline.trial
    if baseline.kind == "answers":
        return _saved(device_cache, baseline, validation), ""
    if baseline.kind == "majority":
        return _without_model(_majority(device_cache, trial, validation), validation), ""
    if baseline.kind in ("linear", "frozen"):
        fit = (_linear if baseline.kind == "linear" else _frozen)(device_cache, trial, validation)
        chosen = f"C={fit.strength:g}" + (", classes weighted alike" if fit.class_weight else "")
        return _without_model(fit.logprobs, validation), f"logistic regression, by cross-validation {chosen}"
    if baseline.kind == "zero_shot":
        evaluation = _untuned(device_cache, trial, validation)
        if trial.task.name == "completion":
            independent = validation.bias.independent_of_rows().tables()
            sets = {name: evaluation.tables[name] for name in independent}
            device_cache.bias_of_base[(*device_cache.base_key(trial), repr(trial.bias))] = sets
            return evaluation, ""
        return evaluation, _UNTRAINED if device_cache.base(trial).fresh else ""
    if trial.task.name == "classification":
        return _without_model(_vote(device_cache, baseline, validation), validation), ""
    return _prompted(device_cache, baseline, validation)


def _untuned(
    device_cache: DeviceCache, trial: TrialConfig, validation: Validation, known: Evaluation | None = None
) -> Evaluation:
    """The evaluation of the base model on all rows and the bias sets; with answers where ``eval.generate`` is set."""
    base = device_cache.base(trial)
    everything = list(range(len(validation.rows)))
    if trial.task.name == "completion":
        return evaluate(base, base.model, trial, validation, everything, known, "final")
    lora = replace(trial.lora, init="default")  # B = 0: the adapter adds nothing
    model = add_adapter(base.model, lora, trial.task.name, base.heads, trial.seed, base.fresh)
    try:
        return evaluate(base, model, trial, validation, everything)
    finally:
        remove_adapter(model)


def _bias_of_base(
    device_cache: DeviceCache, trial: TrialConfig, validation: Validation
) -> dict[str, dict[str, list[Any]]]:
    """Item tables of the bias sets that have no prompt, of the base model: scored once, whatever the examples."""
    key = (*device_cache.base_key(trial), repr(trial.bias))
    if key not in device_cache.bias_of_base:
        base, sets = device_cache.base(trial), validation.bias.independent_of_rows()
        labels = validation.labels

        def no_rows(encoded: list[Encoded]) -> np.ndarray:
            raise ValueError("sets made of the task's rows are not among these")

        base.model.eval()
        tables = score_bias(base, base.model, sets, labels, no_rows, trial.eval.batch_size)
        device_cache.bias_of_base[key] = tables
    return device_cache.bias_of_base[key]


def _prompted(device_cache: DeviceCache, baseline: Baseline, validation: Validation) -> tuple[Evaluation, str]:
    """The untuned model with examples before each item.

    Swapped rows (``bias.swap``) are not scored: each would need examples of its own.
    """
    trial = baseline.trial
    base, train = device_cache.base(trial), device_cache.tokens(trial, "train")
    if baseline.kind == "few_shot":
        fixed = few_shot_rows(train.rows, baseline.few_shot.k, baseline.few_shot.seed)
        chosen, k = [fixed] * len(validation.rows), baseline.few_shot.k
    else:
        neighbours = nearest(train.rows, validation.rows, baseline.retrieval, base)
        chosen, k = [row[::-1].tolist() for row in neighbours.rows], baseline.retrieval.k
    rows, stop = validation.rows, tuple[str, ...]()
    if validation.labels:
        labels = as_labels(base.tokenizer, validation.labels, trial.task)
        encoded, used = with_examples(validation.encoded, train.encoded, chosen, base, labels)
    else:
        rows, encoded, used = with_answers(
            rows,
            validation.encoded,
            train.rows,
            chosen,
            base,
            validation.schema,
            trial.task,
            validation.to_answer.max_new_tokens,
        )
        stop = (SEPARATOR,) if validation.schema == "completion" else ()  # else it goes on with an example of its own
    known = Evaluation({}, {"task": {"item_id": []}, **_bias_of_base(device_cache, trial, validation)}, 0)
    name = f"{validation.split} {baseline.kind} {getattr(baseline, baseline.kind)!r}"
    answers = replace(device_cache.to_answer(trial, rows, encoded, name, validation.rung), stop=stop)
    evaluation = _untuned(device_cache, trial, replace(validation, encoded=encoded, to_answer=answers), known)
    evaluation.tables["task"]["examples"] = [
        [train.rows[i].item_id for i in rows[len(rows) - n :]] for rows, n in zip(chosen, used, strict=True)
    ]
    note = ""
    if min(used) < k:
        why = "the model's window" if min(used) < min(k, len(train.rows)) else "there are no more training rows"
        note = f"{sum(used) / len(used):.1f} of {k} examples before an item on average, {min(used)} at least ({why})"
    return evaluation, note


def _saved(device_cache: DeviceCache, baseline: Baseline, validation: Validation) -> Evaluation:
    """What another system wrote, scored as the answers of a trial. No model takes part, but for a judge."""
    trial, base, how = baseline.trial, device_cache.base(baseline.trial), validation.to_answer
    prompts = how.at("final")
    texts = read_saved(Path(baseline.answers), [(it.item_id, it.row) for it in prompts], validation.rows)
    known = written_before(prompts, texts, base.tokenizer, validation.labels)
    answers = answered(
        base, base.model, trial, prompts, validation.rows, validation.encoded, validation.labels, how, "final", known
    )  # fmt: skip
    tables = {GENERATED: answers.table}
    return Evaluation(figures_of(tables), tables, len(prompts), answers.missing)


def _majority(device_cache: DeviceCache, trial: TrialConfig, validation: Validation) -> np.ndarray:
    frequencies = _frequencies(device_cache, trial, validation.labels)
    return np.tile(np.log(frequencies), (len(validation.rows), 1))


def _linear(device_cache: DeviceCache, trial: TrialConfig, validation: Validation) -> LinearFit:
    """On the whole texts: what a model's window or ``data.max_length`` cuts counts here."""
    train = device_cache.dataset(trial).train
    texts, items = [row.text for row in train], [row.text for row in validation.rows]
    return of_words(texts, _targets(train, validation.labels), items, len(validation.labels), trial.seed)


def _frozen(device_cache: DeviceCache, trial: TrialConfig, validation: Validation) -> LinearFit:
    """On what a trial reads too, the label left out."""
    base, train = device_cache.base(trial), device_cache.tokens(trial, "train")
    base.model.eval()

    def without_label(rows: Sequence[Encoded]) -> list[tuple[int, ...]]:
        if trial.task.name == "classification":
            return [row.context for row in rows]
        return [made.ids for made in text_tokens(base.tokenizer, [row.text for row in rows])]

    states = [
        mean_states(base, without_label(rows), trial.eval.batch_size) for rows in (train.encoded, validation.encoded)
    ]
    targets = [row.target for row in train.encoded]
    return of_states(states[0], targets, states[1], len(validation.labels), trial.seed)


def _targets(rows: Sequence[Row], labels: tuple[str, ...]) -> list[int]:
    """Index of each row's label."""
    index = {label: i for i, label in enumerate(labels)}
    return [index[row.label] for row in rows]


def _vote(device_cache: DeviceCache, baseline: Baseline, validation: Validation) -> np.ndarray:
    """(items, classes): the neighbours' labels weighted by cosine, and one vote spread as the training labels are."""
    trial = baseline.trial
    train = device_cache.dataset(trial).train
    neighbours = nearest(train, validation.rows, baseline.retrieval, device_cache.base(trial))
    targets = np.array(_targets(train, validation.labels))
    votes = np.tile(_frequencies(device_cache, trial, validation.labels), (len(validation.rows), 1))
    for column in range(neighbours.rows.shape[1]):
        places = np.arange(len(votes))
        votes[places, targets[neighbours.rows[:, column]]] += np.clip(neighbours.similarity[:, column], 0.0, None)
    return np.log(votes / votes.sum(1, keepdims=True))


def _frequencies(device_cache: DeviceCache, trial: TrialConfig, labels: tuple[str, ...]) -> np.ndarray:
    counts = Counter(row.label for row in device_cache.dataset(trial).train)
    total = sum(counts.values())
    return np.array([counts[label] / total for label in labels])


def _without_model(logprobs: np.ndarray, validation: Validation) -> Evaluation:
    """The evaluation of probabilities that come from no language model: it has no perplexity and no bias sets."""
    targets = [row.target for row in validation.encoded]
    items: dict[str, list[Any]] = {
        "item_id": [row.item_id for row in validation.rows],
        "group": [row.group for row in validation.rows],
        "label": [validation.labels[target] for target in targets],
        "nll": [-float(values[target]) for values, target in zip(logprobs, targets, strict=True)],
        "n_tokens": [len(row.context) for row in validation.encoded],
        "n_bytes": [len(row.text.encode()) for row in validation.rows],
        "prediction": [validation.labels[int(i)] for i in logprobs.argmax(1)],
        "logprobs": logprobs.tolist(),
    }
    tables = {"task": items}
    return Evaluation(metrics_of(tables, validation.labels, validation.settings), tables, len(validation.rows))
