"""How choices, numbers and matches are read out of answers."""

from fractions import Fraction

import pytest
import regex
from lm_eval.filters.extraction import RegexFilter

from trainer.answers.extraction import choice, found_by, number, option_text, same_number


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("B", "B"), ("(B)", "B"), ("The answer is B.", "B"), ("B) Paris", "B"), ("**C**", "C"), ("B. Paris", "B"),
        ("Answer: D", "D"), ("the correct option is (a)", None), ("A dog barks", None), ("I think it is C", "C"),
        ("A", "A"), ("It could be A or B. The answer is: B", "B"), ("A or B", None), ("A and B", None),
        ("B Paris", "B"), ("The answer is A. No, the answer is C.", "C"), ("", None), ("K", None),
        ("I'm sure: B", "B"), ("The answer is B, not C", "B"), ("答案是B。", None), ("答案是 B。", "B"), ("🎉 B", "B"),
        ("B\n\nbecause A is wrong", "B"), ("Answer: **E) Rome**", "E"), ("Not A, but the answer is **(J)**", "J"),
    ],
)  # fmt: skip
def test_the_choice_that_an_answer_names(text: str, read: str | None) -> None:
    assert choice(text) == read


def test_options_of_ones_own_are_whole_words_in_either_case() -> None:
    options = ("yes", "no", "not sure")
    read = {
        "Yes.": "yes",
        "NO": "no",
        "I am not sure": "not sure",
        "nothing": None,
        "yes or no": None,
        "yes/no": None,
        "No, not sure": "no",
    }
    assert {text: choice(text, options) for text in read} == read


def test_what_stands_behind_a_letter() -> None:
    assert [option_text(text, "B") for text in ("B) Paris", "(B) New York", "B", "Bern")] == [
        "Paris",
        "New York",
        "",
        "",
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234.50", "1234.5"), ("-3/4", "-3/4"), ("x = −3", "-3"), ("12 apples and 7", "7"),
        ("#### 72 eggs, 3 left", "72"),
        ("first 5\n#### 1,000", "1000"), (r"\boxed{42} in 3 steps", "42"), (r"\boxed{\frac{3}{4}}", "3/4"),
        (r"so $\boxed{-\dfrac{1}{2}}$", "-1/2"), (r"\boxed{1{,}234}", "1234"), ("1 1/2 cups", "3/2"), ("2e-3", "0.002"),
        ("$5.00.", "5"), (".5", "0.5"), ("42.", "42"), ("10-3", "3"), ("12,34,567", "1234567"), ("1\u202f234", "1234"),
        ("H2O", None), ("x1", None), ("", None), ("none", None), ("1/0", None), ("٣٫", "3"), ("答案是5個", "5"),
        ("+7", "7"),
        ("9" * 400, None), ("1e999999", None), (r"\boxed{none}, or 5", None), ("#### none", None), ("3 - 4", "4"),
        ("it is -$5", "-5"), ("y = - 3", "-3"),
        ("f(2)-3", "3"), ("答案-3", "-3"), ("1 1/" + "9" * 5000, None),
    ],
)  # fmt: skip
def test_the_number_that_an_answer_gives(text: str, value: str | None) -> None:
    read = number(text)
    assert (None if read is None else read[0]) == (None if value is None else Fraction(value))


def test_plain_numbers_are_read_as_by_lm_evals_filter_of_gsm8k() -> None:
    """Its configuration: ``flexible-extract`` in lm_eval/tasks/gsm8k/gsm8k.yaml."""
    taken = RegexFilter(regex_pattern=r"(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1)
    texts = [f"{a} + {b} makes {a + b}" for a in range(-5, 40, 3) for b in range(7)] + ["She has $1,234 left", "so 18"]
    read = [RegexFilter.apply(taken, [[text]], [{}])[0][0] for text in texts]
    for text, theirs in zip(texts, read, strict=True):
        ours = number(text)
        assert ours is not None
        assert ours[0] == Fraction(theirs.replace("$", "").replace(",", ""))


@pytest.mark.parametrize(
    ("answer", "reference", "tolerance", "same"),
    [
        ("0.50", "1/2", 0.0, True), ("0.333", "1/3", 0.0, False), ("0.333", "1/3", 0.01, True),
        ("50%", "50", 0.0, True),
        ("50 %", "0.5", 0.0, True), ("0.5", "50\\%", 0.0, True), ("50%", "0.5%", 0.0, False),
        ("-99", "-100", 0.01, True),
        ("-98", "-100", 0.01, False), ("0", "0", 0.0, True), ("0.1", "0", 0.5, False), ("none", "1", 1.0, False),
        ("0.1 + 0.2 is 0.3", "0.3", 0.0, True),
    ],
)  # fmt: skip
def test_numbers_are_compared_exactly_or_within_a_share(
    answer: str, reference: str, tolerance: float, same: bool
) -> None:
    assert same_number(answer, reference, tolerance) is same


def test_a_pattern_gives_its_first_group_that_took_part() -> None:
    pattern = regex.compile(r"total: (\d+)|sum=(\d+)")
    assert [found_by(pattern, text) for text in ("total: 5, total: 6", "sum=7", "7")] == ["5", "7", None]


def test_a_search_that_would_take_years_finds_nothing() -> None:
    pattern = regex.compile(r"^(a|aa)+$")
    assert found_by(pattern, "a" * 60 + "b") is None
    assert found_by(pattern, "a" * 60) == "a"
