"""Counterfactual texts."""

from pathlib import Path

import pytest

from trainer.data.counterfactual_text import _FEMALE, _MALE, swap_terms


@pytest.mark.parametrize(
    ("text", "swapped"),
    [
        ("He told her that his wife lost her keys.", "She told him that her husband lost his keys."),
        ("The book is hers, not his.", "The book is his, not hers."),
        ("I saw him and the WOMEN; he's a king", "I saw her and the MEN; she's a queen"),
        ("A gay couple met a black teacher.", None),
    ],
)
def test_gender_is_swapped_with_its_case_and_the_pronoun_that_the_sentence_needs(text, swapped) -> None:
    if swapped is None:
        result = swap_terms(text, 0)
        assert result in ("A straight couple met a white teacher.", "A straight couple met a hispanic teacher.")
    else:
        assert swap_terms(text, 0) == swapped


def test_words_that_only_look_like_a_group_or_a_name_stay() -> None:
    for text in ("the black car went straight on", "theme, hero, Manchester, the-he", "Will you mark it?", ""):
        assert swap_terms(text, 0) is None


def test_names_go_to_names_of_the_other_gender_and_never_two_to_one() -> None:
    for seed in range(3):
        names = [(swap_terms(name, seed) or "") for name in _MALE.split()]
        assert sorted(names) == sorted(_FEMALE.split())
    assert swap_terms("John and john", 3) == f"{(swap_terms('john', 3) or '').capitalize()} and {swap_terms('john', 3)}"
    assert len({swap_terms("John", seed) for seed in range(10)}) > 3


def test_a_group_becomes_another_of_its_axis_and_forms_go_together() -> None:
    for seed in range(5):
        new = (swap_terms("a Muslim, Muslims, Islam", seed) or "").split()
        assert new[1] != "Muslim,"
        forms = {"Christian,": "Christianity", "Jewish,": "Judaism", "Hindu,": "Hinduism", "Buddhist,": "Buddhism"}
        assert forms[new[1]] == new[3]


def test_the_same_text_and_seed_give_the_same() -> None:
    text = "Emily thinks that the Asian boy likes his aunt."
    assert swap_terms(text, 7) == swap_terms(text, 7)


def test_sentences_are_swapped_as_a_reader_would() -> None:
    """What "her" is, names made of words, forms of both genders, possessives; "=" where nothing may be swapped."""
    lines = (Path(__file__).parent / "swap_sentences.tsv").read_text().splitlines()
    assert len(lines) > 90
    wrong = []
    for text, expected in (line.split("\t") for line in lines):
        result = swap_terms(text, 0) or "="
        if result != expected:
            wrong.append((text, result, expected))
    assert wrong == []
