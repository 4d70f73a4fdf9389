"""Tables of any format: columns of plain values, and for each row its place in a file, for messages.

Values stay what the file says: the words "NA" and "None" are text, not missing values.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from analysis.errors import DataError, nearest_names


@dataclass(frozen=True)
class Table:
    """The selected columns of a file.

    Attributes:
        path: where they come from.
        columns: column → one value per row; None or "" where the cell is empty.
        rows: each row's number among the rows of the file, from 0.
        lines: each row's first line in the file, from 1; None for a format without lines.
        files: each row's own file, for a folder of them.
        places: where each row stands, in full.
    """

    path: Path | str
    columns: dict[str, list[Any]]
    rows: Sequence[int]
    lines: Sequence[int] | None = None
    files: Sequence[str] | None = None
    places: Sequence[str] | None = None

    def place(self, index: int) -> str:
        """Where a row stands, for a message."""
        if self.places is not None:
            return self.places[index]
        if self.files is not None:
            return f"{self.path}/{self.files[index]}"
        if self.lines is None:
            return f"{self.path}, row {self.rows[index] + 1}"
        return f"{self.path}, line {self.lines[index]}"


def joined(name: str, tables: Sequence[Table]) -> Table:
    """Tables of the same columns as one, in order.

    Args:
        name: what to call it, for messages about the whole.
        tables: each place in messages stays that of the row's own file.
    """
    if len(tables) == 1:
        return tables[0]
    columns = {column: [value for table in tables for value in table.columns[column]] for column in tables[0].columns}
    rows, places, begin = list[int](), list[str](), 0
    for table in tables:
        rows += [begin + number for number in table.rows]
        places += [table.place(index) for index in range(len(table.rows))]
        begin = rows[-1] + 1 if rows else 0
    return Table(name, columns, rows, places=places)


@dataclass
class RowErrors:
    """What is done with a row that cannot be used.

    Attributes:
        skip: leave it out (``data.on_error=skip``) rather than stop.
        skipped: what was wrong with each row left out, with its file and line.
    """

    skip: bool = False
    skipped: list[str] = field(default_factory=list)

    def broken(self, error: DataError) -> None:
        """Note a row that cannot be used. Raises its error, unless such rows are left out."""
        if not self.skip:
            raise DataError(f"{error} Or leave such rows out: data.on_error=skip.") from None
        self.skipped.append(str(error))


@dataclass(frozen=True)
class ColumnSelection:
    """Columns to read.

    Attributes:
        keys: config path → column that every row must have (``data.text`` → ``text``).
        optional: columns that templates name; a row may lack one, the file may not.
        all: every column there is.
        if_there: columns that are read where the file has them.
    """

    keys: Mapping[str, str]
    optional: Mapping[str, str] = field(default_factory=dict)
    all: bool = False
    if_there: Sequence[str] = ()

    def columns(self, there: Sequence[str]) -> list[str]:
        """The columns to keep, of those that the file has (``there``)."""
        if self.all:
            return list(dict.fromkeys(there))
        also = [column for column in self.if_there if column in there]
        return list(dict.fromkeys([*self.keys.values(), *self.optional.values(), *also]))

    def check(self, path: Path | str, there: Sequence[str], where: str = "", optional: bool = True) -> None:
        """Check the columns of a file.

        Args:
            path: of the file, for messages.
            there: its columns.
            where: such as a line, for messages.
            optional: whether columns that templates name must be there too.

        Raises:
            DataError: for a column that is missing or stands there twice.
        """
        for key, column in {**self.keys, **(self.optional if optional else {})}.items():
            if column not in there:
                hint = nearest_names(column, there)
                nearest = f" {hint}" if hint else ""
                raise DataError(
                    f"{path}{where}: no column {column!r} ({key.split(' ')[0]}). Its columns: {quoted(there)}.{nearest}"
                    f" Set {key.split(' ')[0]}."
                )
            if list(there).count(column) > 1:
                raise DataError(
                    f"{path}{where}: column {column!r} ({key.split(' ')[0]}) stands there more than once."
                    " Rename one of them."
                )


def without_filled_nulls(value: Any) -> Any:
    """A value of Arrow without the keys that are null, at every depth: a struct has the keys of all rows in each."""
    if isinstance(value, dict):
        return {key: without_filled_nulls(part) for key, part in value.items() if part is not None}
    if isinstance(value, list):
        return [without_filled_nulls(part) for part in value]
    return value


def quoted(columns: Sequence[str], most: int = 20) -> str:
    """The names of columns for a message, in quotation marks; only the first ``most`` of them."""
    return ", ".join(map(repr, columns[:most])) + (", …" if len(columns) > most else "")


def as_json(value: Any) -> Any:
    """A cell as a value that JSON has: dates and the like become text, numbers that are not finite null."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float | Decimal):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): as_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(part) for part in value]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def as_text(value: Any, column: str) -> str:
    """A cell as text: 1 → "1", 1.0 → "1", true → "true"; null and NaN become "", the empty cell.

    Args:
        value: of the cell.
        column: its name, for messages.

    Raises:
        DataError: without a place, for a list or an object.
    """
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
        f"column {column!r} holds a {type(value).__name__}: expected text, a number or a boolean."
        " Turn it into text first, or use data.template."
    )
