"""Which columns hold texts and labels is told by their values."""

from typing import Any

import pytest

from trainer.data.column_roles import column_roles, override

TEXTS = [f"a text that says {word}" for word in ("one", "two", "three", "four", "five", "six", "seven", "eight")]
BOTH = ("data.text", "data.label")


@pytest.mark.parametrize(
    "labels",
    [["pos", "neg"] * 4, ["True", "False"] * 4, [True, False] * 4, [0, 1] * 4, [1.0, 2.0, 3.0, 3.0] * 2],
    ids=["words", "text of booleans", "booleans", "integers", "whole floats"],
)
def test_few_short_values_are_labels_and_words_are_texts(labels: list[Any]) -> None:
    assert column_roles({"b": labels, "a": TEXTS}).text_and_label == ("a", "b")


@pytest.mark.parametrize(
    "other",
    [
        TEXTS[::-1],
        list(range(8)),
        [0.5 + n for n in range(8)],
        ["same"] * 8,
        ["a", "b", "c", "d", "e"] + ["f"] * 3,
        ["x" * 65, "y" * 65] * 4,
        [["a"], ["b"]] * 4,
        [None, ""] * 4,
    ],
    ids=["texts", "numbers", "fractions", "one value", "a value a row", "long", "lists", "empty"],
)
def test_what_is_neither_leaves_no_pair(other: list[Any]) -> None:
    assert column_roles({"a": TEXTS, "b": other}).text_and_label is None


def test_the_suggestion_is_what_to_type() -> None:
    columns = {"id": list(range(8)), "the title": TEXTS, "body": [f"{text}. {text}" for text in TEXTS]}
    roles = column_roles(columns | {"stars": [1, 2, 3, 3] * 2, "mood": ["good", "bad"] * 4})
    assert roles.suggestion(BOTH, False) == "Type data.text=body data.label=mood. Other columns of few values: 'stars'."
    assert roles.suggestion(["data.label"], False).startswith("Type data.label=mood.")
    assert "No column looks like labels" in column_roles(columns).suggestion(BOTH, False)
    assert column_roles(columns).suggestion(BOTH, True) == "Type 'data.prompt=\"the title\"' data.completion=body."
    two = column_roles({"premise": TEXTS, "claim": TEXTS, "label": ["yes", "no"] * 4}).suggestion(["data.text"], False)
    assert "'data.template=\"{{ premise }} {{ claim }}\"'" in two


@pytest.mark.parametrize("value", ["plain", "two words", "Größe", 'a "quoted" one', "it's", "a,b", "{{ a }} {{ b }}"])
def test_an_override_is_read_back_as_it_was_meant(value: str) -> None:
    import shlex

    from sweeps.compose.overrides import read_overrides

    (typed,) = shlex.split(override("data.text", value))
    assert [(it.path, it.value) for it in read_overrides([typed], {}).settings] == [("data.text", value)]
