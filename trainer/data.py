"""The rows of a task, checked before anything is loaded or trained."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from analysis.errors import DataError
from trainer.config import DataConfig
from trainer.newsgroups import load_newsgroups
from trainer.readers import Table, read_table
from trainer.strata import stratified

_SHOWN = 10  # labels named in a message


@dataclass(frozen=True, slots=True)
class Row:
    """One example.

    Attributes:
        item_id: ``<split>-<number in the file, from 0>-<hash of the content>``: the same in every sweep on this data.
        text: as in the file.
        label: without the white space around it.
        group: as in the file; None where the cell is empty or no column is named.
    """

    item_id: str
    text: str
    label: str
    group: str | None = None


@dataclass(frozen=True)
class Dataset:
    """A task's rows.

    Attributes:
        train: in the order of the file.
        validation: in the order of the file.
        labels: the classes, sorted: the position of a label here is its index everywhere.
        fingerprint: SHA-256 of all content in order, the same for the same content in another format.
    """

    train: list[Row]
    validation: list[Row]
    labels: tuple[str, ...]
    fingerprint: str


def load_dataset(config: DataConfig, report: Callable[[str], None] = lambda message: None) -> Dataset:
    """Read and check the training and validation rows. The test rows are left alone.

    Args:
        config: where they are.
        report: told about a download.

    Raises:
        DataError: for a file or column that cannot be used, or classes that cannot be learned; it names the place.
        FetchError: if the data are a package that cannot be downloaded.
    """
    train, validation = _tables(config, report)
    train_rows, validation_rows = _rows(train, "train", config), _rows(validation, "validation", config)
    _check_classes(train, train_rows, validation, validation_rows)
    labels = tuple(sorted({row.label for row in train_rows}))
    return Dataset(train_rows, validation_rows, labels, _fingerprint(train_rows, validation_rows))


def rung_subset(rows: list[Row], n: int, seed: int) -> list[int]:
    """Ascending indices of the fixed rows that are scored at rungs, each label in proportion and at least once.

    Args:
        rows: the validation rows.
        n: how many; all where there are fewer.
        seed: another seed gives another subset.
    """
    return stratified([row.item_id for row in rows], [row.label for row in rows], n, seed)


def _tables(config: DataConfig, report: Callable[[str], None]) -> tuple[Table, Table]:
    if config.source == "newsgroups":
        unused = {"data.train": config.train, "data.validation": config.validation, "data.group": config.group}
        for key, value in unused.items():
            if value is not None:
                raise DataError(
                    f"{key}={value} is not used by data=newsgroups. Leave it out, or use data=csv, jsonl, parquet."
                )
        return load_newsgroups(config, report)
    for key, rows in (
        ("topics", config.topics),
        ("train_rows", config.train_rows),
        ("validation_rows", config.validation_rows),
    ):
        if rows:
            raise DataError(f"data.{key}={rows} is only for data=newsgroups. Leave it out with data={config.source}.")
    wanted = {"data.text": config.text, "data.label": config.label}
    if config.group is not None:
        wanted["data.group"] = config.group
    if config.text == config.label:
        raise DataError(
            f"data.text and data.label both name the column {config.text!r}. Set one of them to another column."
        )
    tables = []
    for key, path in (("data.train", config.train), ("data.validation", config.validation)):
        if not path:
            raise DataError(
                f"{key} is not given: data={config.source} needs data.train=FILE and data.validation=FILE"
                " (rows to train on, and other rows to rank the trials on)."
            )
        tables.append(read_table(config.source, key, path, wanted))
    return tables[0], tables[1]


def _rows(table: Table, split: str, config: DataConfig) -> list[Row]:
    newsgroups = config.source == "newsgroups"
    text_column, label_column = ("text", "label") if newsgroups else (config.text, config.label)
    texts, labels = table.columns[text_column], table.columns[label_column]
    groups = table.columns[config.group] if config.group is not None else [""] * len(texts)
    if not texts:
        raise DataError(f"{table.path}: no rows in it. Give a file with rows as data.{split}.")
    rows = []
    for index, (text, raw, group) in enumerate(zip(texts, labels, groups, strict=True)):
        label = raw.strip()
        for key, column, value in (("data.text", text_column, text), ("data.label", label_column, label)):
            if not value or value.isspace():
                raise DataError(
                    f"{table.place(index)}: column {column!r} ({key}) is empty. Fill it in or remove the row."
                )
        try:
            content = sha256(f"{text}\0{label}".encode()).hexdigest()[:12]
            group.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{table.place(index)}: half of a surrogate pair (such as \\ud83d alone), which is not valid Unicode."
                " Correct or remove the row."
            ) from None
        rows.append(Row(f"{split}-{table.rows[index]}-{content}", text, label, group or None))
    return rows


def _check_classes(train: Table, train_rows: list[Row], validation: Table, validation_rows: list[Row]) -> None:
    counts = Counter(row.label for row in train_rows)
    if len(counts) == 1:
        raise DataError(
            f"{train.path}: every row has the label {train_rows[0].label!r}, and telling apart needs two classes at"
            " least. Add rows of another class, or set data.label to another column."
        )
    single = [label for label, n in counts.items() if n == 1]
    if single:
        first = next(i for i, row in enumerate(train_rows) if row.label == single[0])
        raise DataError(
            f"{train.place(first)}: the label {single[0]!r} has one training row ({len(single)} of {len(counts)} labels"
            f" have: {_listed(single)}). Expected at least two a class. Add rows, remove the class, or set data.label"
            " to the column with the classes."
        )
    unseen = list(dict.fromkeys(row.label for row in validation_rows if row.label not in counts))
    if unseen:
        first = next(i for i, row in enumerate(validation_rows) if row.label == unseen[0])
        raise DataError(
            f"{validation.place(first)}: validation labels that no training row has: {_listed(unseen)}. Training"
            f" labels: {_listed(sorted(counts))}. Add training rows with them, or remove or correct these."
        )


def _listed(labels: list[str]) -> str:
    short = [repr(label if len(label) <= 40 else label[:40] + "…") for label in labels[:_SHOWN]]
    return ", ".join(short) + (f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else "")


def _fingerprint(train: list[Row], validation: list[Row]) -> str:
    digest = sha256()
    for rows in (train, validation):
        for row in rows:
            digest.update(json.dumps([row.text, row.label, row.group], ensure_ascii=False).encode() + b"\n")
        digest.update(b"\n")
    return digest.hexdigest()
