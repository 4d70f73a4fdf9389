"""SQuAD's figures against a transcription of its published script, and against lm-eval's copy of it."""

import random
import re
import string
from collections import Counter

import pytest
from lm_eval.tasks.qasper.metrics import f1_abstractive, normalize_answer

from trainer.answers.squad import exact_match, normalised, token_f1


def published(prediction: str, truth: str) -> tuple[float, float]:
    """Exact match and F1 as evaluate-v1.1.py has them (Rajpurkar et al. 2016), step by step."""

    def normal(text: str) -> str:
        kept = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())

    mine, theirs = normal(prediction).split(), normal(truth).split()
    same = sum(min(mine.count(word), n) for word, n in Counter(theirs).items())
    f1 = 0.0 if same == 0 else 2 * (same / len(mine)) * (same / len(theirs)) / (same / len(mine) + same / len(theirs))
    return float(normal(prediction) == normal(truth)), f1


def test_odd_pairs_score_as_in_the_published_script_and_in_lm_eval(odd: list[tuple[str, str]]) -> None:
    for answer, reference in odd:
        f1 = token_f1(answer, reference)
        assert (exact_match(answer, reference), f1) == pytest.approx(published(answer, reference)), (answer, reference)
        assert f1 == pytest.approx(f1_abstractive([answer], [reference])), (answer, reference)
        assert normalised(answer) == normalize_answer(answer)


def test_random_texts_score_as_in_the_published_script() -> None:
    chooser = random.Random(0)
    pieces = ["a", "the", "An", "owl", "OWL", "x1", "2.5", "don't", "naïve", "日本", "-", "!", "\n", "🎉"]
    for _ in range(2000):
        one, other = (
            "".join(chooser.choice(pieces) + chooser.choice([" ", "", ", "]) for _ in range(chooser.randint(0, 8)))
            for _ in range(2)
        )
        assert (exact_match(one, other), token_f1(one, other)) == pytest.approx(published(one, other)), (one, other)


def test_two_texts_of_which_nothing_is_left_match_but_share_no_word() -> None:
    assert (exact_match("the", "A."), token_f1("the", "A.")) == (1.0, 0.0)
    assert (exact_match("the cat", "Cat!"), token_f1("the black cat", "cat")) == (1.0, pytest.approx(2 / 3))
