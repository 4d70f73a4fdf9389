"""A frozen base model cut into the parts that each process holds, for one that does not fit one device (FSDP2).

Only the frozen weights are sharded: the layers of the model's blocks, which are all but a few percent of it. A block's
weights are gathered for the time of its pass. Adapters are put on afterwards and stay whole in every process, so that
they are trained, scored, saved and resumed as on one device.

``torch.distributed.fsdp.fully_shard``: https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html
"""

import math
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from analysis.errors import ConfigError
from trainer.models.ranks import Ranks

_FOR_WEIGHTS = 0.6  # share of a device's memory that base weights may take; activations and adapters have the rest
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


def is_large(parameters: int, precision: str, device: torch.device) -> bool:
    """Whether a base model's weights leave too little of a GPU for the rest of a trial."""
    return parameters * _BYTES[precision] > _FOR_WEIGHTS * torch.cuda.mem_get_info(device)[1]


def devices_needed(parameters: int, precision: str, memory: float) -> int:
    """Over how many devices of this memory, in bytes, a base model is to be sharded so that a trial fits."""
    return max(1, math.ceil(parameters * _BYTES[precision] / (_FOR_WEIGHTS * memory)))


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
