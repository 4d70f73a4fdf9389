"""Answers and references with odd cases: empty, long, other scripts, emoji, broken JSON, nested fences, numbers."""

import pytest

ODD = [
    ("", ""), ("", "Paris"), ("Paris", ""), ("the", "a"), ("The Eiffel Tower.", "eiffel tower"),
    ("It is in Paris, France", "Paris"), ("paris " * 3000, "paris " * 2000), ("x" * 20000, "x"), ("\n\t  ", " \n"),
    ("a b c d e f g", "g f e d c b a"), ("Don't stop!", "dont stop"), ("co-op", "coop"),
    ("an-other the one", "other one"),
    ("巴黎是法国的首都。", "巴黎是法國的首都"), ("東京は日本の首都です", "東京"), ("서울은 한국의 수도", "서울"),
    ("Москва — столица", "столица России"), ("القاهرة عاصمة مصر", "القاهرة"), ("दिल्ली भारत की राजधानी है", "दिल्ली"),
    ("กรุงเทพมหานคร", "กรุงเทพ"), ("🎉🎉 party 🎉", "party"), ("👩‍👩‍👧 family", "👩‍👩‍👧"), ("naïve café", "naive cafe"),
    ("İSTANBUL", "istanbul"), ("ﬁne", "fine"), ("e\u0301", "é"), ("\u200bParis\u00a0", "Paris"), ("“Paris”", '"Paris"'),
    ('{"a": 1', '{"a": 1}'), ('{"a": 1}', '{"a": 1}'), ('{"a": [1, 2, {"b": "x"}]}', '{"a": [2, 1, {"b": "y"}]}'),
    ('Here:\n```json\n{"a": "```"}\n```\nDone', '{"a": "```"}'), ("```\n```json\n[1]\n```\n```", "[1]"),
    ("1,234.50", "1234.5"), ("so the answer is -3/4", "-0.75"), ("#### 72", "she sold 72\n#### 72"), ("12 %", "0.12"),
    ("\\boxed{\\frac{1}{2}}", "0.5"), ("$5.00", "5"), ("(B)", "B) Paris"), ("The answer is C.", "C"),
    ("I think so", "I"),
    ("<b>bold</b> &amp; more", "bold & more"), ("line one\nline two", "line one line two"), ("a.b.c", "a b c"),
    ("!!!", "???"), ("The the THE", "the"), ("10-3", "3"), ("tab\tsep\tvalues", "tab sep values"),
    ("NULL\x00byte", "null byte"),
    ("I'm sorry, but I can't help with that.", "Sure"), ("e" * 5 + " " + "e" * 5, "eeeee eeeee"),
]  # fmt: skip


@pytest.fixture
def odd() -> list[tuple[str, str]]:
    """At least 50 pairs of answer and reference."""
    assert len(ODD) >= 50
    return ODD
