"""Rows of a classification task as tokens: which are cut is told by the one pass over their texts."""

from typing import Any

import pytest

from trainer.config import TaskConfig
from trainer.data.encode import encode_rows
from trainer.data.schemas import Row
from trainer.models.tokenizer import open_tokenizer

LABELS = ("no", "yes")
TEXTS = ["a b c", "word " * 5, "word " * 6, "word " * 7, "word " * 40, ""]


@pytest.fixture
def tokenizer(tiny_models: Any) -> Any:
    return open_tokenizer(str(tiny_models["bert"]), {})


@pytest.mark.parametrize("fast", [True, False])
def test_a_row_is_cut_where_its_text_has_more_tokens_than_there_is_room_for(tokenizer: Any, fast: bool) -> None:
    calls = []

    def counted(texts: Any, **options: Any) -> Any:
        calls.append(texts)
        made = tokenizer(texts, **options)
        if not fast:
            made._encodings = None  # as of a tokenizer in Python
        return made

    rows = [Row(str(i), text, label="yes") for i, text in enumerate(TEXTS)]
    for room in (4, 7, 8, 9):
        del calls[:]
        encoded = encode_rows(rows, LABELS, counted, TaskConfig(name="classification"), room)
        lengths = [len(tokenizer(text).input_ids) for text in TEXTS]
        assert [row.cut for row in encoded] == [length > room for length in lengths]
        assert [len(row.context) for row in encoded] == [min(length, room) for length in lengths]
        assert len(calls) == 1 or not fast, "texts are read once"
