"""Targets, scaling and initial values of adapters."""

import math
from collections.abc import Callable

import pytest
import torch
import transformers
from peft.tuners.lora import LoraLayer

from analysis.errors import ModelError
from trainer.config import LoraSettings, TrialConfig
from trainer.device_cache import DeviceCache
from trainer.models.lora import add_adapter, linear_modules, remove_adapter, resolve_targets, scaling


@pytest.fixture(scope="module")
def kept() -> DeviceCache:
    return DeviceCache(torch.device("cpu"))


@pytest.mark.parametrize(
    ("model", "targets", "expected"),
    [
        ("llama", "attention", {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}),
        ("llama", "q_proj+down_proj", {"self_attn.q_proj", "mlp.down_proj"}),
        ("gpt2", "attention", {"attn.c_attn", "attn.c_proj"}),
        ("gpt2", "all_linear", {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}),
        ("bert", "query+value", {"attention.self.query", "attention.self.value"}),
        (
            "bert",
            "attention",
            {"attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"},
        ),
    ],
)
def test_targets_name_modules_inside_a_block(
    model: str, targets: str, expected: set[str], make_trial: Callable[..., TrialConfig], kept: DeviceCache
) -> None:
    base = kept.base(make_trial(model))
    assert set(resolve_targets(targets, linear_modules(base.model, base.heads))) == expected


def test_the_output_layer_and_the_head_are_no_targets(
    make_trial: Callable[..., TrialConfig], kept: DeviceCache
) -> None:
    for model in ("llama", "gpt2", "bert"):
        base = kept.base(make_trial(model))
        assert not {"lm_head", "classifier"} & {name.split(".")[0] for name in linear_modules(base.model, base.heads)}


def test_a_target_the_model_lacks_is_refused_with_those_it_has(
    make_trial: Callable[..., TrialConfig], kept: DeviceCache
) -> None:
    base = kept.base(make_trial("gpt2"))
    with pytest.raises(ModelError, match=r"no linear module 'q_proj'.*c_attn, c_fc, c_proj"):
        resolve_targets("c_fc+q_proj", linear_modules(base.model, base.heads))


@pytest.mark.parametrize(
    ("rule", "value", "factor"), [("fixed", 16.0, 16 / 8), ("ratio", 2.0, 2.0), ("sqrt", 4.0, 4 / math.sqrt(8))]
)
def test_the_alpha_rule_is_the_factor_in_the_model(
    rule: str, value: float, factor: float, make_trial: Callable[..., TrialConfig], kept: DeviceCache
) -> None:
    base = kept.base(make_trial("llama"))
    settings = LoraSettings(rank=8, alpha_rule=rule, alpha_value=value)
    model = add_adapter(base.model, settings, "completion", base.heads, 0)
    factors = {m.scaling["default"] for m in model.modules() if isinstance(m, LoraLayer)}
    remove_adapter(model)
    assert list(factors) == [pytest.approx(factor)]
    assert scaling(settings)[1] is (rule == "sqrt")


def test_initial_values_depend_on_the_seed_alone_and_are_distributed_as_pefts(
    make_trial: Callable[..., TrialConfig], kept: DeviceCache
) -> None:
    base = kept.base(make_trial("llama"))

    def start(seed: int, noise: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(noise)
        model = add_adapter(base.model, LoraSettings(rank=16), "completion", base.heads, seed)
        values = {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" in n}
        remove_adapter(model)
        return values

    one, same, other = start(1, 0), start(1, 99), start(2, 0)
    a = [name for name in one if "lora_A" in name]
    assert all(torch.equal(one[n], same[n]) for n in one)
    assert not any(torch.equal(one[n], other[n]) for n in a)
    assert all(not one[n].any() for n in one if "lora_B" in n)
    for name in a:  # kaiming_uniform_(a=√5): uniform within ±1/√d_in, standard deviation 1/√(3·d_in)
        bound = 1 / math.sqrt(one[name].shape[1])
        assert one[name].abs().max() <= bound
        assert one[name].std() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert len({tuple(one[n].flatten()[:4].tolist()) for n in a}) == len(a), "modules start differently"


def test_of_a_model_of_text_and_images_only_what_text_passes_through_is_trained() -> None:
    """Gemma 3's vision tower has layers of the same names: adapters there would never learn."""
    config = transformers.Gemma3Config(
        text_config={
            "vocab_size": 40,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
    )
    model = transformers.Gemma3ForConditionalGeneration(config)
    assert {name.split(".")[1] for name in linear_modules(model, frozenset())} == {"language_model"}

    settings = LoraSettings(rank=2, init="orthogonal")  # A and B both differ from zero: both get gradients
    adapted = add_adapter(model, settings, "completion", frozenset(), seed=1)
    adapted(torch.tensor([[1, 2, 3]])).logits.square().sum().backward()
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    assert trained
    assert all(parameter.grad is not None for parameter in trained)
    remove_adapter(adapted)
