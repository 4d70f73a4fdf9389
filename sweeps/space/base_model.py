"""What is known of a base model before anything is fetched or loaded."""

from pathlib import Path

from sweeps.space.known_points import BaseModel
from trainer.assets.packages import PACKAGES
from trainer.config import ModelConfig
from trainer.models.model_files import width


def base_model(model: ModelConfig) -> BaseModel:
    """Width and kind of a model: of a package as listed, else as its ``config.json`` says, if it is on this machine.

    Args:
        model: where it is.
    """
    if model.source == "package":
        package = PACKAGES.get(model.package or "")
        return BaseModel(package.hidden_size, package.model_type) if package else BaseModel()
    file = Path(model.path or "") / "config.json"
    if model.source == "hub" and model.name:
        from huggingface_hub import try_to_load_from_cache

        try:
            cached = try_to_load_from_cache(model.name, "config.json", revision=model.revision)
        except ValueError:  # no name that a repository can have
            cached = None
        if not isinstance(cached, str):
            return BaseModel()
        file = Path(cached)
    return BaseModel(*width(file))
