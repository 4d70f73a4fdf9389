"""The schema of a sweep's data, from its columns, before the config is complete: other defaults depend on it."""

from collections.abc import Sequence

from analysis.errors import ConfigError, DataError, FetchError
from sweeps.config import SweepConfig
from trainer.data.dataset import data_columns
from trainer.data.schemas import LABELLED, infer_schema

# Key → the schemas that read it
_READ_BY = {
    "data.text": ("label", "text"),
    "data.label": ("label",),
    "data.prompt": ("completion",),
    "data.completion": ("completion",),
    "data.messages": ("chat",),
    "task.prompt": ("label",),
    "task.normalization": ("label",),
}


def detect_schema(config: SweepConfig) -> tuple[str, str]:
    """The schema that the columns of the training data fit, and a sentence about it where it is not ``label``.

    Where the data cannot be read, the schema is taken to be ``label``; reading them later says what is wrong.

    Args:
        config: in which ``data.schema`` is not set.

    Raises:
        DataError: where several schemas fit, or none.
    """
    if config.task.name == "classification":
        return LABELLED, ""
    try:
        where, columns = data_columns(config.data)
    except (DataError, FetchError):
        return LABELLED, ""
    schema, because = infer_schema(config.data, columns, where)
    return schema, "" if schema == LABELLED else f"data.schema={schema}, because of the columns of {where}: {because}."


def check_read(schema: str, explicit: Sequence[str]) -> None:
    """Raises ConfigError for a key of the command line that the schema does not read.

    Args:
        schema: of the data.
        explicit: dotted paths that the command line sets.
    """
    for path in explicit:
        if schema not in _READ_BY.get(path, (schema,)):
            raise ConfigError(
                f"{path} is not used by data.schema={schema}, but by {' and '.join(_READ_BY[path])}."
                " Leave it out, or set data.schema."
            )
