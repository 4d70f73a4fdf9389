"""Tables from CSV, JSON-lines and Parquet files, as text, with the place of every row for error messages.

Values stay what the file says: the words "NA" and "None" are text, not missing values. Numbers and booleans of typed
formats become text: 1 → "1", 1.0 → "1", true → "true"; null and NaN become "", the empty cell.
"""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

from analysis.errors import DataError, did_you_mean

_MAX_CELL = 2**31 - 1  # characters; Python's own limit of 131,072 is less than a long document
_MAGIC = {
    b"\x1f\x8b": "a gzip archive: unpack it with gunzip",
    b"PK\x03\x04": "a Zip archive or an Excel workbook: unpack it, or save the sheet as CSV (UTF-8)",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive: unpack it with unzstd",
    b"BZh": "a bzip2 archive: unpack it with bunzip2",
    b"\xfd7zXZ": "an xz archive: unpack it with unxz",
    b"PAR1": "a Parquet file: use data=parquet",
    b"\xff\xfe": "UTF-16 text: save it as UTF-8",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8",
}


@dataclass(frozen=True)
class Table:
    """The wanted columns of a file.

    Attributes:
        path: where they come from.
        columns: column → one text per row; "" where the cell is empty.
        rows: each row's number among the rows of the file, from 0.
        lines: each row's first line in the file, from 1; None for a format without lines.
    """

    path: Path
    columns: dict[str, list[str]]
    rows: Sequence[int]
    lines: Sequence[int] | None = None

    def place(self, index: int) -> str:
        """Where a row stands, for a message."""
        if self.lines is None:
            return f"{self.path}, row {self.rows[index] + 1}"
        return f"{self.path}, line {self.lines[index]}"


def read_table(source: str, key: str, given: str, wanted: Mapping[str, str]) -> Table:
    """Read some columns of a file.

    Args:
        source: ``csv``, ``jsonl`` or ``parquet``.
        key: config path of the file, for messages (``data.train``).
        given: its value.
        wanted: config path → column (``data.text`` → ``text``).

    Raises:
        DataError: for a file that is missing, unreadable or malformed, or lacks a column.
    """
    path = Path(given).expanduser().absolute()
    _check_file(key, given, path)
    read = {"csv": _read_csv, "jsonl": _read_jsonl, "parquet": _read_parquet}[source]
    try:
        _check_start(source, path)
        return read(path, wanted)
    except OSError as error:
        why = error.strerror or str(error)
        raise DataError(f"{path}: cannot be read ({why}). Check that you may read it: ls -l '{path}'.") from None


def _check_file(key: str, given: str, path: Path) -> None:
    try:
        missing, empty = not path.exists(), path.is_file() and path.stat().st_size == 0
    except OSError as error:
        raise DataError(f"{key}={given}: cannot be read ({error.strerror}). Give the path of a file.") from None
    if missing:
        beside = sorted(p.name for p in path.parent.iterdir() if p.is_file()) if path.parent.is_dir() else []
        hint = f" In that folder: {did_you_mean(path.name, beside)}" if beside else ""
        raise DataError(f"{key}={given}: no such file (looked for {path}).{hint}")
    if path.is_dir():
        raise DataError(f"{key}={given} is a directory: expected one file. Give the path of a file in it.")
    if not path.is_file():
        raise DataError(f"{key}={given} is a pipe or device: expected a regular file. Write the data to a file first.")
    if empty:
        raise DataError(f"{path}: the file is empty (0 bytes). Write the data again, or give another file as {key}.")


def _check_start(source: str, path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(8)
    if source == "parquet":
        if not start.startswith(b"PAR1"):
            raise DataError(f"{path}: not a Parquet file. If it is text, use data=csv or data=jsonl.")
        return
    for magic, meaning in _MAGIC.items():
        if start.startswith(magic):
            raise DataError(f"{path}: this is {meaning}.")


def _check_columns(path: Path, wanted: Mapping[str, str], there: Sequence[str], where: str = "") -> None:
    for key, column in wanted.items():
        if column not in there:
            names = ", ".join(map(repr, there[:20])) + (", …" if len(there) > 20 else "")
            hint = did_you_mean(column, there)
            nearest = f" {hint}" if hint.startswith("Did") else ""
            separated = [mark for mark in (";", "\t", "|") if len(there) == 1 and mark in there[0]]
            if separated:
                nearest = f" The header looks separated by {separated[0]!r}: save the file with commas."
            raise DataError(f"{path}{where}: no column {column!r} ({key}). Its columns: {names}.{nearest} Set {key}.")
        if list(there).count(column) > 1:
            raise DataError(
                f"{path}{where}: column {column!r} ({key}) stands there more than once. Rename one of them."
            )


def _read_csv(path: Path, wanted: Mapping[str, str]) -> Table:
    columns: dict[str, list[str]] = {column: [] for column in wanted.values()}
    lines: list[int] = []
    with path.open(encoding="utf-8-sig", newline="") as file, _long_cells():
        records = _csv_records(path, csv.reader(file, strict=True))
        header = next(records, (1, []))[1]
        _check_columns(path, wanted, header)
        places = [(columns[column], header.index(column)) for column in columns]
        for line, cells in records:
            if len(cells) != len(header):
                raise DataError(
                    f"{path}, line {line}: {_count(len(cells), 'cell')}, but the header has {len(header)}. Put cells"
                    ' that hold commas, quotes or line breaks in double quotes, and write a quote inside them as "".'
                )
            lines.append(line)
            for values, at in places:
                values.append(cells[at])
    return Table(path, columns, range(len(lines)), lines)


def _csv_records(path: Path, reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Records that are not blank lines, each with its first line; errors with theirs."""
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except UnicodeDecodeError as error:
            raise _not_utf8(path, error) from None
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise DataError(
                    f"{path}, line {line}: a double quote is opened in this row and never closed. Close it, or write"
                    ' quotes inside a quoted cell as "".'
                ) from None
            raise DataError(
                f'{path}, line {reader.line_num}: not valid CSV ({error}). Write a quote inside a quoted cell as "".'
            ) from None
        if cells:
            yield line, cells


@contextmanager
def _long_cells() -> Iterator[None]:
    before = csv.field_size_limit(_MAX_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _not_utf8(path: Path, error: UnicodeDecodeError) -> DataError:
    """The decoder reads in blocks, so the line is looked for again."""
    place = str(path)
    with path.open("rb") as file:
        for line, raw in enumerate(file, start=1):
            try:
                raw.decode()
            except UnicodeDecodeError as found:
                place, error = f"{path}, line {line}", found
                break
    byte = error.object[error.start]
    return DataError(
        f"{place}: not UTF-8 (byte 0x{byte:02x}). Save the file as UTF-8, or convert it:"
        f" iconv -f WINDOWS-1252 -t UTF-8 '{path.name}'."
    )


def _read_jsonl(path: Path, wanted: Mapping[str, str]) -> Table:
    columns: dict[str, list[str]] = {column: [] for column in wanted.values()}
    lines: list[int] = []
    with path.open("rb") as file:
        for line, record in _json_records(path, file):
            if not lines:
                _check_columns(path, wanted, list(record), f", line {line}")
            lines.append(line)
            for key, column in wanted.items():
                if column not in record:
                    raise DataError(
                        f"{path}, line {line}: no {column!r} ({key}), which the first row has. Add it there."
                    )
            for column, values in columns.items():
                values.append(_as_text(record[column], column, f"{path}, line {line}"))
    return Table(path, columns, range(len(lines)), lines)


def _json_records(path: Path, file: BinaryIO) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, raw in enumerate(file, start=1):
        try:
            text = raw.decode("utf-8-sig" if line == 1 else "utf-8").strip()
            if not text:
                continue
            record = json.loads(text)
        except UnicodeDecodeError as error:
            raise _not_utf8(path, error) from None
        except (ValueError, RecursionError) as error:
            whole = " Is it one JSON document? Then write each row as one object on one line." if line == 1 else ""
            raise DataError(
                f"{path}, line {line}: not valid JSON ({error}). Correct or remove the line.{whole}"
            ) from None
        if not isinstance(record, dict):
            raise DataError(
                f"{path}, line {line}: found a {type(record).__name__}, expected an object such as"
                ' {"text": …, "label": …}. Write each row as one object on one line.'
            )
        yield line, record


def _read_parquet(path: Path, wanted: Mapping[str, str]) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            _check_columns(path, wanted, file.schema_arrow.names)
            table = file.read(columns=list(dict.fromkeys(wanted.values())))
    except (pa.ArrowException, OSError) as error:
        first = str(error).splitlines()[0]
        raise DataError(f"{path}: not a complete Parquet file ({first}). Write or copy it again.") from None
    columns = {}
    for column in table.column_names:
        values = table.column(column).to_pylist()
        columns[column] = [_as_text(v, column, f"{path}, row {i}") for i, v in enumerate(values, start=1)]
    return Table(path, columns, range(table.num_rows))


def _as_text(value: Any, column: str, place: str) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (float, Decimal)):
        if math.isnan(value):
            return ""
        return str(int(value)) if math.isfinite(value) and value == int(value) else str(value)
    if isinstance(value, int):
        return str(value)
    raise DataError(
        f"{place}: column {column!r} holds a {type(value).__name__}: expected text, a number or a boolean."
        " Turn it into text first."
    )


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
