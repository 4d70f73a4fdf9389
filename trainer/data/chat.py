"""Conversations as tokens, with the loss on what the assistant says.

The tokenizer's own chat template makes the text. Where it marks the assistant's turns (``{% generation %}``), the marks
are used. Elsewhere a turn begins where the template's prompt for it ends (``add_generation_prompt``), as in TRL's
completion-only loss, and ends where the conversation up to it does.
"""

import re
from collections.abc import Sequence
from typing import Any

from analysis.errors import DataError, ModelError
from trainer.data.text_tokens import common

Messages = Sequence[dict[str, Any]]


def chat_tokens(tokenizer: Any, messages: Messages) -> tuple[list[int], list[bool]]:
    """A conversation as tokens.

    Args:
        tokenizer: of the base model, with a chat template.
        messages: each with ``role`` and ``content``.

    Returns:
        The token ids, and for each whether it bears loss.

    Raises:
        ModelError: for a tokenizer without a chat template, or one that cannot be read.
        DataError: without a place, for messages that the template refuses.
    """
    template = _template(tokenizer)
    if re.search(r"\{%-?\s*generation\s*-?%\}", template):
        marked = _applied(tokenizer, messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        return list(marked["input_ids"]), [bool(mark) for mark in marked["assistant_masks"]]
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    texts = [_applied(tokenizer, messages)]
    for i in answers:
        texts.append(_applied(tokenizer, messages[:i], add_generation_prompt=True) if i else "")
        texts.append(_applied(tokenizer, messages[: i + 1]))
    whole, *parts = tokenizer(texts, add_special_tokens=False).input_ids
    bears = [False] * len(whole)
    for prompt, through in zip(parts[::2], parts[1::2], strict=True):
        start, stop = common(prompt, whole), common(through, whole)
        if stop < len(through):  # the template writes the last turn differently from an earlier one
            stop = _turn_end(tokenizer, whole, start)
        bears[start:stop] = [True] * (stop - start)
    return whole, bears


def _template(tokenizer: Any) -> str:
    try:
        return str(tokenizer.get_chat_template())
    except ValueError:
        raise ModelError(
            f"{tokenizer.name_or_path}: its tokenizer has no chat template, so messages cannot be made into text."
            " Use an instruction-tuned model, give the tokenizer a chat_template.jinja, or use data.schema=completion."
        ) from None


def _applied(tokenizer: Any, messages: Messages, tokenize: bool = False, **options: Any) -> Any:
    import jinja2

    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=tokenize, **options)
    except jinja2.TemplateSyntaxError as error:
        raise ModelError(
            f"{tokenizer.name_or_path}: its chat template is not valid (line {error.lineno}: {error.message})."
        ) from None
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise DataError(f"the model's chat template refuses these messages: {error}") from None


def _turn_end(tokenizer: Any, whole: Sequence[int], start: int) -> int:
    """Where the turn that begins at ``start`` ends: behind its closing special tokens, before the next turn."""
    special = set(tokenizer.all_special_ids)
    special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    end = start
    while end < len(whole) and whole[end] not in special:
        end += 1
    end += 1
    while end < len(whole) and whole[end] not in special:
        end += 1
    return min(end, len(whole))
