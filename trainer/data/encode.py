"""Labelled rows as tokens: what the model reads, and which tokens bear loss."""

from dataclasses import dataclass
from typing import Any

from analysis.errors import ConfigError
from trainer.config import TaskConfig
from trainer.data.dataset import Row


@dataclass(frozen=True)
class Encoded:
    """One row as tokens.

    Attributes:
        context: completion: tokens up to the first that bears loss; classification: the whole row.
        target: index of the label; -1 without labels.
        completion: completion: tokens of the label, or all after the context; classification: empty.
        n_bytes: UTF-8 bytes of the text that ``context[start:] + completion`` spells, for bits per byte.
        bears: chat: for each token of the completion whether it bears loss; None: all do.
        start: where the row's own text begins in ``context``: behind the first token, or behind few-shot examples.
        weight: of the row in the training loss.
    """

    context: tuple[int, ...]
    target: int
    completion: tuple[int, ...]
    n_bytes: int
    bears: tuple[bool, ...] | None = None
    start: int = 1
    weight: float = 1.0

    @property
    def tokens(self) -> tuple[int, ...]:
        """The whole row."""
        return self.context + self.completion

    @property
    def n_bearing(self) -> int:
        """How many tokens bear loss."""
        return len(self.completion) if self.bears is None else sum(self.bears)

    def targets(self, ignored: int = -100) -> tuple[int, ...]:
        """The completion's tokens, those that bear no loss replaced by ``ignored``."""
        if self.bears is None:
            return self.completion
        return tuple(token if bears else ignored for token, bears in zip(self.completion, self.bears, strict=True))


def label_tokens(tokenizer: Any, labels: tuple[str, ...]) -> list[tuple[int, ...]]:
    """The tokens of each label, as a continuation of the prompt: a space, then the label.

    Where one label's tokens begin another's ("New", "New York"), the shorter could never be less likely. Then every
    label is closed with the end-of-text token.

    Args:
        tokenizer: of the base model.
        labels: class names.

    Raises:
        ConfigError: where two labels have the same tokens, or one has none.
    """
    encoded = [tuple(tokenizer(f" {label}", add_special_tokens=False).input_ids) for label in labels]
    if any(not tokens for tokens in encoded):
        empty = labels[[bool(tokens) for tokens in encoded].index(False)]
        raise ConfigError(f"label {empty!r} has no tokens in this tokenizer. Rename it in the data.")
    if len(set(encoded)) < len(encoded):
        twice = next(label for label, tokens in zip(labels, encoded, strict=True) if encoded.count(tokens) > 1)
        raise ConfigError(
            f"label {twice!r} has the same tokens as another label, so they cannot be told apart. Rename one."
        )
    starts_another = any(a != b and b[: len(a)] == a for a in encoded for b in encoded)
    if starts_another:
        end = tokenizer.eos_token_id
        encoded = [(*tokens, end) for tokens in encoded]
    return encoded


def encode_rows(
    rows: list[Row], labels: tuple[str, ...], tokenizer: Any, task: TaskConfig, max_length: int
) -> list[Encoded]:
    """Tokenise rows, cutting the text so that the prompt's end and the label always fit.

    Args:
        rows: as read.
        labels: sorted class names.
        tokenizer: the base model's.
        task: name and prompt.
        max_length: tokens a row at most, label included.

    Raises:
        ConfigError: where ``max_length`` leaves no room for the text.
    """
    if task.name == "classification":
        batch = tokenizer([row.text for row in rows], truncation=True, max_length=max_length).input_ids
        return [Encoded(tuple(ids), labels.index(row.label), (), 0) for ids, row in zip(batch, rows, strict=True)]
    before, after = task.prompt.split("{text}")
    completions = label_tokens(tokenizer, labels)
    tail = tuple(tokenizer(after, add_special_tokens=False).input_ids) if after else ()
    room = max_length - len(tail) - max(len(tokens) for tokens in completions)
    least = len(tokenizer(before).input_ids) + 1
    if room < least:
        raise ConfigError(
            f"data.max_length={max_length} leaves no room for the text: prompt and longest label take"
            f" {max_length - room + least - 1} tokens. Raise data.max_length, or shorten task.prompt or the labels."
        )
    index = {label: i for i, label in enumerate(labels)}
    texts = tokenizer([before + row.text for row in rows], truncation=True, max_length=room).input_ids
    spelled = tokenizer.batch_decode([ids[1:] for ids in texts], skip_special_tokens=True)
    encoded = []
    for row, ids, text in zip(rows, texts, spelled, strict=True):
        n_bytes = len((text + after + " " + row.label).encode())
        encoded.append(Encoded((*ids, *tail), index[row.label], completions[index[row.label]], n_bytes))
    return encoded
