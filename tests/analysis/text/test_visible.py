"""What is shown of texts from outside steers neither a terminal nor a spreadsheet."""

import csv
import io
import json
import sys
import unicodedata

import pandas as pd
import pytest

from analysis.text.visible import csv_cell, json_text, middle_out, single_line, visible

STEERING = [
    chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) in ("Cc", "Zl", "Zp", "Cs")
]
STEERING += list("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x07", "␛[31mred␇"),
        ("\x9b2J\x7f", "<U+009B>2J␡"),
        ("a\r\nb\tc\rd\u2028e", "a\nb\tc␍d\ne"),
        ("\u202eabc\u2066", "<U+202E>abc<U+2066>"),
        ("東京 é 👩\u200d🔬 \u00a0x", "東京 é 👩\u200d🔬 \u00a0x"),
    ],
)
def test_nothing_of_a_text_can_steer_a_terminal(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_no_control_character_surrogate_or_mark_of_direction_is_left() -> None:
    text = "".join(STEERING)
    assert set(visible(text)) & set(STEERING) == {"\n", "\t"}
    assert set(single_line(text)) & set(STEERING) == set()
    single_line(text).encode()  # can be printed


def test_scripts_and_emoji_stay_as_they_are() -> None:
    for text in ("naïve é", "שלום", "مرحبا", "हिन्दी", "東京タワー", "👩\u200d🔬", "می\u200cخواهم"):
        assert visible(text) == text == single_line(text)


HOSTILE = [
    "=1+1", "+1+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "=HYPERLINK(\"http://x\",\"y\")", "＝1",
    "-", "=", "- not a number", "-0.5", "1e5", "plain", "a,b\"c\nd", "\x1b[31m=x", "東京", "", "'=x",
]  # fmt: skip


def test_cells_of_csv_are_no_formula_and_numbers_stay_numbers() -> None:
    for text in HOSTILE:
        cell = csv_cell(text)
        assert cell[:1] not in {*"=+@\t\r\n＝"}, text
        assert not cell.startswith("-") or float(cell) < 0, text
        assert cell.removeprefix("'") == visible(text).removeprefix("'")
    for value in (-0.5, 3, None, True, -7, 0.0):
        assert csv_cell(value) is value
    assert csv_cell("-0.5") == "-0.5"


def test_csv_round_trips_through_pandas() -> None:
    file = io.StringIO()
    csv.writer(file).writerows([["text", "figure"], *([csv_cell(text), csv_cell(-0.5)] for text in HOSTILE)])
    file.seek(0)
    frame = pd.read_csv(file, keep_default_na=False, dtype={"text": str})
    assert frame["figure"].tolist() == [-0.5] * len(HOSTILE)
    assert [text.removeprefix("'") for text in frame["text"]] == [visible(it).removeprefix("'") for it in HOSTILE]


def test_json_is_safe_to_print_and_gives_the_texts_back() -> None:
    content = {"a" + text: [text, 1.5, None, {"b": text}] for text in STEERING if not "\ud800" <= text <= "\udfff"}
    shown = json_text(content)
    assert set(shown) & set(STEERING) == {"\n"}
    assert json.loads(shown) == content
    assert json.loads(json_text({"x": float("nan"), "y": (float("inf"), 10**400)})) == {"x": None, "y": [None, 10**400]}


def test_a_long_text_loses_its_middle() -> None:
    assert middle_out("abc", 3) == "abc"
    assert middle_out("abcdefghij", 7) == "abcd…ij"
    assert {len(middle_out("x" * 500, most)) for most in (2, 3, 10, 99)} == {2, 3, 10, 99}
