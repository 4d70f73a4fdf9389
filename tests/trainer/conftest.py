"""A small trial on a tiny model, for the tests of engines and scoring."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trainer.config import (
    BiasConfig,
    DataConfig,
    EvalConfig,
    LoraSettings,
    MitigationConfig,
    ModelConfig,
    OptimConfig,
    TaskConfig,
    TrainConfig,
    TrialConfig,
)


@pytest.fixture
def make_trial(tiny_models: dict[str, Path], tiny_data: tuple[Path, Path]) -> Callable[..., TrialConfig]:
    """``make_trial("llama", rank=4, …)``: keyword arguments replace fields of whichever part has them."""

    def make(model: str = "llama", **changes: Any) -> TrialConfig:
        parts: dict[str, Any] = {
            "model": ModelConfig(source="local", path=str(tiny_models[model])),
            "data": DataConfig(
                source="csv",
                train=str(tiny_data[0]),
                validation=str(tiny_data[1]),
                text="text",
                label="label",
                max_length=32,
            ),
            "task": TaskConfig(name="classification" if model == "bert" else "completion"),
            "lora": LoraSettings(rank=4, alpha_rule="ratio", alpha_value=2.0, targets="all_linear"),
            "optim": OptimConfig(lr=5e-3, warmup=0.1),
            "train": TrainConfig(max_steps=6, batch_size=4, rungs=[2, 4, 6]),
            "mitigation": MitigationConfig(),
            "eval": EvalConfig(rung_items=12, batch_size=8),
            "bias": BiasConfig(crows_pairs=0, stereoset=0, swap=0),
        }
        top = {"trial_id": "t0000", "seed": 7, "precision": "fp32"}
        for name, value in changes.items():
            if name in top:
                top[name] = value
                continue
            owner = next(part for part, config in parts.items() if hasattr(config, name) and part != "model")
            parts[owner] = replace(parts[owner], **{name: value})
        return TrialConfig(**top, **parts)

    return make


@pytest.fixture(scope="module")
def kept() -> Any:
    """Models and data that the tests of a module share."""
    import torch

    from trainer.device_cache import DeviceCache

    return DeviceCache(torch.device("cpu"))
