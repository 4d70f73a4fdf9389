"""Tokenizers that do not fit their model: padding beyond its embedding, none at all, added words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from analysis.errors import ModelError
from analysis.folder import TrialFolder
from tests.trainer.packs import alone, furthest, together
from trainer.baselines import score_baseline
from trainer.config import Baseline, TrialConfig
from trainer.device_cache import DeviceCache


@pytest.fixture
def with_tokenizer(
    make_trial: Callable[..., TrialConfig], tiny_models: dict[str, Path], tmp_path: Path
) -> Callable[..., TrialConfig]:
    """A trial on a copy of the tiny llama whose tokenizer was changed."""

    def make(name: str, change: Callable[[Any], Any], **changes: Any) -> TrialConfig:
        folder = tmp_path / name
        folder.mkdir()
        for file in tiny_models["llama"].iterdir():
            if not file.name.startswith(("tokenizer", "special")):
                (folder / file.name).write_bytes(file.read_bytes())
        tokenizer = AutoTokenizer.from_pretrained(tiny_models["llama"])
        (change(tokenizer) or tokenizer).save_pretrained(folder)
        trial = make_trial("llama", max_steps=3, rungs=[3], **changes)
        trial.model.path = str(folder)
        return trial

    return make


def added_padding(tokenizer: Any) -> None:
    words = [f"[extra{i}]" for i in range(32 - len(tokenizer))]
    tokenizer.add_tokens(words)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == 32, "beyond the embedding"


def no_special_tokens(tokenizer: Any) -> Any:
    inner = tokenizer.backend_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def added_word(tokenizer: Any) -> None:
    tokenizer.add_tokens([f"[extra{i}]" for i in range(32 - len(tokenizer))])
    tokenizer.add_tokens(["apple pear"])


@pytest.mark.parametrize("task", ["completion", "classification"])
@pytest.mark.parametrize("change", [added_padding, no_special_tokens])
def test_any_token_pads_as_well(
    change: Callable[[Any], Any], task: str, with_tokenizer: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    """Both engines and the untuned model, against the same with a padding token of the model's own."""
    results = []
    for name, how in (("own", lambda tokenizer: None), ("other", change)):
        trial = with_tokenizer(name, how)
        trial.task.name = task
        kept = DeviceCache(torch.device("cpu"))
        base = kept.base(trial)
        assert base.pad_token < 32
        assert base.model.config.pad_token_id == base.pad_token
        assert (base.pad_token == 2) == (name == "own")
        row = score_baseline(kept, Baseline("zero_shot", trial), TrialFolder(tmp_path / f"{name}-zero"))
        weights = [*alone(kept, [trial], tmp_path / f"{name}-a"), *together(kept, [trial], tmp_path / f"{name}-b")]
        results.append((row.metrics, weights))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-6)
    assert furthest(results[0][1], results[1][1]) <= 1e-5


def test_a_word_that_the_model_does_not_know_is_named(
    with_tokenizer: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    trial = with_tokenizer("word", added_word)
    train = tmp_path / "train.csv"
    rows = ["the apple pear and a plum,fruit", "plum,fruit", "wren,bird", "owl,bird", "tin,metal", "zinc,metal"]
    train.write_text("\n".join(["text,label", *rows]) + "\n")
    kept = DeviceCache(torch.device("cpu"))
    kept.training(trial)  # the rows have no such word
    base = kept.base(trial)
    with pytest.raises(ModelError, match=r"'apple pear' \(id 32\), and the model has embeddings for 32 tokens only"):
        base.model(torch.tensor([[4, 32]]))  # any other text: a bias set, a prompt
    trial.data.train = str(train)
    with pytest.raises(ModelError, match=r"'apple pear' \(id 32\).*resize_token_embeddings"):
        kept.training(trial)
