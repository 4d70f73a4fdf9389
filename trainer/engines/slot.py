"""One trial in a pack: its trained tensors, optimiser, schedule, place in the data, and checkpoints."""

import copy
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import get_scheduler

from analysis.folder import TrialFolder
from trainer.config import TrialConfig
from trainer.data.encode import Encoded
from trainer.engines.batches import micro_batches
from trainer.engines.checkpoints import ADAPTER_FILE, OPTIMIZER_FILE, write_tensors
from trainer.engines.learning_rates import PREFIX, peak_rate, split_by_rate
from trainer.engines.pack_layers import PackedHead, SlotModule
from trainer.engines.trial_record import Score, TrialRecord, Weights, host_copies
from trainer.evaluation.evaluate import Validation
from trainer.models.base_model import BaseModel
from trainer.models.lora import (
    ADAPTER,
    head_std,
    initial_values,
    linear_modules,
    linear_shape,
    peft_config,
    scaling,
    start_head,
)
from trainer.outcomes import Diverged

_METADATA = {"format": "pt"}
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
# As in Hugging Face Trainer: biases and norms are not decayed.
_NOT_DECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


class Slot:
    """A trial's state in a pack, set up from its config, or from a checkpoint.

    Args:
        trial: checked, and one that a pack can hold.
        folder: where its results go.
        base: the frozen model.
        encoded: training rows.
        validation: what it is scored on.
        score: the sweep's objective, higher is better.
        checkpoint: a folder that was written after ``snapshot``, of this engine or the other, or None.

    Attributes:
        modules: target module → trained tensors, in the model's order.
        heads: task head → the slot's own copy.
        resting: whether it waits after a rung.
        waited: for how many steps of the pack it has waited at a rung, to be scored with others.
        micro: micro-steps done of the current optimiser step.
        spoiled: whether an optimiser step failed half-way, so that the trial can go on only from a checkpoint.
    """

    def __init__(
        self,
        trial: TrialConfig,
        folder: TrialFolder,
        base: BaseModel,
        encoded: list[Encoded],
        validation: Validation,
        score: Score,
        checkpoint: Path | None,
    ):
        self.trial, self.base, self.encoded, self.validation = trial, base, encoded, validation
        self.record = TrialRecord(trial, folder, validation, score)
        self.config: LoraConfig = peft_config(base.model, trial.lora, trial.task.name, base.heads)
        self.modules: dict[str, SlotModule] = {}
        self.heads: dict[str, nn.Module] = {}
        self._tensors: dict[str, tuple[str, nn.Parameter]] = {}  # PEFT's name of the parameter → (its key, itself)
        self._make_tensors()
        self.resting = False
        self.micro = 0
        self._batches: list[dict[str, Any]] = []
        self._losses: list[torch.Tensor] = []
        if checkpoint is not None:
            self.restore(load_file(checkpoint / ADAPTER_FILE))
            self.record.load(checkpoint)
        self.waited = 0
        self.spoiled = False
        self.optimizer = self._make_optimizer(checkpoint)
        self.scheduler = self._make_scheduler()

    # --- rungs

    @property
    def due(self) -> bool:
        """Whether the slot is at a rung and not scored there yet."""
        return self.record.due

    @property
    def to_rung(self) -> int:
        """Optimiser steps to the next rung."""
        return min(rung for rung in self.trial.train.rungs if rung > self.record.step) - self.record.step

    def rest(self) -> None:
        """Wait after a rung was scored, until the engine's ``proceed``."""
        self.resting, self.waited = True, 0

    # --- training

    def next_batch(self) -> dict[str, Any]:
        """The micro-batch that comes next (see ``micro_batches``)."""
        if not self._batches:
            self._batches = micro_batches(self.trial, self.encoded, self.base.pad_token, self.record.step)
        return self._batches[self.micro]

    def note(self, loss: torch.Tensor) -> None:
        """Note that a micro-step's gradient is in place; ``loss`` is a scalar."""
        self._losses.append(loss)
        self.micro += 1

    @property
    def ready(self) -> bool:
        """Whether all micro-steps of the optimiser step are done."""
        return self.micro == self.trial.train.accumulation

    def forget_micro_steps(self) -> None:
        """Start the current optimiser step over, after a pass that failed."""
        self.micro = 0
        self._losses = []
        self.optimizer.zero_grad(set_to_none=False)

    def update(self) -> torch.Tensor:
        """Clip the gradient, step the optimiser, advance the schedule.

        Returns:
            (2,) the largest of the step's losses, and the gradient's norm, both still on the device.
        """
        trained = [parameter for _, parameter in self.parameters()]
        norm = torch.nn.utils.clip_grad_norm_(trained, self.trial.train.clip)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=False)  # in a pack gradients are views into the stack, and must stay
        checked = torch.stack([torch.stack(self._losses).abs().max(), norm.to(self._losses[0].device)])
        self._losses, self.micro = [], 0
        return checked

    def count(self, checked: tuple[float, float]) -> None:
        """Count an optimiser step, given what ``update`` returned. Raises Diverged where a number is not finite."""
        for what, value in zip(("loss", "gradient norm"), checked, strict=True):
            if not math.isfinite(value):
                raise Diverged(f"the {what} was {value} in step {self.record.step + 1}")
        self.record.tokens += sum(sum(batch["lengths"]) for batch in self._batches)
        self.record.step += 1
        self._batches = []

    # --- tensors

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Trained parameters with PEFT's names, in PEFT's order."""
        return [(name, parameter) for name, (_, parameter) in self._tensors.items()]

    def weights(self) -> Weights:
        """A copy on the CPU, by the keys of a PEFT adapter file."""
        return host_copies(dict(self._tensors.values()), pinned=False)  # kept for long

    @torch.no_grad()
    def restore(self, weights: Weights) -> None:
        """Copy weights into the trained tensors, in place."""
        for key, parameter in self._tensors.values():
            parameter.copy_(weights[key])

    def moments(self) -> dict[str, torch.Tensor]:
        """The optimiser's state, as a checkpoint names it; the tensors themselves, which change with the next step."""
        return {
            f"{name}|{m}": torch.as_tensor(self.optimizer.state[parameter][m]).detach()
            for name, parameter in self.parameters()
            if parameter in self.optimizer.state
            for m in _MOMENTS
        }

    def snapshot(self, to: Path) -> Callable[[], None]:
        """Copy what a checkpoint holds: a plain PEFT adapter, the optimiser's moments, the best rung, the counters.

        Of the last whole optimiser step: micro-steps since then have only added to gradients, and are done again.

        Returns:
            A call that writes it, the counters last; any thread may make it, once.
        """
        weights = dict(self._tensors.values())
        copies = host_copies({**weights, **self.moments()})
        adapter = {key: copies.pop(key) for key in weights}

        def write() -> dict[str, str]:
            self._write_config(to)
            return {
                ADAPTER_FILE: write_tensors(to / ADAPTER_FILE, adapter, _METADATA),
                OPTIMIZER_FILE: write_tensors(to / OPTIMIZER_FILE, copies),
            }

        return self.record.checkpoint(to, write)

    def write_best(self) -> None:
        """The best rung's adapter into the trial's folder; nothing where there was no rung."""
        best = self.record.best
        if best is not None:
            self.record.write_adapter(lambda to: self._write(best.weights, to))

    def _write(self, weights: Weights, to: Path) -> None:
        to.mkdir(parents=True)
        save_file(weights, to / ADAPTER_FILE, metadata=_METADATA)
        self._write_config(to)

    def _write_config(self, to: Path) -> None:
        config = copy.copy(self.config)
        config.inference_mode = True
        config.save_pretrained(str(to))

    def _make_tensors(self) -> None:
        trial, model = self.trial, self.base.model
        device = self.base.device
        alpha, rslora = scaling(trial.lora)
        scale = alpha / (math.sqrt(trial.lora.rank) if rslora else trial.lora.rank)
        linear = set(linear_modules(model, self.base.heads))
        targets = tuple(f".{target}" for target in self.config.target_modules or ())
        for name, module in model.named_modules():
            if name in self.base.heads:
                head = copy.deepcopy(module.original if isinstance(module, PackedHead) else module)
                start_head(head, name in self.base.fresh, trial.seed, name, head_std(model))
                head.requires_grad_(True)
                self.heads[name] = head
                for part, parameter in head.named_parameters():
                    named = f"{PREFIX}{name}.modules_to_save.{ADAPTER}.{part}"
                    self._tensors[named] = (f"{PREFIX}{name}.{part}", parameter)
            elif name in linear and f".{name}".endswith(targets):
                d_in, d_out = linear_shape(module)
                a, b = initial_values(trial.lora, d_in, d_out, trial.seed, name)
                tensors = SlotModule(a.to(device), b.to(device), scale, trial.lora.dropout)
                self.modules[name] = tensors
                for letter, parameter in (("A", tensors.a), ("B", tensors.b)):
                    self._tensors[f"{PREFIX}{name}.lora_{letter}.{ADAPTER}.weight"] = (
                        f"{PREFIX}{name}.lora_{letter}.weight",
                        parameter,
                    )

    # --- optimiser

    def _make_optimizer(self, checkpoint: Path | None) -> torch.optim.AdamW:
        optim, fused = self.trial.optim, self.base.device.type == "cuda"  # on a GPU one kernel steps many tensors
        groups: list[dict[str, Any]] = [
            {"params": [p for name, p in self.parameters() if not _NOT_DECAYED.search(name.lower())]},
            {
                "params": [p for name, p in self.parameters() if _NOT_DECAYED.search(name.lower())],
                "weight_decay": 0.0,
            },
        ]
        rates = {id(p): peak_rate(optim, name, p.dim(), self.base.heads) for name, p in self.parameters()}
        optimizer = torch.optim.AdamW(
            split_by_rate(groups, rates),
            lr=optim.lr,
            betas=(optim.beta1, optim.beta2),
            weight_decay=optim.weight_decay,
            fused=fused,
        )
        for _, parameter in self.parameters():  # not in the first step: a slot takes all its memory on admission
            moments = {m: torch.zeros_like(parameter.data) for m in _MOMENTS if m != "step"}
            step = torch.zeros((), device=parameter.device if fused else "cpu")
            optimizer.state[parameter] = {"step": step, **moments}
        if checkpoint is not None:
            kept = load_file(checkpoint / OPTIMIZER_FILE)
            for name, parameter in self.parameters():
                for m, value in optimizer.state[parameter].items():
                    value.copy_(kept[f"{name}|{m}"])
        return optimizer

    def lay_out_moments(self) -> None:
        """Give the moments the strides of their parameters, whose place may be in a pack's stack now."""
        for _, parameter in self.parameters():
            state = self.optimizer.state[parameter]
            for m in _MOMENTS:
                if m != "step" and state[m].stride() != parameter.stride():
                    state[m] = torch.empty_like(parameter.data).copy_(state[m])

    def _make_scheduler(self) -> Any:
        """The learning-rate schedule of the whole trial, advanced to the current step."""
        optim, total = self.trial.optim, self.trial.train.max_steps
        scheduler = get_scheduler(
            "constant_with_warmup" if optim.schedule == "constant" else optim.schedule,
            optimizer=self.optimizer,
            num_warmup_steps=math.ceil(optim.warmup * total),
            num_training_steps=total,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns, as the optimiser's steps were done before the checkpoint
            for _ in range(self.record.step):
                scheduler.step()
        return scheduler
