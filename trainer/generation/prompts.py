"""What a model is given to answer, and what stands in the data in that place."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from analysis.errors import ConfigError
from trainer.config import TaskConfig
from trainer.data.chat import Turn, turns_of
from trainer.data.encode import Encoded
from trainer.data.schemas import LABELLED, Row
from trainer.data.text_tokens import Ids, text_tokens


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is given for one answer.

    Attributes:
        item_id: of the row; of an earlier turn of a chat ``<row's id>#<number of the assistant's turn, from 1>``.
        row: the row's place among those given.
        tokens: what the model is given.
        text: the same as people read it; of a chat the user's message, or with others before it one line each.
        reference: what stands in the data there, without white space at its ends.
        cut: whether the beginning is left out, as the model's window, or ``data.max_length``, has no room for it.
    """

    item_id: str
    row: int
    tokens: Ids
    text: str
    reference: str
    cut: bool = False


def prompts_of(
    rows: Sequence[Row],
    encoded: Sequence[Encoded],
    labels: Sequence[str],
    schema: str,
    tokenizer: Any,
    task: TaskConfig,
    window: int,
    max_new_tokens: int,
    turns: str = "last",
) -> list[Prompt]:
    """The prompts of rows.

    Args:
        rows: as read.
        encoded: the same as tokens; with few-shot examples before them, these are in the prompts too.
        labels: class names; empty without labels.
        schema: of the rows. Texts have no prompts.
        tokenizer: of the base model.
        task: a classification head answers no prompts.
        window: tokens that the model reads at once.
        max_new_tokens: for which there must be room in it.
        turns: of a chat: ``last``, the assistant's last turn that is learned, or ``every``, all that are.

    Raises:
        ConfigError: where the window has no room for prompts.
        DataError: for messages that the chat template refuses.
    """
    if schema == "text" or task.name == "classification":
        return []
    room = window - max_new_tokens
    if room < 1:
        raise ConfigError(
            f"eval.max_new_tokens={max_new_tokens} leaves no room for a prompt in the model's window of {window}"
            " tokens. Lower it."
        )
    if schema == "chat":
        return [
            prompt
            for place, row in enumerate(rows)
            for prompt in _of_chat(place, row, tokenizer, room, turns == "every")
        ]
    if schema == LABELLED:
        wholes = [made.ids for made in text_tokens(tokenizer, [row.text for row in encoded])]
        texts, references = [row.text for row in encoded], [labels[row.target] for row in encoded]
    else:
        wholes = [row.context for row in encoded]
        texts, references = [row.text for row in rows], [row.completion.strip() for row in rows]
    prompts = []
    for place, (row, made, whole) in enumerate(zip(rows, encoded, wholes, strict=True)):
        tokens = _fitted(whole, room, tokenizer)
        cut = made.cut or len(tokens) < len(whole)
        prompts.append(Prompt(row.item_id, place, tokens, texts[place], references[place], cut))
    return prompts


def _of_chat(place: int, row: Row, tokenizer: Any, room: int, every: bool) -> list[Prompt]:
    turns = turns_of(tokenizer, row.messages, row.tools)
    prompts = []
    for turn in turns if every else turns[-1:]:
        tokens = _fitted(turn.prompt, room, tokenizer)
        item_id = row.item_id if turn is turns[-1] else f"{row.item_id}#{turn.number}"
        cut = len(tokens) < len(turn.prompt)
        prompts.append(Prompt(item_id, place, tokens, _read(turn), turn.text.strip(), cut))
    return prompts


def _read(turn: Turn) -> str:
    """The messages before a turn, as people read them."""
    if [message["role"] for message in turn.before] == ["user"]:
        return str(turn.before[0]["content"])
    return "\n".join(f"{message['role']}: {message['content']}" for message in turn.before)


def _fitted(tokens: Ids, room: int, tokenizer: Any) -> Ids:
    """The last tokens that there is room for, with the begin-of-text token before them."""
    if len(tokens) <= room:
        return tokens
    head = tokens[:1] if tokens[0] == tokenizer.bos_token_id and room > 1 else ()
    return (*head, *tokens[len(tokens) - room + len(head) :])
