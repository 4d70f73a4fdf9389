"""Rows of other tools' formats, told by columns that only they have, read as what they are.

=============  ===========================================  ===========================================================
format         columns                                      is read as
=============  ===========================================  ===========================================================
ShareGPT       ``conversations``: ``from`` and ``value``    schema chat; columns ``system`` and ``tools`` where there
Alpaca         ``instruction``, ``output``, maybe           schema completion, in the prompt of Stanford Alpaca
               ``input`` and ``system``
OpenAI's       ``messages`` with ``weight``, ``tools``, or  schema chat
               ``function_call``, ``functions`` of old
preferences    ``chosen`` and ``rejected``                  refused: one answer a row is learned from here
=============  ===========================================  ===========================================================
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.errors import DataError, did_you_mean, parsed_json
from trainer.config import DataConfig

SHAREGPT = "conversations"
FUNCTIONS = "functions"  # column of OpenAI's old rows, in place of tools
SYSTEM = "system"  # column of ShareGPT rows
KWARGS = "chat_template_kwargs"  # column of TRL's
_PREFERENCES = (("chosen", "rejected"), ("preferred_output", "non_preferred_output"))  # TRL's, OpenAI's
_ROLES = {  # who speaks in ShareGPT rows: FastChat's and LLaMA-Factory's names
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "bard": "assistant",
    "bing": "assistant", "assistant": "assistant", "model": "assistant", "system": "system", "tool": "tool",
    "observation": "tool", "function_call": "assistant",
}  # fmt: skip
_INTRODUCTION = (
    "Below is an instruction that describes a task%s. Write a response that appropriately completes the request."
)
_INPUT = ", paired with an input that provides further context"


@dataclass(frozen=True)
class KnownFormat:
    """A format that columns tell.

    Attributes:
        keys: config path → value, to read it.
        said: a sentence for the user.
    """

    keys: dict[str, Any]
    said: str


def known_format(config: DataConfig, columns: Sequence[str], where: str) -> KnownFormat | None:
    """How to read rows of another tool's format; None where the columns are of none.

    Args:
        config: in which columns have their usual names, unless the user names others.
        columns: of the training data.
        where: file, for messages.

    Raises:
        DataError: for preference rows.
    """
    names = set(columns)
    if config.template or config.answer_template or config.schema:
        return None
    for good, bad in _PREFERENCES:
        if {good, bad} <= names:
            raise DataError(
                f"{where}: the columns {good} and {bad} are of preference rows, which DPO, ORPO and reward models learn"
                " from (such as TRL's DPOTrainer). Here one answer a row is learned from. To learn the better answers,"
                f" name their column: data.schema=completion data.completion={good}, or for lists of messages"
                f" data.schema=chat data.messages={good}."
            )
    if SHAREGPT in names and config.messages == "messages":
        said = f"data.schema=chat data.messages={SHAREGPT}, because of the columns of {where}: ShareGPT's."
        return KnownFormat({"data.schema": "chat", "data.messages": SHAREGPT}, said)
    if {"instruction", "output"} <= names and "history" not in names and config.completion == "completion":
        said = f"data.schema=completion, because of the columns of {where}: Alpaca's, whose prompt is data.template."
        keys = {"data.schema": "completion", "data.completion": "output", "data.template": _alpaca(names)}
        return KnownFormat(keys, said)
    return None


def _alpaca(names: set[str]) -> str:
    """The prompt of Stanford Alpaca (its ``train.py``) as a Jinja template."""
    system = "{% if system %}{{ system }}\n\n{% endif %}" if "system" in names else ""
    bare = f"{_INTRODUCTION % ''}\n\n### Instruction:\n{{{{ instruction }}}}\n\n### Response:\n"
    if "input" not in names:
        return system + bare
    paired = (
        f"{_INTRODUCTION % _INPUT}\n\n### Instruction:\n{{{{ instruction }}}}\n\n### Input:\n{{{{ input }}}}"
        "\n\n### Response:\n"
    )
    return f"{system}{{% if input %}}{paired}{{% else %}}{bare}{{% endif %}}"


def as_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message with role and content, of ShareGPT's ``from`` and ``value`` or OpenAI's old ``function_call``.

    Raises:
        DataError: without a place, for a speaker or a call that cannot be read.
    """
    if not {"from", "value"} <= message.keys() or "role" in message:
        return _renamed(message)
    speaker = message["from"]
    if speaker not in _ROLES:
        raise DataError(
            f"from {speaker!r} is not one of {', '.join(_ROLES)}. {did_you_mean(str(speaker), list(_ROLES))}"
        )
    made = {"role": _ROLES[speaker], "content": message["value"]}
    if speaker == "function_call":
        made |= {"content": "", "tool_calls": _calls(message["value"])}
    return made | {key: part for key, part in message.items() if key not in ("from", "value")}


def _renamed(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose ``function_call`` and role ``function`` have the names that templates know."""
    kept = {key: part for key, part in message.items() if key != "function_call"}
    if message.get("function_call") and not message.get("tool_calls"):
        kept["tool_calls"] = _calls(message["function_call"])
    return kept | ({"role": "tool"} if message.get("role") == "function" else {})


def _calls(value: Any) -> list[dict[str, Any]]:
    try:
        parsed = parsed_json(value) if isinstance(value, str) else value
    except ValueError as error:
        raise DataError(f"a function_call is not valid JSON ({error}).") from None
    calls = parsed if isinstance(parsed, list) else [parsed]
    if not all(isinstance(call, dict) and "name" in call for call in calls):
        raise DataError('a function_call is not an object such as {"name": …, "arguments": {…}}.')
    return [{"type": "function", "function": call} for call in calls]


def as_text_content(content: Any) -> Any:
    """Content that is a list of text parts as one text; any other as it stands."""
    if isinstance(content, list) and content and all(_is_text(part) for part in content):
        return "".join(part["text"] for part in content)
    return content


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def wrapped(function: dict[str, Any]) -> dict[str, Any]:
    """A function of OpenAI's old column ``functions`` as a tool."""
    return function if "function" in function else {"type": "function", "function": function}


def tool_schemas(value: Any, column: str) -> tuple[dict[str, Any], ...] | None:
    """The functions that may be called in a conversation, checked; None where there is no list of them.

    Args:
        value: of the cell: a list of objects, or JSON of one.
        column: its name, for messages.

    Raises:
        DataError: without a place, for anything else.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        parsed = parsed_json(value) if isinstance(value, str) else value
        tools = (
            [parsed_json(tool) if isinstance(tool, str) else tool for tool in parsed]
            if isinstance(parsed, list)
            else []
        )
    except ValueError as error:
        raise DataError(
            f"column {column!r} (data.tools): not valid JSON ({error}). Correct or remove the row."
        ) from None
    if not isinstance(parsed, list) or not all(isinstance(tool, dict) for tool in tools):
        raise DataError(
            f"column {column!r} (data.tools): expected a list of functions such as"
            ' [{"type": "function", "function": {"name": …, "parameters": …}}]. If it is none: data.tools=null.'
        )
    return tuple(tools)
