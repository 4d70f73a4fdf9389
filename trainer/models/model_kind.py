"""Whether a base model is an encoder, told from its ``config.json``, without importing torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.errors import parsed_json
from trainer.assets.packages import PACKAGES
from trainer.config import ModelConfig
from trainer.data.hub import reachable

# `model_type` of encoders of text, after Transformers' MODEL_FOR_MASKED_LM_MAPPING_NAMES: all that are named after BERT
# (roberta, deberta-v2, modernbert, …), and these.
_OTHER_ENCODERS = frozenset(
    {"data2vec-text", "electra", "ernie", "esm", "fnet", "funnel", "longformer", "luke", "mpnet"}
)
_CAUSAL = ("ForCausalLM", "LMHeadModel")  # how classes that continue a text are named


def encoder_name(config: ModelConfig, network: bool) -> str:
    """What messages call a model that is an encoder; empty for a decoder, and where that cannot be told.

    Args:
        config: names the model.
        network: whether the ``config.json`` of a hub's model may be fetched; else only the hub's cache is looked at.
    """
    if config.source == "package":
        package = PACKAGES.get(config.package or "")
        return package.summary.split(",")[0] if package and package.encoder else ""
    name = config.path if config.source == "local" else config.name
    if not name:
        return ""
    file = config_file(config, network)
    try:
        settings = parsed_json(file.read_text(encoding="utf-8")) if file else {}
    except (OSError, ValueError):  # loading the model says what is wrong
        return ""
    return Path(name).name if isinstance(settings, Mapping) and _encodes(settings) else ""


def config_file(config: ModelConfig, network: bool) -> Path | None:
    """The ``config.json`` of a model in a folder or of the hub; None of a package, and where it is not to be had.

    Args:
        config: names the model.
        network: whether that of a hub's model may be fetched; else only the hub's cache is looked at.
    """
    if config.source == "local":
        return Path(config.path) / "config.json" if config.path else None
    return _hub_file(config, network) if config.source == "hub" and config.name else None


def _encodes(settings: Mapping[str, Any]) -> bool:
    classes = [str(name) for name in settings.get("architectures") or ()]
    if settings.get("is_decoder") or any(name.endswith(_CAUSAL) for name in classes):
        return False
    kind = str(settings.get("model_type"))
    return ("bert" in kind and "decoder" not in kind) or kind in _OTHER_ENCODERS


def _hub_file(config: ModelConfig, network: bool) -> Path | None:
    """The ``config.json`` of a hub's model in the hub's cache, fetched into it where the network may be used."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    name, revision = str(config.name), config.revision
    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        if isinstance(cached, str):
            return Path(cached)
        if not network or constants.HF_HUB_OFFLINE or not reachable():
            return None
        return Path(hf_hub_download(name, "config.json", revision=revision))
    except Exception:  # of the hub's library, of requests, of the disk: loading the model says what is wrong
        return None
