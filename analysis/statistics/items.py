"""Item tables of several rows side by side: the same items in the same order, as arrays.

The tables of a sweep have the same items nearly always, so they are compared whole (pyarrow) before they are matched by
id. Rows scored on other items than most (an older run, the rung subset) are brought to the items that both have.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis.bias_sets import BIAS_SETS
from analysis.errors import DataError, FolderError
from analysis.folder import SweepFolder, TrialFolder, fetch_missing
from analysis.rows import Row, row_files

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Aligned:
    """Columns of ``len(rows)`` item tables over the same items.

    Attributes:
        ids: of the items.
        tables: one a row, its items in the order of ``ids``.
    """

    ids: pa.Array
    tables: tuple[pa.Table, ...]

    @property
    def n(self) -> int:
        return len(self.ids)

    def numbers(self, column: str) -> Floats:
        """(rows, items) of a numeric column."""
        return np.stack([_numbers(table[column]).astype(np.float64) for table in self.tables])

    def codes(self, column: str, names: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """(rows, items) of a text column as places in ``names``; -1 for a text that is not among them."""
        place = {name: i for i, name in enumerate(names)}
        coded = []
        for table in self.tables:
            texts = table[column].combine_chunks().cast(pa.string()).dictionary_encode(null_encoding="encode")
            places = np.array([place.get(text, -1) for text in texts.dictionary.to_pylist()], dtype=np.int64)
            coded.append(places[np.from_dlpack(texts.indices)])
        return np.stack(coded)

    def first_codes(self, column: str, names: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """(items,) of a text column that is the same in all tables, as places in ``names``; behind them for others."""
        codes = Aligned(self.ids, self.tables[:1]).codes(column, names)[0]
        return np.where(codes < 0, len(names), codes)

    def texts(self, *columns: str) -> list[str]:
        """The different texts of some columns, sorted."""
        return sorted({str(x) for t in self.tables for c in columns for x in pc.unique(t[c]).to_pylist()})

    def vectors(self, column: str) -> Floats:
        """(rows, items, width) of a column of equally long lists."""
        stacked = []
        for table in self.tables:
            values = table[column].combine_chunks()
            flat = _numbers(values.flatten()).astype(np.float64)
            stacked.append(flat.reshape(len(values), -1))
        return np.stack(stacked)


def _numbers(column: pa.Array | pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """A numeric column, NaN where it has no value. Without pandas where that goes: pyarrow's own way imports it."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    packed = pa.types.is_boolean(whole.type)  # bits, which numpy has no array of
    return whole.to_numpy(zero_copy_only=False) if whole.null_count or packed else np.from_dlpack(whole)


def read_table(files: TrialFolder, dataset: str, step: int, split: str = "validation") -> pa.Table:
    """One item table. Raises FolderError where it is not there or cannot be read."""
    path = files.items_file(dataset, split, step)
    fetch_missing([path])
    return _read(path, dataset, split, step)


def _read(path: Path, dataset: str, split: str, step: int) -> pa.Table:
    try:
        table = pq.ParquetFile(path, pre_buffer=False).read(use_threads=False)
    except FileNotFoundError:
        raise FolderError(
            f"{path}: no such item table. The trial was not scored on {dataset} ({split}) at step {step}."
        ) from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise FolderError(f"{path}: not an item table ({error}). Restore it from a copy.") from None
    there = set(table.column_names)
    own = {"task": () if "nll" in there and "label" not in there else ("label", "prediction"), "generated": ("label",)}
    needed = BIAS_SETS[dataset].columns if dataset in BIAS_SETS else own.get(dataset, ())
    missing = {"item_id", *needed} - there
    if missing:
        raise FolderError(f"{path}: lacks {', '.join(sorted(missing))}. Restore it from a copy.")
    return table


def read_tables(
    folder: SweepFolder, rows: Sequence[Row], dataset: str = "task"
) -> tuple[dict[str, pa.Table], dict[str, str]]:
    """Trial id → item table, and trial id → why there is none."""
    files = [row_files(folder, row).items_file(dataset, "validation", row.step) for row in rows]
    fetch_missing(files)
    tables, lacking = {}, {}
    for row, file in zip(rows, files, strict=True):
        try:
            tables[row.trial_id] = _read(file, dataset, "validation", row.step)
        except FolderError as error:
            lacking[row.trial_id] = str(error)
    return tables, lacking


def align(tables: Sequence[pa.Table]) -> Aligned:
    """The tables over the items that all have, in the order of the first.

    Raises:
        DataError: where they have no item in common, or an item has two labels.
    """
    first = tables[0]["item_id"].combine_chunks().cast(pa.string())
    others = [table["item_id"].combine_chunks().cast(pa.string()) for table in tables]
    if all(ids.equals(first) for ids in others):
        aligned = list(tables)
        common = first
    else:
        common = first
        for ids in others[1:]:
            common = common.filter(pc.is_in(common, ids))
        aligned = [table.take(pc.index_in(common, ids)) for table, ids in zip(tables, others, strict=True)]
    if len(common) == 0:
        raise DataError("The two have no scored item in common. Score both on the same validation items.")
    labels = [table["label"].combine_chunks() for table in aligned if "label" in table.column_names]
    if not all(other.equals(labels[0]) for other in labels[1:]):
        raise DataError("An item has one label in one table and another one elsewhere: the data changed between them.")
    return Aligned(common, tuple(aligned))


def groups(tables: Mapping[str, pa.Table], reference: str) -> list[list[str]]:
    """Trial ids by the items that their tables have, the reference's own items first; it opens each group."""
    by_items: dict[Any, list[str]] = {"same": []}
    own = tables[reference]["item_id"].combine_chunks()
    for name, table in tables.items():
        if name == reference:
            continue
        ids = table["item_id"].combine_chunks()
        key = "same" if ids.equals(own) else frozenset(ids.to_pylist())
        by_items.setdefault(key, []).append(name)
    return [[reference, *names] for names in by_items.values() if names]
