"""Data sets of the Hugging Face hub by name, and folders or files that ``datasets`` saved or loads.

CSV and JSON files are found as ``datasets`` finds them and read by our own readers, wherever they lie. ``datasets``
guesses the types of their columns: it makes one label of ``007`` and ``7``, and drops ``NA``. What a data set declares
of its files (separators, names of classes) is kept. A data set's own code is never run. With ``HF_HUB_OFFLINE=1``, or
where the hub cannot be reached, only what was loaded before is used.
"""

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies

from analysis.errors import DataError, did_you_mean, first_line
from trainer.config import DataConfig
from trainer.data.readers import format_of, read_columns, read_table
from trainer.data.tables import ColumnSelection, RowErrors, Table, joined, without_filled_nulls

_TIMEOUT = 3.0  # seconds: `datasets` itself tries for half a minute
_AS_TEXT = ("csv", "json")  # builders of `datasets` that guess types


@dataclass(frozen=True)
class _Files:
    """A split in files that are read as they stand.

    Attributes:
        paths: on this machine.
        options: keywords of ``pandas.read_csv`` that the data set declares; empty where our reader needs none.
        field: key of a JSON document that holds the rows; "" where the document is the rows.
        features: columns whose types the data set declares.
    """

    paths: Sequence[Path]
    options: Mapping[str, Any]
    field: str
    features: Mapping[str, Any]

    def column_names(self, key: str) -> list[str]:
        if self.options:
            return list(map(str, _declared_csv(self.paths[0], self.options, rows=0)))
        return read_columns(_format(self.paths[0]), key, str(self.paths[0]), self.field)[1]

    def table(self, key: str, name: str, selection: ColumnSelection, errors: RowErrors) -> Table:
        """The rows of all files, one after the other; raises DataError."""
        if self.options:
            tables = [self._by_pandas(path, selection) for path in self.paths]
        else:
            tables = [read_table(_format(path), key, str(path), selection, errors, self.field) for path in self.paths]
        table = joined(name, tables)
        for column in table.columns:
            table.columns[column] = _class_names(table.columns[column], self.features.get(column))
        return table

    def _by_pandas(self, path: Path, selection: ColumnSelection) -> Table:
        frame = _declared_csv(path, self.options)
        selection.check(path, list(frame))
        return Table(
            path, {column: frame[column].tolist() for column in selection.columns(list(frame))}, range(len(frame))
        )


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
    names = loaded.column_names(key) if isinstance(loaded, _Files) else list(loaded.column_names)
    return _name(config, split), names


def hub_table(config: DataConfig, key: str, split: str, selection: ColumnSelection, errors: RowErrors) -> Table:
    """Some columns of a split; a column of class numbers comes as the classes' names.

    Args:
        config: name (or folder), subset and revision.
        key: config path of the split, for messages (``data.train``).
        split: its name.
        selection: which columns.
        errors: what is done with rows that cannot be read.

    Raises:
        DataError: as ``hub_columns``, and for a column that is not there.
    """
    loaded, name = _load(config, key, split), _name(config, split)
    if isinstance(loaded, _Files):
        return loaded.table(key, name, selection, errors)
    selection.check(name, loaded.column_names)
    columns = {
        column: [without_filled_nulls(v) for v in _class_names(loaded[column][:], loaded.features[column])]
        for column in selection.columns(loaded.column_names)
    }
    return Table(name, columns, range(loaded.num_rows))


def _class_names(values: list[Any], feature: Any) -> list[Any]:
    """Class numbers as the names of the classes; values of a column that is not declared as classes stay.

    Unlabelled rows of hub data sets have None or -1. A number that no class has stays, to be seen.
    """
    if not hasattr(feature, "int2str"):
        return values
    names = dict(enumerate(feature.names))
    return ["" if v in (None, -1, "-1") else names.get(_int(v), v) if v not in feature.names else v for v in values]


def _int(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        return -1


def _name(config: DataConfig, split: str) -> str:
    parts = [part for part in (config.subset, split) if part]
    return f"{config.name} ({', '.join(parts)})"


def _load(config: DataConfig, key: str, split: str) -> Any:
    """A split: ``_Files`` to be read as they stand, or a ``datasets.Dataset``."""
    name = config.name
    if not name:
        raise DataError(
            "data=hub needs data.name: owner/name on the hub, or a folder or file that `datasets` saved or loads."
        )
    data_set = f"data.name={name}" + (f" data.subset={config.subset}" if config.subset else "")
    local = Path(name).expanduser().absolute()
    if local.is_file():
        return _one_file(config, key, split, local)
    with _network(local.exists()) as offline:
        import datasets

        datasets.disable_progress_bars()
        datasets.logging.set_verbosity_error()
        try:
            if _saved(local):
                loaded: Any = datasets.load_from_disk(str(local))
            else:
                loaded = _found(str(local) if local.exists() else name, config, bool(offline))
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, datasets.exceptions.DatasetsError) as error:
            raise DataError(f"{data_set}: cannot be loaded ({first_line(error)}). {_remedy(offline)}") from None
    if not isinstance(loaded, dict):
        return loaded
    if split not in loaded:
        raise DataError(f"{key}={split}: {name} has no such split. {did_you_mean(split, map(str, loaded))}")
    return loaded[split]() if callable(loaded[split]) else loaded[split]


def _one_file(config: DataConfig, key: str, split: str, path: Path) -> Any:
    """A file is a data set of one split, as for ``datasets``."""
    if split != "train":
        raise DataError(
            f"{key}={split}: data.name={config.name} is one file, which has the split train only. Leave it out, and"
            " a share of the rows is taken (data.split.validation); or name a folder of files."
        )
    if _format(path) in ("csv", "tsv", "jsonl"):
        return _Files([path], {}, "", {})
    import datasets

    return datasets.load_dataset(_format(path), data_files=str(path), split="train")


def _found(where: str, config: DataConfig, offline: bool) -> Mapping[Any, Any]:
    """Split → ``datasets.Dataset``, or where types would be guessed a function that gives its ``_Files``."""
    import datasets
    from huggingface_hub import snapshot_download

    builder = None
    if offline and not Path(where).exists():
        try:
            folder = snapshot_download(where, repo_type="dataset", revision=config.revision, local_files_only=True)
            builder = datasets.load_dataset_builder(folder, config.subset)
        except (OSError, ValueError, datasets.exceptions.DatasetsError):
            builder = None  # it was loaded by `datasets` alone, or never
    if builder is None:
        builder = datasets.load_dataset_builder(where, config.subset, revision=config.revision)
    options = builder.config
    if builder.name == "cache" and str(builder.info.builder_name) in _AS_TEXT:
        raise ValueError("only a copy with guessed types is in the cache of `datasets`")
    if builder.name not in _AS_TEXT or not options.data_files:
        loaded = datasets.load_dataset(where, config.subset, revision=config.revision)
        assert isinstance(loaded, Mapping)
        return loaded
    features = options.features or builder.info.features or {}

    def files(paths: Sequence[str]) -> _Files:
        there = [_here(str(path)) for path in paths]
        return _Files(there, _declared_options(options, there[0]), getattr(options, "field", None) or "", features)

    return {str(split): lambda paths=paths: files(paths) for split, paths in options.data_files.items()}


def _declared_options(options: Any, path: Path) -> dict[str, Any]:
    """What a data set declares of its CSV files beyond what our reader sees by itself."""
    if not hasattr(options, "pd_read_csv_kwargs"):
        return {}
    usual = type(options)().pd_read_csv_kwargs
    declared = {name: value for name, value in options.pd_read_csv_kwargs.items() if value != usual.get(name)}
    return {} if declared == {"sep": "\t"} and _format(path) == "tsv" else declared


def _declared_csv(path: Path, options: Mapping[str, Any], rows: int | None = None) -> Any:
    """A data frame of text; nothing but what ``options`` name counts as missing. Raises DataError."""
    import pandas as pd

    try:
        return pd.read_csv(path, **{"dtype": str, "keep_default_na": False, "nrows": rows, **options})
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as the data set declares it ({first_line(error)}).") from None


def _here(url: str) -> Path:
    """The file on this machine; downloaded, once, where it is on the hub or elsewhere."""
    if url.startswith("hf://datasets/"):
        from huggingface_hub import hf_hub_download

        name, _, rest = url.removeprefix("hf://datasets/").partition("@")
        revision, _, path = rest.partition("/")
        return Path(hf_hub_download(name, path, repo_type="dataset", revision=unquote(revision)))
    if "://" in url:
        import datasets

        return Path(datasets.DownloadManager().download(url))
    return Path(url)


def _format(path: Path) -> str:
    """The format of a file that the ``csv`` or ``json`` builder of ``datasets`` reads."""
    kind = format_of(path)
    return {"json": "jsonl", "ndjson": "jsonl"}.get(kind, kind)


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
