"""A text as the tokens that its tokenizer makes of the whole, and where a part of the text begins among them.

Parts that are tokenised apart and put together are other tokens than those of the text: SentencePiece puts a ``▁``
before each part, and a tokenizer that appends its end token puts that between them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Ids = tuple[int, ...]


@dataclass(frozen=True)
class TextTokens:
    """A text as tokens.

    Attributes:
        ids: what the tokenizer adds before a text is among them, what it adds behind one is not.
        ends: number of the text's characters up to the end of each token; None from a tokenizer that cannot say.
        starts: the same up to its start.
    """

    ids: Ids
    ends: Ids | None
    starts: Ids = ()


def text_tokens(tokenizer: Any, texts: Sequence[str]) -> list[TextTokens]:
    """Each text as tokens, to be continued: with the begin-of-text token, where the tokenizer puts one, once.

    A text that begins with that token, written out, gets no second one, as in lm-evaluation-harness.

    Args:
        tokenizer: of the base model.
        texts: any number, whole.
    """
    if not texts:
        return []
    fast = bool(getattr(tokenizer, "is_fast", False))
    options: dict[str, Any] = {"return_offsets_mapping": True} if fast else {}
    batch = tokenizer(list(texts), add_special_tokens=False, **options)
    begin = begin_tokens(tokenizer)
    made = []
    for i, ids in enumerate(batch.input_ids):
        added = () if tuple(ids[: len(begin)]) == begin else begin
        if not fast:
            made.append(TextTokens((*added, *ids), None))
            continue
        spans = [*[(0, 0)] * len(added), *batch["offset_mapping"][i]]
        made.append(TextTokens((*added, *ids), tuple(end for _, end in spans), tuple(start for start, _ in spans)))
    return made


def begin_tokens(tokenizer: Any) -> Ids:
    """The tokens that a tokenizer adds before a text, such as a begin-of-text token."""
    return _added(tokenizer)[0]


def end_tokens(tokenizer: Any) -> Ids:
    """The tokens that a tokenizer adds behind a text, such as an encoder's separator."""
    return _added(tokenizer)[1]


def _added(tokenizer: Any) -> tuple[Ids, Ids]:
    """What a tokenizer puts before and behind a text; nothing, where the text's own tokens are not among the whole."""
    bare, framed = (tokenizer("a", add_special_tokens=added).input_ids for added in (False, True))
    starts = [i for i in range(len(framed) - len(bare) + 1) if framed[i : i + len(bare)] == bare]
    return (tuple(framed[: starts[0]]), tuple(framed[starts[-1] + len(bare) :])) if starts and bare else ((), ())


def first_token_after(tokenizer: Any, whole: TextTokens, before: str) -> int:
    """Index of the first token that spells something of what follows a beginning of the text.

    A token that spells the end of the beginning and the start of what follows belongs to what follows, unless the
    beginning alone has it too, as a special token that swallows the space behind it.

    Args:
        tokenizer: that made the tokens.
        whole: the text.
        before: its beginning.
    """
    first = 0
    if whole.ends is not None:
        first = next((i for i, end in enumerate(whole.ends) if end > len(before)), len(whole.ids))
        if first == len(whole.ids) or whole.starts[first] >= len(before):
            return first
    return max(first, common(text_tokens(tokenizer, [before])[0].ids, whole.ids))


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning of two sequences."""
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)
