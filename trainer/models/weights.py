"""The weights of a base model at a precision, and whether they are those of the model that its config describes."""

import re
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from analysis.errors import ModelError
from trainer.config import HEAD_NAMES
from trainer.models.task_head import poolers

# Where transformers looks for an adapter to put on the model: in a folder of this name, which no model has. An adapter
# that lies beside a model's weights would be trained on top of, and PEFT could not load the result.
_NO_ADAPTER = {"subfolder": "no-adapter"}


def load_weights(
    where: str,
    precision: str,
    dtype: torch.dtype,
    labels: Sequence[str] | None,
    device: torch.device,
    arguments: dict[str, Any],
    whole: frozenset[str] = frozenset(),
) -> tuple[PreTrainedModel, set[str], dict[int, str]]:
    """Load a model, without an adapter that may lie beside it.

    Args:
        where: folder, or name on the hub.
        precision: one of PRECISIONS.
        dtype: of its arithmetic.
        labels: of a classification task; None of ``completion``.
        device: where it stays.
        arguments: of ``from_pretrained``.
        whole: modules that are not quantised, beside the heads.

    Returns:
        The model; the parameters that the checkpoint does not hold, or not in this size; its own labels by output.

    Raises:
        ModelError: for weights of another model than the config describes.
        Exception: as transformers raises it.
    """
    options = dict(arguments)
    gguf = "gguf_file" in options
    config = AutoConfig.from_pretrained(where, **arguments)
    own = {int(i): str(name) for i, name in (config.id2label or {}).items()}
    factory: Any = AutoModelForCausalLM
    if labels is not None:
        factory = AutoModelForSequenceClassification
        options["num_labels"] = len(labels)
    text = config.get_text_config()
    padding, rows = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", None)
    if padding is not None and rows is not None and not 0 <= padding < rows:
        options["pad_token_id"] = None  # PyTorch refuses such an embedding; ``load_base`` chooses another token
    options["dtype"] = dtype
    stored = None if gguf else _stored_precision(where, config, precision)
    if gguf:
        if precision in ("nf4", "int8"):
            raise ModelError(
                f"precision={precision} cannot be made from GGUF weights."
                " Convert the model to safetensors first, or use fp32 or bf16."
            )
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    elif precision in ("nf4", "int8") and not stored:
        kept = ["lm_head", *sorted({*HEAD_NAMES, *whole, *_added(factory, config, labels)})]
        options["quantization_config"] = _quantization(precision, dtype, kept)
        options["device_map"] = {"": device}
    if not gguf:
        options["use_safetensors"] = True
    options |= {"ignore_mismatched_sizes": True, "adapter_kwargs": _NO_ADAPTER}
    model, info = factory.from_pretrained(where, output_loading_info=True, **options)
    other_size = {str(entry[0]): entry[1:] for entry in info.get("mismatched_keys", ())}
    lacking = set(info["missing_keys"]) | other_size.keys()
    pooling = poolers(model, lacking)
    if precision in ("nf4", "int8") and pooling - whole:  # a pooler without weights is trained in full
        return load_weights(where, precision, dtype, labels, device, arguments, whole | pooling)
    _check(where, model, lacking, other_size, set(info["unexpected_keys"]), labels is not None)
    return model if precision in ("nf4", "int8") else model.to(device), lacking, own


def without_weights(where: str, labels: Sequence[str] | None, arguments: dict[str, Any]) -> PreTrainedModel:
    """The model that a config describes, on the device "meta": its shapes, and no bytes.

    Args:
        where, labels, arguments: as for ``load_weights``.

    Raises:
        Exception: as transformers raises it.
    """
    config = AutoConfig.from_pretrained(where, **arguments)
    factory: Any = AutoModelForCausalLM
    if labels is not None:
        factory, config.num_labels = AutoModelForSequenceClassification, len(labels)
    with torch.device("meta"):
        model: PreTrainedModel = factory.from_config(config)
    return model


def _stored_precision(where: str, config: Any, precision: str) -> str:
    """The precision that weights were quantised to before; empty where they were not.

    Raises:
        ModelError: where it is not the one that is asked for: transformers would load them as they are, in silence.
    """
    stored = getattr(config, "quantization_config", None)
    if not stored:
        return ""
    settings = stored if isinstance(stored, dict) else stored.to_dict()
    method = settings.get("quant_method", "unknown")
    method = str(getattr(method, "value", method))
    four = settings.get("load_in_4bit") and settings.get("bnb_4bit_quant_type") == "nf4"
    if four and precision == "nf4":
        return "nf4"
    raise ModelError(
        f"{where}: its weights are quantised already ({method}{', nf4' if four else ''}), so that"
        f" precision={precision} cannot be had. Use {'precision=nf4, or ' if four else ''}the model that they were made"
        " from; or save them once as plain weights, with `model.dequantize().save_pretrained(<folder>)`."
    )


def _quantization(precision: str, dtype: torch.dtype, kept: list[str]) -> transformers.BitsAndBytesConfig:
    """How bitsandbytes quantises a base model.

    Args:
        precision: ``nf4`` or ``int8``.
        dtype: of the arithmetic.
        kept: modules that stay as they are.
    """
    if precision == "nf4":
        return transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=kept
        )
    return transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0, llm_int8_skip_modules=kept)


def _added(factory: Any, config: Any, labels: Sequence[str] | None) -> set[str]:
    """What classification adds to a backbone, from the model's outline: trained in full, so not to be quantised."""
    if labels is None:
        return set()
    with torch.device("meta"):
        outline = factory.from_config(config)
    prefix = outline.base_model_prefix
    return {name for name, _ in outline.named_children() if name != prefix} if hasattr(outline, prefix) else set()


def _check(
    where: str,
    model: Any,
    lacking: set[str],
    other_size: dict[str, Any],
    unused: set[str],
    classifies: bool,
) -> None:
    """Raises ModelError unless all that is lacking is a head, or a pooler, which are trained then."""
    prefix = model.base_model_prefix
    outer = {key for key in lacking if not key.startswith(f"{prefix}.")} if hasattr(model, prefix) else set()
    inner = lacking - outer
    if classifies:
        inner = {key for key in inner if hasattr(model, prefix) and not key.startswith(f"{prefix}.pool")}
        outer = set()
    wrong_size = sorted((inner | outer) & other_size.keys())
    if wrong_size:
        key = wrong_size[0]
        shapes = [tuple(shape) for shape in other_size[key]]
        resized = shapes[0][1:] == shapes[1][1:]  # but for the first dimension, which counts tokens in an embedding
        vocabulary = " Was the vocabulary resized? Then config.json must say so (vocab_size)." if resized else ""
        raise ModelError(
            f"{where}: config.json and weights are of different models: {key} has the shape {shapes[0]} in the weights,"
            f" and {shapes[1]} by config.json.{vocabulary} Save both again with `model.save_pretrained(<folder>)`."
        )
    layer = _layer_beyond(model, unused)
    if layer:
        raise ModelError(
            f"{where}: config.json and weights are of different models: the weights hold {layer}, and config.json names"
            " fewer layers. Copy both from one place again."
        )
    if outer and not inner:
        raise ModelError(
            f"{where}: the weights hold no language-model head (missing: {', '.join(sorted(outer)[:3])}), so it"
            " cannot complete text. Use task=classification, or a decoder."
        )
    if inner:
        hint = "Download or copy the model again."
        bare = {key.split(".", 1)[-1] for key in unused}
        names = set(model.state_dict())
        if bare & names or {key.removeprefix("base_model.model.") for key in unused} & names:
            first = next(key for key in sorted(unused) if key.split(".", 1)[-1] in names or "base_model" in key)
            hint = f"They hold {first}: take the wrapper off that it was saved with, and save the model itself."
        raise ModelError(
            f"{where}: {len(inner)} of the {len(model.state_dict())} tensors that config.json describes are not in the"
            f" weights, such as {sorted(inner)[0]}. {hint}"
        )


def _layer_beyond(model: nn.Module, unused: set[str]) -> str:
    """A layer in the weights that is numbered beyond those of the model; empty where there is none."""
    lengths = {name: len(module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    prefix = getattr(model, "base_model_prefix", "")
    for key in sorted(unused):
        for match in re.finditer(r"\.(\d+)\.", key):
            stack = key[: match.start()]
            for name in (stack, f"{prefix}.{stack}"):
                if name in lengths and int(match[1]) >= lengths[name] > 0:
                    return f"{stack}.{match[1]}"
    return ""
