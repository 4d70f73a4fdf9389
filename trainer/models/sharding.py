"""A frozen base model cut into the parts that each process holds, for one that does not fit one device (FSDP2).

Only the frozen weights are sharded: the layers of the model's blocks, which are all but a few percent of it. A block's
weights are gathered for the time of its pass. Adapters are put on afterwards and stay whole in every process, so that
they are trained, scored, saved and resumed as on one device.

``torch.distributed.fsdp.fully_shard``: https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from analysis.errors import ConfigError
from trainer.config import TrialConfig
from trainer.models.lora import linear_modules, linear_shape, resolve_targets
from trainer.models.ranks import Ranks

_SHARE = 0.8  # of a device's memory; the rest is for scoring and the allocator, as in trainer/engines/slot_budget.py
_BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0, "nf4": 0.5625}  # of a weight; nf4 with its scales


def may_be_sharded(sharding: str, precision: str, device: torch.device, ranks: Ranks) -> bool:
    """Whether a base model is sharded if it is large enough.

    Args:
        sharding: ``engine.sharding``.
        precision: of the base model.
        device: that each process has.
        ranks: the processes.
    """
    if ranks.alone or sharding == "ddp":
        return False
    return sharding == "fsdp" or (device.type == "cuda" and precision not in ("int8", "nf4"))


@dataclass(frozen=True)
class Needs:
    """Bytes that a trial needs, over all its devices.

    Attributes:
        weights: of the base model: whole on each device, or in parts.
        trained: of the adapter: weight, gradient and AdamW's moments, whole on each device.
        activations: of a micro-batch; each device has those of its rows.
    """

    weights: float
    trained: float
    activations: float

    def fits(self, memory: float, devices: int, sharded: bool) -> bool:
        """Whether each of some devices of so many bytes holds its part."""
        weights = self.weights / devices if sharded else self.weights
        return weights + self.trained + self.activations / devices <= _SHARE * memory

    def devices(self, memory: float) -> int | None:
        """The fewest devices of so many bytes that hold it in parts; None where no number does."""
        room = _SHARE * memory - self.trained
        return max(1, math.ceil((self.weights + self.activations) / room)) if room > 0 else None


def needs(model: PreTrainedModel, trial: TrialConfig, checkpointing: bool = False) -> Needs:
    """What a trial on a base model needs, reckoned from shapes.

    A block keeps about 34 bytes a token and channel in bf16 for its backward pass, twice that in float32; with
    activation checkpointing its input alone (Korthikanti et al. 2022, arXiv 2205.05198, section 4.1, without the
    attention scores, which are not kept).

    Args:
        model: at any place, "meta" too.
        trial: precision, adapter, batch and length.
        checkpointing: whether activations are recomputed.
    """
    layers = [(name, linear_shape(module)) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    plain = 4.0 if trial.precision == "fp32" else 2.0
    ends = {module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None}
    kept_whole = sum({id(p): p.numel() for module in ends for p in module.parameters()}.values())  # never quantised
    weights = (model.num_parameters() - kept_whole) * _BYTES[trial.precision] + kept_whole * plain
    targets = tuple(f".{it}" for it in resolve_targets(trial.lora.targets, linear_modules(model, frozenset())))
    adapted = sum(d_in + d_out for name, (d_in, d_out) in layers if f".{name}".endswith(targets))
    config: Any = model.config.get_text_config()
    tokens = trial.train.batch_size // trial.train.accumulation * trial.data.max_length
    kept = 2 if checkpointing else 34
    activations = tokens * config.hidden_size * config.num_hidden_layers * kept * plain / 2
    return Needs(weights, 16.0 * trial.lora.rank * adapted, activations)


def too_large(need: Needs, precision: str, memory: float, nf4: Needs | None = None) -> str:
    """Why no device of so many bytes holds a trial, and what does, in a sentence; empty where one does.

    Args:
        need: of the trial.
        precision: of its base model.
        memory: of a device.
        nf4: what it needs at precision=nf4, where that can be had.
    """
    if need.weights + need.trained <= memory:  # activations can be made fewer; whether they fit, the first pass shows
        return ""
    devices = need.devices(memory)
    several = f"engine=hf resources.gpus_per_trial={devices} trains over so many" if devices else ""
    smaller = "precision=nf4 needs one" if nf4 is not None and nf4.fits(memory, 1, False) else ""
    remedy = ", or ".join(filter(None, (several, smaller))) or "use a smaller model"
    whole = need.weights + need.trained + need.activations
    return (
        f"precision={precision}: the base model is {need.weights / 1e9:.1f} GB, with adapter and activations"
        f" {whole / 1e9:.1f} GB, and a GPU here has {memory / 1e9:.1f} GB: no single one holds it."
        f" {remedy[0].upper()}{remedy[1:]}."
    )


def shard(model: PreTrainedModel, device: torch.device, mesh: DeviceMesh) -> None:
    """Keep this process's part of a model's blocks, and the rest whole, on its device.

    Args:
        model: frozen, the same in every process; changed in place.
        device: of this process.
        mesh: of all processes.

    Raises:
        ConfigError: where the model has no list of blocks.
    """
    blocks = _blocks(model)
    if not blocks:
        raise ConfigError(
            f"engine.sharding=fsdp: {type(model).__name__} has no list of blocks that could be sharded. Use"
            " engine.sharding=ddp."
        )
    for block in blocks:
        fully_shard(block, mesh=mesh)
    sharded = {id(parameter) for block in blocks for parameter in block.parameters()}
    whole = {parameter for parameter in model.parameters() if id(parameter) not in sharded}
    fully_shard(model, mesh=mesh, ignored_params=whole)
    for tensor in (*whole, *model.buffers()):
        tensor.data = tensor.data.to(device)


@torch.no_grad()
def first_pass(model: PreTrainedModel) -> None:
    """Run a sharded model as a whole, in all processes, before scoring enters it further in: FSDP wants it so."""
    model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=model.device))


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of the outermost lists of modules, in their order."""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    outermost = [it for it in lists if not any(it[0].startswith(f"{name}.") for name, _ in lists if name != it[0])]
    found: list[Any] = [block for _, blocks in outermost for block in blocks]
    return [block for block in found if any(True for _ in block.parameters())]
