"""Measures what a sweep's trials cost on this machine: loads a base model, trains some steps, scores some items.

Imports torch. Nothing is written but into a folder that is gone afterwards.
"""

import gc
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from analysis.folder import TrialFolder
from sweeps.checks.length import fitting_tokens
from sweeps.checks.simulate import Cost, Sizes
from trainer.config import EngineConfig, TrialConfig
from trainer.data.dataset import Dataset, Row
from trainer.data.encode import Encoded
from trainer.device_cache import DeviceCache
from trainer.engines.batches import MicroBatch, cut_by_length, micro_batches, pass_cost
from trainer.engines.pack import Pack
from trainer.engines.slot import Slot
from trainer.engines.slot_budget import SlotBudget, measure
from trainer.evaluation.bias.items import BiasItems
from trainer.evaluation.evaluate import Validation, evaluate
from trainer.evaluation.generate import ToAnswer
from trainer.models.base_model import BaseModel
from trainer.models.lora import linear_modules, linear_shape

_ROWS = 512  # of each split that the probe tokenises, spread evenly
_LENGTHS = 5_000  # of each split, for the lengths
_LONG = 1_000_000  # tokens: nothing is cut
_ITEMS = (4, 32)  # scored: a few first, more where that was fast
_SOON = 1.0  # seconds
_ANSWERS = 16  # prompts answered at once
_STEPS = 4  # of training with the trial's own batches, after the first
_BIAS = 4  # items of each bias set
_BATCHES = 8  # optimiser steps whose tokens are counted
_PROBED_TOKENS = 128  # of a row, at least where rows have as many
_PROBE_SECONDS = 15.0  # that a second probe, at the longest rows, may take
_SHORT = 64  # tokens; rows are not cut to fewer to save time


@dataclass(frozen=True)
class Probe:
    """Costs at one precision.

    Attributes:
        base_bytes: of the base model's weights and buffers.
        load_seconds: to load the model and to tokenise the sample.
        probe_seconds: that measuring the budget took.
        parameters: of the linear layers and the head, each used once for a token.
        item_seconds: to score a validation row.
        bias_seconds: to score everything that bias is measured on.
        item_tokens: mean tokens of a validation row, scored with each of its labels.
        answer_seconds: to answer a validation row, as far as rows are answered; of the untuned model, which rarely ends
            before its longest answer.
        budget: time and memory of a training pass.
        besides: seconds of an optimiser step that its passes do not account for, such as the optimiser's.
    """

    base_bytes: int
    load_seconds: float
    probe_seconds: float
    parameters: int
    item_seconds: float
    bias_seconds: float
    item_tokens: float
    answer_seconds: float
    budget: SlotBudget
    besides: float


@dataclass(frozen=True)
class Lengths:
    """Tokens of a split's rows before any row is cut to ``data.max_length``; the model's window still cuts.

    Attributes:
        rows: how many were counted, spread evenly over the split.
        median, p95, p99, longest: tokens.
        cut: share of them longer than ``data.max_length``.
    """

    rows: int
    median: int
    p95: int
    p99: int
    longest: int
    cut: float


class Prober:
    """Measures costs with a sample of the rows.

    Args:
        dataset: all rows.
        device: to measure on.
        settings: how packs are trained.
        bases: has base models loaded already.
        gpu_share: of a GPU's memory that a worker of the sweep may use.
    """

    def __init__(
        self,
        dataset: Dataset,
        device: torch.device,
        settings: EngineConfig,
        bases: DeviceCache | None = None,
        gpu_share: float = 1.0,
    ):
        self.dataset, self.device, self.settings, self.gpu_share = dataset, device, settings, gpu_share
        self.device_cache = _Sampled(device, _sample(dataset, _ROWS))
        if bases is not None:
            self.device_cache.share(bases)

    def probe(self, trial: TrialConfig) -> Probe:
        """Load a trial's base model at its precision, and measure.

        Args:
            trial: of which model, precision, data and task count.

        Raises:
            LorasweepError: where the model or the precision cannot be used here.
        """
        began = time.perf_counter()
        base = self.device_cache.base(trial)
        encoded, validation = self.device_cache.training(trial), self.device_cache.validation(trial)
        loaded = time.perf_counter()
        pack = Pack(base, trial.task.name, self.settings.kernel, self.settings.activation_checkpointing)
        with tempfile.TemporaryDirectory(prefix="lorasweep-probe-") as folder:
            slot = Slot(trial, TrialFolder(Path(folder)), base, encoded, validation, _no_score, None)
            budget = measure(pack, slot, self.gpu_share)
            pack.pass_cost = self._pass_cost(budget)
            besides = self._besides(pack, slot, budget)
        probed = time.perf_counter()
        bare = replace(validation, bias=BiasItems(), to_answer=ToAnswer())
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
        answer_seconds = self._answer_seconds(
            trial, replace(bare, to_answer=validation.to_answer), seconds / len(indices)
        )
        mean = _mean_tokens(validation.encoded)
        labels = len(validation.labels) + 1 if trial.task.name == "completion" and validation.labels else 1
        return Probe(
            base_bytes=_bytes(base),
            load_seconds=loaded - began,
            probe_seconds=probed - loaded,
            parameters=_used_parameters(base),
            item_seconds=seconds / len(indices),
            bias_seconds=bias_seconds,
            item_tokens=mean * labels,
            answer_seconds=answer_seconds,
            budget=budget,
            besides=besides,
        )

    def _answer_seconds(self, trial: TrialConfig, validation: Validation, item_seconds: float) -> float:
        """Seconds to answer a row, measured on some; 0 where none is answered."""
        prompts = validation.to_answer.prompts[:_ANSWERS]
        if not prompts:
            return 0.0
        base, some = self.device_cache.base(trial), replace(validation.to_answer, prompts=prompts)
        few = replace(validation, to_answer=some)
        taken = _seconds(lambda: evaluate(base, base.model, trial, few, [0], moment="final")) - item_seconds
        rows = len({prompt.row for prompt in prompts})
        return max(0.0, taken) / rows

    def _besides(self, pack: Pack, slot: Slot, budget: SlotBudget) -> float:
        """Train some steps with the trial's own batches, and compare with what their passes should take."""
        slot.forget_micro_steps()
        pack.add(slot)
        seconds: list[float] = []
        foretold: list[float] = []
        try:
            while pack.trains(slot) and len(seconds) <= _STEPS and sum(seconds) < _SOON:
                batches = micro_batches(slot.trial, slot.encoded, slot.base.pad_token, slot.record.step)
                tokens, passes = self._padded(batches, budget)
                foretold.append(tokens * budget.per_token + passes * budget.fixed)
                began, step = time.perf_counter(), slot.record.step
                while slot.record.step == step:
                    if pack.step():  # it diverged, or memory ran out
                        return 0.0
                seconds.append(time.perf_counter() - began)
        finally:
            pack.remove(slot)
        if len(seconds) < 2:  # the first allocates
            return 0.0
        return max(0.0, (sum(seconds[1:]) - sum(foretold[1:])) / len(seconds[1:]))

    def _pass_cost(self, budget: SlotBudget) -> float:
        return pass_cost(self.settings, self.device) or budget.pass_cost

    def _padded(self, batches: Sequence[MicroBatch], budget: SlotBudget) -> tuple[int, int]:
        """(tokens with padding, passes) of micro-batches of one slot."""
        cost = self._pass_cost(budget)
        passes = [rows for batch in batches for [(_, rows)] in cut_by_length([batch], cost)]
        return sum(math.prod(rows.shape) for rows in passes), len(passes)

    def n_validation(self, trial: TrialConfig) -> int:
        """Items that a completed trial is scored on, estimated from the sample; a long text is several items."""
        sample = self.device_cache.dataset(trial).validation
        items = len(self.device_cache.validation(trial).rows)
        return round(len(self.dataset.validation) * items / len(sample))

    def cost(self, trial: TrialConfig, probe: Probe, n_validation: int) -> Cost:
        """What a trial costs, from the probe at its precision and the trial's own rows.

        Args:
            trial: with its sampled values.
            probe: at its precision.
            n_validation: items scored at its end; those of the rung subset have their scores by then.
        """
        encoded, base = self.device_cache.training(trial), self.device_cache.base(trial)
        pad = base.pad_token
        batches = [batch for step in range(_BATCHES) for batch in micro_batches(trial, encoded, pad, step)]
        padded, passes = (counted / _BATCHES for counted in self._padded(batches, probe.budget))
        rung, settings = min(trial.eval.rung_items, n_validation), trial.eval
        at_end = (
            min(max(settings.generate_items, settings.generate_final_items), n_validation) if settings.answers else 0
        )
        at_rungs = min(settings.generate_items, rung) if settings.answers == "rung" else 0
        return Cost(
            pack=trial.precision,
            own=padded * probe.budget.per_token + probe.besides,
            shared=passes * probe.budget.fixed,
            rungs=tuple(trial.train.rungs),
            rung_seconds=rung * probe.item_seconds + probe.bias_seconds + at_rungs * probe.answer_seconds,
            final_seconds=(n_validation - rung) * probe.item_seconds + (at_end - at_rungs) * probe.answer_seconds,
            tokens=sum(sum(batch.lengths) for batch in batches) / _BATCHES,
        )

    def sizes(self, trial: TrialConfig, timed: bool = True) -> Sizes:
        """How much there is to train on, and what a trial costs at each ``data.max_length`` that it may have.

        Args:
            trial: whose ``data.max_length`` may be 0: then as long as 99 % of the rows, and down by halves.
            timed: measure costs; else they are 0.
        """
        longest = trial.data.max_length or self._fitting(trial)
        allowed = [longest]
        while timed and not trial.data.max_length and allowed[-1] >= 2 * _SHORT and self.dataset.schema != "text":
            allowed.append(-(-allowed[-1] // 16) * 8)
        at = {n: replace(trial, data=replace(trial.data, max_length=n)) for n in allowed}
        sampled = len(self.device_cache.training(at[longest]))
        rows = max(1, round(sampled * len(self.dataset.train) / len(self.device_cache.dataset(trial).train)))
        if not timed:
            return Sizes(rows, 0, 1, {longest: Cost("", 0.0, 0.0, (), 0.0, 0.0)}, {longest: 0.0})
        short = next((n for n in reversed(allowed) if n >= _PROBED_TOKENS), longest)
        probes = {short: self.probe(at[short])}
        more_tokens = 4 * trial.train.batch_size // trial.train.accumulation * longest  # of the passes of a probe
        if longest > short and more_tokens * probes[short].budget.per_token < _PROBE_SECONDS:
            probes[longest] = self.probe(at[longest])  # attention makes a token of a long row dearer
        tokens = {n: _mean_tokens(self.device_cache.validation(it).encoded) for n, it in at.items()}
        n_validation = self.n_validation(at[short])
        item_seconds, costs = {}, {}
        for n, one in at.items():
            probe = _between(probes, n, tokens)
            item_seconds[n], costs[n] = probe.item_seconds, self.cost(one, probe, n_validation)
        return Sizes(rows, n_validation, probes[max(probes)].budget.slots(at[longest]), costs, item_seconds)

    def lost(self, trial: TrialConfig) -> str:
        """A sentence on the loss-bearing tokens of a sample of the rows that ``data.max_length`` cuts, or ""."""
        device_cache = _Sampled(self.device, _sample(self.dataset, _LENGTHS))
        device_cache.share(self.device_cache)
        return device_cache.lost(trial)

    def _fitting(self, trial: TrialConfig) -> int:
        """``fitting_tokens``, within the model's window."""
        needed = max((it.p99 for it in self.lengths(trial).values()), default=0)
        return min(fitting_tokens(needed, self.dataset.schema), self.device_cache.base(trial).window)

    def lengths(self, trial: TrialConfig) -> dict[str, Lengths]:
        """Token lengths of each split, label and prompt included; none of texts that are cut into windows."""
        if self.dataset.schema == "text":
            return {}
        device_cache = _Sampled(self.device, _sample(self.dataset, _LENGTHS))
        device_cache.share(self.device_cache)
        window = self.device_cache.base(trial).window  # no longer rows can be trained on
        whole = replace(trial, data=replace(trial.data, max_length=min(window, _LONG)))
        by_split = {}
        splits = {"train": device_cache.training(whole), "validation": device_cache.validation(whole).encoded}
        for split, rows in splits.items():
            tokens = sorted(len(row.tokens) for row in rows)
            cut = sum(n > min(trial.data.max_length or window, window - 1) for n in tokens) / len(tokens)
            middle, p95, p99 = (tokens[len(tokens) * share // 100] for share in (50, 95, 99))
            by_split[split] = Lengths(len(tokens), middle, p95, p99, tokens[-1], cut)
        return by_split

    def forget(self) -> None:
        """Let the base models go, so that the next precision has as much memory as the first one had."""
        self.device_cache.forget()
        gc.collect()


def sizes_on(device_cache: DeviceCache, settings: EngineConfig, trial: TrialConfig, timed: bool) -> Sizes:
    """``Prober.sizes`` with the base model and the rows of a device's own cache.

    Args:
        device_cache: of the device.
        settings: how packs are trained.
        trial: see ``Prober.sizes``.
        timed: see there.
    """
    device_cache.base(trial)
    return Prober(device_cache.dataset(trial), device_cache.device, settings, device_cache).sizes(trial, timed)


class _Sampled(DeviceCache):
    """A device cache of a sample of the rows."""

    def __init__(self, device: torch.device, sample: Dataset):
        super().__init__(device)
        self._sample = sample

    def dataset(self, trial: TrialConfig) -> Dataset:
        return self._sample

    def share(self, other: DeviceCache) -> None:
        """Use another's base models."""
        self._kept |= {key: kept for key, kept in other._kept.items() if key[0] == "base"}

    def forget(self) -> None:
        self._kept = {key: kept for key, kept in self._kept.items() if key[0] != "base"}


def _between(probes: Mapping[int, Probe], max_length: int, tokens: Mapping[int, float]) -> Probe:
    """A probe at a ``data.max_length`` from those at the shortest and at the longest that was probed.

    Args:
        probes: ``data.max_length`` → what was measured at it; one or two.
        max_length: asked for.
        tokens: ``data.max_length`` → mean tokens of a row to score.
    """
    short, long = min(probes), max(probes)
    share = max(0.0, (max_length - short) / (long - short)) if long > short else 0.0

    def mixed(of_short: float, of_long: float) -> float:
        return of_short + share * (of_long - of_short)

    one, other = probes[short], probes[long]
    budget = replace(
        one.budget,
        fixed=mixed(one.budget.fixed, other.budget.fixed),
        per_token=mixed(one.budget.per_token, other.budget.per_token),
    )
    a_token = mixed(one.item_seconds / tokens[short], other.item_seconds / tokens[long])
    besides = mixed(one.besides, other.besides)
    return replace(one, budget=budget, item_seconds=a_token * tokens[max_length], besides=besides)


def _mean_tokens(rows: Sequence[Encoded]) -> float:
    return sum(len(row.tokens) for row in rows) / len(rows)


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
