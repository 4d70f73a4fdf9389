"""Checks the files of a model folder, without loading the model and without importing torch.

Only safetensors and GGUF weights are loaded: a pickle can run code. ``trust_remote_code`` stays off.
"""

import re
import struct
from pathlib import Path
from typing import Any

from analysis.errors import ModelError, parsed_json

ADAPTER_CONFIG = "adapter_config.json"  # PEFT's, of an adapter
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def check_folder(path: str) -> None:
    """Raises ModelError unless transformers can load model and tokenizer from this folder."""
    folder = Path(path)
    if not folder.exists():
        raise ModelError(
            f"model.path={path}: no such folder. Give a folder that holds config.json, a tokenizer and *.safetensors."
        )
    if folder.is_file():
        raise ModelError(f"model.path={path} is a file: give the folder that holds it.")
    gguf = gguf_file(folder)
    if gguf is not None:
        return
    config = folder / "config.json"
    weights = sorted(file for file in folder.glob("*.safetensors") if not file.name.startswith("adapter_"))
    adapter = folder / ADAPTER_CONFIG
    if adapter.exists() and not weights:
        base = _of_adapter(adapter)
        raise ModelError(
            f"model.path={path} holds an adapter only, not a model: adapters are trained on a model itself. Use the"
            f" model that it was trained on{base}; or merge the adapter into that once, with PEFT's"
            " `AutoPeftModelForCausalLM.from_pretrained(<adapter>).merge_and_unload().save_pretrained(<folder>)`, and"
            " use that folder, with the tokenizer in it."
        )
    if not config.exists():
        raise ModelError(
            f"model.path={path}: there is no config.json in it, nor a .gguf file. It holds: {_listing(folder)}."
        )
    try:
        settings = parsed_json(config.read_text())
    except ValueError as error:
        raise ModelError(f"{config}: not valid JSON ({error}). Copy the model folder again.") from None
    if not isinstance(settings, dict) or "model_type" not in settings:
        raise ModelError(f"{config}: no 'model_type', which transformers needs to know the architecture.")
    if not any((folder / name).exists() for name in TOKENIZERS):
        raise ModelError(
            f"model.path={path}: no tokenizer (one of {', '.join(TOKENIZERS)}). Save it with"
            " `AutoTokenizer.from_pretrained(<name>).save_pretrained(<folder>)`."
        )
    if not weights:
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".pkl", ".ckpt"})
        if pickles:
            raise ModelError(
                f"model.path={path}: weights are pickled ({', '.join(pickles)}), and a pickle can run code when read."
                " Convert them once where you trust them, with `model.save_pretrained(<folder>)`."
            )
        raise ModelError(f"model.path={path}: no *.safetensors weights. It holds: {_listing(folder)}.")
    for index in sorted(folder.glob("*.safetensors.index.json")):
        _check_shards(index)
    for file in weights:
        tensors(file)


def _of_adapter(config: Path) -> str:
    """The model that an adapter was trained on, in brackets; empty where its config does not say."""
    try:
        base = parsed_json(config.read_text()).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        return ""
    return f" ({base})" if base else ""


def _check_shards(index: Path) -> None:
    """Raises ModelError unless all files that an index of weights names are there."""
    try:
        files = sorted(set(parsed_json(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index}: not an index of weights ({error}). Download or copy it again.") from None
    whole = index.parent / index.name.removesuffix(".index.json")
    if whole.exists() and whole.name not in files:
        raise ModelError(
            f"{index.parent}: two sets of weights, {whole.name} and the {len(files)} files of {index.name}."
            " transformers would take the former. Remove the one that is out of date."
        )
    absent = [name for name in files if not (index.parent / name).exists()]
    if absent:
        raise ModelError(
            f"{index.parent}: {len(absent)} of {len(files)} files of weights are missing ({', '.join(absent[:3])})."
            " Download or copy them again."
        )


def width(config_file: Path) -> tuple[int | None, str]:
    """Hidden size and model type that a ``config.json`` names; None and "" where it does not, or cannot be read."""
    try:
        settings = parsed_json(config_file.read_text())
    except (OSError, ValueError):
        return None, ""
    if not isinstance(settings, dict):
        return None, ""
    parts = [settings, *(part for part in settings.values() if isinstance(part, dict))]  # text_config, of several kinds
    sizes = [part[name] for part in parts for name in ("hidden_size", "n_embd", "d_model", "dim") if name in part]
    return next((size for size in sizes if isinstance(size, int)), None), str(settings.get("model_type", ""))


def gguf_file(folder: Path) -> str | None:
    """The name of the GGUF file in a folder without safetensors, if there is one.

    Raises:
        ModelError: where there are several to choose from.
    """
    files = sorted(p.name for p in folder.glob("*.gguf")) if not any(folder.glob("*.safetensors")) else []
    if len(files) > 1:
        raise ModelError(
            f"model.path={folder}: several GGUF files ({', '.join(files)}). Keep the one to use in a folder of its own."
        )
    return files[0] if files else None


def tensors(file: Path) -> dict[str, list[int]]:
    """Name → shape, from a safetensors header (https://huggingface.co/docs/safetensors, "Format").

    Raises:
        ModelError: for a file that is cut short or is something else.
    """
    try:
        size = file.stat().st_size
        with open(file, "rb") as handle:
            length = struct.unpack("<Q", handle.read(8))[0]
            if length > min(size - 8, 100_000_000):
                raise ValueError(f"header of {length} bytes in a file of {size}")
            header = parsed_json(handle.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if size != 8 + length + end:
            raise ValueError(f"{size} bytes, {8 + length + end} expected")
        shapes = {name: entry["shape"] for name, entry in header.items()}
        wrong = next((name for name, shape in shapes.items() if not _is_shape(shape)), None)
        if wrong is not None:
            raise ValueError(f"{wrong} has the shape {shapes[wrong]!r}")
        return shapes
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        if _is_pointer(file):
            raise ModelError(
                f"{file}: a pointer of Git LFS, not the weights. Fetch them with `git lfs pull` in that folder."
            ) from None
        raise ModelError(f"{file}: not a complete safetensors file ({error}). Download or copy it again.") from None


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(size, int) and size >= 0 for size in value)


def _is_pointer(file: Path) -> bool:
    """Whether a file is what a `git clone` without Git LFS leaves in place of a large one."""
    try:
        with open(file, "rb") as handle:
            return handle.read(40).startswith(b"version https://git-lfs")
    except OSError:
        return False


def guess_linear_modules(folder: Path) -> list[str]:
    """Names of modules with a matrix inside a numbered block: those that LoRA can go on, for an early check.

    Empty for GGUF, whose names are others. Weights named as embeddings or norms are left out.
    """
    names = set()
    for file in folder.glob("*.safetensors"):
        if file.name.startswith("adapter_"):
            continue
        for name, shape in tensors(file).items():
            if len(shape) == 2 and name.endswith(".weight") and re.search(r"\.\d+\.", name) and "embed" not in name:
                names.add(name.removesuffix(".weight"))
    return sorted(names)


def _listing(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir())
    return ", ".join(names[:12]) + (", …" if len(names) > 12 else "") if names else "nothing"
