"""ROUGE against ``rouge-score`` (dev) and against figures worked out by hand."""

import importlib.metadata
import itertools
import random
from pathlib import Path

import pytest
from rouge_score.rouge_scorer import RougeScorer

from trainer.answers import rouge
from trainer.answers.rouge import longest_common_subsequence, words

REFERENCE = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)


def rouge_l(text: str, reference: str) -> float:
    return rouge.rouge_l(words(text), words(reference))


def assert_as_rouge_score(written: list[str], references: list[str]) -> None:
    for text, reference in zip(written, references, strict=True):
        ours, theirs = words(text), words(reference)
        expected = {name: score.fmeasure for name, score in REFERENCE.score(reference, text).items()}
        given = {
            "rouge1": rouge.rouge_n(ours, theirs, 1),
            "rouge2": rouge.rouge_n(ours, theirs, 2),
            "rougeL": rouge.rouge_l(ours, theirs),
        }
        assert given == pytest.approx(expected, rel=0, abs=1e-12), (text, reference)


def test_the_example_of_the_paper() -> None:
    # Lin 2004, section 3.1: "police kill the gunman" shares 3 of 4 words in order with the reference, "the gunman
    # kill police" 2
    reference = "police killed the gunman"
    assert rouge_l("police kill the gunman", reference) == 0.75
    assert rouge_l("the gunman kill police", reference) == 0.5
    assert (rouge_l("the cat sat", "the cat ran"), rouge_l(" a dog ", "a dog"), rouge_l("", "x")) == (2 / 3, 1.0, 0.0)


def test_random_texts_score_as_in_rouge_score() -> None:
    chooser = random.Random(0)
    pieces = ["a", "b", "c", "the", "The", "owls", "x1", "2.5", "don't", "naïve", "İstanbul", "K", "日本", "\n", ""]
    ends = [" ", " ", "", "\t", ", "]
    texts = [
        "".join(chooser.choice(pieces) + chooser.choice(ends) for _ in range(chooser.randint(0, 30)))
        for _ in range(2000)
    ]
    assert_as_rouge_score(texts[::2], texts[1::2])


def test_real_texts_score_as_in_rouge_score() -> None:
    packages = sorted({d.metadata["Name"]: d for d in importlib.metadata.distributions()}.items())[:60]
    texts = [(d.metadata.get("Description") or d.metadata.get_payload() or "")[:1500] for _, d in packages]
    texts += [path.read_text()[:1500] for path in sorted(Path(__file__).parents[3].glob("*.md"))]
    assert sum(len(words(text)) for text in texts) > 3000
    assert_as_rouge_score(texts, texts[1:] + texts[:1])
    shortened = [" ".join(text.split()[::2]) for text in texts]
    assert_as_rouge_score(shortened, texts)


def test_the_common_subsequence_is_the_longest_of_all() -> None:
    def brute_force(a: str, b: str) -> int:
        def within(part: tuple[str, ...]) -> bool:
            letters = iter(b)
            return all(letter in letters for letter in part)

        return max(n for n in range(len(a) + 1) if any(map(within, itertools.combinations(a, n))))

    chooser = random.Random(1)
    for _ in range(200):
        a, b = ("".join(chooser.choices("abc", k=chooser.randint(0, 8))) for _ in range(2))
        assert longest_common_subsequence(a, b) == brute_force(a, b) == longest_common_subsequence(b, a)
