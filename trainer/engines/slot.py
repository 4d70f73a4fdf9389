"""One trial in a pack: its trained tensors, optimiser, schedule, place in the data, and checkpoints."""

import copy
import math
import re
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import load_file
from torch import nn

from analysis.folder import TrialFolder
from trainer.config import TrialConfig
from trainer.data.encode import Encoded
from trainer.engines.adapter_files import write_adapter_files
from trainer.engines.batches import MicroBatch, micro_batches
from trainer.engines.checkpoints import ADAPTER_FILE, OPTIMIZER_FILE, write_tensors
from trainer.engines.learning_rates import PREFIX, peak_rate, schedule
from trainer.engines.pack_layers import PackedHead, SlotModule
from trainer.engines.tensors.flat_adamw import Stepping
from trainer.engines.tensors.slot_tensors import Group, Trained, own_pieces
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
    suffix,
)

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
        scale: the factor on B A x.
        resting: whether it waits after a rung.
        waited: for how many steps of the pack it has waited at a rung, to be scored with others.
        tensors: PEFT's name → trained parameter with gradient and moments, in PEFT's order.
        pieces: the memory of ``tensors`` that the optimiser steps.
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
        self.tensors: dict[str, Trained] = {}
        self._make_tensors()
        self.pieces = own_pieces(self.tensors.values())
        self.resting = False
        self.micro = 0
        self._updates = 0  # of the moments
        self._batches: list[MicroBatch] = []
        if checkpoint is not None:
            self.restore(load_file(checkpoint / ADAPTER_FILE))
            self._restore_moments(load_file(checkpoint / OPTIMIZER_FILE))
            self.record.load(checkpoint)
        self.waited = 0
        self.spoiled = False
        self._factor = schedule(trial.optim, trial.train.max_steps)

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

    def next_batch(self) -> MicroBatch:
        """The micro-batch that comes next (see ``micro_batches``)."""
        if not self._batches:
            self._batches = micro_batches(self.trial, self.encoded, self.base.pad_token, self.record.step)
        return self._batches[self.micro]

    @property
    def ready(self) -> bool:
        """Whether all micro-steps of the optimiser step are done."""
        return self.micro == self.trial.train.accumulation

    @torch.no_grad()
    def forget_micro_steps(self) -> None:
        """Start the current optimiser step over, after a pass that failed."""
        self.micro = 0
        torch._foreach_zero_([one.gradient for one in self.tensors.values()])

    def stepping(self) -> Stepping:
        """The optimiser step that comes next, with the learning rate that the schedule has for it."""
        optim = self.trial.optim
        factor = self._factor(self.record.step)
        return Stepping(self.pieces, self.trial.train.clip, factor, optim.beta1, optim.beta2, self._updates + 1)

    def count(self) -> None:
        """Count an optimiser step that was made."""
        self.record.tokens += sum(sum(batch.lengths) for batch in self._batches)
        self.record.step += 1
        self._updates += 1
        self._batches, self.micro = [], 0

    # --- tensors

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Trained parameters with PEFT's names, in PEFT's order."""
        return [(name, one.parameter) for name, one in self.tensors.items()]

    def weights(self) -> Weights:
        """A copy on the CPU, by the keys of a PEFT adapter file."""
        return host_copies({one.key: one.parameter for one in self.tensors.values()}, pinned=False)  # kept for long

    @torch.no_grad()
    def restore(self, weights: Weights) -> None:
        """Copy weights into the trained tensors, in place."""
        for one in self.tensors.values():
            one.parameter.copy_(weights[one.key])

    def snapshot(self, to: Path) -> Callable[[], None]:
        """Copy what a checkpoint holds: a plain PEFT adapter, the optimiser's moments, the best rung, the counters.

        Of the last whole optimiser step: micro-steps since then have only added to gradients, and are done again.

        Returns:
            A call that writes it, the counters last; any thread may make it, once.
        """
        weights = {one.key: one.parameter for one in self.tensors.values()}
        copies = host_copies({**weights, **self.moments()})
        adapter = {key: copies.pop(key) for key in weights}

        def write() -> dict[str, str]:
            digests = write_adapter_files(to, self.config, adapter)
            return digests | {OPTIMIZER_FILE: write_tensors(to / OPTIMIZER_FILE, copies)}

        return self.record.checkpoint(to, write)

    def moments(self) -> Weights:
        """The optimiser's state, as a checkpoint names it; the tensors themselves, which change with the next step."""
        held = {f"{name}|{m}": kept for name, one in self.tensors.items() for m, kept in one.moments.items()}
        return held | {f"{name}|step": torch.tensor(float(self._updates)) for name in self.tensors}

    @torch.no_grad()
    def _restore_moments(self, kept: Weights) -> None:
        for name, one in self.tensors.items():
            for m, value in one.moments.items():
                value.copy_(kept[f"{name}|{m}"])
            self._updates = int(kept[f"{name}|step"])

    def write_best(self) -> None:
        """The best rung's adapter into the trial's folder; nothing where there was no rung."""
        best = self.record.best
        if best is not None:
            self.record.write_adapter(lambda to: write_adapter_files(to, self.config, best.weights))

    def _make_tensors(self) -> None:
        trial, model = self.trial, self.base.model
        device = self.base.device
        alpha, rslora = scaling(trial.lora)
        self.scale = scale = alpha / (math.sqrt(trial.lora.rank) if rslora else trial.lora.rank)
        linear = set(linear_modules(model, self.base.heads))
        targets = tuple(f".{target}" for target in self.config.target_modules or ())
        for name, module in model.named_modules():
            if name in self.base.heads:
                while isinstance(module, PackedHead):
                    module = module.original
                head = copy.deepcopy(module)
                start_head(head, name in self.base.fresh, trial.seed, name, head_std(model))
                head.requires_grad_(True)
                self.heads[name] = head
                for part, parameter in head.named_parameters():
                    named = f"{PREFIX}{name}.modules_to_save.{ADAPTER}.{part}"
                    self._train(named, f"{PREFIX}{name}.{part}", f"{name}.{part}", "head", parameter)
            elif name in linear and f".{name}".endswith(targets):
                d_in, d_out = linear_shape(module)
                a, b = initial_values(trial.lora, d_in, d_out, trial.seed, name)
                tensors = SlotModule(a.to(device), b.to(device), scale, trial.lora.dropout)
                self.modules[name] = tensors
                for letter, parameter in (("A", tensors.a), ("B", tensors.b)):
                    layer = f"{PREFIX}{name}.lora_{letter}"
                    self._train(f"{layer}.{ADAPTER}.weight", f"{layer}.weight", name, letter.lower(), parameter)

    def _train(self, name: str, key: str, place: str, part: str, parameter: nn.Parameter) -> None:
        optim = self.trial.optim
        layers = "" if part == "head" else suffix(place)
        group = Group(part, layers, decayed=not _NOT_DECAYED.search(name.lower()))
        rate = peak_rate(optim, name, parameter.dim(), self.base.heads)
        self.tensors[name] = Trained(key, place, group, rate, optim.weight_decay * group.decayed, parameter)
