"""Hugging Face Trainer with this project's data order, loss, dropout keys and steps; the rest is Trainer's own."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    get_scheduler,
)

from trainer.config import TrialConfig
from trainer.data.encode import Encoded
from trainer.engines.batches import MicroBatches
from trainer.engines.keyed_dropout import DropoutKeys, row_keys, shared_key
from trainer.engines.learning_rates import peak_rate, split_by_rate
from trainer.models.base_model import BaseModel
from trainer.models.lm_head import weighted_cross_entropy
from trainer.outcomes import Diverged, out_of_memory

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class StepTrainer(Trainer):
    """Trains one adapter and calls back after every optimiser step.

    Args:
        trial: its ``train`` and ``optim`` parts.
        base: arithmetic and padding token.
        model: the base model with the adapter.
        encoded: training rows.
        routing: where the dropout layers look up their keys.
        start: optimiser steps done before.
        moments: optimiser state at ``start`` (``optimizer_tensors``), or None to start afresh.
        on_step: called after each step; False stops the training.
        scratch: a folder that Trainer may write to.
        activation_checkpointing: recompute activations in the backward pass.
    """

    def __init__(
        self,
        trial: TrialConfig,
        base: BaseModel,
        model: PeftModel,
        encoded: list[Encoded],
        routing: DropoutKeys,
        start: int,
        moments: dict[str, torch.Tensor] | None,
        on_step: Callable[[], bool],
        scratch: str,
        activation_checkpointing: bool,
    ):
        self.trial, self.base, self.encoded, self.routing, self.start = trial, base, encoded, routing, start
        self.moments = moments
        self.tokens = 0
        self._losses: list[torch.Tensor] = []  # of this process's part of the step, by micro-batch
        self._fault: Exception | None = None  # what stopped this process's part of the step
        arguments = TrainingArguments(
            output_dir=scratch,
            max_steps=max(trial.train.max_steps - start, 1),
            per_device_train_batch_size=trial.train.batch_size // trial.train.accumulation,
            gradient_accumulation_steps=trial.train.accumulation,
            learning_rate=trial.optim.lr,
            weight_decay=trial.optim.weight_decay,
            adam_beta1=trial.optim.beta1,
            adam_beta2=trial.optim.beta2,
            max_grad_norm=trial.train.clip,
            optim="adamw_torch",
            seed=trial.seed % 2**32,
            use_cpu=base.device.type == "cpu",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            gradient_checkpointing=activation_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
        )
        arguments._n_gpu = min(
            arguments.n_gpu, 1
        )  # one process trains on one device: Trainer must not wrap the model in DataParallel
        if base.device.type == "cuda" and not base.ranks.alone:  # Trainer takes the first GPU that it sees
            vars(arguments)["_setup_devices"] = base.device
            torch.cuda.set_device(base.device)
        super().__init__(model=model, args=arguments, callbacks=[_Steps(on_step)])
        self.remove_callback(PrinterCallback)
        self.loss_is_scaled_for_ga = True  # by ``denominator``, see compute_loss
        self.keeps_positions = "logits_to_keep" in inspect.signature(base.model.forward).parameters

    def get_train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """All micro-batches from ``start`` to the last step."""
        batches = MicroBatches(
            self.trial, self.encoded, self.base.pad_token, self.start, self.trial.train.max_steps, self.base.ranks
        )
        return DataLoader(batches, batch_size=None, shuffle=False)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimiser, each parameter at its own rate, with the moments of a checkpoint where there are some."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        optim, heads = self.trial.optim, self.base.heads
        rates = {id(p): peak_rate(optim, name, p.dim(), heads) for name, p in self._trained()}
        optimizer.param_groups = split_by_rate(optimizer.param_groups, rates)
        if self.moments is not None:
            for name, parameter in self._trained():
                state = {m: self.moments[f"{name}|{m}"] for m in _MOMENTS}
                optimizer.state[parameter] = {m: v.to(parameter.device) if m != "step" else v for m, v in state.items()}
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The learning-rate schedule of the whole trial, advanced to ``start``."""
        total, optim = self.trial.train.max_steps, self.trial.optim
        if self.lr_scheduler is None:
            name = "constant_with_warmup" if optim.schedule == "constant" else optim.schedule
            stepped: Any = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = get_scheduler(
                name,
                optimizer=stepped,
                num_warmup_steps=math.ceil(optim.warmup * total),
                num_training_steps=total,
            )
            for _ in range(self.start):
                self.lr_scheduler.step()
        return self.lr_scheduler

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """The loss of a micro-batch: its share of the token mean over the whole accumulated batch, in nats.

        Raises:
            Diverged: where it is not finite.
        """
        labels = inputs["labels"]
        self.routing.keys = row_keys(self.trial.seed, inputs["step"], inputs["samples"])
        self.routing.shared = shared_key(self.trial.seed, inputs["step"])
        self.routing.tokens = inputs["input_ids"].shape[1]
        self.tokens += inputs["tokens"]
        forward = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
        completion = self.trial.task.name == "completion"
        if completion:
            targets = labels[:, 1:]
            kept = (targets != -100).any(0).nonzero().squeeze(1)  # logits only where some row bears loss
            targets = targets[:, kept]
            if self.keeps_positions:
                forward["logits_to_keep"] = kept
        with self.base.arithmetic():
            logits = model(**forward).logits
        if completion:
            if not self.keeps_positions:
                logits = logits[:, kept]
            logits, labels = logits.flatten(0, 1), targets.flatten()
        weights = inputs["weights"]
        if weights is not None and completion:
            weights = weights[:, None].expand(targets.shape).flatten()
        summed = weighted_cross_entropy(logits, labels, weights)
        loss = summed / inputs["denominator"]
        if not self.base.ranks.alone:  # whether it is finite is looked at together
            self._losses.append(loss.detach())
        elif not torch.isfinite(loss):
            raise Diverged(f"the loss was {loss.item()} in step {inputs['step'] + 1}")
        return loss

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Trainer's own. Where this process's part fails, the others hear of it before the step is made."""
        if self.base.ranks.alone or self.base.sharded:  # of a sharded model the others wait in that very pass
            return super().training_step(model, inputs, *args, **kwargs)
        try:
            return super().training_step(model, inputs, *args, **kwargs)
        except Exception as error:
            self._fault = self._fault or error
            return torch.zeros((), device=self.base.device)

    def _clip_grad_norm(self, model: Any) -> Any:
        """Trainer's own, after the gradients of all processes were summed: it is the norm of the whole batch's."""
        if not self.base.ranks.alone:
            self._join_step()
        return super()._clip_grad_norm(model)

    def _join_step(self) -> None:
        """Sum the gradients over the processes; raise in all of them what went wrong in any.

        Each process divided its rows' losses by what the whole step bears, so that the sums are the whole step's.

        Raises:
            Diverged: where the loss of a micro-batch is not finite.
            MemoryError: where some process has none left.
            RuntimeError: for anything else.
        """
        ranks, fault = self.base.ranks, self._fault
        if ranks.any(fault is not None):
            kind = "" if fault is None else "memory: " if out_of_memory(fault) else f"{type(fault).__name__}: "
            said = next(text for text in ranks.texts(f"{kind}{fault}" if fault else "") if text)
            raise MemoryError(said.removeprefix("memory: ")) if said.startswith("memory: ") else RuntimeError(said)
        losses = ranks.sum(torch.stack(self._losses))
        self._losses = []
        for loss in losses.tolist():
            if not math.isfinite(loss):
                raise Diverged(f"the loss was {loss} in step {self.start + self.state.global_step + 1}")
        ranks.sum_gradients(parameter for _, parameter in self._trained())

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Trainer's hook after clipping: an infinite norm would have clipped every step to nothing, unseen."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not math.isfinite(float(norm)):
            raise Diverged(f"the gradient norm was {float(norm)} in step {self.start + self.state.global_step + 1}")
        return norm

    def optimizer_tensors(self) -> dict[str, torch.Tensor]:
        """AdamW's moments by parameter name, on the CPU: what ``moments`` takes."""
        if self.optimizer is None:  # no step was made yet
            return self.moments or {}
        states = self.optimizer.state
        if hasattr(self.optimizer, "optimizer"):  # accelerate's wrapper
            states = self.optimizer.optimizer.state
        return {
            f"{name}|{m}": torch.as_tensor(states[parameter][m]).detach().cpu().clone()
            for name, parameter in self._trained()
            if parameter in states
            for m in _MOMENTS
        }

    def _trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        model: Any = self.model
        return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


class _Steps(TrainerCallback):
    """Calls back after each step, and stops the training where the callback says so."""

    def __init__(self, on_step: Callable[[], bool]):
        self.on_step = on_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self.on_step():
            control.should_training_stop = True
