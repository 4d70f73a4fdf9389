"""How a base model treats its rows is found by trying it: what looks ahead, is random, or mixes rows is seen."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from analysis.errors import ModelError
from analysis.folder import TrialFolder
from tests.trainer.engines.architectures import config, save
from tests.trainer.packs import CLOSE, alone, furthest, packed_engine, score, together
from trainer.config import ModelConfig, TrialConfig
from trainer.device_cache import DeviceCache
from trainer.engines.hf_engine import HfEngine
from trainer.models.base_model import BaseModel, load_base
from trainer.models.behaviour import PLAIN, Behaviour, try_out

DROPPING = ("StarCoder2", "BLOOM", "Falcon", "BioGPT", "XGLM", "BART", "OPT", "GPT", "CTRL")


def is_plain(behaviour: Behaviour) -> bool:
    """Whether all layers see rows; whether padding needs a mask is asked elsewhere."""
    return replace(behaviour, needs_mask=True) == PLAIN


def tried(model: PreTrainedModel) -> Behaviour:
    base = BaseModel(model, None, "fp32")
    return try_out(model, "completion", frozenset(), range(4, 30), (), 2, base.arithmetic)


def llama(**changes: Any) -> Any:
    torch.manual_seed(0)
    settings = config("Llama")
    for name, value in changes.items():
        setattr(settings, name, value)
    return AutoModelForCausalLM.from_config(settings).requires_grad_(False)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("engine", ["packed", "hf"])
def test_a_model_that_attends_both_ways_does_not_complete_text(
    engine: str,
    precision: str,
    make_trial: Callable[..., TrialConfig],
    tiny_models: dict[str, Path],
    tmp_path: Path,
) -> None:
    folder = save("BERT", "completion", tmp_path / "bert", tiny_models["llama"])
    trial = replace(make_trial("llama", precision=precision), model=ModelConfig(source="local", path=str(folder)))
    materials = DeviceCache(torch.device("cpu"))
    made: Any = packed_engine(materials) if engine == "packed" else HfEngine(materials, score)
    with pytest.raises(ModelError, match=r"BertLMHeadModel attends both ways.*Use task=classification, or a decoder"):
        made.admit(trial, TrialFolder(tmp_path / "trial"), None)


@pytest.mark.parametrize("name", DROPPING)
def test_dropout_that_is_no_module_is_off_in_training(name: str) -> None:
    torch.manual_seed(0)
    settings = config(name)
    for field, value in vars(settings).items():
        if "drop" in field and isinstance(value, (int, float)) and not isinstance(value, bool):
            setattr(settings, field, 0.3)
    model: Any = AutoModelForCausalLM.from_config(settings).requires_grad_(False).train()
    ids = torch.arange(4, 28).view(2, 12)
    one, other = (model(ids, use_cache=False).logits for _ in range(2))
    assert not torch.equal(one, other), "without this the test shows nothing"
    scores = model.eval()(ids, use_cache=False).logits
    assert tried(model).refusal == ""
    for _ in range(5):
        assert torch.equal(model.train()(ids, use_cache=False).logits, scores)


def test_dropout_that_is_asked_of_the_config_is_off_too() -> None:
    model = llama(hidden_dropout=0.2)
    model.model.norm.register_forward_hook(
        lambda layer, inputs, output: nn.functional.dropout(output, model.config.hidden_dropout, layer.training)
    )
    assert is_plain(tried(model))
    assert model.config.hidden_dropout == 0.0


def test_a_number_that_scoring_uses_stays_whatever_its_name() -> None:
    model = llama()
    model.model.norm.drop_scale = 0.5
    model.model.norm.register_forward_hook(lambda layer, inputs, output: output * layer.drop_scale)
    assert is_plain(tried(model))
    assert model.model.norm.drop_scale == 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_look_ahead_that_is_small_is_seen_at_every_precision(dtype: torch.dtype) -> None:
    """A hundredth of the next token: less than what bf16 rounds away in a model of many layers."""
    model = llama().to(dtype)
    model.model.norm.register_forward_hook(lambda layer, inputs, output: output + 0.01 * output.roll(-1, 1))
    with pytest.raises(ModelError, match="attends both ways"):
        tried(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_that_is_seen_a_little_is_seen_at_every_precision(dtype: torch.dtype) -> None:
    model = llama().to(dtype)
    model.model.norm.register_forward_hook(
        lambda layer, inputs, output: output + 0.2 * output.mean(1, keepdim=True) if layer.training else output
    )
    assert "the rows or the padding beside it" in tried(model).refusal


@pytest.mark.parametrize("draw", [torch.rand, lambda n: torch.full((n,), random.random()), lambda n: np.random.rand()])
def test_random_numbers_that_have_no_switch_are_refused_in_packs(draw: Callable[[int], Any]) -> None:
    model = llama()
    model.model.norm.register_forward_hook(
        lambda layer, inputs, output: output + draw(1) * layer.training if layer.training else output
    )
    assert "draws random numbers" in tried(model).refusal
    assert "engine=hf" in tried(model).refusal


def test_a_layer_that_is_left_out_now_and_then_is_seen() -> None:
    model = llama()
    model.model.layers[0].register_forward_hook(
        lambda layer, inputs, output: inputs[0] if layer.training and torch.rand([]) < 0.3 else output
    )
    for seed in range(10):
        torch.manual_seed(seed)
        assert "draws random numbers" in tried(model).refusal


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x - x.mean(0, keepdim=True),  # as a batch norm: over the rows
        lambda x: x - x.mean(1, keepdim=True) * 0.5,  # over the tokens, padding included
        lambda x: x / x.shape[1],  # by the length of the longest row
        lambda x: x + torch.cat([x[1:], torch.zeros_like(x[:1])]),  # with the row below; the last one alone is the same
    ],
)
def test_rows_that_depend_on_what_is_beside_them_are_refused_in_packs(mix: Callable[[torch.Tensor], Any]) -> None:
    model = llama()
    model.model.norm.register_forward_hook(lambda layer, inputs, output: mix(output) if layer.training else output)
    assert "the rows or the padding beside it" in tried(model).refusal
    assert "engine=hf" in tried(model).refusal


def test_what_packs_refuse_is_told_under_the_other_engine_too(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    folder = save("XLNet", "classification", tmp_path / "xlnet", tiny_models["llama"])
    config = ModelConfig(source="local", path=str(folder))
    base = load_base(config, "fp32", "classification", ["a", "b"], torch.device("cpu"))
    assert any("the padding beside it" in note for note in base.notes)


def test_trying_leaves_generators_and_model_as_they_were() -> None:
    model = llama()
    model.model.layers[1].mlp = nn.Sequential(nn.Dropout(0.5), model.model.layers[1].mlp, _Norm(32))
    model.model.norm.register_forward_pre_hook(lambda layer, inputs: _draw())
    model.model.layers[0].train()
    model.model.layers[1].eval()
    training = [module.training for module in model.modules()]
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tobytes()
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    tried(model)
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert np.random.get_state(legacy=False)["state"]["key"].tobytes() == generators[2]
    assert [module.training for module in model.modules()] == training
    assert all(torch.equal(kept[name], tensor) for name, tensor in model.state_dict().items())
    assert sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()) == hooks


def _draw() -> None:
    """Draw from every generator."""
    torch.rand(1), random.random(), np.random.rand()


class _Norm(nn.Module):
    """A batch norm, whose running mean changes in every pass of training."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "nf4", "int8"])
def test_at_every_precision_an_ordinary_model_is_ordinary(
    precision: str, make_trial: Callable[..., TrialConfig]
) -> None:
    for model in ("llama", "bert"):
        behaviour = DeviceCache(torch.device("cpu")).base(make_trial(model, precision=precision)).behaviour
        assert is_plain(behaviour)
        assert behaviour.needs_mask == (model == "bert")


@pytest.mark.heavy
@pytest.mark.parametrize("precision", ["fp32", "bf16", "nf4", "int8"])
@pytest.mark.parametrize(
    ("package", "task"), [("minilm", "classification"), ("smollm2", "completion"), ("smollm2", "classification")]
)
def test_real_models_are_ordinary_and_train_without_randomness(package: str, task: str, precision: str) -> None:
    base = load_base(ModelConfig(source="package", package=package), precision, task, 3, torch.device("cpu"))
    assert is_plain(base.behaviour)
    assert base.behaviour.needs_mask == (package == "minilm")
    ids = torch.tensor([base.ordinary_tokens()[:24], base.ordinary_tokens()[24:48]])
    model: Any = base.model
    model.train()
    with torch.no_grad(), base.arithmetic():
        one, other = (model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits for _ in range(2))
    assert torch.equal(one, other)


class _Experts(nn.Module):
    """Each token goes to one of two linear experts, which so get tokens of all rows, mixed."""

    def __init__(self, width: int):
        super().__init__()
        self.gate = nn.Linear(width, 2, bias=False)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        chosen = self.gate(flat).argmax(-1)
        result = torch.zeros_like(flat)
        for k, expert in enumerate(self.experts):
            places = (chosen == k).nonzero()[:, 0]
            result = result.index_add(0, places, expert(flat[places]))
        return result.view(x.shape)


def test_linear_experts_that_get_tokens_of_all_rows_run_once_for_each_slot(
    make_trial: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    trials = [
        make_trial("llama", max_steps=4, rungs=[4]),
        make_trial("llama", max_steps=4, rungs=[4], trial_id="t0001", seed=3, rank=2, batch_size=6),
    ]
    materials = DeviceCache(torch.device("cpu"))
    base = materials.base(trials[0])
    torch.manual_seed(1)
    layers: Any = base.model.model.layers
    layers[0].mlp = _Experts(64).requires_grad_(False)
    base.behaviour = try_out(base.model, "completion", frozenset(), range(4, 24), (), 2, base.arithmetic)
    assert base.behaviour.mixed == {"model.layers.0.mlp.experts.0", "model.layers.0.mlp.experts.1"}
    assert base.behaviour.by_slot == {"model.layers.0.mlp": frozenset({0})}
    lone = alone(materials, trials, tmp_path / "alone")
    assert furthest(lone, together(materials, trials, tmp_path / "pack")) <= CLOSE
    with pytest.raises(ModelError, match=r"lora.dropout=0.1: .* gets tokens of several rows mixed.* engine=hf"):
        packed_engine(materials).admit(
            replace(trials[0], lora=replace(trials[0].lora, dropout=0.1)), TrialFolder(tmp_path / "refused"), None
        )
