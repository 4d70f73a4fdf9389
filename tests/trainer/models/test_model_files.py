"""Model folders that cannot be loaded are told apart in milliseconds, without torch."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.errors import ModelError
from trainer.models.model_files import check_folder, guess_linear_modules, tensors


@pytest.fixture
def model(tiny_models: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_models["llama"], tmp_path / "model"))


def test_a_good_folder_passes_and_tells_its_linear_modules(model: Path) -> None:
    check_folder(str(model))
    leaves = {name.rsplit(".", 1)[-1] for name in guess_linear_modules(model)}
    assert leaves == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def remove_tokenizer(model: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()


def cut_weights(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def scramble_weights(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"not a tensor file at all")


def pickle_weights(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (shutil.rmtree, "no such folder"),
        (lambda m: (m / "config.json").unlink(), "no config.json"),
        (lambda m: (m / "config.json").write_text("{"), "not valid JSON"),
        (lambda m: (m / "config.json").write_text(json.dumps({"hidden_size": 2})), "model_type"),
        (remove_tokenizer, "no tokenizer"),
        (lambda m: (m / "model.safetensors").unlink(), "no *.safetensors weights"),
        (pickle_weights, "a pickle can run code"),
        (cut_weights, "not a complete safetensors file"),
        (scramble_weights, "not a complete safetensors file"),
    ],
)
def test_a_bad_folder_is_refused_with_what_is_wrong(model: Path, spoil: object, words: str) -> None:
    spoil(model)  # type: ignore[operator]
    with pytest.raises(ModelError) as error:
        check_folder(str(model))
    assert words in str(error.value)


def test_a_file_is_not_a_model_folder(model: Path) -> None:
    with pytest.raises(ModelError, match="is a file"):
        check_folder(str(model / "config.json"))


def test_the_check_imports_no_torch(model: Path) -> None:
    code = f"import sys; from trainer.models.model_files import check_folder; check_folder({str(model)!r})"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_header_shapes(model: Path) -> None:
    assert tensors(model / "model.safetensors")["model.embed_tokens.weight"] == [32, 64]
