"""The reference engine: one trial at a time with Hugging Face Trainer and PEFT.

``Trainer.train()`` cannot be left and entered again. So a trial runs in a thread of its own, which waits at each rung,
and between two steps where it is asked to; the engine's thread and the trial's never run at the same time.
"""

import gc
import queue
import shutil
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file

from analysis.errors import ConfigError
from analysis.folder import State, TrialFolder
from trainer.config import TrialConfig, check_trial, sharding_refusal
from trainer.device_cache import DeviceCache
from trainer.engine import Admission, Admitted, Ended, Event, Full, RungResult, never, written
from trainer.engines.adapter_files import write_adapter_files
from trainer.engines.checkpoints import OPTIMIZER_FILE, write_tensors
from trainer.engines.hf_trainer import StepTrainer
from trainer.engines.interruption import interruptible
from trainer.engines.keyed_dropout import DropoutKeys, use_keyed_dropout
from trainer.engines.trial_record import Score, TrialRecord
from trainer.evaluation.evaluate import Evaluation, evaluate
from trainer.models.lora import ADAPTER, add_adapter, remove_adapter
from trainer.models.ranks import Interrupted, by_lost_rank
from trainer.outcomes import ended_by, raise_device_fault


class HfEngine:
    """An ``Engine`` (trainer/engine.py) with one slot.

    Several processes can train a trial together (``trainer/models/ranks.py``), each with an engine of its own: all get
    the same calls in the same order, and give the same events. ``until`` and ``leaving`` are asked for in the first
    process alone, which alone writes.

    Args:
        device_cache: base models and data of this device, and the processes.
        score: the sweep's objective, higher is better; picks each trial's best rung.
        activation_checkpointing: recompute activations in the backward pass.
    """

    def __init__(self, device_cache: DeviceCache, score: Score, activation_checkpointing: bool = False):
        self.device_cache = device_cache
        self.score = score
        self.activation_checkpointing = activation_checkpointing
        self.run: _Run | None = None
        self.patience = 0.0
        self.pass_cost: float | None = None

    def admit(self, trial: TrialConfig, folder: TrialFolder, checkpoint: Path | None) -> Admission:
        if self.run is not None:
            return Full()
        check_trial(trial)
        if self.device_cache.sharding == "fsdp" and (refused := sharding_refusal(trial.precision, trial.lora)):
            raise ConfigError(refused)
        self.run = _Run(trial, folder, self.device_cache, self.score, checkpoint, self.activation_checkpointing)
        return Admitted(self.run.start_step)

    def capacity(self, trial: TrialConfig) -> int:
        return 1

    def advance(self, until: Callable[[], bool] = never, leaving: Callable[[], bool] = never) -> list[Event]:
        if self.run is None or self.run.resting:
            return []
        event = self.run.next_event(until, leaving)
        if isinstance(event, Ended):
            self._free()
        return [] if event is None else [event]

    def proceed(self, trial_id: str) -> None:
        self._running(trial_id).resting = False

    def steps(self, trial_id: str) -> int:
        return self._running(trial_id).record.step

    def snapshot(self, trial_id: str, to: Path) -> Callable[[], None]:
        """Written at once: no other slot waits for that."""
        self._running(trial_id).save_checkpoint(to)
        return written

    def release(self, trial_id: str) -> None:
        self._running(trial_id).stop(write_best=False)
        self._free()

    def end(self, trial_id: str, state: State) -> None:
        self._running(trial_id).stop(write_best=True)
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


class _Run:
    """One trial on the device, from admission to its end."""

    def __init__(
        self,
        trial: TrialConfig,
        folder: TrialFolder,
        device_cache: DeviceCache,
        score: Score,
        checkpoint: Path | None,
        activation_checkpointing: bool,
    ):
        self.trial = trial
        self.base = device_cache.base(trial)
        self.ranks = self.base.ranks
        if self.base.sharded and (refused := sharding_refusal(trial.precision, trial.lora)):
            raise ConfigError(refused)
        self.encoded = device_cache.training(trial)
        self.validation = device_cache.validation(trial)
        self.record = TrialRecord(trial, folder, self.validation, score, writes=self.ranks.first)
        self.resting = False
        self._stopped = False  # from outside
        self._until: Callable[[], bool] = never
        self._leaving: Callable[[], bool] = never
        keys = DropoutKeys(self.base.behaviour)
        self._scratch = tempfile.mkdtemp(prefix="lorasweep-")  # Trainer insists on a folder
        self.model: PeftModel = add_adapter(
            self.base.model, trial.lora, trial.task.name, self.base.heads, trial.seed, self.base.fresh
        )
        try:
            use_keyed_dropout(self.model.get_base_model(), trial.lora.dropout, keys)
            moments = self._read_checkpoint(checkpoint) if checkpoint else None
            self.start_step, self.tokens_before = self.record.step, self.record.tokens
            self.trainer: StepTrainer | None = StepTrainer(
                trial,
                self.base,
                self.model,
                self.encoded,
                keys,
                self.start_step,
                moments,
                self._after_step,
                self._scratch,
                activation_checkpointing,
            )
        except BaseException:
            self._clean_up()
            raise
        self._events: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()
        self._go: queue.SimpleQueue[bool] = queue.SimpleQueue()  # False: stop
        self._thread = threading.Thread(target=self._train, name=f"trial-{trial.trial_id}", daemon=True)

    # --- called by the engine's thread, while the trial's thread waits

    def next_event(self, until: Callable[[], bool], leaving: Callable[[], bool]) -> Event | None:
        """Let the trial train until it rests or ends; None where it waits because it was asked to (``advance``).

        Raises what ends no trial: a fault of the disk, or RankLost and its like.
        """
        self._until, self._leaving = until, leaving
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.put(True)
        event = self._events.get()
        if isinstance(event, BaseException):
            raise event
        self.resting = isinstance(event, RungResult)
        if isinstance(event, Ended):
            self._thread.join()
            self._clean_up()
        return event

    def stop(self, write_best: bool) -> None:
        """End the trial where it rests or waits, and where ``write_best`` write the adapter of its best rung."""
        if self._thread.ident is not None:
            self._go.put(False)
            self._thread.join()
        try:
            if write_best:
                self._save_best()
        finally:
            self._clean_up()

    def save_checkpoint(self, to: Path) -> None:
        """Adapter, optimiser state and counters: whole in every process, so the first one writes them."""
        if not self.ranks.first:
            return

        def write() -> dict[str, str]:
            digests = write_adapter_files(to, self._adapter_config, self._weights())
            return digests | {OPTIMIZER_FILE: write_tensors(to / OPTIMIZER_FILE, self._training.optimizer_tensors())}

        self.record.checkpoint(to, write)()

    @property
    def _adapter_config(self) -> PeftConfig:
        return self.model.peft_config[ADAPTER]

    @property
    def _training(self) -> StepTrainer:
        assert self.trainer is not None, "the trial has ended"
        return self.trainer

    def _count(self) -> None:
        self.record.step = self.start_step + int(self._training.state.global_step)
        self.record.tokens = self.tokens_before + self._training.tokens

    # --- the trial's own thread

    def _train(self) -> None:
        try:
            self._events.put(self._outcome())
        except BaseException as error:
            self._events.put(error)

    def _outcome(self) -> Event:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
                if self.record.due:  # its worker left before it was scored
                    self._rest()
                if not self._stopped and not self.record.done:  # it may have been when its worker died
                    self._training.train()
            ended = None if self._stopped else self._finish()
            return ended or Ended(self.trial.trial_id, State.STOPPED_EARLY, "", self.record.step)
        except Exception as error:
            if not self.ranks.alone and by_lost_rank(error):  # it goes on from its last checkpoint
                raise
            raise_device_fault(error)
            self._count()
            self._save_best()
            return ended_by(error, self.trial.trial_id, self.record.step)

    def _after_step(self) -> bool:
        """Score the rung where this is one, and wait where that is asked for. True to train on."""
        self._count()
        if self.record.due:
            return self._rest()
        return self._wait(None) if self.ranks.any(self._until()) else True

    def _rest(self) -> bool:
        """Score the rung, hand its result out, and wait. True to train on."""
        evaluation = self._evaluate(self.validation.rung, None, "rung")
        if evaluation is None or not self._wait(self.record.rung(evaluation, self._weights)):
            return False
        return not self.record.done

    def _wait(self, event: Event | None) -> bool:
        """Hand an event out, or none, and wait for the engine's thread. True to go on."""
        self._events.put(event)
        self._stopped = not self._go.get()
        return not self._stopped

    def _evaluate(self, indices: list[int], known: Evaluation | None, moment: str) -> Evaluation | None:
        """Score some validation rows, anew where that is broken off; None where the trial is stopped meanwhile."""
        while True:
            try:
                with (
                    interruptible(self.base.model, self._leaving)
                    if self.ranks.alone  # several look between two batches, where none is in a pass
                    else self.ranks.interruptible(self._leaving)
                ):
                    return evaluate(self.base, self.model, self.trial, self.validation, indices, known, moment)
            except Interrupted:
                if not self._wait(None):
                    return None

    def _finish(self) -> Ended | None:
        """Score the best rung's adapter on all validation items and write it; None where the trial is stopped."""
        best = self.record.require_best()
        set_peft_model_state_dict(self.model, best.weights)
        everything = list(range(len(self.validation.rows)))
        evaluation = self._evaluate(everything, best.evaluation, "final")
        if evaluation is None:
            return None
        ended = self.record.completed(evaluation)
        self._save_best()
        return ended

    # --- weights

    def _weights(self) -> dict[str, torch.Tensor]:
        state = get_peft_model_state_dict(self.model)
        return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}

    def _save_best(self) -> None:
        if self.record.best is not None:
            weights = self.record.best.weights
            set_peft_model_state_dict(self.model, weights)
            self.record.write_adapter(lambda to: write_adapter_files(to, self._adapter_config, weights))

    def _read_checkpoint(self, checkpoint: Path) -> dict[str, torch.Tensor]:
        """Put a checkpoint's weights and counters in place; returns the optimiser's moments."""
        set_peft_model_state_dict(self.model, load_peft_weights(str(checkpoint), device="cpu"))
        self.record.load(checkpoint)
        return load_file(checkpoint / OPTIMIZER_FILE)

    def _clean_up(self) -> None:
        self.trainer = None  # it holds the model and the optimiser
        remove_adapter(self.model)
        shutil.rmtree(self._scratch, ignore_errors=True)
