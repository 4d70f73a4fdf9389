"""Rows that say the same, or nearly: a hundred of each kind that people report, and rows that only look alike."""

import random
from collections.abc import Callable

import pytest

from trainer.data.audit import Entry, audit
from trainer.data.likeness import Shingler, near_rows, normal_form

N = 100
_RANDOM = random.Random(0)
# Words as frequent as in a language: Zipf's law over 4,000 of them.
VOCABULARY = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "ai", "ou") for c in
              ("n", "r", "s", "t", "l", "m", "nd", "st", "ck", "ng", "ter", "ning", "lin", "ver", "ma", "to",
               "ki", "sa", "ro", "fe", "gu", "po", "du", "va", "we", "ze", "pl", "gr", "br", "cl", "sh", "ch",
               "th", "wh", "qu", "sk", "sp", "sm", "sn", "sw", "tr", "tw", "dr", "fl", "fr", "gl", "kn")]  # fmt: skip
FREQUENCY = [1 / rank for rank in range(1, len(VOCABULARY) + 1)]


def text(n: int, chooser: random.Random = _RANDOM) -> str:
    return " ".join(chooser.choices(VOCABULARY, FREQUENCY, k=n)).capitalize() + "."


def texts(low: int, high: int, seed: int = 0, n: int = N) -> list[str]:
    chooser = random.Random(seed)
    return [text(chooser.randint(low, high), chooser) for _ in range(n)]


def changed(content: str, n: int, chooser: random.Random) -> str:
    words = content.split()
    for at in chooser.sample(range(len(words)), n):
        words[at] = chooser.choice(VOCABULARY)
    return " ".join(words)


def entries(split: str, rows: list[str]) -> list[Entry]:
    return [Entry(row, "a", f"{split} {i}") for i, row in enumerate(rows)]


SAME: dict[str, Callable[[str], str]] = {
    "letter case": str.upper,
    "title case": str.title,
    "white space": lambda row: "  " + row.replace(" ", "\n ", 3),
    "no full stop": lambda row: row.rstrip("."),
    "three full stops": lambda row: row.rstrip(".") + " ...",
    "reply": lambda row: f"Re: {row}",
    "reply to a forward": lambda row: f"RE: Fwd: Re[2]: {row}",
    "subject line": lambda row: f"Subject: Re: {row}",
    "a paragraph": lambda row: f"<p>{row}</p>",
    "HTML": lambda row: f'<div class="x"><b>{row.split()[0]}</b> {" ".join(row.split()[1:])}<br/>\n</div>',
    "a comment": lambda row: f"<!-- of the page -->{row}",
    "Markdown": lambda row: f"# **{row.split()[0]}** {' '.join(row.split()[1:])}",
    "emphasis": lambda row: f"*{row.split()[0]}* {' '.join(row.split()[1:])}",
    "a quote": lambda row: f"> {row}",
    "a link": lambda row: f"[{row.split()[0]}](https://example.org/a) {' '.join(row.split()[1:])}",
    "zero-width spaces": lambda row: row.replace(" ", "\u200b ", 2),
    "a byte-order mark": lambda row: f"\ufeff{row}",
    "no-break spaces": lambda row: row.replace(" ", "\xa0"),
    "entities": lambda row: row.replace(" ", "&nbsp;", 2),
}


@pytest.mark.parametrize("kind", list(SAME))
def test_a_hundred_of_a_hundred_rows_that_say_the_same_are_found(kind: str) -> None:
    known = texts(3, 80)
    found = audit(entries("train", known), entries("validation", [SAME[kind](row) for row in known]))
    assert found.exact_across.rows == N


def test_forms_of_one_character_and_typographic_quotes_are_the_same() -> None:
    assert normal_form("Cafe\u0301 “fine” – it’s") == normal_form('Café "fine" - it\'s')


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("vector<int> a", "vector<float> a"), ("2 * 3 * 4", "2 3 4"), ("5 < 6 and 7 > 3", "5 and 7 > 3"),
        ("it is 3.5", "it is 35"), ("Reed: yes", "yes"), ("a_b_c", "abc"), ("**", ""), (".", ""), ("<p></p>", ""),
        ("no", "not"), ("Go?", "Go!"), ("re", ""), ("rename: a", "a"),
    ],
)  # fmt: skip
def test_what_carries_content_stays(one: str, other: str) -> None:
    assert normal_form(one) != normal_form(other)


def near(known: list[str], rows: list[str]) -> int:
    """Rows whose own origin is found, among others that are not related."""
    chooser = random.Random(9)
    around = [text(chooser.randint(4, 80), chooser) for _ in range(400)]
    shingler = Shingler()
    found = near_rows([shingler.words(row) for row in [*known, *around]], [shingler.words(row) for row in rows])
    return sum(found.get(i) == i for i in range(len(rows)))


@pytest.mark.parametrize(
    ("low", "high", "n", "least"),
    [(4, 7, 1, 80), (8, 12, 1, 95), (8, 12, 2, 85), (12, 24, 3, 95), (25, 60, 3, 95), (60, 200, 3, 99)],
)
def test_rows_with_changed_words_are_found(low: int, high: int, n: int, least: int) -> None:
    chooser = random.Random(5)
    known = texts(low, high)
    assert near(known, [changed(row, n, chooser) for row in known]) >= least


def test_rows_quoted_in_longer_ones_are_found_both_ways() -> None:
    known = texts(8, 60)
    around = zip(texts(20, 60, 1), texts(20, 60, 2), strict=True)
    longer = [f"{before} > {row} {after}" for row, (before, after) in zip(known, around, strict=True)]
    assert near(known, longer) >= 95
    assert near(longer, known) >= 95


def test_words_in_another_order_are_found_in_short_rows() -> None:
    known = texts(6, 12)
    assert near(known, [" ".join([*row.split()[3:], *row.split()[:3]]) for row in known]) >= 90


def test_scripts_without_spaces_are_compared_by_their_signs() -> None:
    known = ["我昨天在商店买的手机今天早上突然打不开了请帮我看看", "请问这个订单什么时候可以送到我家里谢谢您的回复"]
    shingler = Shingler()
    words = [shingler.words(row) for row in known]
    new = ["我昨天在商店买的电脑今天早上突然打不开了请帮我看看", "今天天气很好我们一起去公园散步吧你觉得怎么样呢"]
    assert near_rows(words, [shingler.words(row) for row in new]) == {0: 0}


@pytest.mark.parametrize(("low", "high"), [(3, 8), (8, 24), (25, 100)])
def test_unrelated_rows_are_not_taken_for_near_ones(low: int, high: int) -> None:
    shingler = Shingler()
    known, new = ([shingler.words(row) for row in texts(low, high, seed, 1000)] for seed in (1, 2))
    assert len(near_rows(known, new)) <= 10


@pytest.mark.parametrize("chunk", [7, 100, 150])
def test_pairs_are_the_same_whatever_is_compared_at_a_time(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shingler, chooser = Shingler(), random.Random(3)
    known = texts(5, 50)
    words = [shingler.words(row) for row in known]
    new = [shingler.words(changed(row, 2, chooser)) for row in known]
    at_once = near_rows(words, new)
    monkeypatch.setattr("trainer.data.likeness._CHUNK", chunk)
    assert near_rows(words, new) == at_once
    assert len(at_once) > 80
