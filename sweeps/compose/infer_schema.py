"""The schema of a sweep's data, from its columns, before the config is complete: other defaults depend on it."""

from collections.abc import Sequence

from analysis.errors import ConfigError, DataError, FetchError
from sweeps.config import SweepConfig
from trainer.config import DataConfig
from trainer.data.column_roles import column_roles, override
from trainer.data.dataset import data_columns, training_columns
from trainer.data.formats import known_format
from trainer.data.schemas import LABELLED, columns_of, infer_schema
from trainer.data.tables import ColumnSelection

# Key → the schemas that read it
_READ_BY = {
    "data.text": ("label", "text"),
    "data.label": ("label",),
    "data.prompt": ("completion",),
    "data.completion": ("completion",),
    "data.messages": ("chat",),
    "data.tools": ("chat",),
    "task.prompt": ("label",),
    "task.normalization": ("label",),
}
_KNOWN = ("newsgroups", "package", "folder")  # sources whose columns are the same everywhere


def detect_schema(config: SweepConfig, explicit: Sequence[str]) -> tuple[dict[str, str], str]:
    """The schema that the columns of the training data fit, and a sentence where it is not ``label``.

    Two columns of other names, of which one holds texts and one labels, fit ``label`` too. Where the data cannot be
    read, the schema is taken to be ``label``; reading them later says what is wrong.

    Args:
        config: in which ``data.schema`` is ``label`` or not set.
        explicit: dotted paths that the command line sets.

    Returns:
        Config path → value: the schema, and the columns where they have other names; the sentence, or "".

    Raises:
        DataError: where several schemas fit, or none.
    """
    data, schema = config.data, {"data.schema": LABELLED}
    labelled = LABELLED in (data.schema, {"classification": LABELLED}.get(config.task.name))
    try:
        where, columns = data_columns(data)
    except (DataError, FetchError):
        return schema, ""
    try:
        if not labelled:
            detected, because = infer_schema(data, columns, where)
            said = f"data.schema={detected}, because of the columns of {where}: {because}."
            return {"data.schema": detected}, "" if detected == LABELLED else said
        ColumnSelection(columns_of(data, LABELLED)).check(where, columns)
        return schema, ""
    except DataError as error:
        if not labelled and (known := known_format(data, columns, where)):
            return known.keys, known.said
        chosen = _text_and_label(data, columns, where, explicit, str(error), completes=not labelled)
        said = " ".join(override(key, column) for key, column in chosen.items())
        return schema | chosen, f"{said}: of the two columns of {where}, one holds texts and one labels."


def _text_and_label(
    data: DataConfig, columns: Sequence[str], where: str, explicit: Sequence[str], fault: str, completes: bool
) -> dict[str, str]:
    """``data.text`` and ``data.label``, told by the values. Raises DataError, with what to type, where it is unclear.

    Args:
        data: whose columns do not fit.
        columns: of the training data.
        where: they are, for messages.
        explicit: dotted paths that the command line sets.
        fault: what does not fit, as a sentence.
        completes: whether rows without labels would do too.
    """
    needed = columns_of(data, LABELLED)
    missing = [key for key, column in needed.items() if column not in columns]
    if not missing or data.source in _KNOWN:
        raise DataError(fault)
    names = [name for name in columns if name not in ("", data.group, data.split.group)]  # "": pandas' index
    try:
        values = training_columns(data, names)
    except (DataError, FetchError):
        raise DataError(fault) from None
    roles = column_roles(values)
    plain = not (data.template or data.answer_template)
    if len(names) == 2 and plain and roles.text_and_label:
        chosen = dict(zip(needed, roles.text_and_label, strict=True))
        if all(key not in explicit if key in missing else chosen[key] == needed[key] for key in needed):
            label = chosen["data.label"]
            if label in {str(value).strip() for value in values[label]}:
                raise DataError(
                    f"{where}: {label!r} stands in the header and among the labels. Is the first line a row? Then put"
                    " a header above it: text,label"
                )
            return chosen
    raise DataError(" ".join(filter(None, (fault, roles.suggestion(missing, completes)))))


def check_read(schema: str, task: str, explicit: Sequence[str]) -> None:
    """Raises ConfigError for a key of the command line that the schema or the task does not read.

    Args:
        schema: of the data.
        task: its name.
        explicit: dotted paths that the command line sets.
    """
    for path in explicit:
        if schema not in _READ_BY.get(path, (schema,)):
            raise ConfigError(
                f"{path} is not used by data.schema={schema}, but by {' and '.join(_READ_BY[path])}."
                " Leave it out, or set data.schema."
            )
        if task == "classification" and path in ("task.prompt", "task.normalization"):
            raise ConfigError(f"{path} is not used by task=classification, which has no prompt. Leave it out.")
