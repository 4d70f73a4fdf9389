"""What a sweep's trials cost on this machine, measured: a base model at a precision, two probe steps, a scoring.

Imports torch. Nothing is written but into a folder that is gone afterwards.
"""

import gc
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from analysis.folder import TrialFolder
from sweeps.checks.simulate import Cost
from trainer.config import EngineConfig, TrialConfig
from trainer.data.dataset import Dataset, Row
from trainer.device_cache import Materials
from trainer.engines.batches import cut_by_length, micro_batches, pass_cost
from trainer.engines.pack import Pack
from trainer.engines.slot import Slot
from trainer.engines.slot_budget import Budget, measure
from trainer.evaluation.bias.items import BiasItems
from trainer.evaluation.evaluate import evaluate
from trainer.models.base_model import BaseModel
from trainer.models.lora import linear_modules, linear_shape

_ROWS = 512  # of each split that the probe tokenises, spread evenly
_LENGTHS = 5_000  # of each split, for the lengths
_LONG = 1_000_000  # tokens: nothing is cut
_ITEMS = (4, 32)  # scored: a few first, more where that was fast
_SOON = 1.0  # seconds
_BIAS = 4  # items of each bias set
_BATCHES = 8  # optimiser steps whose rows are counted


@dataclass(frozen=True)
class Probe:
    """Measured at one precision.

    Attributes:
        base_bytes: of the base model's weights.
        load_seconds: to load it and to tokenise.
        parameters: of the linear layers, each used once for a token.
        item_seconds: to score a validation row.
        bias_seconds: to score everything that bias is measured on.
        item_tokens: of a validation row with all its labels.
        budget: of a pass.
    """

    base_bytes: int
    load_seconds: float
    probe_seconds: float
    parameters: int
    item_seconds: float
    bias_seconds: float
    item_tokens: float
    budget: Budget


@dataclass(frozen=True)
class Lengths:
    """Tokens of a split's rows before any is cut, but by the model's window.

    Attributes:
        rows: looked at, spread evenly over the split.
        cut: share of them longer than ``data.max_length``.
    """

    rows: int
    median: int
    p95: int
    longest: int
    cut: float


class Prober:
    """Probes with a sample of the rows.

    Args:
        dataset: whole.
        device: where.
        settings: how packs are trained.
    """

    def __init__(self, dataset: Dataset, device: torch.device, settings: EngineConfig):
        self.dataset, self.device, self.settings = dataset, device, settings
        self.materials = _Sampled(device, _sample(dataset, _ROWS))

    def probe(self, trial: TrialConfig) -> Probe:
        """Load the trial's base model at its precision, and measure. Raises LorasweepError where it cannot be used."""
        began = time.perf_counter()
        base = self.materials.base(trial)
        encoded, validation = self.materials.training(trial), self.materials.validation(trial)
        loaded = time.perf_counter()
        pack = Pack(base, trial.task.name, self.settings.kernel, self.settings.activation_checkpointing)
        with tempfile.TemporaryDirectory(prefix="lorasweep-probe-") as folder:
            slot = Slot(trial, TrialFolder(Path(folder)), base, encoded, validation, _no_score, None)
            budget = measure(pack, slot)
        probed = time.perf_counter()
        bare = replace(validation, bias=BiasItems())
        evaluate(base, base.model, trial, bare, [0])  # the first allocates
        for items in _ITEMS:
            indices = [i % len(validation.rows) for i in range(min(items, len(validation.rows)))]
            seconds = _seconds(lambda: evaluate(base, base.model, trial, bare, indices))  # noqa: B023  # called at once
            if seconds > _SOON:
                break
        bias_seconds = 0.0
        for name, items_there in validation.bias.by_set.items():
            few = items_there[:_BIAS]
            if few:
                one = replace(bare, bias=BiasItems({name: few}))
                both = _seconds(lambda: evaluate(base, base.model, trial, one, indices[:1]))  # noqa: B023
                bias_seconds += max(both - seconds / len(indices), 0.0) / len(few) * len(items_there)
        mean = sum(len(row.tokens) for row in validation.encoded) / len(validation.encoded)
        labels = len(validation.labels) + 1 if trial.task.name == "completion" and validation.labels else 1
        return Probe(
            base_bytes=_bytes(base),
            load_seconds=loaded - began,
            probe_seconds=probed - loaded,
            parameters=_used_parameters(base),
            item_seconds=seconds / len(indices),
            bias_seconds=bias_seconds,
            item_tokens=mean * labels,
            budget=budget,
        )

    def n_validation(self, trial: TrialConfig) -> int:
        """Items that a completed trial is scored on; a long text is several."""
        sample = self.materials.dataset(trial).validation
        items = len(self.materials.validation(trial).rows)
        return round(len(self.dataset.validation) * items / len(sample))

    def cost(self, trial: TrialConfig, probe: Probe, n_validation: int) -> Cost:
        """What a trial costs, from the probe at its precision and its own rows.

        Args:
            n_validation: items scored at its end; those of the rung subset are known by then.
        """
        encoded, base = self.materials.training(trial), self.materials.base(trial)
        pad = base.tokenizer.pad_token_id
        batches = [batch for step in range(_BATCHES) for batch in micro_batches(trial, encoded, pad, step)]
        cost = pass_cost(self.settings, self.device)
        passes = [rows for batch in batches for [(_, rows)] in cut_by_length([batch], cost)]
        padded = sum(rows["input_ids"].numel() for rows in passes) / _BATCHES
        rung = min(trial.eval.rung_items, n_validation)
        return Cost(
            pack=trial.precision,
            own=padded * probe.budget.per_token,
            shared=len(passes) / _BATCHES * probe.budget.fixed,
            rungs=tuple(trial.train.rungs),
            rung_seconds=rung * probe.item_seconds + probe.bias_seconds,
            final_seconds=(n_validation - rung) * probe.item_seconds,
            tokens=sum(sum(batch["lengths"]) for batch in batches) / _BATCHES,
        )

    def lengths(self, trial: TrialConfig) -> dict[str, Lengths]:
        """Token lengths of each split, label and prompt included; none of texts that are cut into windows."""
        if self.dataset.schema == "text":
            return {}
        materials = _Sampled(self.device, _sample(self.dataset, _LENGTHS))
        materials.share(self.materials)
        window = self.materials.base(trial).window  # nothing longer can be asked for
        whole = replace(trial, data=replace(trial.data, max_length=min(window, _LONG)))
        found = {}
        splits = {"train": materials.training(whole), "validation": materials.validation(whole).encoded}
        for split, rows in splits.items():
            tokens = sorted(len(row.tokens) for row in rows)
            cut = sum(n > min(trial.data.max_length, window - 1) for n in tokens) / len(tokens)
            middle, p95 = tokens[len(tokens) // 2], tokens[min(len(tokens) * 95 // 100, len(tokens) - 1)]
            found[split] = Lengths(len(tokens), middle, p95, tokens[-1], cut)
        return found

    def forget(self) -> None:
        """Let the base models go: the next precision has the memory to itself, as the first one had."""
        self.materials.forget()
        gc.collect()


class _Sampled(Materials):
    """Materials of a sample of the rows."""

    def __init__(self, device: torch.device, sample: Dataset):
        super().__init__(device)
        self._sample = sample

    def dataset(self, trial: TrialConfig) -> Dataset:
        return self._sample

    def share(self, other: "_Sampled") -> None:
        """Use another's base models."""
        self._kept |= {key: kept for key, kept in other._kept.items() if key[0] == "base"}

    def forget(self) -> None:
        self._kept = {key: kept for key, kept in self._kept.items() if key[0] != "base"}


def _sample(dataset: Dataset, n: int) -> Dataset:
    def spread(rows: list[Row]) -> list[Row]:
        return rows if len(rows) <= n else [rows[i * len(rows) // n] for i in range(n)]

    return replace(dataset, train=spread(dataset.train), validation=spread(dataset.validation))


def _no_score(metrics: object) -> float:
    return 0.0


def _seconds(work: object) -> float:
    began = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - began


def _bytes(base: BaseModel) -> int:
    tensors = [*base.model.parameters(), *base.model.buffers()]
    return sum({tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors}.values())


def _used_parameters(base: BaseModel) -> int:
    """Weights that a token is multiplied with: the linear layers', and the language-model head's."""
    modules = dict(base.model.named_modules())
    shapes = [linear_shape(modules[name]) for name in linear_modules(base.model, base.heads)]
    head = base.model.get_output_embeddings()
    return sum(d_in * d_out for d_in, d_out in shapes) + (head.weight.numel() if head is not None else 0)
