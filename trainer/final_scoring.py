"""The final scoring of a trained adapter on the test split."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft import PeftModel, load_peft_weights, set_peft_model_state_dict

from analysis.folder import MetricsRow, TrialFolder
from trainer.config import TrialConfig
from trainer.device_cache import DeviceCache
from trainer.evaluation.evaluate import evaluate
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
        evaluation = evaluate(base, model, trial, test, list(range(len(test.rows))), moment="final")
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
        missing=evaluation.missing,
    )
    folder.append_metrics(row)
    return row


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
