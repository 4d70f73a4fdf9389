"""What is known of a base model before anything is fetched or loaded."""

from sweeps.space.known_points import BaseModel
from trainer.assets.packages import PACKAGES
from trainer.config import ModelConfig
from trainer.models.model_files import width
from trainer.models.model_kind import config_file


def base_model(model: ModelConfig) -> BaseModel:
    """Width and kind of a model: of a package as listed, else as its ``config.json`` says, if it is on this machine.

    Args:
        model: where it is.
    """
    if model.source == "package":
        package = PACKAGES.get(model.package or "")
        return BaseModel(package.hidden_size, package.model_type) if package else BaseModel()
    file = config_file(model, network=False)
    return BaseModel(*width(file)) if file else BaseModel()
