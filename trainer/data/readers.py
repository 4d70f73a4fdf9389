"""Reads tables from files: CSV, TSV, JSON(-lines), Parquet, Arrow, or a folder of text files.

Text may be packed (gzip, Zstandard, bzip2, xz), whatever the file is called.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from analysis.errors import DataError, did_you_mean
from trainer.data.tables import ColumnSelection, RowErrors, Table, without_filled_nulls

FORMATS = ("csv", "tsv", "jsonl", "parquet", "arrow", "folder")
_MAX_CELL = 2**31 - 1  # characters; Python's own limit of 131,072 is less than a long document
_SEPARATORS = {"csv": ",", "tsv": "\t"}
_OTHERS = (";", "\t", "|")  # of CSV files whose header has no comma: spreadsheets write them in many countries
_ESCAPED = "surrogateescape"  # bytes that are not UTF-8 come out as lone surrogates, one row's fault at a time
_PARQUET = b"PAR1"
_ARROW = (b"ARROW1", b"\xff\xff\xff\xff")  # an IPC file, an IPC stream
_PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "Zstandard", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
_PACKED_NAMES = (".gz", ".zst", ".bz2", ".xz")
_MAGIC = {
    b"PK\x03\x04": "a Zip archive or an Excel workbook: unpack it, or save the sheet as CSV (UTF-8)",
    _PARQUET: "a Parquet file: use data=parquet",
    b"ARROW1": "an Arrow file: use data=arrow",
    b"\xff\xfe": "UTF-16 text: save it as UTF-8",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8",
}


def format_of(path: Path) -> str:
    """What the end of a file's name says, without that of packing: ``csv`` of ``rows.csv.gz``; "" for nothing."""
    plain = path.with_suffix("") if path.suffix in _PACKED_NAMES else path
    return plain.suffix.removeprefix(".").lower()


def read_columns(source: str, key: str, value: str, field: str = "") -> tuple[Path, list[str]]:
    """The columns of a file, without reading its rows: of JSON-lines, those of the first row.

    Args:
        source: one of FORMATS.
        key: config path of the file, for messages (``data.train``).
        value: what the key is set to.
        field: of a JSON document, the key of the list of rows.

    Raises:
        DataError: for a file that is missing, unreadable or of another format.
    """
    path = _path(source, key, value)
    with _explained(path):
        if source == "folder":
            return path, list(_read_folder(path, ColumnSelection({}, all=True), RowErrors(skip=True)).columns)
        if source in _SEPARATORS:
            with _text(path) as file, _long_cells():
                return path, _header(path, _csv_reader(file, source), source)
        if source == "jsonl":
            with _unpacked(path) as file:
                _, records = _json_rows(path, file, RowErrors(skip=True), field)
                first = next((record for _, record in records if record is not None), None)
                if first is not None:
                    return path, list(first)
            _read_jsonl(path, ColumnSelection({}), RowErrors())  # raises for the first line, where it is at fault
            raise DataError(f"{path}: no rows in it. Give a file with rows as {key}.")
        return path, list(_arrow_names(source, path))


def read_table(
    source: str, key: str, value: str, selection: ColumnSelection, errors: RowErrors, field: str = ""
) -> Table:
    """Read some columns of a file.

    Args:
        source: one of FORMATS.
        key: config path of the file, for messages (``data.train``).
        value: what the key is set to.
        selection: which columns.
        errors: what is done with rows that cannot be read.
        field: of a JSON document, the key of the list of rows.

    Raises:
        DataError: for a file that is missing, unreadable or malformed, or lacks a column.
    """
    path = _path(source, key, value)
    with _explained(path):
        if source == "folder":
            return _read_folder(path, selection, errors)
        if source in _SEPARATORS:
            return _read_csv(path, source, selection, errors)
        if source == "jsonl":
            return _read_jsonl(path, selection, errors, field)
        return _read_arrow(source, path, selection)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise DataError(f"{path}: cannot be read ({why}). Check that you may read it: ls -l '{path}'.") from None


@contextmanager
def _unpacked(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked where they are packed. Raises DataError where packing is broken."""
    with path.open("rb") as file:
        start = file.read(8)
    kind = next((kind for magic, kind in _PACKED.items() if start.startswith(magic)), "")
    try:
        with _opened(path, kind) as file:
            yield file
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if not kind or isinstance(error, (FileNotFoundError, PermissionError)):
            raise
        raise DataError(f"{path}: not a complete {kind} archive ({error}). Pack or copy it again.") from None


def _opened(path: Path, kind: str) -> BinaryIO:
    if kind == "gzip":
        return cast(BinaryIO, gzip.open(path))
    if kind == "bzip2":
        return cast(BinaryIO, bz2.open(path))
    if kind == "xz":
        return cast(BinaryIO, lzma.open(path))
    if kind == "Zstandard":
        import pyarrow as pa

        with pa.OSFile(str(path)) as packed, pa.CompressedInputStream(packed, "zstd") as stream:
            return io.BytesIO(stream.read())  # its own stream cannot go back to the beginning
    return path.open("rb")


@contextmanager
def _text(path: Path) -> Iterator[TextIO]:
    """A file's text, with its line breaks; bytes that are not UTF-8 come out as lone surrogates."""
    with _unpacked(path) as file, io.TextIOWrapper(file, "utf-8-sig", _ESCAPED, newline="") as text:
        yield text


def _path(source: str, key: str, value: str) -> Path:
    """The file or folder, after a look at whether it is one, and of the format."""
    path = Path(value).expanduser().absolute()
    try:
        missing, empty = not path.exists(), path.is_file() and path.stat().st_size == 0
    except OSError as error:
        raise DataError(f"{key}={value}: cannot be read ({error.strerror}). Give the path of a file.") from None
    if missing:
        beside = sorted(p.name for p in path.parent.iterdir() if p.is_file()) if path.parent.is_dir() else []
        hint = f" In that folder: {did_you_mean(path.name, beside)}" if beside else ""
        raise DataError(f"{key}={value}: no such {_kind(source)} (looked for {path}).{hint}")
    if source == "folder":
        if not path.is_dir():
            raise DataError(f"{key}={value} is no folder: data=folder reads the *.txt files below one.")
        return path
    if path.is_dir():
        raise DataError(
            f"{key}={value} is a directory: expected one file. Give the path of a file in it, or use data=folder for"
            " a folder of text files."
        )
    if not path.is_file():
        raise DataError(f"{key}={value} is a pipe or device: expected a regular file. Write the data to a file first.")
    if empty:
        raise DataError(f"{path}: the file is empty (0 bytes). Write the data again, or give another file as {key}.")
    with _explained(path):
        _check_start(source, path)
    return path


def _kind(source: str) -> str:
    return "folder" if source == "folder" else "file"


def _check_start(source: str, path: Path) -> None:
    if source in ("parquet", "arrow"):
        with path.open("rb") as file:
            start = file.read(8)
    else:
        with _unpacked(path) as file:
            start = file.read(8)
    if source == "parquet" and not start.startswith(_PARQUET):
        raise DataError(f"{path}: not a Parquet file. If it is text, use data=csv or data=jsonl.")
    if source == "arrow" and not start.startswith(_ARROW):
        raise DataError(f"{path}: not an Arrow file or stream. If it is text, use data=csv or data=jsonl.")
    if source in ("parquet", "arrow"):
        return
    for magic, meaning in _MAGIC.items():
        if start.startswith(magic):
            raise DataError(f"{path}: this is {meaning}.")


# --- CSV, TSV


def _csv_reader(file: TextIO, source: str) -> Any:
    """A reader of records; of CSV by the separator of its first line, which is a header or, from Excel, ``sep=;``."""
    separator = _SEPARATORS[source]
    if source == "csv":
        first = re.sub(r'"[^"]*"', "", next((line for line in file if line.strip()), ""))
        file.seek(0)
        named = re.fullmatch(r"sep=(.)\r?\n?", first)
        most = max(_OTHERS, key=first.count)
        if named:
            separator = named[1]
        elif separator not in first and most in first:
            separator = most
    return csv.reader(file, delimiter=separator, strict=True)


def _header(path: Path, reader: Any, source: str) -> list[str]:
    for line, cells in _csv_records(path, reader, RowErrors()):
        if line == 1 and cells[0] == "sep=" and source == "csv":
            continue
        _check_utf8(path, 1, cells)
        other = next((mark for mark in (";", "|", ",") if len(cells) == 1 and mark in cells[0]), None)
        if source == "tsv" and other:
            raise DataError(f"{path}: the header looks separated by {other!r}: use data=csv.")
        return cells
    raise DataError(f"{path}: no rows in it, not even a header. Write the data again.")


def _read_csv(path: Path, source: str, selection: ColumnSelection, errors: RowErrors) -> Table:
    lines: list[int] = []
    numbers: list[int] = []
    with _text(path) as file, _long_cells():
        reader = _csv_reader(file, source)
        header = _header(path, reader, source)
        selection.check(path, header)
        columns: dict[str, list[Any]] = {column: [] for column in selection.columns(header)}
        places = [(columns[column], header.index(column)) for column in columns]
        for number, (line, cells) in enumerate(_csv_records(path, reader, errors)):
            if not cells:
                continue
            try:
                _check_utf8(path, line, cells)
                if len(cells) != len(header):
                    raise DataError(
                        f"{path}, line {line}: {_count(len(cells), 'cell')}, but the header has {len(header)}. Put"
                        " cells that hold separators, quotes or line breaks in double quotes, and write a quote inside"
                        ' them as "".'
                    )
            except DataError as error:
                errors.broken(error)
                continue
            lines.append(line)
            numbers.append(number)
            for values, at in places:
                values.append(cells[at])
    return Table(path, columns, numbers, lines)


def _csv_records(path: Path, reader: Any, errors: RowErrors) -> Iterator[tuple[int, list[str]]]:
    """Records that are not blank lines, each with its first line; a record that is left out has no cells."""
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):  # the rest of the file is in it: nothing to go on with
                raise DataError(
                    f"{path}, line {line}: a double quote is opened in this row and never closed. Close it, or write"
                    ' quotes inside a quoted cell as "".'
                ) from None
            errors.broken(
                DataError(
                    f"{path}, line {reader.line_num}: not valid CSV ({error}). Write a quote inside a quoted cell"
                    ' as "".'
                )
            )
            yield line, []
            continue
        if any(cells) or len(cells) == 1:  # spreadsheets write rows of empty cells below a table
            yield line, cells


@contextmanager
def _long_cells() -> Iterator[None]:
    before = csv.field_size_limit(_MAX_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _check_utf8(path: Path, line: int, cells: Sequence[str]) -> None:
    for cell in cells:
        if cell.isascii():
            continue
        try:
            cell.encode()
        except UnicodeEncodeError as error:
            raw = cell.encode(errors=_ESCAPED)
            byte = raw[len(cell[: error.start].encode(errors=_ESCAPED))]
            raise _not_utf8(path, line, byte) from None


def _not_utf8(path: Path, line: int, byte: int) -> DataError:
    return DataError(
        f"{path}, line {line}: not UTF-8 (byte 0x{byte:02x}). Save the file as UTF-8, or convert it:"
        f" iconv -f WINDOWS-1252 -t UTF-8 '{path.name}'."
    )


# --- JSON-lines


def _read_jsonl(path: Path, selection: ColumnSelection, errors: RowErrors, field: str = "") -> Table:
    records: list[dict[str, Any]] = []
    lines: list[int] = []
    numbers: list[int] = []
    there: dict[str, None] = {}
    with _unpacked(path) as file:
        word, rows = _json_rows(path, file, errors, field)
        for number, (line, record) in enumerate(rows):
            if record is None:
                continue
            if not records:
                selection.check(path, list(record), f", {word} {line}", optional=False)
            missing = [(key, column) for key, column in selection.keys.items() if column not in record]
            if missing:
                key, column = missing[0]
                errors.broken(
                    DataError(f"{path}, {word} {line}: no {column!r} ({key}), which the first row has. Add it there.")
                )
                continue
            there.update(dict.fromkeys(record))
            lines.append(line)
            numbers.append(number)
            records.append(record)
    if records:
        selection.check(path, list(there))
    columns = {column: [record.get(column) for record in records] for column in selection.columns(list(there))}
    return Table(path, columns, numbers, lines if word == "line" else None)


def _json_rows(
    path: Path, file: BinaryIO, errors: RowErrors, field: str
) -> tuple[str, Iterator[tuple[int, dict[str, Any] | None]]]:
    """What its rows are counted by (``line``; ``row`` of one JSON document), and objects with their number.

    None stands for a line that is left out.
    """
    document = _document(file, field)
    if document is not None:
        return "row", iter(enumerate(document, start=1))
    file.seek(0)
    return "line", _json_records(path, file, errors)


def _json_records(path: Path, file: BinaryIO, errors: RowErrors) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Objects with their lines; None for a line that is left out."""
    for line, raw in enumerate(file, start=1):
        try:
            text = raw.decode("utf-8-sig" if line == 1 else "utf-8").strip()
            if not text:
                continue
            record = json.loads(text)
            if not isinstance(record, dict):
                raise DataError(
                    f"{path}, line {line}: found a {type(record).__name__}, expected an object such as"
                    ' {"text": …, "label": …}. Write each row as one object on one line.'
                )
        except UnicodeDecodeError as error:
            errors.broken(_not_utf8(path, line, error.object[error.start]))
            record = None
        except DataError as error:
            errors.broken(error)
            record = None
        except (ValueError, RecursionError) as error:
            whole = " Is it one JSON document? Then write each row as one object on one line." if line == 1 else ""
            errors.broken(
                DataError(f"{path}, line {line}: not valid JSON ({error}). Correct or remove the line.{whole}")
            )
            record = None
        yield line, record


def _document(file: BinaryIO, field: str) -> list[dict[str, Any]] | None:
    """The rows of a file that is one JSON document, a list of objects; None where it is none."""
    start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not field and not start.startswith(b"["):
        return None
    file.seek(0)
    try:
        document = json.loads(file.read().decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    rows = document.get(field) if field and isinstance(document, dict) else document
    return rows if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows) else None


# --- Parquet, Arrow


def _arrow_names(source: str, path: Path) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _complete(source, path):
        if source == "parquet":
            with pq.ParquetFile(path) as file:
                return list(file.schema_arrow.names)
        with pa.memory_map(str(path)) as memory:
            return list(_ipc(memory).schema.names)


def _read_arrow(source: str, path: Path, selection: ColumnSelection) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = _arrow_names(source, path)
    selection.check(path, names)
    chosen = selection.columns(names)
    with _complete(source, path):
        if source == "parquet":
            with pq.ParquetFile(path) as file:
                table = file.read(columns=chosen)
        else:
            with pa.memory_map(str(path)) as memory:
                table = _ipc(memory).read_all().select(chosen)
        columns = {column: _values(table.column(column)) for column in chosen}
    return Table(path, columns, range(table.num_rows))


def _values(column: Any) -> list[Any]:
    """Plain values; objects have the keys that were written, as in JSON."""
    import pyarrow as pa

    values: list[Any] = column.to_pylist(maps_as_pydicts="strict")
    return [without_filled_nulls(value) for value in values] if pa.types.is_nested(column.type) else values


def _ipc(memory: Any) -> Any:
    import pyarrow as pa

    start = memory.read(6)
    memory.seek(0)
    return _WholeFile(pa.ipc.open_file(memory)) if start == b"ARROW1" else pa.ipc.open_stream(memory)


class _WholeFile:
    """pyarrow's file reader with the stream reader's words."""

    def __init__(self, reader: Any):
        self.schema, self.read_all = reader.schema, reader.read_all


@contextmanager
def _complete(source: str, path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        first = str(error).splitlines()[0]
        kind = "Parquet" if source == "parquet" else "Arrow"
        raise DataError(f"{path}: not a complete {kind} file ({first}). Write or copy it again.") from None


# --- a folder of text files


def _read_folder(path: Path, selection: ColumnSelection, errors: RowErrors) -> Table:
    """Columns ``text`` and ``file``, and ``label``, the name of the subfolder, where all files are in one."""
    files = sorted(file for file in path.rglob("*.txt") if file.is_file() and not file.name.startswith("."))
    if not files:
        raise DataError(f"{path}: no *.txt file in it. data=folder reads the text files below a folder, one a row.")
    names = [file.relative_to(path) for file in files]
    labelled = all(len(name.parts) > 1 for name in names)
    there = ["text", "file", *(["label"] if labelled else [])]
    selection.check(path, there)
    read_all: dict[str, list[Any]] = {column: [] for column in there}
    numbers = []
    for number, (file, name) in enumerate(zip(files, names, strict=True)):
        try:
            text = file.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            errors.broken(
                DataError(f"{file}: not UTF-8 (byte 0x{error.object[error.start]:02x}). Save the file as UTF-8.")
            )
            continue
        numbers.append(number)
        read_all["text"].append(text)
        read_all["file"].append(name.as_posix())
        if labelled:
            read_all["label"].append(name.parts[0])
    columns = {column: read_all[column] for column in selection.columns(there)}
    return Table(path, columns, numbers, files=[names[number].as_posix() for number in numbers])


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
