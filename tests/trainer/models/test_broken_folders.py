"""Model folders that are broken in common ways: each is used rightly, or refused in a sentence with the way out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig

from analysis.errors import ModelError
from trainer.config import ModelConfig
from trainer.models.base_model import BaseModel, load_base
from trainer.models.model_files import guess_linear_modules
from trainer.models.tokenizer import load_tokenizer

IDS = torch.arange(4, 20)[None]


@pytest.fixture
def folder(tiny_models: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_models["llama"], tmp_path / "model"))


def load(folder: Path, task: str = "completion", precision: str = "fp32") -> BaseModel:
    config = ModelConfig(source="local", path=str(folder))
    return load_base(config, precision, task, ("a", "b", "c"), torch.device("cpu"))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def set_config(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def put_adapter(folder: Path, to: Path, base: str = "somebody/llama") -> None:
    """An adapter that changes the model, as PEFT saves it."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(task_type="CAUSAL_LM", r=2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(str(to))


def half_downloaded_shards(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    sorted(folder.glob("model-0000*"))[1].unlink()


def git_lfs_pointers(folder: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123456789abcdef\nsize 269060552\n"
    (folder / "model.safetensors").write_text(pointer)


def resized_vocabulary(folder: Path) -> None:
    rewrite(folder, lambda w: w | {"model.embed_tokens.weight": torch.randn(40, 64)})


def only_a_generation_config(folder: Path) -> None:
    (folder / "config.json").rename(folder / "generation_config.json")


def saved_with_a_wrapper(folder: Path) -> None:
    rewrite(folder, lambda w: {f"module.{name}": tensor for name, tensor in w.items()})


def a_layer_lost(folder: Path) -> None:
    rewrite(folder, lambda w: {name: tensor for name, tensor in w.items() if ".layers.1." not in name})


def a_layer_too_many(folder: Path) -> None:
    set_config(folder, num_hidden_layers=1)


def another_models_config(folder: Path) -> None:
    set_config(folder, intermediate_size=96)


def a_head_lost(folder: Path) -> None:
    set_config(folder, tie_word_embeddings=False)


def an_adapter_alone(folder: Path) -> None:
    put_adapter(folder, folder)
    (folder / "model.safetensors").unlink()
    (folder / "config.json").unlink()


def an_adapter_and_a_config(folder: Path) -> None:
    put_adapter(folder, folder)
    (folder / "model.safetensors").unlink()


def half_a_tokenizer(folder: Path) -> None:
    file = folder / "tokenizer.json"
    file.write_bytes(file.read_bytes()[:300])


def half_a_config_of_shards(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a":')


def two_sets_of_weights(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="60KB")
    (folder / "model.safetensors").write_bytes(before)


def quantised_before(folder: Path) -> None:
    set_config(folder, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 32})


REFUSED = [
    (two_sets_of_weights, "two sets of weights, model.safetensors and the"),
    (quantised_before, "its weights are quantised already (gptq), so that precision=fp32 cannot be had"),
    (half_downloaded_shards, "files of weights are missing (model-00002-of-"),
    (git_lfs_pointers, "git lfs pull"),
    (resized_vocabulary, "embed_tokens.weight has the shape (40, 64) in the weights, and (32, 64) by config.json"),
    (only_a_generation_config, "no config.json"),
    (saved_with_a_wrapper, "take the wrapper off"),
    (a_layer_lost, "tensors that config.json describes are not in the weights, such as model.layers.1."),
    (a_layer_too_many, "the weights hold model.layers.1, and config.json names fewer layers"),
    (another_models_config, "mlp.down_proj.weight has the shape (64, 128) in the weights, and (64, 96)"),
    (an_adapter_alone, "holds an adapter only, not a model"),
    (an_adapter_and_a_config, "that it was trained on (somebody/llama); or merge the adapter"),
    (half_a_tokenizer, "cannot be loaded"),
    (half_a_config_of_shards, "not an index of weights"),
]


@pytest.mark.parametrize("task", ["completion", "classification"])
@pytest.mark.parametrize(("spoil", "words"), REFUSED, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_folder_is_refused_in_a_sentence(
    folder: Path, spoil: Callable[[Path], None], words: str, task: str
) -> None:
    spoil(folder)
    with pytest.raises(ModelError) as error:
        load(folder, task)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_head_that_is_not_there_is_no_language_model(folder: Path) -> None:
    a_head_lost(folder)
    with pytest.raises(ModelError, match="no language-model head"):
        load(folder)
    assert load(folder, "classification").heads == {"score"}  # which it needs none for


def trainer_checkpoint(folder: Path) -> None:
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        (folder / name).write_bytes(b"\x80\x04a pickle that nobody opens")
    (folder / "trainer_state.json").write_text("{}")


def gguf_beside(folder: Path) -> None:
    (folder / "model-q4.gguf").write_bytes(b"GGUF of another precision")


def pickle_beside(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04a pickle that nobody opens")


def adapter_beside(folder: Path) -> None:
    put_adapter(folder, folder)


def half_an_adapter_beside(folder: Path) -> None:
    put_adapter(folder, folder)
    (folder / "adapter_model.safetensors").write_bytes(b"")


def padding_beyond_the_vocabulary(folder: Path) -> None:
    set_config(folder, pad_token_id=32)


def padding_of_minus_one(folder: Path) -> None:
    set_config(folder, pad_token_id=-1)


USED = [
    trainer_checkpoint, gguf_beside, pickle_beside, adapter_beside, half_an_adapter_beside,
    padding_beyond_the_vocabulary, padding_of_minus_one,
]  # fmt: skip


@pytest.mark.parametrize("spoil", USED, ids=lambda value: value.__name__)
def test_what_lies_beside_a_model_changes_nothing(folder: Path, spoil: Callable[[Path], None]) -> None:
    expected = AutoModelForCausalLM.from_pretrained(folder)(IDS).logits
    spoil(folder)
    base = load(folder)
    assert torch.equal(base.model(IDS).logits, expected)
    assert not any("lora" in name for name, _ in base.model.named_modules())
    said = [note for note in base.notes if "adapter_config.json" in note]
    assert len(said) == ("adapter" in spoil.__name__)
    assert not any("lora" in name for name in guess_linear_modules(folder))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_adapter_beside_a_classifier_is_not_loaded(folder: Path, precision: str) -> None:
    put_adapter(folder, folder)
    model = load(folder, "classification", precision).model
    assert not any("lora" in name for name, _ in model.named_modules())
    assert not hasattr(model, "peft_config")


def test_half_precision_in_several_files_is_read(folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder).half()
    model.save_pretrained(tmp_path / "halves", max_shard_size="60KB")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "halves")
    assert len(list((tmp_path / "halves").glob("model-*"))) > 1
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "halves", dtype=torch.float32)
    assert torch.equal(load(tmp_path / "halves").model(IDS).logits, plain(IDS).logits)


def test_a_classifier_of_another_size_loses_its_head_only(folder: Path, tmp_path: Path) -> None:
    config = LlamaConfig.from_pretrained(folder, num_labels=5)
    model = AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(tmp_path / "five")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "five")
    base = load(tmp_path / "five", "classification")
    assert base.fresh == {"score"}
    assert torch.equal(base.model.model(IDS)[0], model.eval().model(IDS)[0])


def test_weights_that_were_stored_in_four_bits_are_used_at_that_precision_alone(folder: Path, tmp_path: Path) -> None:
    quantised = load(folder, precision="nf4").model
    quantised.save_pretrained(tmp_path / "four")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "four")
    assert torch.equal(load(tmp_path / "four", precision="nf4").model(IDS).logits, quantised(IDS).logits)
    for precision in ("fp32", "bf16", "int8"):
        with pytest.raises(ModelError, match=rf"precision={precision} cannot be had. Use precision=nf4, or the model"):
            load(tmp_path / "four", precision=precision)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("tokenizer.json", {"added_tokens": [{"id": 0, "content": "<s>"}]}),
        ("tokenizer.json", {"post_processor": {"type": "none such"}}),
        ("tokenizer.json", {"model": [[]]}),
        ("tokenizer_config.json", {"bos_token": 3}),
        ("tokenizer_config.json", {"unk_token": [], "model_max_length": {}}),
    ],
)
def test_a_tokenizer_that_libraries_fail_on_in_their_own_ways_is_refused(folder, file, change) -> None:
    described = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(described | change))
    with pytest.raises(ModelError, match=f"{folder}: its tokenizer cannot be loaded"):
        load_tokenizer(ModelConfig(source="local", path=str(folder)))


def test_a_damaged_gguf_file_is_refused(tmp_path) -> None:
    head = b"GGUF" + (3).to_bytes(4, "little")
    (tmp_path / "model.gguf").write_bytes(head + (1 << 40).to_bytes(8, "little") * 2 + bytes(64))
    config = ModelConfig(source="local", path=str(tmp_path))
    with pytest.raises(ModelError, match=str(tmp_path)):
        load_tokenizer(config)
    with pytest.raises(ModelError, match=str(tmp_path)):
        load(tmp_path)
