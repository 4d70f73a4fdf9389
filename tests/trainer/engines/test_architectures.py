"""The architectures of conf/model: where LoRA goes, which heads are trained, and a step in a pack."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
    RobertaConfig,
)

import conf
from analysis.folder import TrialFolder
from tests.trainer.packs import at_step, drive, packed_engine
from trainer.config import ModelConfig, TrialConfig
from trainer.device_cache import DeviceCache
from trainer.engine import Ended
from trainer.models.base_model import compute_dtype, precision_fault
from trainer.models.lora import linear_modules, resolve_targets

_IDS = {"vocab_size": 32, "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1}
_DECODER = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64, **_IDS,
}  # fmt: skip
_ENCODER = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 70, **_IDS,
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "smollm2_hub": lambda: LlamaConfig(tie_word_embeddings=True, **_DECODER),
    "llama3_1b": lambda: LlamaConfig(**_DECODER),
    "mistral_7b": lambda: MistralConfig(sliding_window=None, **_DECODER),
    "qwen3": lambda: Qwen3Config(tie_word_embeddings=True, **_DECODER),
    "gemma3": lambda: Gemma3TextConfig(sliding_window=8, **_DECODER),
    "gpt2": lambda: GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64, **_IDS),
    "bert": lambda: BertConfig(**_ENCODER),
    "distilbert": lambda: DistilBertConfig(
        dim=32, hidden_dim=48, n_layers=2, n_heads=2, max_position_embeddings=64, **_IDS
    ),
    "roberta": lambda: RobertaConfig(**_ENCODER),
}
ENCODERS = ("bert", "distilbert", "roberta")
HEADS = {
    "gpt2": {"score"},
    "distilbert": {"pre_classifier", "classifier"},
    "bert": {"classifier"},
    "roberta": {"classifier"},
}
CASES = [(name, "completion") for name in CONFIGS if name not in (*ENCODERS, "smollm2_hub")]
CASES += [(name, "classification") for name in ENCODERS]
SLOW = [("smollm2_hub", "completion")]
SLOW += [(name, "classification") for name in ("gpt2", "gemma3", "qwen3", "mistral_7b", "llama3_1b")]


@pytest.fixture(scope="module")
def folders(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny random checkpoint without a task head, as the published ones are."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            torch.manual_seed(0)
            if name in ENCODERS:
                whole = AutoModelForSequenceClassification.from_config(CONFIGS[name]())
                getattr(whole, whole.base_model_prefix).save_pretrained(folder)
            else:
                AutoModelForCausalLM.from_config(CONFIGS[name]()).save_pretrained(folder)
            for file in tiny_models["llama"].glob("tokenizer*"):
                shutil.copy(file, folder)
            made[name] = folder
        return made[name]

    return make


def head_of(name: str) -> tuple[dict[str, Any], str]:
    """A shipped file and its sentence on targets."""
    text = (Path(conf.__file__).parent / "model" / f"{name}.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text), next(line for line in text.splitlines() if "lora.targets=attention:" in line)


@pytest.mark.parametrize(("name", "task"), [*CASES, *(pytest.param(*case, marks=pytest.mark.heavy) for case in SLOW)])
def test_lora_heads_and_a_step_in_a_pack(
    name: str, task: str, folders: Callable[[str], Path], make_trial: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    made = make_trial("bert" if task == "classification" else "llama", max_steps=1, rungs=[1], rung_items=3, warmup=0.0)
    trial = replace(made, model=ModelConfig(source="local", path=str(folders(name))))
    materials = DeviceCache(torch.device("cpu"))
    base = materials.base(trial)
    assert base.heads == (HEADS.get(name, {"score"}) if task == "classification" else set())
    modules = linear_modules(base.model, base.heads)
    attention = {target.rsplit(".", 1)[-1] for target in resolve_targets("attention", modules)}
    everything = {module.rsplit(".", 1)[-1] for module in modules}
    _, said = head_of(name)
    assert attention == set(said.split("lora.targets=attention: ")[1].split(";")[0].split("+"))
    if "those and" in said:
        assert everything - attention == set(said.split("those and ")[1].rstrip(".").split("+"))
    assert everything >= attention

    others = [replace(trial, trial_id="t0001", lora=replace(trial.lora, rank=2, targets="attention"))]
    ended = drive(packed_engine(materials), [trial, *others], tmp_path)["t0000"][-1]
    assert isinstance(ended, Ended)
    assert ended.row is not None, ended
    trained = at_step(tmp_path, trial, 1)
    assert {key for key in trained if "lora_B" in key and not trained[key].any()} == set()
    assert sum("lora_A" in key for key in trained) == len(modules)
    for head in base.heads:
        assert any(f".{head}." in key for key in trained)
    assert TrialFolder(tmp_path / "t0000").adapter_dir.is_dir()


@pytest.mark.parametrize(("name", "task"), CASES)
def test_a_trial_that_leaves_between_two_steps_goes_on_as_if_it_had_not(
    name: str, task: str, folders: Callable[[str], Path], make_trial: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    made = make_trial(
        "bert" if task == "classification" else "llama", max_steps=3, rungs=[3], rung_items=3, dropout=0.1
    )
    trial = replace(made, model=ModelConfig(source="local", path=str(folders(name))))
    materials = DeviceCache(torch.device("cpu"))
    drive(packed_engine(materials), [trial], tmp_path / "whole")
    engine = packed_engine(materials)
    engine.admit(trial, TrialFolder(tmp_path / "left" / trial.trial_id), None)
    assert engine.advance(lambda: True) == []
    engine.snapshot(trial.trial_id, at := TrialFolder(tmp_path / "left" / trial.trial_id).checkpoint_dir(1))()
    engine.release(trial.trial_id)
    drive(packed_engine(materials), [trial], tmp_path / "left", {trial.trial_id: at})
    left, whole = (at_step(tmp_path / place, trial, 3) for place in ("left", "whole"))
    assert {key for key in whole if not torch.equal(left[key], whole[key])} == set()


def test_shipped_hub_models_are_pinned_to_a_commit_of_a_known_architecture() -> None:
    for name in (*CONFIGS, "llama3_8b"):
        values, _ = head_of(name)
        assert values["source"] == "hub"
        assert "/" in values["name"]
        assert len(values["revision"]) == 40
        assert int(values["revision"], 16)


def test_a_gpu_without_bf16_is_refused_bf16_and_computes_quantised_weights_in_float32(monkeypatch: Any) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert (
        precision_fault("bf16", gpu) == "Tesla T4 has no bf16 arithmetic (compute capability 7.5; it begins with 8.0)"
    )
    assert {compute_dtype(p, gpu) for p in ("fp32", "nf4", "int8")} == {torch.float32}
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert {compute_dtype(p, gpu) for p in ("bf16", "nf4", "int8")} == {torch.bfloat16}
    assert compute_dtype("nf4", torch.device("cpu")) == torch.float32
