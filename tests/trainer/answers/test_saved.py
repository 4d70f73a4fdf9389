"""Answers of another system, matched with the rows of a sweep."""

import json
from pathlib import Path

import pytest

from analysis.errors import DataError
from trainer.answers.saved import read_saved
from trainer.data.schemas import Row

ROWS = [Row(f"v-{i}", f"say {i} ", "", completion=f" {i}") for i in range(3)]
CHAT = [Row("c", "", "", messages=({"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}))]
WANTED = [("v-2", 2), ("v-0", 0)]


def file(tmp_path: Path, *lines: object) -> Path:
    path = tmp_path / "old.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


@pytest.mark.parametrize(
    "lines",
    [
        [{"item_id": f"v-{i}", "answer": f"a{i}"} for i in (2, 1, 0)],
        [{"prompt": f"say {i}", "answer": f"a{i}"} for i in (0, 7, 2)],
        [{"answer": f"a{i}"} for i in range(3)],
    ],
)
def test_lines_are_matched_by_id_by_prompt_or_by_order(tmp_path: Path, lines: list[dict[str, str]]) -> None:
    assert read_saved(file(tmp_path, *lines), WANTED, ROWS) == {"v-2": "a2", "v-0": "a0"}


def test_of_a_chat_the_prompt_is_what_the_user_says_last(tmp_path: Path) -> None:
    assert read_saved(file(tmp_path, {"prompt": "hello", "answer": "x"}), [("c", 0)], CHAT) == {"c": "x"}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([{"item_id": "v-0", "answer": "a"}], "no answer to 1 of 2 items, the first v-2 ('say 2')"),
        ([{"answer": "a"}], "1 lines without item_id or prompt for 3 rows"),
        ([{"item_id": "v-0"}], 'line 1: expected an object with "answer"'),
        (["{"], 'line 1: expected an object with "answer"'),
        ([], "no lines in it"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_what_to_do(tmp_path: Path, lines: list[object], said: str) -> None:
    with pytest.raises(DataError) as raised:
        read_saved(file(tmp_path, *lines), WANTED, ROWS)
    assert said in str(raised.value)
