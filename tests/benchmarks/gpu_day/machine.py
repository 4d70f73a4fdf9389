"""What a figure was measured on: versions, card, driver, clocks, power limit, memory."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from typing import Any

import psutil
import torch

LIBRARIES = (
    *("torch", "triton", "transformers", "peft", "accelerate", "numpy", "safetensors", "tokenizers", "bitsandbytes"),
    *("ray", "optuna", "hydra-core", "omegaconf", "pytest"),
)
_CARD = {
    "card": "name",
    "driver": "driver_version",
    "sm_mhz": "clocks.sm",
    "sm_mhz_max": "clocks.max.sm",
    "memory_mhz": "clocks.mem",
    "power_w": "power.draw",
    "power_limit_w": "power.limit",
    "celsius": "temperature.gpu",
    "memory_mib": "memory.total",
    "memory_used_mib": "memory.used",
    "utilisation_percent": "utilization.gpu",
}


def versions() -> dict[str, str]:
    """Library → version; without those that are not there."""
    found = {"python": platform.python_version(), "cuda": str(torch.version.cuda)}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    found["torch"] = torch.__version__
    return found


def host() -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def card_now() -> dict[str, Any]:
    """The card and its state just now, as its driver says; empty where there is none."""
    if shutil.which("nvidia-smi") is None:
        return {}
    query = ["nvidia-smi", f"--query-gpu={','.join(_CARD.values())}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    cells = [cell.strip() for cell in said.splitlines()[0].split(",")]
    return {name: _number(cell) for name, cell in zip(_CARD, cells, strict=False)}


def _number(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell
