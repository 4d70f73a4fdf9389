"""What of a text is an answer."""

import pytest

from trainer.answers.answer import without_thoughts


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Rome", "Rome"),
        (" Rome ", " Rome "),
        ("<think>Italy …\n</think>\n\nRome", "Rome"),
        ("<think>\n\n</think>\n\nRome", "Rome"),  # as Qwen3's template writes where there are none
        ("Italy …</think>Rome", "Rome"),  # the prompt opened the thoughts
        ("<think>a</think> <think>b</think>Rome", "Rome"),
        ("<think>Italy, whose capital", ""),
        ("<think>a</think>Rome<think>or", "Rome"),
        ("", ""),
    ],
)
def test_thoughts_are_no_part_of_an_answer(text: str, said: str) -> None:
    assert without_thoughts(text) == said
