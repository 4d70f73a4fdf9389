"""Data sets of the Hugging Face hub by name, and folders that ``datasets`` saved or loads.

A data set's own code is never run. With ``HF_HUB_OFFLINE=1``, or where the hub cannot be reached, only what was loaded
before is used.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from analysis.errors import DataError, did_you_mean, first_line
from trainer.config import DataConfig
from trainer.data.tables import ColumnSelection, Table, without_filled_nulls

_TIMEOUT = 3.0  # seconds: `datasets` itself tries for half a minute


def hub_columns(config: DataConfig, key: str, split: str) -> tuple[str, list[str]]:
    """The columns of a split.

    Args:
        config: name (or folder), subset and revision.
        key: config path of the split, for messages (``data.train``).
        split: its name.

    Returns:
        What to call the split in messages, and its columns.

    Raises:
        DataError: for a data set that cannot be loaded, or a split that it does not have.
    """
    loaded = _load(config, key, split)
    return _name(config, split), list(loaded.column_names)


def hub_table(config: DataConfig, key: str, split: str, selection: ColumnSelection) -> Table:
    """Some columns of a split; a column of class numbers comes as the classes' names.

    Args:
        config: name (or folder), subset and revision.
        key: config path of the split, for messages (``data.train``).
        split: its name.
        selection: which columns.

    Raises:
        DataError: as ``hub_columns``, and for a column that is not there.
    """
    loaded, name = _load(config, key, split), _name(config, split)
    selection.check(name, loaded.column_names)
    columns = {}
    for column in selection.columns(loaded.column_names):
        values, feature = loaded[column][:], loaded.features[column]
        if hasattr(feature, "int2str"):  # a class; unlabelled rows of hub data sets have None or -1
            values = [feature.int2str(v) if v is not None and v >= 0 else "" for v in values]
        columns[column] = [without_filled_nulls(value) for value in values]
    return Table(name, columns, range(loaded.num_rows))


def _name(config: DataConfig, split: str) -> str:
    parts = [part for part in (config.subset, split) if part]
    return f"{config.name} ({', '.join(parts)})"


def _load(config: DataConfig, key: str, split: str) -> Any:
    name = config.name
    if not name:
        raise DataError("data=hub needs data.name: owner/name on the hub, or a folder that `datasets` saved or loads.")
    data_set = f"data.name={name}" + (f" data.subset={config.subset}" if config.subset else "")
    with _network(Path(name).expanduser().exists()) as offline:
        import datasets

        datasets.disable_progress_bars()
        datasets.logging.set_verbosity_error()
        try:
            if _saved(Path(name).expanduser()):
                loaded: Any = datasets.load_from_disk(str(Path(name).expanduser()))
            else:
                local = Path(name).expanduser()
                where = str(local.absolute()) if local.exists() else name
                loaded = datasets.load_dataset(where, config.subset, revision=config.revision)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, datasets.exceptions.DatasetsError) as error:
            raise DataError(f"{data_set}: cannot be loaded ({first_line(error)}). {_remedy(offline)}") from None
    if not isinstance(loaded, dict):
        return loaded
    if split not in loaded:
        raise DataError(f"{key}={split}: {name} has no such split. {did_you_mean(split, loaded)}")
    return loaded[split]


def _saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` made the folder."""
    return (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


def _remedy(offline: str) -> str:
    if offline:
        return (
            f"{offline}, so only data sets loaded before on this machine can be used. Load it once with a network, or"
            " copy its files here and use data=parquet, jsonl or csv (or data.name=FOLDER)."
        )
    return (
        "Check the name on https://huggingface.co/datasets; some need data.subset, and some a login (`hf auth login`)."
    )


@contextmanager
def _network(local: bool) -> Iterator[str]:
    """Why there is no network, or nothing; where there is none the hub is not tried for half a minute."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        yield "HF_HUB_OFFLINE is set"
        return
    if local or reachable():
        yield ""
        return
    import datasets
    import huggingface_hub.constants

    before = datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield "The hub cannot be reached"
    finally:
        datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE = before


def reachable() -> bool:
    """Whether the hub's host takes connections; behind a proxy that is the proxy's matter."""
    if getproxies():
        return True
    parts = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        socket.create_connection((parts.hostname or "", port), _TIMEOUT).close()
    except OSError:
        return False
    return True
