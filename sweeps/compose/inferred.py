"""What the model and the data decide where the user did not: task, validation share, columns, schema.

All commands compose a config through here, and before it is complete: other defaults depend on these values.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from analysis.errors import ConfigError
from sweeps.compose.infer_schema import detect_schema
from sweeps.compose.provenance import Origins
from sweeps.compose.references import references_are
from sweeps.compose.to_dataclass import get, put, to_dataclass
from sweeps.config import SweepConfig, schema
from trainer.config import DataConfig, check_value
from trainer.data.schemas import LABELLED
from trainer.models.model_kind import encoder_name

# Defaults that may depend on data.schema, or are not needed to read the data.
_AFTER_SCHEMA = ("baselines", "objective", "space", "sampler", "scheduler", "train")
_REFERENCES = {
    "short": "eval.references=short: the answers in the data are short, so that trials are ranked by token F1 of what"
    " they write (objective=balanced and single).",
    "long": "eval.references=long: the answers in the data are long, so that trials are ranked by ROUGE-L of what they"
    " write and by the loss (objective=balanced), or by the loss (objective=single).",
}
VALIDATION_SHARE = 0.2  # of the rows, where no validation rows are named


def fill_in(raw: dict[str, Any], origins: Origins, explicit: Sequence[str]) -> list[str]:
    """Set ``task.name``, ``data.split.validation``, the columns and ``data.schema`` where nobody chose them.

    Args:
        raw: the nested config, changed in place; interpolations unresolved.
        origins: for messages.
        explicit: dotted paths that the command line sets.

    Returns:
        A sentence on each value that is not an obvious one.

    Raises:
        ConfigError: for values of a wrong type or range.
        DataError: where the columns fit several schemas, or none.
    """
    given = get(raw, "data.schema")  # checked before interpolations that depend on it
    check_value("data.schema", given, schema()["data.schema"].metadata, origins.of("data.schema") if given else "")
    by_model = get(raw, "task.name") is None
    if by_model:
        put(raw, "task.name", "completion")
    apart = {name: part for name, part in raw.items() if name not in _AFTER_SCHEMA}
    config = to_dataclass(apart, origins)[0]
    decided: dict[str, Any] = {}
    notes = []
    if by_model and (encoder := encoder_name(config.model, network=True)):
        decided["task.name"] = config.task.name = "classification"
        notes.append(f"task=classification: {encoder} is an encoder.")
    if get(raw, "data"):
        if lacks_validation(config.data) and "data.split.validation" not in explicit:
            decided["data.split.validation"] = VALIDATION_SHARE
            notes.append(
                f"data.split.validation={VALIDATION_SHARE}: no data.validation is given, so the trials are ranked on a"
                " fifth of the rows of data.train (of each label one at least), which none trains on."
            )
        if given in (None, LABELLED):
            schema_keys, note = detect_schema(config, explicit)
            decided |= schema_keys
            notes += [note] if note else []
    if get(raw, "data") and get(raw, "eval.references") == "auto":
        columns = {path.split(".")[1]: value for path, value in decided.items() if path.count(".") == 1}
        data = replace(config.data, **{name: value for name, value in columns.items() if hasattr(config.data, name)})
        decided["eval.references"] = references_are(data)
        if data.schema in ("completion", "chat") and "${eval.references}" in str(get(raw, "objective.terms")):
            notes.append(_REFERENCES[decided["eval.references"]])
    for path, value in decided.items():
        put(raw, path, value)
    return notes


def lacks_validation(data: DataConfig) -> bool:
    """Whether rows to train on are named, but none to rank the trials on, and no share of the former."""
    return bool(data.source != "newsgroups" and data.train and not data.validation and not data.split.validation)


def refuse_encoder(config: SweepConfig, origins: Origins) -> None:
    """Raises ConfigError for an encoder that is to complete texts: some would, looking at the answer while they do."""
    if config.task.name != "completion":
        return
    if encoder := encoder_name(config.model, network=False):
        raise ConfigError(
            f"task=completion: {encoder} is an encoder, which cannot continue a text. Use task=classification, or a"
            f" decoder such as model=smollm2. ({origins.of('task.name')})"
        )
