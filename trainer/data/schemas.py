"""The schemas of rows: what a row of a task is, and from which columns of a table it comes.

=============  ==============================  ==========================================================
schema         columns                         what is learned
=============  ==============================  ==========================================================
``label``      ``text`` and ``label``          which class a text belongs to
``completion`` ``prompt`` and ``completion``   to continue a prompt; the loss is on the completion
``chat``       ``messages``, maybe ``tools``   the assistant's turns of a conversation; the loss is on them
``text``       ``text``                        to continue any text; the loss is on every token
=============  ==============================  ==========================================================
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis.errors import DataError, did_you_mean, nearest_names
from trainer.config import DataConfig
from trainer.data.chat import LEARNED_KEYS, is_learned
from trainer.data.formats import as_message, as_text_content
from trainer.data.tables import quoted

ROLES = ("system", "developer", "user", "assistant", "tool")
LABELLED = "label"


@dataclass(frozen=True, slots=True)
class Row:
    """One example.

    Attributes:
        item_id: ``<split>-<number in the file, from 0>-<hash of the content>``: the same in every sweep on this data;
            ``row-…`` where splits are made, so that it does not depend on them.
        text: schemas label and text: as in the file; schema completion: the prompt; schema chat: empty.
        label: schema label: without the white space around it; else empty.
        group: as in the file; None where the cell is empty or no column is named.
        completion: schema completion: as in the file; else empty.
        messages: schema chat: the conversation, each message with ``role``, ``content`` and what else it has.
        place: file and line, for messages.
        tools: schema chat: schemas of the functions that may be called; None where the row has no list of them.
        extra: the columns of ``data.extra_columns``, as values of JSON. They are no content: the id is
            the same with and without them.
    """

    item_id: str
    text: str
    label: str
    group: str | None = None
    completion: str = ""
    messages: tuple[dict[str, Any], ...] = ()
    place: str = field(default="", compare=False)
    tools: tuple[dict[str, Any], ...] | None = None
    extra: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def columns(self) -> dict[str, Any]:
        """What a metric of written answers is given of it."""
        own = {"text": self.text, "label": self.label, "completion": self.completion, "group": self.group}
        return {**own, "messages": list(self.messages), "tools": self.tools and list(self.tools), **self.extra}

    @property
    def content(self) -> str:
        """All of its text."""
        turns = [str(message.get("content", "")) for message in self.messages]
        return "\n".join(part for part in (self.text, self.completion, *turns) if part)


def reference_of(row: Row) -> str:
    """The text that is to be written for a row: its completion, or what the assistant says last. Else empty."""
    said = [str(message.get("content") or "") for message in row.messages if message["role"] == "assistant"]
    return (row.completion or (said[-1] if said else "")).strip()


def asked(row: Row) -> str:
    """A row's text, or of a chat what the user says last: what examples and saved answers are found by."""
    said = [str(message.get("content") or "") for message in row.messages if message["role"] == "user"]
    return row.text or (said[-1] if said else "")


def columns_of(config: DataConfig, schema: str) -> dict[str, str]:
    """Config key → column that a schema reads. A template stands in for the column of its key.

    Args:
        config: names the columns.
        schema: one of SCHEMAS.
    """
    keys: dict[str, tuple[str, ...]] = {
        "label": ("text", "label"),
        "completion": ("prompt", "completion"),
        "chat": ("messages",),
        "text": ("text",),
    }
    read = list(keys[schema])
    if config.template and schema != "chat":
        read.pop(0)
    if config.answer_template and schema in ("label", "completion"):
        read.pop()
    return {f"data.{name}": getattr(config, name) for name in read}


def infer_schema(config: DataConfig, columns: Sequence[str], where: str) -> tuple[str, str]:
    """The schema that the columns of the data fit, and the columns that decide it, as text.

    Args:
        config: names columns and templates.
        columns: of the training data.
        where: file, for messages.

    Raises:
        DataError: where several schemas fit, or none.
    """
    names = set(columns)
    beside = ("file",) if config.source == "folder" else ()
    fitting = [
        schema for schema in ("label", "completion", "chat") if set(columns_of(config, schema).values()) <= names
    ]
    if config.template or config.answer_template:
        fitting = [schema for schema in fitting if schema != "chat"]
        if not fitting and not config.answer_template:
            fitting = ["text"]
    elif not fitting and config.text in names and len(names - {config.group, config.split.group, *beside}) == 1:
        fitting = ["text"]
    shown = quoted(columns)
    if len(fitting) == 1:
        because = ", ".join(columns_of(config, fitting[0]).values()) or "data.template"
        return fitting[0], because
    if fitting:
        raise DataError(
            f"{where}: the columns ({shown}) fit more than one schema: {' and '.join(fitting)}."
            f" Say which: data.schema={fitting[0]}."
        )
    raise DataError(_no_schema(config, columns, where, shown))


def _no_schema(config: DataConfig, columns: Sequence[str], where: str, shown: str) -> str:
    """A message that names the missing column of the schema that fits best."""
    names = set(columns)
    for schema in ("completion", "chat", "label"):
        needed = columns_of(config, schema)
        missing = {key: column for key, column in needed.items() if column not in names}
        if len(missing) < len(needed) or schema == "label":
            break
    key, column = next(iter(missing.items()))
    hint = nearest_names(column, columns)
    nearest = f" {hint}" if hint else ""
    plain = " Or data.schema=text, to train on the text alone." if config.text in names else ""
    others = (
        ""
        if plain
        else " Other schemas: prompt and completion, chat messages, plain text, or a data.template (data.schema)."
    )
    return f"{where}: no column {column!r} ({key}). Its columns: {shown}.{nearest} Set {key}.{plain}{others}"


def content_of(row: Row, schema: str) -> list[Any]:
    """The parts of a row that make its hash: the same for the same content, whatever the file's format.

    Args:
        row: of the schema.
        schema: one of SCHEMAS.
    """
    if schema == "completion":
        return [row.text, row.completion]
    if schema == "chat":
        messages = [{key: message[key] for key in ("role", "content")} | _sorted(message) for message in row.messages]
        return [messages, *([] if row.tools is None else [_sorted(list(row.tools))])]
    if schema == "text":
        return [row.text]
    return [row.text, row.label]


def _sorted(value: Any) -> Any:
    """A value of JSON with the keys of objects in one order, at every depth: Arrow has an order of its own."""
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(part) for part in value] if isinstance(value, list) else value


def conversation(value: Any, column: str) -> tuple[dict[str, Any], ...]:
    """The messages of a chat row, checked.

    Args:
        value: of the cell.
        column: its name, for messages.

    Raises:
        DataError: without a place, for what is not a list of messages with known roles and an assistant's turn.
    """
    named = f"column {column!r} (data.messages)"
    if not isinstance(value, list) or not value:
        what = "an empty list" if value == [] else "nothing" if value is None else f"a {type(value).__name__}"
        raise DataError(f"{named} holds {what}: expected a list of messages such as {_EXAMPLE}.")
    messages = []
    for number, message in enumerate(value, start=1):
        where = f"{named}, message {number}"
        if not isinstance(message, dict):
            raise DataError(f"{where}: found {type(message).__name__}, expected role and content, such as {_EXAMPLE}.")
        try:
            messages.append(_checked(as_message(message)))
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
    answers = [message for message in messages if message["role"] == "assistant" and is_learned(message)]
    if not any(message["content"].strip() or message.get("tool_calls") for message in answers):
        raise DataError(f"{named}: no message of the assistant with content, and only those are learned from.")
    return tuple(messages)


def _checked(message: dict[str, Any]) -> dict[str, Any]:
    """A message without keys that are null. Raises DataError, without a place, for one that cannot be used."""
    if "role" not in message or not ("content" in message or message.get("tool_calls")):
        keys = f"keys {', '.join(map(str, message))}"
        raise DataError(f"found {keys}, expected role and content, such as {_EXAMPLE}.")
    if "content" not in message:  # Arrow's: null
        message = {"role": message["role"], "content": None} | message
    kept = {name: part for name, part in message.items() if part is not None or name == "content"}
    role, content = kept.get("role"), as_text_content(kept.get("content"))
    if role not in ROLES:
        raise DataError(f"role {role!r} is not one of {', '.join(ROLES)}. {did_you_mean(str(role), ROLES)}")
    if content is None and role == "assistant" and kept.get("tool_calls"):
        content = ""
    elif not isinstance(content, str):
        raise DataError(
            f"content is a {type(content).__name__}, expected text. Images and other parts cannot be trained on."
        )
    for key in LEARNED_KEYS:
        if key in kept and kept[key] not in (0, 1):
            raise DataError(f"{key} {kept[key]!r}: expected 0 or 1, whether the loss is on this turn.")
        if kept.get(key) and role != "assistant":
            raise DataError(
                f"{key} {kept[key]!r} of a turn of the {role}: only the assistant's turns are learned from."
            )
    return kept | {"content": content}


_EXAMPLE = '[{"role": "user", "content": …}, {"role": "assistant", "content": …}]'
