"""Labelled rows as tokens: what the model reads, and which tokens bear loss."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.errors import ConfigError
from trainer.config import TaskConfig
from trainer.data.schemas import Row
from trainer.data.text_tokens import Ids, TextTokens, first_token_after, text_tokens

_STAND_IN = "text"  # for a row's text, where only the prompt around it counts
_VERY_LONG = 10  # characters for each token that is left room for: a text of so many hardly fits
_AT_ONCE = 4096  # texts that are in memory as tokens with offsets


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
        choices: completion, rows to score: (context, label) of each label, as the whole text is tokenised. Contexts
            differ only where a token runs over the border.
        text: completion: the prompt as text, the row's text as far as ``max_length`` leaves it.
        cut: whether ``max_length`` left some of the text out.
    """

    context: tuple[int, ...]
    target: int
    completion: tuple[int, ...]
    n_bytes: int
    bears: tuple[bool, ...] | None = None
    start: int = 1
    weight: float = 1.0
    choices: tuple[tuple[Ids, Ids], ...] = ()
    text: str = ""
    cut: bool = False

    @property
    def tokens(self) -> tuple[int, ...]:
        """The whole row."""
        return self.context + self.completion

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """The whole row as an array, kept: a row is trained on many times."""
        return np.array(self.tokens, dtype=np.int64)

    @cached_property
    def label_ids(self) -> NDArray[np.int64]:
        """Of each token of the row itself where it bears loss, else -100; kept likewise."""
        return np.array((-100,) * len(self.context) + self.targets(), dtype=np.int64)

    @property
    def length(self) -> int:
        """Tokens of the row with the longest of its labels."""
        return max([len(self.tokens), *(len(context) + len(label) for context, label in self.choices)])

    @property
    def n_bearing(self) -> int:
        """How many tokens bear loss."""
        return len(self.completion) if self.bears is None else sum(self.bears)

    def targets(self, ignored: int = -100) -> tuple[int, ...]:
        """The completion's tokens, those that bear no loss replaced by ``ignored``."""
        if self.bears is None:
            return self.completion
        return tuple(token if bears else ignored for token, bears in zip(self.completion, self.bears, strict=True))


@dataclass(frozen=True)
class Labels:
    """The labels as they continue a prompt: a space, then the label.

    Attributes:
        tokenizer: of the base model.
        names: of the classes.
        tokens: of each, after a prompt that says nothing.
        lengths: of each, tokens of prompt and label there.
        end: the end-of-text token, where it closes every label; else nothing.
    """

    tokenizer: Any
    names: tuple[str, ...]
    tokens: tuple[Ids, ...]
    lengths: tuple[int, ...]
    end: Ids

    def encoded(self, prompts: Sequence[str], targets: Sequence[int], scored: bool) -> list[Encoded]:
        """Prompts with their labels.

        Args:
            prompts: whole.
            targets: index of each one's label.
            scored: whether each prompt is to be scored with all labels, or only trained on with its own.
        """
        every = range(len(self.names))
        pairs = [(i, n) for i, target in enumerate(targets) for n in (every if scored else [target])]
        wholes = text_tokens(self.tokenizer, [f"{prompts[i]} {self.names[n]}" for i, n in pairs])
        of_prompt: list[dict[int, tuple[Ids, Ids]]] = [{} for _ in prompts]
        n_bytes = [0] * len(prompts)
        for (i, n), whole in zip(pairs, wholes, strict=True):
            of_prompt[i][n] = self._split(whole, prompts[i], of_prompt[i])
            if n == targets[i]:
                n_bytes[i] = _bytes_behind_first(self.tokenizer, whole, f"{prompts[i]} {self.names[n]}")
        return [
            Encoded(
                *(of[target][0], target, of[target][1], n_bytes[i]),
                choices=tuple(of[n] for n in every) if scored else (),
                text=prompts[i],
            )
            for i, (of, target) in enumerate(zip(of_prompt, targets, strict=True))
        ]

    def _split(self, whole: TextTokens, prompt: str, others: dict[int, tuple[Ids, Ids]]) -> tuple[Ids, Ids]:
        """Context and label; the context is one of the others' where it equals it, which saves memory."""
        start = max(1, first_token_after(self.tokenizer, whole, prompt))
        context, label = whole.ids[:start], (*whole.ids[start:], *self.end)
        return next((other for other, _ in others.values() if other == context), context), label


def as_labels(tokenizer: Any, names: tuple[str, ...], task: TaskConfig) -> Labels:
    """The labels of a task as continuations of its prompt.

    Where one label's tokens begin another's ("New", "New York"), the shorter could never be less likely. Then every
    label is closed with the end-of-text token.

    Args:
        tokenizer: of the base model.
        names: class names.
        task: its prompt.

    Raises:
        ConfigError: where two labels have the same tokens, or one has none.
    """
    open_labels = Labels(tokenizer, names, (), (), ())
    prompt = task.prompt.replace("{text}", _STAND_IN)
    [stand_in] = open_labels.encoded([prompt], [0], scored=True) if names else [Encoded((), -1, (), 0)]
    tokens = tuple(label for _, label in stand_in.choices)
    wholes = [context + label for context, label in stand_in.choices]
    lengths = tuple(map(len, wholes))
    if any(not label for label in tokens):
        empty = names[[bool(label) for label in tokens].index(False)]
        raise ConfigError(f"label {empty!r} has no tokens in this tokenizer. Rename it in the data.")
    if len(set(wholes)) < len(names):
        twice = next(name for name, whole in zip(names, wholes, strict=True) if wholes.count(whole) > 1)
        raise ConfigError(
            f"label {twice!r} has the same tokens as another label, so they cannot be told apart. Rename one."
        )
    starts_another = [i for i, a in enumerate(wholes) if any(a != b and b[: len(a)] == a for b in wholes)]
    if not starts_another:
        return replace(open_labels, tokens=tokens, lengths=lengths)
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"label {names[starts_another[0]]!r} begins another label, and this tokenizer has no"
            " end-of-text token to tell where it ends. Rename one of them, or use task=classification."
        )
    end = (int(tokenizer.eos_token_id),)
    closed = tuple(label + end for label in tokens)
    return replace(open_labels, tokens=closed, lengths=tuple(n + 1 for n in lengths), end=end)


def encode_rows(
    rows: Sequence[Row],
    labels: tuple[str, ...],
    tokenizer: Any,
    task: TaskConfig,
    max_length: int,
    scored: bool = True,
) -> list[Encoded]:
    """Tokenise rows, cutting the text so that the prompt's end and the longest label always fit.

    Args:
        rows: as read.
        labels: sorted class names.
        tokenizer: the base model's.
        task: name and prompt.
        max_length: tokens a row at most, label included.
        scored: completion: whether the rows get ``choices``.

    Raises:
        ConfigError: where ``max_length`` leaves no room for the text.
    """
    if task.name == "classification":
        return _whole_texts(rows, labels, tokenizer, max_length)
    made = as_labels(tokenizer, labels, task)
    longest = max(len(tokens) for tokens in made.tokens)
    empty = len(text_tokens(tokenizer, [task.prompt.replace("{text}", "")])[0].ids) + longest
    if empty >= max_length:
        raise ConfigError(
            f"data.max_length={max_length} leaves no room for the text: prompt and longest label take"
            f" {empty} tokens. Raise data.max_length, or shorten task.prompt or the labels."
        )
    index = {label: i for i, label in enumerate(labels)}
    size = max(1, _AT_ONCE // len(labels)) if scored else _AT_ONCE
    encoded: list[Encoded] = []
    for at in range(0, len(rows), size):
        part = rows[at : at + size]
        targets = [index[row.label] for row in part]
        # a training row is cut as it is where it is scored: so that the longest label would fit too
        rooms = [max_length if scored else max_length - max(made.lengths) + made.lengths[n] for n in targets]
        encoded += _cut_to([row.text for row in part], targets, made, task, rooms, scored)
    return encoded


def _cut_to(
    texts: list[str], targets: list[int], labels: Labels, task: TaskConfig, rooms: list[int], scored: bool
) -> list[Encoded]:
    """Texts in their prompts, each cut to ``rooms`` tokens, with the longest of the labels that it is encoded with."""
    before, after = task.prompt.split("{text}")
    texts = _nearer(texts, before, rooms, labels.tokenizer)
    encoded = labels.encoded([before + text + after for text in texts], targets, scored)
    too_long = [i for i, row in enumerate(encoded) if row.length > rooms[i]]
    ends, kept = {}, {}
    for i, tokens in zip(too_long, text_tokens(labels.tokenizer, [before + texts[i] for i in too_long]), strict=True):
        behind = tokens.ends or range(1, len(before + texts[i]) + 1)  # without offsets, one character after the other
        ends[i] = [0, *(end - len(before) for end in behind if end > len(before))]
        kept[i] = len(ends[i]) - 1
    while too_long:
        for i in too_long:
            kept[i] = max(0, kept[i] - (encoded[i].length - rooms[i]))
        prompts = [before + texts[i][: ends[i][kept[i]]] + after for i in too_long]
        shorter = labels.encoded(prompts, [targets[i] for i in too_long], scored)
        for i, row in zip(too_long, shorter, strict=True):
            encoded[i] = replace(row, cut=True)
        too_long = [i for i in too_long if kept[i] and encoded[i].length > rooms[i]]
    return encoded


def _nearer(texts: list[str], before: str, rooms: list[int], tokenizer: Any) -> list[str]:
    """The texts, very long ones cut to somewhat more than will be left of them: each is read with every label."""
    very_long = [i for i, text in enumerate(texts) if len(text) > _VERY_LONG * rooms[i]]
    nearer = list(texts)
    for i, tokens in zip(very_long, text_tokens(tokenizer, [before + texts[i] for i in very_long]), strict=True):
        if tokens.ends is not None and len(tokens.ids) > 2 * rooms[i]:
            nearer[i] = texts[i][: tokens.ends[2 * rooms[i]] - len(before)]
    return nearer


def _bytes_behind_first(tokenizer: Any, whole: TextTokens, text: str) -> int:
    """UTF-8 bytes that all tokens but the first spell: nothing predicts that one."""
    if whole.ends is None:
        [text] = tokenizer.batch_decode([list(whole.ids[1:])], skip_special_tokens=True)
        return len(text.encode())
    return len(text[whole.ends[0] :].encode())


def _whole_texts(rows: Sequence[Row], labels: tuple[str, ...], tokenizer: Any, max_length: int) -> list[Encoded]:
    """Rows of a classification task: the tokenizer's own tokens of each text, those that it adds included."""
    index = {label: i for i, label in enumerate(labels)}
    batch = tokenizer([row.text for row in rows], truncation=True, max_length=max_length)
    full = [i for i, ids in enumerate(batch.input_ids) if len(ids) == max_length]
    if batch.encodings is not None:  # of a fast tokenizer: what was cut off is there already
        cut = {i for i in full if batch.encodings[i].overflowing}
    else:
        cut = {i for i in full if len(tokenizer(rows[i].text).input_ids) > max_length}
    return [
        Encoded(tuple(ids), index[row.label], (), 0, cut=i in cut)
        for i, (ids, row) in enumerate(zip(batch.input_ids, rows, strict=True))
    ]
