"""An adapter as PEFT reads it: the same bytes for the same weights, and modes as every other file has them.

PEFT's and safetensors' own writing gives neither: PEFT keeps names in sets, whose order differs between processes, and
safetensors makes a file that its owner alone may read.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.engines.checkpoints import ADAPTER_FILE, ADAPTER_METADATA, write_tensors

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig


def write_adapter_files(to: Path, config: "PeftConfig", weights: Mapping[str, "torch.Tensor"]) -> dict[str, str]:
    """Write an adapter's configuration and weights into a folder, which is made.

    Args:
        to: the folder.
        config: of the adapter; it is left as it is.
        weights: by PEFT's names, on the CPU and contiguous.

    Returns:
        File name → SHA-256 of what was flushed to the disk: the weights.
    """
    to.mkdir(parents=True, exist_ok=True)
    config = copy.copy(config)
    config.inference_mode = True
    for name, value in list(vars(config).items()):
        if isinstance(value, set):
            setattr(config, name, sorted(value))
    config.save_pretrained(str(to))
    return {ADAPTER_FILE: write_tensors(to / ADAPTER_FILE, weights, ADAPTER_METADATA)}
