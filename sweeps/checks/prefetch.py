"""Which packages a config needs, and fetching them with a progress bar on a terminal."""

import os
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from analysis.errors import FetchError
from sweeps.compose.compose import compose
from sweeps.config import SweepConfig
from sweeps.process.installation import program
from trainer.assets.packages import cache_folder, cached, fetch
from trainer.config import ModelConfig
from trainer.evaluation.bias.registry import packages, scorings
from trainer.evaluation.metric_names import task_kind

# What of a hub's model is fetched: configuration, tokenizer and weights that are no pickles.
_HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.gguf")


def needed(config: SweepConfig, groups: Sequence[str]) -> list[str]:
    """Packages that a config needs.

    Args:
        groups: config groups that are asked for; ``experiment`` stands for all.
    """
    names = []
    everything = "experiment" in groups
    if (everything or "model" in groups) and config.model.source == "package" and config.model.package:
        names.append(config.model.package)
    if everything or "data" in groups:
        package = config.data.package
        names += [package] if package else ["newsgroups"] if config.data.source == "newsgroups" else []
    if everything or "bias" in groups:
        kind = task_kind(config.task, config.data.schema)
        for scoring in scorings().values():
            on = scoring.declared.value(bias=config.bias, data=config.data)
            if on and kind in scoring.declared.tasks:
                names += [package.name for package in scoring.packages]
    return list(dict.fromkeys(names))


def fetch_all(names: Sequence[str], overrides: Sequence[str]) -> None:
    """Fetch packages by name, and those that overrides ask for. Raises LorasweepError."""
    wanted, hub = list(names), None
    if overrides:
        config = compose(overrides).config
        groups = {override.lstrip("+~").split("=", 1)[0].split(".", 1)[0] for override in overrides}
        if not groups & {"model", "data", "bias"}:
            groups.add("experiment")
        wanted += needed(config, sorted(groups))
        hub = config.model if config.model.source == "hub" and groups & {"model", "experiment"} else None
    if not wanted and hub is None:
        print("Nothing to fetch: what this names is on this machine.")
    for name in dict.fromkeys(wanted):
        _fetch_one(name)
    if hub is not None:
        _fetch_hub(hub)


def _fetch_one(name: str) -> None:
    known = packages()
    if cached(name, known):
        print(f"{name}: here already, in {cache_folder()}", flush=True)
        return
    if not sys.stdout.isatty():
        print(f"{name}: {fetch(name, lambda line: print(line, flush=True), packages=known)}", flush=True)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(name, total=1.0)
        folder = fetch(
            name,
            lambda line: bar.update(task, description=line),
            packages=known,
            arrived=lambda share: bar.update(task, completed=share),
        )
    print(f"{name}: {folder}")


def _fetch_hub(model: ModelConfig) -> None:
    """A hub's model into the hub's cache. Raises FetchError."""
    from huggingface_hub import constants, snapshot_download

    name, revision = str(model.name), model.revision
    offline = constants.HF_HUB_OFFLINE
    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=list(_HUB_FILES), local_files_only=offline)
    except Exception as error:  # of the hub's library, of requests, of the disk
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if offline:
            raise FetchError(
                f"model.name={name}: HF_HUB_OFFLINE is set, and {constants.HF_HUB_CACHE} does not hold it. Unset it"
                " where there is a network, or copy that cache from a machine that has it."
            ) from None
        raise FetchError(
            f"model.name={name}, model.revision={revision}: cannot be fetched from {constants.ENDPOINT} ({first})."
            " Check the name, the network, and for gated models the login (`hf auth login`). What has arrived is kept."
        ) from None
    print(f"{name}: {folder}")
    if revision is None:
        print(f"Pin what was fetched: model.revision={os.path.basename(folder)}")


def show_packages() -> None:
    """What there is."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("package", no_wrap=True)
    table.add_column("MB", justify="right", no_wrap=True)
    table.add_column("here", no_wrap=True)
    table.add_column("what it is, and its licence")
    known = packages()
    for name, package in known.items():
        here = "yes" if cached(name, known) else "-"
        table.add_row(name, str(package.megabytes), here, f"{package.summary} ({package.licence})")
    console = Console(highlight=False)
    console.print(table)
    console.print(f"\nCache: {cache_folder()}  (LORASWEEP_CACHE)", soft_wrap=True)
    console.print(
        f"To fetch: {program()} fetch NAME …, {program()} fetch experiment=quickstart, or --all", soft_wrap=True
    )
