"""The untuned base model as a row to compare with: what fine-tuning has to beat."""

import time

from analysis.folder import MetricsRow, State, Status, TrialFolder
from trainer.config import TrialConfig
from trainer.evaluate import evaluate, restricted
from trainer.lora import add_adapter, remove_adapter
from trainer.materials import Materials


def score_untuned(materials: Materials, trial: TrialConfig, folder: TrialFolder) -> MetricsRow:
    """Score the base model on all validation items and the bias pairs, and write rows, items and status.

    For classification the head is the seeded random one that trials start from: that row shows where training began.
    """
    started = time.monotonic()
    base, validation = materials.base(trial), materials.validation(trial)
    everything = list(range(len(validation.rows)))
    if base.heads:
        model = add_adapter(base.model, trial.lora, trial.task.name, base.heads, trial.seed)
        try:
            evaluation = evaluate(base, model, trial, validation, everything)  # B = 0: the adapter adds nothing yet
        finally:
            remove_adapter(model)
    else:
        evaluation = evaluate(base, base.model, trial, validation, everything)
    seconds = time.monotonic() - started
    rung = restricted(evaluation, validation, validation.rung)  # what constraints compare trials at their rungs with
    folder.append_metrics(MetricsRow(folder.trial_id, 0, 0, seconds, False, rung.n_items, rung.metrics))
    row = MetricsRow(folder.trial_id, 0, 0, seconds, True, evaluation.n_items, evaluation.metrics)
    for dataset, columns in evaluation.tables.items():
        folder.write_items(dataset, "validation", 0, columns)
    folder.append_metrics(row)
    folder.write_status(Status(State.COMPLETED))
    return row
