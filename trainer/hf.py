"""The reference engine: one trial at a time with Hugging Face Trainer and PEFT.

``Trainer.train()`` cannot be left and entered again, so a trial runs in a thread of its own that is parked whenever it
rests at a rung; engine and trial never run at the same time.
"""

import gc
import json
import math
import os
import queue
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from analysis.errors import FolderError, LorasweepError
from analysis.folder import MetricsRow, State, TrialFolder, atomic_write
from trainer.config import TrialConfig, check_trial
from trainer.dropout import Routing, use_keyed_dropout
from trainer.engine import Admission, Admitted, Ended, Event, Full, RungResult
from trainer.evaluate import PAIRS, Evaluation, evaluate, metrics_of
from trainer.hf_trainer import Diverged, RungTrainer
from trainer.lora import add_adapter, remove_adapter
from trainer.materials import Materials

Score = Callable[[Mapping[str, float]], float]


class HfEngine:
    """One slot.

    Args:
        materials: base models and data of this device.
        score: the sweep's objective, higher is better; picks each trial's best rung.
    """

    def __init__(self, materials: Materials, score: Score):
        self.materials = materials
        self.score = score
        self.run: _Run | None = None

    def admit(self, trial: TrialConfig, folder: TrialFolder, checkpoint: Path | None) -> Admission:
        if self.run is not None:
            return Full()
        check_trial(trial)
        self.run = _Run(trial, folder, self.materials, self.score, checkpoint)
        return Admitted(self.run.start_step)

    def advance(self) -> list[Event]:
        if self.run is None or self.run.resting:
            return []
        event = self.run.next_event()
        if isinstance(event, Ended):
            self._free()
        return [event]

    def proceed(self, trial_id: str) -> None:
        self._running(trial_id).resting = False

    def checkpoint(self, trial_id: str, to: Path) -> None:
        self._running(trial_id).save_checkpoint(to)

    def end(self, trial_id: str, state: State) -> None:
        self._running(trial_id).stop()
        self._free()

    def _running(self, trial_id: str) -> "_Run":
        if self.run is None or self.run.trial.trial_id != trial_id:
            raise ValueError(f"trial {trial_id} has no slot here")
        return self.run

    def _free(self) -> None:
        self.run = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@dataclass
class _Best:
    """The best rung so far: its step, its objective, the adapter's weights then (on the CPU), and how it was scored."""

    step: int
    score: float
    weights: dict[str, torch.Tensor]
    evaluation: Evaluation | None


class _Run:
    """One trial on the device, from admission to its end."""

    def __init__(
        self, trial: TrialConfig, folder: TrialFolder, materials: Materials, score: Score, checkpoint: Path | None
    ):
        self.trial, self.folder, self.score = trial, folder, score
        self.base = materials.base(trial)
        self.encoded = materials.training(trial)
        self.validation = materials.validation(trial)
        self.resting = False
        self.best: _Best | None = None
        self.tokens_before = 0
        self.started = time.monotonic()
        self.start_step = 0
        routing = Routing()
        self._scratch = tempfile.mkdtemp(prefix="lorasweep-")  # Trainer insists on a folder
        self.model: PeftModel = add_adapter(self.base.model, trial.lora, trial.task.name, self.base.heads, trial.seed)
        try:
            use_keyed_dropout(self.model.get_base_model(), trial.lora.dropout, routing)
            moments = self._read_checkpoint(checkpoint) if checkpoint else None
            self.trainer: RungTrainer | None = RungTrainer(
                trial, self.base, self.model, self.encoded, routing, self.start_step, moments, self._rest, self._scratch
            )
        except BaseException:
            self._clean_up()
            raise
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._go: queue.SimpleQueue[bool] = queue.SimpleQueue()  # False: stop
        self._thread = threading.Thread(target=self._train, name=f"trial-{trial.trial_id}", daemon=True)

    # --- called by the engine's thread, while the trial's thread is parked

    def next_event(self) -> Event:
        """Let the trial train until it rests or ends."""
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.put(True)
        event = self._events.get()
        self.resting = isinstance(event, RungResult)
        if isinstance(event, Ended):
            self._thread.join()
            self._clean_up()
        return event

    def stop(self) -> None:
        """End the trial where it rests, and write the adapter of its best rung."""
        if self._thread.ident is not None:
            self._go.put(False)
            self._thread.join()
        try:
            self._save_best()
        finally:
            self._clean_up()

    def save_checkpoint(self, to: Path) -> None:
        """Adapter, optimiser state and counters; ``counters.json`` is written last and makes it whole."""
        shutil.rmtree(to, ignore_errors=True)
        self.model.save_pretrained(str(to))
        save_file(self._training.optimizer_tensors(), to / "optimizer.safetensors")
        counters: dict[str, Any] = {"step": self.step, "tokens": self.tokens, "seconds": self.seconds}
        if self.best is not None:
            counters |= {"best_step": self.best.step, "best_score": self.best.score}
            save_file(self.best.weights, to / "best.safetensors")
        atomic_write(to / "counters.json", json.dumps(counters))

    @property
    def _training(self) -> RungTrainer:
        assert self.trainer is not None, "the trial has ended"
        return self.trainer

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self.start_step + int(self._training.state.global_step)

    @property
    def tokens(self) -> int:
        """Training tokens seen, padding not counted."""
        return self.tokens_before + self._training.tokens

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    # --- the trial's own thread

    def _train(self) -> None:
        self._events.put(self._outcome())

    def _outcome(self) -> Event:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
                self._training.train()
            if self._training.stopped:
                return Ended(self.trial.trial_id, State.STOPPED_EARLY, "", self.step)
            return self._finish()
        except Diverged as error:
            return Ended(self.trial.trial_id, State.DIVERGED, str(error), self.step)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                return self._failed(error)
            return Ended(self.trial.trial_id, State.OUT_OF_MEMORY, _first_line(error), self.step)
        except Exception as error:
            return self._failed(error)

    def _failed(self, error: Exception) -> Ended:
        name = "" if isinstance(error, LorasweepError) else f"{type(error).__name__}: "
        return Ended(self.trial.trial_id, State.FAILED, name + _first_line(error), self.step)

    def _rest(self, step: int) -> bool:
        """Score the rung, hand its result out, and wait. True to go on."""
        evaluation = evaluate(self.base, self.model, self.trial, self.validation, self.validation.rung)
        _require_finite(evaluation, step)
        score = self.score(evaluation.metrics)
        if self.best is None or score >= self.best.score:  # on a tie, the longer trained
            self.best = _Best(step, score, self._weights(), evaluation)
        self._write_items(evaluation, step)
        self._events.put(RungResult(self.trial.trial_id, self._row(evaluation, step, final=False)))
        return self._go.get()

    def _finish(self) -> Ended:
        """Score the best rung's adapter on all validation items and write it."""
        best = self.best
        if best is None:
            raise Diverged("no rung had a finite objective")
        self._restore(best)
        everything = list(range(len(self.validation.rows)))
        evaluation = evaluate(self.base, self.model, self.trial, self.validation, everything, best.evaluation)
        _require_finite(evaluation, best.step)
        self._write_items(evaluation, best.step)
        self._save_best()
        row = self._row(evaluation, best.step, final=True)
        return Ended(self.trial.trial_id, State.COMPLETED, "", self.step, row)

    def _row(self, evaluation: Evaluation, step: int, final: bool) -> MetricsRow:
        return MetricsRow(
            self.trial.trial_id, step, self.tokens, self.seconds, final, evaluation.n_items, evaluation.metrics
        )

    def _write_items(self, evaluation: Evaluation, step: int) -> None:
        for dataset, columns in evaluation.tables.items():
            self.folder.write_items(dataset, "validation", step, columns)

    # --- weights

    def _weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.detach().cpu().clone() for name, tensor in get_peft_model_state_dict(self.model).items()}

    def _restore(self, best: _Best) -> None:
        set_peft_model_state_dict(self.model, best.weights)

    def _save_best(self) -> None:
        """The adapter as plain PEFT; written beside and renamed, so that it is whole or not there."""
        if self.best is None:
            return
        self._restore(self.best)
        final = self.folder.adapter_dir
        beside = final.with_name(f".adapter.{os.getpid()}.tmp")
        shutil.rmtree(beside, ignore_errors=True)
        self.model.save_pretrained(str(beside))
        shutil.rmtree(final, ignore_errors=True)
        beside.rename(final)

    def _read_checkpoint(self, checkpoint: Path) -> dict[str, torch.Tensor]:
        """Put a checkpoint's weights and counters in place; returns the optimiser's moments."""
        counters: dict[str, Any] = json.loads((checkpoint / "counters.json").read_text())
        set_peft_model_state_dict(self.model, load_peft_weights(str(checkpoint), device="cpu"))
        self.start_step = int(counters["step"])
        self.tokens_before = int(counters["tokens"])
        self.started -= float(counters["seconds"])
        if "best_step" in counters:
            weights = load_file(checkpoint / "best.safetensors")
            step = int(counters["best_step"])
            self.best = _Best(step, float(counters["best_score"]), weights, self._read_evaluation(step))
        return load_file(checkpoint / "optimizer.safetensors")

    def _read_evaluation(self, step: int) -> Evaluation | None:
        """A rung's evaluation from its item tables; None where they are not there (they are scored again then)."""
        names = ["task", PAIRS] if self.validation.pairs else ["task"]
        try:
            tables = {name: self.folder.read_items(name, "validation", step) for name in names}
        except FolderError:
            return None
        return Evaluation(metrics_of(tables, self.validation.labels), tables, len(tables["task"]["item_id"]))

    def _clean_up(self) -> None:
        self.trainer = None  # it holds the model and the optimiser
        remove_adapter(self.model)
        shutil.rmtree(self._scratch, ignore_errors=True)


def _require_finite(evaluation: Evaluation, step: int) -> None:
    """Raises Diverged where a metric is not finite."""
    bad = sorted(name for name, value in evaluation.metrics.items() if not math.isfinite(value))
    if bad:
        raise Diverged(f"{', '.join(bad)} not finite after step {step}")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's or the host's memory is used up."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return "not enough memory" in str(error) or "out of memory" in str(error).lower()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]
