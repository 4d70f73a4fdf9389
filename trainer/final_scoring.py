"""The final scoring of a trained adapter on the test split, and the answers that it writes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from peft import PeftModel, load_peft_weights, set_peft_model_state_dict

from analysis.folder import MetricsRow, TrialFolder
from trainer.config import TrialConfig
from trainer.device_cache import DeviceCache
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.generate import TABLE, answers, with_answers
from trainer.models.base_model import BaseModel
from trainer.models.lora import add_adapter, remove_adapter


def score_on_test(device_cache: DeviceCache, trial: TrialConfig, folder: TrialFolder) -> MetricsRow:
    """Score the adapter in a trial's folder on the test rows and the bias sets; write items, then the row.

    Args:
        device_cache: base models and data of this device; no adapter is on the base model.
        trial: how the adapter was trained, and what it is scored on.
        folder: of the trial; it has completed.

    Raises:
        DataError: where there are no test rows.
    """
    started = time.monotonic()
    base, test = device_cache.base(trial), device_cache.test(trial)
    with saved_adapter(base, trial, folder.adapter_dir) as model:
        evaluation = evaluate(base, model, trial, test, list(range(len(test.rows))))
        if trial.eval.generate:
            evaluation = with_answers(evaluation, base, model, trial, test)
    trained = [row for row in folder.read_metrics() if row.final][-1]
    for dataset, columns in evaluation.tables.items():
        folder.write_items(dataset, test.split, trained.step, columns)
    row = MetricsRow(
        folder.trial_id,
        trained.step,
        trained.tokens,
        time.monotonic() - started,
        True,
        evaluation.n_items,
        evaluation.metrics,
        test.split,
    )
    folder.append_metrics(row)
    return row


def generate_answers(device_cache: DeviceCache, trial: TrialConfig, folder: TrialFolder) -> None:
    """Let a completed trial's adapter write answers to the validation rows, and add their metrics to its final row.

    Args:
        device_cache: base models and data of this device; no adapter is on the base model.
        trial: how the adapter was trained.
        folder: of the trial.
    """
    base, validation = device_cache.base(trial), device_cache.validation(trial)
    with saved_adapter(base, trial, folder.adapter_dir) as model:
        metrics, table = answers(base, model, trial, validation)
    final = [row for row in folder.read_metrics() if row.final][-1]
    folder.write_items(TABLE, validation.split, final.step, table)
    folder.append_metrics(replace(final, metrics=final.metrics | metrics))


@contextmanager
def saved_adapter(base: BaseModel, trial: TrialConfig, adapter: Path) -> Iterator[PeftModel]:
    """Put a saved adapter on its base model; afterwards the base model is as it was.

    Args:
        base: the base model at the trial's precision.
        trial: how the adapter was trained.
        adapter: its folder.

    Yields:
        The model with the adapter, for scoring.
    """
    model = add_adapter(base.model, trial.lora, trial.task.name, base.heads, trial.seed, base.fresh)
    try:
        set_peft_model_state_dict(model, load_peft_weights(str(adapter), device="cpu"))
        model.eval()
        yield model
    finally:
        remove_adapter(model)
