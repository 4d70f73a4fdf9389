"""Rows of any schema as tokens: what the model reads, which tokens bear loss, what ``data.max_length`` cuts.

=============  =============================================================================================
schema         longer than ``max_length``
=============  =============================================================================================
``label``      the end of the text is cut; never the prompt's end or the label (``trainer/data/encode.py``)
``completion`` the beginning of the prompt is cut, then the end of the completion
``chat``       the end is cut; a row of which no turn of the assistant is left cannot be used
``text``       nothing is cut. Training: texts one after the other, end-of-text tokens between, in windows of
               ``max_length`` tokens. Scoring: each text in windows of its own, and a window is an item. It
               scores ``stride`` tokens (``eval.stride``), with those before them that fit as context
=============  =============================================================================================
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from analysis.errors import DataError
from trainer.config import TaskConfig
from trainer.data.chat import chat_tokens
from trainer.data.encode import Encoded, encode_rows
from trainer.data.schemas import LABELLED, Row
from trainer.data.tables import RowErrors
from trainer.data.text_tokens import first_token_after, text_tokens


@dataclass(frozen=True)
class Tokens:
    """Rows as tokens.

    Attributes:
        rows: one for each of ``encoded``; windows of a text have ids of their own. Empty for packed training text.
        encoded: what is trained on or scored.
        cut: rows that were longer than ``max_length``.
        skipped: rows left out (``data.on_error=skip``), with their places.
        lost: rows of which tokens that bear loss were cut: they are neither learned nor scored.
        needed: tokens of a row that would keep all that bear loss; 0 where none was cut.
    """

    rows: list[Row]
    encoded: list[Encoded]
    cut: int
    skipped: tuple[str, ...] = ()
    lost: int = 0
    needed: int = 0


def tokens_of(
    rows: list[Row],
    labels: tuple[str, ...],
    schema: str,
    tokenizer: Any,
    task: TaskConfig,
    max_length: int,
    *,
    training: bool,
    skip: bool = False,
    stride: int | None = None,
) -> Tokens:
    """Tokenise the rows of a split.

    Args:
        rows: as read.
        labels: sorted class names; empty without labels.
        schema: of the rows.
        tokenizer: the base model's.
        task: name and prompt.
        max_length: tokens a row at most.
        training: whether texts of schema ``text`` are packed.
        skip: leave rows out that cannot be used.
        stride: tokens that a window of schema ``text`` scores, below ``max_length``; None: all but the first.

    Raises:
        ConfigError: where ``max_length`` leaves no room.
        DataError: for a row that cannot be used.
        ModelError: for a tokenizer without a chat template.
    """
    if schema == LABELLED:
        encoded = encode_rows(rows, labels, tokenizer, task, max_length, scored=not training)
        return Tokens(rows, encoded, sum(row.cut for row in encoded))
    if schema == "text":
        return (
            _packed(rows, tokenizer, max_length)
            if training
            else _windows(rows, tokenizer, max_length, stride or max_length - 1)
        )
    if schema == "completion":
        return _completions(rows, tokenizer, max_length)
    return _chats(rows, tokenizer, max_length, RowErrors(skip))


def lost_note(max_length: int, window: int, splits: Mapping[str, Mapping[str, int]]) -> str:
    """A sentence on what ``data.max_length`` cuts of the tokens that bear loss; empty where it cuts none.

    Args:
        max_length: tokens a row at most.
        window: of the model, in tokens.
        splits: ``train`` and ``validation`` → ``rows`` that lose some, ``of`` how many, tokens ``needed`` to keep all.
    """
    losing = {split: counts for split, counts in splits.items() if counts["rows"]}
    if not losing:
        return ""
    names = {"train": "training", "validation": "validation"}
    rows = " and ".join(
        f"{n['rows']:,} of {n['of']:,} {names.get(split, split)} rows ({n['rows'] / n['of']:.0%})"
        for split, n in losing.items()
    )
    needed = max(counts["needed"] for counts in losing.values())
    way_out = f"data.max_length={needed} would keep all of it"
    if needed > window:
        way_out += f", but the model's window is {window} tokens: shorten the rows, or use a model with a longer one"
    return (
        f"data.max_length={max_length} cuts the end of what is to be learned in {rows}: it is neither trained on nor"
        f" scored. {way_out}."
    )


# --- completion


def _completions(rows: list[Row], tokenizer: Any, max_length: int) -> Tokens:
    """Prompt and completion as one text, as it stands, and the end-of-text token.

    The completion begins with the first token that spells something of it: a word may run over the border.
    """
    end = tokenizer.eos_token or ""
    wholes = text_tokens(tokenizer, [_ended(row.text + row.completion, end) for row in rows])
    first = _first_token(tokenizer)
    encoded, n_cut = [], 0
    losing: list[int] = []  # lengths of rows of which the completion is cut
    for row, made in zip(rows, wholes, strict=True):
        whole, start = made.ids, min(first_token_after(tokenizer, made, row.text), len(made.ids) - 1)
        if start == 0:  # a first token is never predicted
            whole, start = (first, *whole), 1
        context, completion = whole[:start], whole[start:]
        if len(whole) > max_length:
            n_cut += 1
            kept = max_length - len(completion)
            head = context[:1] if tokenizer.bos_token_id == context[0] else ()
            tail = context[-max(kept - len(head), 1) :] if len(context) > len(head) else ()
            context = (*head, *tail) if tail else context[:1]
            if len(completion) > max_length - len(context):
                losing.append(len(whole))
            completion = completion[: max_length - len(context)]
        encoded.append(replace(_encoded(tokenizer, context, completion), cut=len(context) < start))
    return Tokens(rows, encoded, n_cut, lost=len(losing), needed=max(losing, default=0))


def _ended(text: str, end: str) -> str:
    return text if end and text.endswith(end) else text + end


# --- chat


def _chats(rows: list[Row], tokenizer: Any, max_length: int, errors: RowErrors) -> Tokens:
    kept, encoded, n_cut = [], [], 0
    losing: list[int] = []  # tokens up to the last that bears loss, of rows of which such are cut
    for row in rows:
        try:
            ids, bears = chat_tokens(tokenizer, row.messages, row.tools)
            if not any(bears[:max_length]):
                raise DataError(_nothing_to_learn(bears, max_length))
        except DataError as error:
            errors.broken(DataError(f"{row.place}: {error}"))
            continue
        if bears[0]:
            ids, bears = [_first_token(tokenizer), *ids], [False, *bears]
        n_cut += len(ids) > max_length
        if any(bears[max_length:]):
            losing.append(len(bears) - bears[::-1].index(True))
        ids, bears = ids[:max_length], bears[:max_length]
        start = bears.index(True)
        whole = _encoded(tokenizer, ids[:start], ids[start:])
        kept.append(row)
        encoded.append(whole if all(bears[start:]) else replace(whole, bears=tuple(bears[start:])))
    if not encoded:
        raise DataError(f"No row is left that can be used. The first left out: {errors.skipped[0]}")
    return Tokens(kept, encoded, n_cut, tuple(errors.skipped), len(losing), max(losing, default=0))


def _nothing_to_learn(bears: list[bool], max_length: int) -> str:
    if True not in bears:
        return "no token of the assistant's turns was found in what the chat template makes of it."
    return (
        f"the assistant's first turn begins at token {bears.index(True) + 1}, and data.max_length={max_length} cuts it"
        " off. Raise data.max_length or shorten the row."
    )


# --- text


def _packed(rows: list[Row], tokenizer: Any, max_length: int) -> Tokens:
    """One stream of tokens in windows; the last is shorter, and kept where it holds a token to predict."""
    end = tokenizer.eos_token_id
    stream: list[int] = []
    for made in text_tokens(tokenizer, [row.text for row in rows]):
        stream += made.ids if end is None or made.ids[-1:] == (end,) else (*made.ids, end)
    windows = [stream[at : at + max_length] for at in range(0, len(stream), max_length)]
    if len(windows[-1]) < 2 and len(windows) > 1:
        windows.pop()
    if len(windows[0]) < 2:
        windows[0] = [_first_token(tokenizer), *windows[0]]
    return Tokens([], [Encoded(tuple(w[:1]), -1, tuple(w[1:]), 0) for w in windows], 0)


def _windows(rows: list[Row], tokenizer: Any, max_length: int, stride: int) -> Tokens:
    """Texts in windows for scoring: each token is scored once. The first window scores all its tokens."""
    first = _first_token(tokenizer)
    batch = tokenizer(
        [row.text for row in rows], add_special_tokens=False, return_offsets_mapping=bool(tokenizer.is_fast)
    )
    items, encoded = [], []
    for r, row in enumerate(rows):
        ids = batch.input_ids[r]
        offsets = batch["offset_mapping"][r] if tokenizer.is_fast else []
        done = 0  # characters
        if ids[:1] == [first] and tokenizer.bos_token_id == first:  # written out in the text
            ids, done, offsets = ids[1:], offsets[0][1] if offsets else 0, offsets[1:]
        known = [first, *ids]
        for at in (0, *range(max_length - 1, len(ids), stride)):
            part = ids[at : max(at + stride, max_length - 1)]
            until_token = at + len(part) + 1
            context = known[max(0, until_token - max_length) : at + 1]
            if tokenizer.is_fast:
                last = at + len(part) >= len(ids)
                until = len(row.text) if last else offsets[at + len(part) - 1][1]
                n_bytes, done = len(row.text[done:until].encode()), until
            else:
                n_bytes = len(tokenizer.decode(part).encode())
            encoded.append(Encoded(tuple(context), -1, tuple(part), n_bytes, start=len(context)))
            items.append(row if len(ids) < max_length else replace(row, item_id=f"{row.item_id}:{at}-{at + len(part)}"))
    return Tokens(items, encoded, 0)


def _first_token(tokenizer: Any) -> int:
    """The token put before a text where the tokenizer puts none, as in lm-evaluation-harness."""
    candidates = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, 0)
    return next(token for token in candidates if token is not None)


def _encoded(tokenizer: Any, context: Sequence[int], completion: Sequence[int]) -> Encoded:
    spelled = tokenizer.decode([*context[1:], *completion], skip_special_tokens=True)
    return Encoded(tuple(context), -1, tuple(completion), len(spelled.encode()))
