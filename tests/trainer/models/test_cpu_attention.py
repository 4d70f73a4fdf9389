"""Attention in bf16 on a CPU: float32 for short rows with gradients, the library's own otherwise; the same results."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.trainer.packs import distance, together
from trainer.config import TrialConfig
from trainer.device_cache import DeviceCache
from trainer.models.base_model import BaseModel, load_base


@pytest.fixture
def attended(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The types in which PyTorch's attention was asked to compute."""
    seen: list[torch.dtype] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def noting(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(query.dtype)
        return real(query, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noting)
    return seen


def load(trial: TrialConfig) -> BaseModel:
    return load_base(trial.model, "bf16", trial.task.name, ("a", "b", "c"), torch.device("cpu"))


def gradient(base: BaseModel, width: int) -> torch.Tensor:
    """Of the squared output with respect to the embeddings of three rows, the last of which is half padding."""
    ids = torch.arange(3 * width).view(3, width) % 20 + 3
    mask = torch.ones_like(ids)
    mask[2, width // 2 :] = 0
    embedded = base.model.get_input_embeddings()(ids).detach().requires_grad_()
    with base.arithmetic():
        logits = base.model(inputs_embeds=embedded, attention_mask=mask).logits
    (logits[:2].float() ** 2).sum().backward()
    assert embedded.grad is not None
    return embedded.grad.float()


@pytest.mark.parametrize("model", ["llama", "gpt2", "bert"])
def test_short_rows_are_attended_in_float32_where_there_are_gradients(
    model: str, make_trial: Callable[..., TrialConfig], attended: list[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load(make_trial(model))
    attended.clear()  # of the few tokens that a model is tried with
    got = gradient(base, 12)
    assert set(attended) == {torch.float32}
    attended.clear()
    with torch.inference_mode(), base.arithmetic():
        base.model(input_ids=torch.arange(6).view(1, 6))
    assert set(attended) == {torch.bfloat16}, "scoring is faster as it is"
    attended.clear()
    monkeypatch.setattr("trainer.models.cpu_attention._SHORT", 8)
    expected = gradient(base, 12)
    assert set(attended) == {torch.bfloat16}, "so are long rows"
    assert float((got - expected).norm() / expected.norm()) < 0.02


def test_a_slot_in_bf16_is_the_trial_alone(make_trial: Callable[..., TrialConfig], tmp_path: Any) -> None:
    """Within the rounding of bf16: its neighbour changes the size of products, and so their last bit."""
    materials = DeviceCache(torch.device("cpu"))
    one, two = (make_trial("llama", precision="bf16", trial_id=f"t{i:04}", seed=i, rank=4 + i) for i in range(2))
    [lone] = together(materials, [one], tmp_path / "alone")
    packed, _ = together(materials, [one, two], tmp_path / "pack")
    moved = max(float(value.abs().max()) for name, value in lone.items() if "lora_B" in name)
    assert distance(lone, packed) <= 0.1 * moved
