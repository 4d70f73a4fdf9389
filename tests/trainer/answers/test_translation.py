"""BLEU and chrF of a set against sacrebleu's corpus scores."""

import random

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from analysis.metrics import METRICS
from trainer.answers.translation import bleu_counts, chrf_counts, tokenizer_of

Pairs = list[tuple[str, str]]


def figure(name: str, counts: list[list[float]]) -> float:
    estimator = METRICS[f"generate.{name}"].estimator
    assert estimator is not None
    return float(estimator.value(np.array(counts).sum(axis=0), np.array(float(len(counts)))))


def assert_as_sacrebleu(pairs: Pairs, tokenizer: str) -> None:
    answers, references = map(list, zip(*pairs, strict=True))
    assert tokenizer_of(references) == tokenizer
    found = figure("bleu", [bleu_counts(a, b, tokenizer) for a, b in pairs])
    assert found == pytest.approx(BLEU(tokenize=tokenizer).corpus_score(answers, [references]).score, abs=1e-9)
    found = figure("chrf", [chrf_counts(a, b) for a, b in pairs])
    assert found == pytest.approx(CHRF().corpus_score(answers, [references]).score, abs=1e-9)


def test_odd_answers_score_as_in_sacrebleu_together_and_each_alone(odd: Pairs) -> None:
    assert_as_sacrebleu(odd, "13a")
    for pair in odd:
        assert_as_sacrebleu([pair], tokenizer_of([pair[1]]))


def test_random_sets_score_as_in_sacrebleu(odd: Pairs) -> None:
    chooser = random.Random(0)
    words = ["the", "cat", "sat", "on", "a", "mat", ",", "2.5", "don't", "naïve"]
    for _ in range(100):
        pairs = [
            (" ".join(chooser.choices(words, k=chooser.randint(0, 9))), " ".join(chooser.choices(words, k=6)))
            for _ in range(chooser.randint(1, 6))
        ]
        assert_as_sacrebleu(pairs, "13a")


def test_chinese_and_japanese_references_have_tokenizers_that_split_characters() -> None:
    assert_as_sacrebleu(
        [("巴黎是法国的首都。", "巴黎是法國的首都"), ("OK 好的", "好的,OK"), ("我不知道", "我也不知道")], "zh"
    )
    assert_as_sacrebleu([("東京は日本の首都です", "東京は日本の首都である"), ("はい", "はい、そうです")], "char")
    assert_as_sacrebleu([("กรุงเทพมหานคร", "กรุงเทพเป็นเมืองหลวง")], "char")
    assert tokenizer_of(["서울은 한국의 수도", "네"]) == tokenizer_of(["", "42"]) == "13a"


def test_items_that_count_twice_score_as_a_set_that_has_them_twice(odd: Pairs) -> None:
    twice = [*odd, *odd[:20], *odd[:20]]
    answers, references = map(list, zip(*twice, strict=True))
    weights = np.where(np.arange(len(odd)) < 20, 3.0, 1.0)
    counts = np.array([bleu_counts(a, b, "13a") for a, b in odd])
    estimator = METRICS["generate.bleu"].estimator
    assert estimator is not None
    found = estimator.value((weights[:, None] * counts).sum(axis=0), np.array(weights.sum()))
    assert float(found) == pytest.approx(BLEU().corpus_score(answers, [references]).score, abs=1e-9)
