"""ROUGE-L: how much of a reference text's words a written text has, in the same order.

C.-Y. Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, section 3.1, with β = 1. Words are cut as in
Google's ``rouge-score`` without its stemmer, whose figures these are; that package takes all of NLTK for the stemmer.
"""

import re
from collections.abc import Sequence

_WORD = re.compile(r"[a-z0-9]+")


def rouge_l(written: Sequence[str], references: Sequence[str]) -> float:
    """Mean F-measure of the texts, from 0 to 1, without stemming.

    Args:
        written: what a model wrote, at least one text.
        references: what each is compared with.

    Raises:
        ValueError: if there are more of one than of the other.
    """
    scores = [f_measure(words(text), words(reference)) for text, reference in zip(written, references, strict=True)]
    return sum(scores) / len(scores)


def words(text: str) -> list[str]:
    """The runs of ASCII letters and digits, in lower case. A text in another script has none."""
    return _WORD.findall(text.lower())


def f_measure(written: Sequence[str], reference: Sequence[str]) -> float:
    """ROUGE-L of one text, from 0 to 1; 0 where one of the two has no words."""
    common = longest_common_subsequence(written, reference)
    if not common:
        return 0.0
    precision, recall = common / len(written), common / len(reference)
    return 2 * precision * recall / (precision + recall)


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """How many words two texts share in order, whatever stands between them."""
    lengths = [0] * (len(b) + 1)  # lengths[j]: of the words of a so far, and the first j of b
    for word in a:
        before = 0  # lengths[j - 1], without this word of a
        for j, other in enumerate(b, start=1):
            without = lengths[j]
            lengths[j] = before + 1 if word == other else max(without, lengths[j - 1])
            before = without
    return lengths[-1]
