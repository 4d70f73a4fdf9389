"""What a model wrote for one row, and what stands in the data there. Texts, no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Answer:
    """One written answer.

    Attributes:
        item_id: of the row; of an earlier turn of a chat ``<row id>#<number of the turn>``.
        prompt: what the model was given, as people read it.
        reference: what stands in the data there, without thoughts; of rows with labels the label.
        text: what the model wrote, without thoughts.
        n_tokens: of the answer, without the end of text.
        finished: whether it ended by itself, or by a stop string, rather than by its longest allowed length.
        row: the row's own columns: text, label, completion, messages, group, tools, and ``data.extra_columns``.
    """

    item_id: str
    prompt: str
    reference: str
    text: str
    n_tokens: int
    finished: bool
    row: Mapping[str, Any] = field(default_factory=dict)


def without_thoughts(text: str) -> str:
    """What a model says when it has thought: the text behind the last ``</think>``, and before a ``<think>`` left open.

    Templates of reasoning models may open the thoughts in the prompt, so that an answer has the closing mark alone. An
    answer that ends while the model thinks says nothing. White space that stood beside thoughts goes with them.
    """
    said = text.rpartition("</think>")[2].partition("<think>")[0]
    return said if said == text else said.strip()
