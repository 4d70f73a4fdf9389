"""Makes the rows of a table into checked rows of a schema, templates filled in."""

import json
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from analysis.errors import DataError, parsed_json
from trainer.config import DataConfig
from trainer.data.formats import FUNCTIONS, KWARGS, SHAREGPT, SYSTEM, tool_schemas, wrapped
from trainer.data.schemas import Row, columns_of, content_of, conversation
from trainer.data.tables import ColumnSelection, RowErrors, Table, as_json, as_text
from trainer.data.templates import WHOLE, RowTemplate

TOOLS = "tools"  # the usual column of ``data.tools``


@dataclass(frozen=True)
class Reading:
    """How rows of a schema are read from a table: its columns and templates.

    Attributes:
        schema: one of SCHEMAS.
        keys: config path → column, those of the schema first.
        template: of the text or prompt, if any.
        answer: template of the label or completion, if any.
        tools: schema chat: column with the functions that may be called; the usual one may be absent. None: not read.
        extra: columns that are kept with rows as they are.
    """

    schema: str
    keys: dict[str, str]
    template: RowTemplate | None
    answer: RowTemplate | None
    tools: str | None = None
    extra: tuple[str, ...] = ()

    @property
    def selection(self) -> ColumnSelection:
        """The columns to read from a file."""
        templates = [template for template in (self.template, self.answer) if template]
        named = {
            f"{template.key} {column}": column
            for template in templates
            for column in template.columns
            if column != WHOLE
        }
        if self.tools not in (None, TOOLS):
            named["data.tools"] = self.tools
        named |= {f"data.extra_columns {column}": column for column in self.extra}
        sharegpt = self.keys.get("data.messages") == SHAREGPT
        usual = self.tools == TOOLS
        maybe = ((TOOLS, usual), (FUNCTIONS, usual), (SYSTEM, sharegpt), (KWARGS, self.schema == "chat"))
        if_there = [column for column, read in maybe if read]
        return ColumnSelection(
            self.keys,
            named,
            any(WHOLE in template.columns for template in templates),
            if_there,
        )


def reading(config: DataConfig, schema: str) -> Reading:
    """How to read the rows of a schema.

    Args:
        config: columns and templates.
        schema: one of SCHEMAS.

    Raises:
        ConfigError: for a template that Jinja cannot read.
        DataError: where two keys of the schema name one column, or a template does not go with the schema.
    """
    if schema == "chat" and config.template:
        raise DataError(
            "data.template does not go with data.schema=chat: the tokenizer's own template makes the text of"
            " messages. Leave one of the two out."
        )
    if config.answer_template and schema in ("chat", "text"):
        raise DataError(
            f"data.answer_template goes with data.schema=label or completion, not with {schema}: leave it out."
        )
    keys = columns_of(config, schema)
    if len(set(keys.values())) < len(keys):
        first, second = keys
        raise DataError(
            f"{first} and {second} both name the column {keys[first]!r}. Set one of them to another column."
        )
    if config.group is not None:
        keys["data.group"] = config.group
    if config.split.group is not None:
        keys["data.split.group"] = config.split.group
    template = RowTemplate("data.template", config.template) if config.template else None
    answer = RowTemplate("data.answer_template", config.answer_template) if config.answer_template else None
    tools = config.tools if schema == "chat" else None
    return Reading(schema, keys, template, answer, tools, tuple(dict.fromkeys(config.extra_columns)))


def rows_of(table: Table, prefix: str, how: Reading, errors: RowErrors) -> tuple[list[Row], list[str]]:
    """The rows of a table, and each one's value of ``data.split.group`` ("" where none is named).

    Args:
        table: with the columns that ``how.selection`` names.
        prefix: of the item ids: the split, or ``row``.
        how: schema and columns.
        errors: what is done with rows that cannot be used.

    Raises:
        DataError: where no row is left.
    """
    rows, groups = [], []
    for index in range(len(table.rows)):
        cells = {column: values[index] for column, values in table.columns.items()}
        place = table.place(index)
        try:
            row, group = _row(cells, how, place, f"{prefix}-{table.rows[index]}")
        except DataError as error:
            errors.broken(DataError(f"{place}: {error}"))
            continue
        rows.append(row)
        groups.append(group)
    if not rows:
        what = " in it"
        if errors.skipped:
            what = f" that can be used ({len(errors.skipped)} left out, the first: {errors.skipped[0]})"
        raise DataError(f"{table.path}: no rows{what}. Give a file with rows as {_key(prefix)}.")
    return rows, groups


def _key(prefix: str) -> str:
    return "data.train" if prefix == "row" else f"data.{prefix}"


def _row(cells: dict[str, Any], how: Reading, place: str, number: str) -> tuple[Row, str]:
    def cell(key: str) -> str:
        return as_text(cells[how.keys[key]], how.keys[key]) if key in how.keys else ""

    def part(key: str, template: RowTemplate | None) -> str:
        """A column's text or a template's, never empty."""
        value = template.render(cells) if template else cell(key)
        if key == "data.label":
            value = value.strip()
        if not value or value.isspace():
            if template:
                raise DataError(f"{template.key} gives no text for this row. Fill in its columns or remove the row.")
            raise DataError(f"column {how.keys[key]!r} ({key}) is empty. Fill it in or remove the row.")
        return value

    text = label = completion = ""
    messages: tuple[dict[str, Any], ...] = ()
    tools = None
    if how.schema == "chat":
        column = how.keys["data.messages"]
        said = _decoded(cells[column])
        if column == SHAREGPT and isinstance(said, list) and cells.get(SYSTEM):
            said = [{"role": "system", "content": as_text(cells[SYSTEM], SYSTEM)}, *said]
        if cells.get(KWARGS):
            raise DataError(
                f"column {KWARGS!r} has arguments for the chat template, which are not read here, and the text would be"
                " another one. Remove the column, or set them in the chat_template.jinja of the model's folder."
            )
        messages = conversation(said, column)
        tools = tool_schemas(cells.get(how.tools), how.tools) if how.tools else None
        if how.tools == TOOLS and tools is None and cells.get(FUNCTIONS):
            tools = tuple(map(wrapped, tool_schemas(cells[FUNCTIONS], FUNCTIONS) or ()))
    elif how.schema == "completion":
        text, completion = part("data.prompt", how.template), part("data.completion", how.answer)
    else:
        text = part("data.text", how.template)
        label = part("data.label", how.answer) if how.schema == "label" else ""
    group, split_group = cell("data.group"), cell("data.split.group")
    extra = {column: as_json(cells.get(column)) for column in how.extra}
    row = Row("", text, label, group or None, completion, messages, place, tools, extra)
    content = content_of(row, how.schema)
    try:
        joined = "\0".join(part if isinstance(part, str) else json.dumps(part, ensure_ascii=False) for part in content)
        digest = sha256(joined.encode()).hexdigest()[:12]
        group.encode()
    except UnicodeEncodeError:
        raise DataError(
            "half of a surrogate pair (such as \\ud83d alone), which is not valid Unicode. Correct or remove the row."
        ) from None
    return replace(row, item_id=f"{number}-{digest}"), split_group


def _decoded(value: Any) -> Any:
    """Messages that stand as JSON in a cell, as in CSV, become a list."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return parsed_json(value)
        except ValueError as error:
            raise DataError(f"the messages are not valid JSON ({error}). Correct or remove the row.") from None
    return value
