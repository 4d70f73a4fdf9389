"""Slots of architectures with other caches, or none, write together what ``PeftModel.generate`` writes alone."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GenerationConfig

from analysis.folder import TrialFolder
from tests.trainer.engines.architectures import save
from tests.trainer.packs import packed_engine
from trainer.config import ModelConfig
from trainer.device_cache import DeviceCache
from trainer.engine import Admitted
from trainer.generation.decode import Decoding, write
from trainer.likelihood.log_likelihood import SlotModel, Together
from trainer.models.base_model import Batching

# Rows of one length among them, so that a model whose rows cannot be padded has batches too.
PROMPTS = [
    (0, 5),
    (0, 9, 4, 12, 7, 20, 6),
    (0, 11, 8),
    (0, 21, 5),
    (0, 6, 14, 9, 17, 4, 8, 8, 10),
    (0, 7, 7),
    (0, 5, 5),
]
KEYS = [f"r{i}" for i in range(len(PROMPTS))]
NEW = 8
BATCHING = {
    "RWKV": Batching(cache=False, left_padding=False),
    # counts positions from the left; the cache has as many layers as the encoder, too few for this decoder
    "BART": Batching(cache=False, left_padding=False),
}
TARGETS = {"Mamba": "dt_proj+in_proj+x_proj", "Qwen3-Next": "attention"}  # PEFT does not train all
ARCHITECTURES = {
    "Gemma 3": "layers with a sliding window",
    "Qwen3-Next": "layers of linear attention, and experts",
    "Mamba": "states instead of keys",
    "Jamba": "both",
    "RWKV": "no mask, and with transformers 5.23 wrong where several rows go on from a state",
    "BART": "the decoder of an encoder with a decoder",
    "GPT": "no cache",
    "BLOOM": "positions by distance",
    "gpt-oss": "experts, sinks and a window",
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_equals_plain_peft(
    name: str, make_trial: Any, tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(name, "completion", tmp_path / "model", tiny_models["llama"])
    model, targets = ModelConfig(source="local", path=str(folder)), TARGETS.get(name, "all_linear")
    trials = [
        replace(make_trial(trial_id=f"t{i}", seed=i, rank=2 + 2 * i, targets=targets), model=model) for i in range(2)
    ]
    engine = packed_engine(DeviceCache(torch.device("cpu")))
    for trial in trials:
        assert isinstance(engine.admit(trial, TrialFolder(tmp_path / trial.trial_id), None), Admitted)
    [pack] = engine._packs
    generator = torch.Generator().manual_seed(0)
    for slot in pack.slots:
        for module in slot.modules.values():
            with torch.no_grad():
                module.b.copy_(torch.randn(module.b.shape, generator=generator) * 0.2)
    assert pack.place() == []
    for trial in trials:
        engine.snapshot(trial.trial_id, tmp_path / trial.trial_id / "adapter")()
    base = pack.base
    base.model.eval()

    def written() -> list[Any]:
        together = Together([0, 1], pack._route)
        return [write(base, SlotModel(base.model, k, together), PROMPTS, KEYS, Decoding(NEW), 8) for k in (0, 1)]

    base.model.generation_config.eos_token_id = 1
    counted = Counter(token for answers in written() for answer in answers for token in set(answer.tokens))
    end = next(token for token, n in counted.most_common() if n <= len(PROMPTS))
    base.model.generation_config.eos_token_id = [1, end]
    result = written()
    assert base.batching == BATCHING.get(name, Batching())
    assert 2 < sum(answer.finished for answers in result for answer in answers) < 2 * len(PROMPTS)
    settings = GenerationConfig(do_sample=False, max_new_tokens=NEW, eos_token_id=[1, end], pad_token_id=2)
    for trial, answers in zip(trials, result, strict=True):
        plain = AutoModelForCausalLM.from_pretrained(folder)
        plain.generation_config = GenerationConfig()
        lone = PeftModel.from_pretrained(plain, str(tmp_path / trial.trial_id / "adapter")).eval()
        for prompt, answer in zip(PROMPTS, answers, strict=True):
            ids = torch.tensor([prompt])
            settings.use_cache = base.batching.cache
            whole = lone.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
            new = whole[0, len(prompt) :].tolist()
            assert answer.tokens == tuple(new[:-1] if new[-1] in (1, end) else new)
