"""Which columns of a table hold texts and which one labels, told from their values."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.errors import DataError
from trainer.data.tables import as_text, quoted

_LONGEST_LABEL = 64  # characters
_MOST_LABELS = 1000  # a column with more holds texts or numbers, not classes
_LABEL_ROWS = 2  # rows of a label, on average at least


@dataclass(frozen=True)
class ColumnRoles:
    """What the columns of a table look like.

    Attributes:
        texts: columns of words that are not labels, in the order of the table → mean length, in characters.
        labels: columns of few short values, those with the fewest first.
    """

    texts: Mapping[str, float]
    labels: Sequence[str]

    @property
    def text_and_label(self) -> tuple[str, str] | None:
        """The two columns, where there is no choice."""
        return (next(iter(self.texts)), self.labels[0]) if len(self.texts) == len(self.labels) == 1 else None

    def suggestion(self, missing: Collection[str], completes: bool) -> str:
        """The overrides to type, as a sentence; empty where no column looks like a text.

        Args:
            missing: of ``data.text`` and ``data.label``, those whose column is not there.
            completes: whether the model continues texts, so that rows need no label.
        """
        if "data.text" in missing and not self.texts:
            return ""
        if "data.label" in missing and not self.labels:
            if completes and len(self.texts) == 2:
                prompt, completion = self.texts
                return f"Type {override('data.prompt', prompt)} {override('data.completion', completion)}."
            return f"No column looks like labels (2 values or more, each in {_LABEL_ROWS} rows or more)."
        parts, others = [], ""
        if "data.text" in missing:
            parts.append(override("data.text", max(self.texts, key=lambda name: self.texts[name])))
        if "data.label" in missing:
            parts.append(override("data.label", self.labels[0]))
            others = f" Other columns of few values: {quoted(self.labels[1:])}." if self.labels[1:] else ""
        if "data.text" in missing and len(self.texts) > 1 and all(map(str.isidentifier, self.texts)):
            joined = " ".join(f"{{{{ {name} }}}}" for name in self.texts)
            others += f" Several texts: {override('data.template', joined)} in place of data.text."
        return f"Type {' '.join(parts)}.{others}"


def column_roles(columns: Mapping[str, Sequence[Any]]) -> ColumnRoles:
    """Tell texts and labels by their values; what is neither, such as numbers that differ, is left out.

    Args:
        columns: name → a value per row.
    """
    texts: dict[str, float] = {}
    labels: dict[str, int] = {}
    for name, values in columns.items():
        try:
            cells = [cell for value in values if (cell := as_text(value, name).strip())]
        except DataError:  # lists or objects
            continue
        distinct = set(cells)
        if 2 <= len(distinct) <= min(_MOST_LABELS, len(cells) // _LABEL_ROWS) and _short(distinct):
            labels[name] = len(distinct)
        elif sum(any(map(str.isalpha, cell)) for cell in cells) > len(cells) / 2:
            texts[name] = sum(map(len, cells)) / len(cells)
    return ColumnRoles(texts, sorted(labels, key=lambda name: labels[name]))


def _short(values: set[str]) -> bool:
    return all(len(value) <= _LONGEST_LABEL and "\n" not in value for value in values)


def override(key: str, value: str) -> str:
    """An override as it is typed in a shell, quoted where it must be.

    Args:
        key: config path.
        value: text.
    """
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", value):
        return f"{key}={value}"
    inside = value.replace('"', '\\"').replace("'", "'\\''")
    return f"'{key}=\"{inside}\"'"
