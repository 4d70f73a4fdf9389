"""Where an answer ends: at an end-of-text or end-of-turn token, at a stop string, or where a label is complete."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.data.chat import turn_end
from trainer.models.base_model import BaseModel

Tokens = tuple[int, ...]


def end_tokens(base: BaseModel) -> frozenset[int]:
    """The tokens that end what a model writes.

    All that its generation config, its config and its tokenizer name, and the one with which its chat template ends the
    assistant's turn: of a model that was not tuned on chats only the last says so.
    """
    config: Any = base.model.config
    named = (
        getattr(base.model.generation_config, "eos_token_id", None),
        getattr(config.get_text_config(), "eos_token_id", None),
        base.tokenizer.eos_token_id,
        turn_end(base.tokenizer),
    )
    each = [one if isinstance(one, (list, tuple)) else [one] for one in named if one is not None]
    return frozenset(int(token) for tokens in each for token in tokens)


@dataclass(frozen=True)
class AnswerText:
    """Makes text of an answer's tokens.

    Attributes:
        tokenizer: of the base model.
        stop: strings before which an answer ends; none of them is empty.
    """

    tokenizer: Any
    stop: tuple[str, ...] = ()

    def stopped(self, tokens: Sequence[int]) -> bool:
        """Whether a stop string stands in the text of these tokens; it may span several of them."""
        if not self.stop:
            return False
        text = self.tokenizer.decode(list(tokens))
        return any(stop in text for stop in self.stop)

    def text(self, tokens: Sequence[int]) -> str:
        """The text up to the first stop string, without special tokens and without white space at its ends."""
        if not self.stopped(tokens):
            return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()
        whole = self.tokenizer.decode(list(tokens))
        n_kept = min(whole.index(stop) for stop in self.stop if stop in whole)
        for token in set(tokens) & set(self.tokenizer.all_special_ids):
            special = self.tokenizer.decode([token])
            n_kept -= whole[:n_kept].count(special) * len(special)
            whole = whole.replace(special, "")
        return whole[:n_kept].strip()


def continuations(answers: Iterable[Tokens]) -> Callable[[Tokens], Collection[int]]:
    """Tokens written so far → those that may come next, so that the answer is one of those given.

    After the beginning of one or more answers: the next token of each of these. After a whole one that begins no
    other, or after anything else: none.

    Args:
        answers: tokens; one that begins another can only be written where it ends in the end-of-text token.
    """
    following: dict[Tokens, set[int]] = {}
    for answer in answers:
        for i, token in enumerate(answer):
            following.setdefault(answer[:i], set()).add(token)
    table = {begun: sorted(tokens) for begun, tokens in following.items()}
    return lambda begun: table.get(begun, ())
