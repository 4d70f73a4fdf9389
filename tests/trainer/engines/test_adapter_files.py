"""An adapter's files: the same bytes for the same weights, as PEFT reads them, with modes by the umask."""

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftConfig
from safetensors.torch import load_file

from trainer.engines.adapter_files import write_adapter_files
from trainer.engines.checkpoints import ADAPTER_FILE

WEIGHTS = {name: torch.full((2, 3), float(i)) for i, name in enumerate(["b.lora_A", "a.lora_B", "c.lora_A"])}
TARGETS = ["v_proj", "q_proj", "up_proj", "k_proj", "down_proj", "o_proj", "gate_proj"]


@pytest.fixture
def config() -> LoraConfig:
    return LoraConfig(r=2, target_modules=TARGETS, base_model_name_or_path="x")


def test_names_are_in_a_fixed_order_and_the_config_is_left_as_it_is(tmp_path: Path, config: LoraConfig) -> None:
    write_adapter_files(tmp_path, config, WEIGHTS)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["target_modules"] == sorted(TARGETS)
    assert (written["inference_mode"], config.inference_mode) == (True, False)
    assert isinstance(config.target_modules, set), "PEFT goes on with it"
    assert PeftConfig.from_pretrained(str(tmp_path)).target_modules == set(TARGETS)


def test_the_order_of_the_weights_in_memory_does_not_matter(tmp_path: Path, config: LoraConfig) -> None:
    one = write_adapter_files(tmp_path / "one", config, WEIGHTS)
    other = write_adapter_files(tmp_path / "other", config, dict(reversed(WEIGHTS.items())))
    assert one == other
    assert (tmp_path / "one" / ADAPTER_FILE).read_bytes() == (tmp_path / "other" / ADAPTER_FILE).read_bytes()
    read = load_file(tmp_path / "one" / ADAPTER_FILE)
    assert all(read[name].equal(tensor) for name, tensor in WEIGHTS.items())


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_modes_are_what_the_umask_gives(tmp_path: Path, config: LoraConfig, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write_adapter_files(tmp_path, config, WEIGHTS)
    finally:
        os.umask(before)
    assert {it.name: stat.S_IMODE(it.stat().st_mode) for it in tmp_path.iterdir()} == {
        "adapter_config.json": mode,
        ADAPTER_FILE: mode,
    }
