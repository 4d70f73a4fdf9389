"""How many trials fit a device side by side, from the measured time and memory of two passes.

The second pass has twice as many rows. Two points give a straight line, for time and for memory: a fixed cost of a
pass, and a cost per token. A trial's memory is its adapter and optimiser (16 bytes a parameter: weight, gradient and
AdamW's two moments in float32; more of the first two where a stack pads them) plus its activations. One more trial
pays as long as sharing the fixed cost of a pass is worth it.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from trainer import host_memory
from trainer.config import TrialConfig
from trainer.engines.batches import MicroBatch, batch_of
from trainer.engines.pack import Pack
from trainer.engines.slot import Slot
from trainer.engines.tensors.stacks import padded
from trainer.models.base_model import BaseModel
from trainer.models.lora import linear_modules, linear_shape, resolve_targets
from trainer.outcomes import out_of_memory

_WEIGHT_BYTES = 8  # with its gradient
_MOMENT_BYTES = 8  # both of them
_SHARE = 0.8  # of the free memory; the rest is for scoring, the allocator and others on the machine
_WORTH = 0.05  # share by which one more slot must raise the throughput
_LONG = 0.3  # seconds; a pass that takes longer is timed only once
_DEAREST = 20  # a pass costs 2 to the power of it tokens at most, where those of the probe took no time
_LEAST = 2  # slots; one trains while Ray Tune decides about the other
_MOST = {"cpu": 8, "cuda": 32}  # slots; each trial has a process of its own in Ray Tune, of about 110 MB


@dataclass(frozen=True)
class SlotBudget:
    """What a pass costs on this device.

    Attributes:
        fixed: seconds of a pass, whatever the number of tokens.
        per_token: seconds that each token adds, padding included.
        bytes_per_token: of activations kept for the backward pass, in the probe.
        bytes_free: memory for slots and their activations, when it was measured, as if no slot were there.
        widths: linear layer → parameters of an adapter of rank 1 on it.
        head_parameters: of a slot's own task head.
        columns: the probe's ranks, summed over layers. A trial with one more keeps one more float32 a token.
        rank_multiple: of the pack's stacks; 0 where it has none.
        width: tokens of the probe's longest row.
        max_length: ``data.max_length`` of the probe's trial.
        most: slots that a device of this kind takes at most.
    """

    fixed: float
    per_token: float
    bytes_per_token: float
    bytes_free: float
    widths: Mapping[str, int]
    head_parameters: int
    columns: int
    rank_multiple: int
    width: int
    max_length: int
    most: int

    @property
    def pass_cost(self) -> float:
        """The fixed cost of a pass, in tokens that take as long: a power of two, as no more can be told by a clock."""
        tokens = self.fixed / self.per_token if self.per_token else math.inf
        return 2.0 ** min(round(math.log2(max(tokens, 1.0))), _DEAREST) if math.isfinite(tokens) else 2.0**_DEAREST

    def tokens(self, trial: TrialConfig) -> int:
        """Most tokens of one of the trial's micro-steps, padding included."""
        width = self.width if trial.data.max_length == self.max_length else trial.data.max_length
        return trial.train.batch_size // trial.train.accumulation * width

    def pack_bytes(self, trials: Sequence[TrialConfig]) -> float:
        """Predicted bytes of a pack of these trials, without the base model: what its slots hold, and a pass."""
        return self.held_bytes(trials) + self.pass_bytes(trials)

    def held_bytes(self, trials: Sequence[TrialConfig]) -> float:
        """Predicted bytes that the slots of a pack hold between passes: adapters with gradients and optimisers."""
        total = 0.0
        for own, weights in self._ranks(trials):
            total += _WEIGHT_BYTES * (self._parameters(weights) + self.head_parameters)
            total += _MOMENT_BYTES * (self._parameters(own) + self.head_parameters)
        return total

    def pass_bytes(self, trials: Sequence[TrialConfig]) -> float:
        """Predicted bytes of activations that a pass of these trials keeps for its backward pass."""
        total = 0.0
        for trial, (_, weights) in zip(trials, self._ranks(trials), strict=True):
            kept = self.bytes_per_token + 4 * (sum(weights.values()) - self.columns)
            total += self.tokens(trial) * max(kept, 1.0)
        return total

    def _ranks(self, trials: Sequence[TrialConfig]) -> list[tuple[dict[str, int], dict[str, int]]]:
        """Of each trial: layer → its own rank, and layer → the rank of its part of the stack, if there is one.

        A layer's stack has a part for every slot, of the largest rank among the trials that target the layer.
        """
        targeted = [self._targeted(trial) for trial in trials]
        largest: dict[str, int] = {}
        for trial, names in zip(trials, targeted, strict=True):
            largest |= {name: max(largest.get(name, 0), trial.lora.rank) for name in names}
        stacked = {name: padded(rank, self.rank_multiple) for name, rank in largest.items()}
        each = [dict.fromkeys(names, trial.lora.rank) for trial, names in zip(trials, targeted, strict=True)]
        return [(own, stacked if self.rank_multiple else own) for own in each]

    def _parameters(self, ranks: Mapping[str, int]) -> int:
        return sum(rank * self.widths[name] for name, rank in ranks.items())

    def _targeted(self, trial: TrialConfig) -> set[str]:
        targets = tuple(f".{target}" for target in resolve_targets(trial.lora.targets, list(self.widths)))
        return {name for name in self.widths if f".{name}".endswith(targets)}

    def slots(self, trial: TrialConfig) -> int:
        """How many trials like this one fit, and still raise the throughput k / (fixed + k · tokens · per_token)."""
        cost = self.tokens(trial) * self.per_token
        k = 1
        while k < self.most and (k + 1) / k * (self.fixed + k * cost) / (self.fixed + (k + 1) * cost) >= 1 + _WORTH:
            k += 1
        return max(1, min(max(k, _LEAST), int(self.bytes_free / self.pack_bytes([trial]))))


# The packs of a device: of each, what its base model's passes cost, and its trials.
Packs = Sequence[tuple[SlotBudget, Sequence[TrialConfig]]]


def held_bytes(packs: Packs) -> float:
    """Predicted bytes that the slots of all packs of a device hold between passes."""
    return sum(budget.held_bytes(trials) for budget, trials in packs)


def fit(packs: Packs, bytes_free: float) -> bool:
    """Whether packs fit a device side by side. They train in turns, so that only one's activations are there at a time.

    Args:
        packs: with the slots that are to be there.
        bytes_free: as ``free_bytes`` gives them.
    """
    largest = max((budget.pass_bytes(trials) for budget, trials in packs), default=0.0)
    return held_bytes(packs) + largest <= bytes_free


def free_bytes(device: torch.device, gpu_share: float, held: float = 0.0) -> float:
    """Memory for slots and their activations now, as if no slot were there.

    Base models count as used, those too that no pack trains on just now; so does what others have on the device.

    Args:
        device: of the packs.
        gpu_share: of a GPU's memory that this process may use.
        held: by the slots that are there.
    """
    return _SHARE * (_free_bytes(device, gpu_share) + held)


def measure(pack: Pack, slot: Slot, gpu_share: float = 1.0, held: float = 0.0) -> SlotBudget:
    """Measure what passes cost on a device, with a trial's own rows. Slots in the pack are not changed.

    Where there is no memory for them, with half as many, and so on: what a trial needs grows with its rows.

    Args:
        pack: of the trial's base model.
        slot: a slot of the trial made for this; of no other use afterwards.
        gpu_share: of a GPU's memory that this process may use.
        held: bytes that slots on the device hold.
    """
    trial, most = slot.trial, slot.trial.train.batch_size // slot.trial.train.accumulation
    while True:
        try:
            timed, seconds, counted, kept = _probed(pack, slot, most)
            break
        except (MemoryError, RuntimeError) as error:  # there may be room for the trial's own rows, if not for twice
            if most == 1 or not out_of_memory(error):
                raise
            most //= 2
            if pack.base.device.type == "cuda":
                torch.cuda.empty_cache()
    once = timed[0].shape
    per_token = max(_slope(seconds, timed), 0.0)
    modules = dict(pack.base.model.named_modules())
    names = linear_modules(pack.base.model, pack.base.heads)
    heads = [p for name in pack.base.heads for p in modules[name].parameters()]
    return SlotBudget(
        fixed=max(seconds[0] - per_token * math.prod(once), 0.0),
        per_token=per_token,
        bytes_per_token=max(_slope(kept, counted), 1.0),
        bytes_free=free_bytes(pack.base.device, gpu_share, held),
        widths={name: sum(linear_shape(modules[name])) for name in names},
        head_parameters=sum(p.numel() for p in heads),
        columns=padded(trial.lora.rank, pack.rank_multiple) * len(slot.modules),
        rank_multiple=pack.rank_multiple,
        width=once[1],
        max_length=trial.data.max_length,
        most=_MOST.get(pack.base.device.type, 1),
    )


def _probed(pack: Pack, slot: Slot, rows: int) -> tuple[list[MicroBatch], list[float], list[MicroBatch], list[int]]:
    """Passes of so many of the longest rows, and of twice as many: batches and seconds, batches and bytes."""
    longest = sorted(slot.encoded, key=lambda row: -(len(row.context) + len(row.completion)))
    chosen = [longest[i % len(longest)] for i in range(2 * rows)]
    pad = pack.base.pad_token
    timed = counted = [batch_of(slot.trial, chosen[:n], pad) for n in (rows, 2 * rows)]
    if pack.base.device.type != "cuda":  # smaller passes show what autograd keeps just as well
        counted = [batch_of(slot.trial, chosen[:n], pad) for n in (max(rows // 4, 1), max(rows // 2, 2))]
    pack.add(slot)
    try:
        pack.run_pass([slot], counted[:1])  # the first allocates, compiles and caches
        kept = [kept_bytes(partial(pack.run_pass, [slot], [batch]), pack.base) for batch in counted]
        seconds = [_least_time(partial(pack.run_pass, [slot], [batch]), pack.base.device) for batch in timed]
    finally:
        pack.remove(slot)
    return timed, seconds, counted, kept


def _slope(measured: Sequence[float], batches: Sequence[MicroBatch]) -> float:
    """What one more token adds.

    Args:
        measured: seconds or bytes of two passes.
        batches: of the two passes.
    """
    fewer, more = (math.prod(batch.shape) for batch in batches)
    return (measured[1] - measured[0]) / (more - fewer)


def _least_time(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the faster of two runs, which other programs slowed down less; of one run that is long enough."""
    times: list[float] = []
    while len(times) < 2 and sum(times) < _LONG:
        times.append(time_of(work, device))
    return min(times)


def time_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run, from when the device is idle until it is again."""
    wait_for(device)
    began = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - began


def wait_for(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def kept_bytes(work: Callable[[], object], base: BaseModel, adapters: Iterable[torch.Tensor] = ()) -> int:
    """Bytes that a pass adds at its peak: on a GPU as the allocator counts, on a CPU what autograd saves.

    Args:
        work: runs the pass.
        base: the base model.
        adapters: other weights that are not to be counted.
    """
    if base.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(base.device)
        before = torch.cuda.memory_allocated(base.device)
        work()
        return torch.cuda.max_memory_allocated(base.device) - before
    weights = {parameter.untyped_storage().data_ptr() for parameter in (*base.model.parameters(), *adapters)}
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        work()
    return sum(saved.values())


def _free_bytes(device: torch.device, gpu_share: float) -> float:
    """What may still be allocated; of a GPU that is shared, no more than is left of this process's share.

    What other processes have not taken yet of their shares is free as well, but not for this one.
    """
    if device.type == "cuda":
        allocated = torch.cuda.memory_allocated(device)
        free, total = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - allocated
        return float(min(free + unused, gpu_share * total - allocated))
    return float(host_memory.available())
