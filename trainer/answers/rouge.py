"""ROUGE-1, -2 and -L: how much of a reference text's words a written text has, in pieces or in the same order.

C.-Y. Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, sections 2 and 3.1, F-measure with β = 1.
Words are cut as in Google's ``rouge-score`` without its stemmer, whose figures these are; that package takes all of
NLTK for the stemmer.
"""

import re
from collections import Counter
from collections.abc import Sequence

_WORD = re.compile(r"[a-z0-9]+")


def words(text: str) -> list[str]:
    """The runs of ASCII letters and digits, in lower case. A text in another script has none."""
    return _WORD.findall(text.lower())


def rouge_n(written: Sequence[str], reference: Sequence[str], n: int) -> float:
    """F-measure of the runs of ``n`` words that two texts share, from 0 to 1; 0 where one of the two has none.

    Args:
        written: words of what a model wrote.
        reference: words that it is compared with.
        n: words in a run, at least 1.
    """
    ours, theirs = (Counter(zip(*(text[i:] for i in range(n)), strict=False)) for text in (written, reference))
    return _f_measure((ours & theirs).total(), ours.total(), theirs.total())


def rouge_l(written: Sequence[str], reference: Sequence[str]) -> float:
    """F-measure of the words that two texts share in order, from 0 to 1; 0 where one of the two has no words."""
    return _f_measure(longest_common_subsequence(written, reference), len(written), len(reference))


def _f_measure(common: int, written: int, reference: int) -> float:
    if not common:
        return 0.0
    precision, recall = common / written, common / reference
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
