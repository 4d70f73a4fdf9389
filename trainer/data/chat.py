"""Conversations as tokens, with the loss on what the assistant says.

The tokenizer's own chat template makes the text. Where it marks the assistant's turns (``{% generation %}``), the marks
are used. Elsewhere a turn begins where the template's prompt for it ends (``add_generation_prompt``), as in TRL's
completion-only loss, and ends where the conversation up to it does.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from analysis.errors import DataError, ModelError, parsed_json
from trainer.data.templates import RENDER_ERRORS
from trainer.data.text_tokens import common

Messages = Sequence[dict[str, Any]]
Tools = Sequence[dict[str, Any]] | None
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_MAY_BE_DROPPED = ("system", "developer", "tool")  # roles that some templates leave out without a word


def chat_tokens(tokenizer: Any, messages: Messages, tools: Tools = None) -> tuple[list[int], list[bool]]:
    """A conversation as tokens.

    Args:
        tokenizer: of the base model, with a chat template.
        messages: each with ``role`` and ``content``.
        tools: schemas of the functions that the assistant may call; None: there are none.

    Returns:
        The token ids, and for each whether it bears loss.

    Raises:
        ModelError: for a tokenizer without a chat template, or one that cannot be read.
        DataError: without a place, for what the template refuses or does not write.
    """
    template = _template(tokenizer, tools)
    learned = [message["role"] == "assistant" and is_learned(message) for message in messages]
    conversation = _with_objects(tokenizer, [_plain(message) for message in messages], tools)
    text = _applied(tokenizer, conversation, tools)
    _check_written(tokenizer, conversation, tools, text, learned)
    marked = None
    if re.search(r"\{%-?\s*generation\s*-?%\}", template):
        options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
        marked = _applied(tokenizer, conversation, tools, **options)
        if all(learned[i] for i, message in enumerate(messages) if message["role"] == "assistant"):
            return list(marked["input_ids"]), [bool(mark) for mark in marked["assistant_masks"]]
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    texts = [text]
    for i in answers:
        texts.append(_applied(tokenizer, conversation[:i], tools, add_generation_prompt=True) if i else "")
        texts.append(_applied(tokenizer, conversation[: i + 1], tools))
    whole, *parts = tokenizer(texts, add_special_tokens=False).input_ids
    spans = []
    for prompt, through in zip(parts[::2], parts[1::2], strict=True):
        start, stop = common(prompt, whole), common(through, whole)
        if stop < len(through):  # the template writes the last turn differently from an earlier one
            stop = _turn_end(tokenizer, whole, start)
        spans.append((start, stop))
    if marked is None:
        bears = [False] * len(whole)
        for i, (start, stop) in zip(answers, spans, strict=True):
            bears[start:stop] = [learned[i]] * (stop - start)
        return whole, bears
    bears = [bool(mark) for mark in marked["assistant_masks"]]
    for n, i in enumerate(answers):
        if not learned[i]:  # the marks may begin before the turn does
            start, stop = spans[n - 1][1] if n else 0, spans[n + 1][0] if n + 1 < len(spans) else len(whole)
            while start < spans[n][0] and not all(bears[start : spans[n][0]]):
                start += 1
            while stop > spans[n][1] and not all(bears[spans[n][1] : stop]):
                stop -= 1
            bears[start:stop] = [False] * (stop - start)
    return whole, bears


@dataclass(frozen=True)
class Turn:
    """What the assistant is to say at some point of a conversation.

    Attributes:
        number: of the turn among the assistant's, from 1.
        before: the messages before it.
        prompt: these as the template prompts the assistant with them (``add_generation_prompt``), as tokens.
        text: what it says; where it calls functions, the calls as the template writes them.
    """

    number: int
    before: tuple[dict[str, Any], ...]
    prompt: tuple[int, ...]
    text: str


def turns_of(tokenizer: Any, messages: Messages, tools: Tools = None) -> list[Turn]:
    """The assistant's turns that are learned, say something, and have messages before them.

    Args:
        tokenizer: of the base model, with a chat template.
        messages: each with ``role`` and ``content``.
        tools: schemas of the functions that the assistant may call; None: there are none.

    Raises:
        ModelError: for a tokenizer without a chat template, or one that cannot be read.
        DataError: without a place, for what the template refuses.
    """
    _template(tokenizer, tools)
    conversation = _with_objects(tokenizer, [_plain(message) for message in messages], tools)
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    turns = []
    for number, i in enumerate(answers, start=1):
        message, before = messages[i], conversation[:i]
        if not before or not is_learned(message) or not (message["content"] or message.get("tool_calls")):
            continue
        prompt = _applied(tokenizer, before, tools, add_generation_prompt=True)
        tokens = tokenizer(prompt, add_special_tokens=False).input_ids
        text = str(message["content"])
        if message.get("tool_calls"):
            text = _written_turn(tokenizer, conversation[: i + 1], tools, tokens)
        turns.append(Turn(number, tuple(before), tuple(tokens), text))
    return turns


def _written_turn(tokenizer: Any, messages: Messages, tools: Tools, prompt: Sequence[int]) -> str:
    """What the template writes of the last message, without special tokens."""
    whole = tokenizer(_applied(tokenizer, messages, tools), add_special_tokens=False).input_ids
    return str(tokenizer.decode(whole[common(prompt, whole) :], skip_special_tokens=True))


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    return {key: part for key, part in message.items() if key not in LEARNED_KEYS}


LEARNED_KEYS = ("weight", "train")  # of an assistant's turn: whether it bears loss, as at OpenAI and in Axolotl


def is_learned(message: dict[str, Any]) -> bool:
    """Whether an assistant's turn bears loss: not with ``weight: 0`` or ``train: false``."""
    return bool(message.get("weight", 1)) and bool(message.get("train", True))


def _with_objects(tokenizer: Any, messages: Messages, tools: Tools) -> list[dict[str, Any]]:
    """The messages; arguments of calls that are JSON in a string (OpenAI's) as objects where the template wants these.

    A template that writes the string as it stands keeps it. One that quotes it a second time is made for objects.
    """
    called = [call for message in messages for call in message.get("tool_calls") or []]
    given = [call.get("function", call).get("arguments") for call in called if isinstance(call, dict)]
    strings = [arguments for arguments in given if isinstance(arguments, str)]
    if not strings:
        return list(messages)
    text = _applied(tokenizer, messages, tools)
    if not any(json.dumps(string, ensure_ascii=plain) in text for string in strings for plain in (False, True)):
        return list(messages)
    return [_parsed(message) if message.get("tool_calls") else message for message in messages]


def _parsed(message: dict[str, Any]) -> dict[str, Any]:
    calls = []
    for call in message["tool_calls"]:
        function = call.get("function", call)
        if isinstance(function.get("arguments"), str):
            try:
                function = function | {"arguments": parsed_json(function["arguments"])}
            except ValueError as error:
                raise DataError(
                    f"the arguments of a tool call are not valid JSON ({error}). Correct the row."
                ) from None
        calls.append(call | {"function": function} if "function" in call else function)
    return message | {"tool_calls": calls}


def _check_written(
    tokenizer: Any, messages: Sequence[dict[str, Any]], tools: Tools, text: str, learned: Sequence[bool]
) -> None:
    """Raises DataError for a part of a conversation that makes no difference to what the template writes.

    Of what an assistant says, where it is ``learned``: templates of reasoning models leave the thoughts of earlier
    turns out. As context, with ``weight: 0``, it may be left out, as when the model is used.
    """

    def alike(others: Sequence[dict[str, Any]], other_tools: Tools) -> bool:
        try:
            return bool(_applied(tokenizer, others, other_tools) == text)
        except DataError:  # without it, the template refuses them: so it does look at it
            return False

    def but(i: int, message: dict[str, Any]) -> list[dict[str, Any]]:
        return [*messages[:i], message, *messages[i + 1 :]]

    if tools and alike(messages, None):
        raise DataError(
            "the model's chat template does not write tools (data.tools), so the model would not see which there are."
            " Use a model whose template does, or leave them out: data.tools=null."
        )
    contents = [str(message["content"] or "") for message in messages]
    for i, message in enumerate(messages):
        if message.get("tool_calls") and alike(but(i, message | {"tool_calls": []}), tools):
            raise DataError(_not_written(i, message, "tool_calls"))
        if (
            message["role"] in _MAY_BE_DROPPED
            and message["content"]
            and alike(but(i, message | {"content": ""}), tools)
        ):
            raise DataError(_not_written(i, message, "content"))
        content = str(message["content"] or "")
        n = _unwritten(content, contents, text) if learned[i] else 0
        if n and alike(but(i, message | {"content": content[n:]}), tools):
            raise DataError(
                f"message {i + 1} ({message['role']}): the model's chat template leaves {content[:n][:40]!r} out of"
                " its 'content', so that it would not be learned. Give the turn \"weight\": 0, or take it out."
            )
        for key in _THOUGHTS:
            without = {name: part for name, part in message.items() if name != key}
            if learned[i] and message.get(key) and alike(but(i, without), tools):
                raise DataError(_not_written(i, message, key))


def _unwritten(content: str, contents: Sequence[str], text: str) -> int:
    """How many characters at the beginning of a content are left out of a text, apart from white space.

    Args:
        content: one of them.
        contents: all that the text should hold.
        text: from the template.
    """
    squeezed, parts = "".join(text.split()), ["".join(part.split()) for part in contents]

    def written(rest: str) -> bool:
        """Whether it is in the text as often as it is said."""
        bare = "".join(rest.split())
        return squeezed.count(bare) >= sum(part.count(bare) for part in parts)

    first, last = 0, 0 if written(content) else len(content)
    while first < last:  # the shortest beginning without which the rest is written
        middle = (first + last) // 2
        if written(content[middle:]):
            last = middle
        else:
            first = middle + 1
    return first


def _not_written(i: int, message: dict[str, Any], key: str) -> str:
    return (
        f"message {i + 1} ({message['role']}): the model's chat template does not write {key!r}, so it would be left"
        " out without a word. Use a model whose template does, or take it out of the row."
    )


def _template(tokenizer: Any, tools: Tools) -> str:
    """The template that the messages are written with: some tokenizers have one of its own for rows with tools."""
    try:
        return str(tokenizer.get_chat_template(tools=tools))
    except ValueError:
        raise ModelError(
            f"{tokenizer.name_or_path}: its tokenizer has no chat template, so messages cannot be made into text."
            " Use an instruction-tuned model, give the tokenizer a chat_template.jinja, or use data.schema=completion."
        ) from None


def _applied(tokenizer: Any, messages: Messages, tools: Tools, tokenize: bool = False, **options: Any) -> Any:
    import jinja2

    try:
        if tools is not None:
            options["tools"] = list(tools)
        return tokenizer.apply_chat_template(list(messages), tokenize=tokenize, **options)
    except jinja2.TemplateSyntaxError as error:
        raise ModelError(
            f"{tokenizer.name_or_path}: its chat template is not valid (line {error.lineno}: {error.message})."
        ) from None
    except (jinja2.TemplateError, *RENDER_ERRORS) as error:
        why = str(error) if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {error}"
        raise DataError(f"the model's chat template refuses these messages: {why}") from None


def turn_end(tokenizer: Any) -> int | None:
    """The special token with which the chat template ends what the assistant says, such as ``<|im_end|>``.

    It need not be the tokenizer's end-of-text token. None without a template, or where no such token ends a turn.

    Args:
        tokenizer: of the base model.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    said = "yes"
    try:
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": said}]
        text = _applied(tokenizer, turns, None)
    except (DataError, ModelError):
        return None
    behind = tokenizer(text.rpartition(said)[2].lstrip(), add_special_tokens=False).input_ids
    return behind[0] if behind and behind[0] in _special(tokenizer) else None


def _special(tokenizer: Any) -> set[int]:
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return set(tokenizer.all_special_ids) | added


def _turn_end(tokenizer: Any, whole: Sequence[int], start: int) -> int:
    """Where the turn that begins at ``start`` ends: behind its closing special tokens, before the next turn."""
    special = _special(tokenizer)
    end = start
    while end < len(whole) and whole[end] not in special:
        end += 1
    end += 1
    while end < len(whole) and whole[end] not in special:
        end += 1
    return min(end, len(whole))
