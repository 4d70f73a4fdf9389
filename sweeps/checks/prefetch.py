"""Fetches the packages that a config needs into the cache, with a progress bar on a terminal."""

import os
import sys
from collections.abc import Sequence

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from analysis.errors import FetchError, first_line
from sweeps.compose.compose import compose
from sweeps.config import SweepConfig
from sweeps.process.console import SafeConsole
from sweeps.process.installation import program
from trainer.assets.cache import cache_folder
from trainer.assets.packages import cached, fetch
from trainer.config import ModelConfig
from trainer.evaluation.bias.registry import packages, scorings
from trainer.evaluation.metric_names import task_kind

# Files of a hub's model that are fetched: configuration, tokenizer, and weights that are not pickled.
_HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.gguf")


def needed(config: SweepConfig, groups: Sequence[str]) -> list[str]:
    """Names of the packages that a config needs.

    Args:
        config: of a sweep.
        groups: config groups whose packages are meant; ``experiment`` stands for all of them.
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
    """Fetch packages.

    Args:
        names: of packages.
        overrides: as for ``lorasweep run``: what the config groups in them need is fetched too.

    Raises:
        LorasweepError: for a config that cannot be composed, or a download that fails.
    """
    packages, hub = list(names), None
    if overrides:
        config = compose(overrides).config
        groups = {override.lstrip("+~").split("=", 1)[0].split(".", 1)[0] for override in overrides}
        if not groups & {"model", "data", "bias"}:
            groups.add("experiment")
        packages += needed(config, sorted(groups))
        hub = config.model if config.model.source == "hub" and groups & {"model", "experiment"} else None
    if not packages and hub is None:
        print("Nothing to fetch: what this names is on this machine.")
    for name in dict.fromkeys(packages):
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
        if offline:
            raise FetchError(
                f"model.name={name}: HF_HUB_OFFLINE is set, and {constants.HF_HUB_CACHE} does not hold it. Unset it"
                " where there is a network, or copy that cache from a machine that has it."
            ) from None
        raise FetchError(
            f"model.name={name}, model.revision={revision}: cannot be fetched from {constants.ENDPOINT}"
            f" ({first_line(error)}). Check the name, the network, and for gated models the login (`hf auth"
            " login`). What has arrived is kept."
        ) from None
    print(f"{name}: {folder}")
    if revision is None:
        print(f"Pin what was fetched: model.revision={os.path.basename(folder)}")


def show_packages() -> None:
    """Print a table of all packages: size, whether it is in the cache, what it is."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("package", no_wrap=True)
    table.add_column("MB", justify="right", no_wrap=True)
    table.add_column("here", no_wrap=True)
    table.add_column("what it is, and its licence")
    known = packages()
    for name, package in known.items():
        here = "yes" if cached(name, known) else "-"
        table.add_row(name, str(package.megabytes), here, f"{package.summary} ({package.licence})")
    console = SafeConsole()
    console.print(table)
    console.print(f"\nCache: {cache_folder()}  (LORASWEEP_CACHE)", soft_wrap=True)
    console.print(
        f"To fetch: {program()} fetch NAME …, {program()} fetch experiment=quickstart, or --all", soft_wrap=True
    )
