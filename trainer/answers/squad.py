"""Exact match and token F1 of short answers, as SQuAD counts them.

The figures are those of SQuAD's published script (evaluate-v1.1.py; Rajpurkar et al. 2016, arXiv 1606.05250, section
6.1): lower case, ASCII punctuation taken out, the articles a, an and the replaced by a space, white space folded. A
text in a script without spaces is one word there, so that its token F1 is 0 or 1.
"""

import re
import string
from collections import Counter

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """The text as the two figures compare it."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def exact_match(answer: str, reference: str) -> float:
    """1 where the two are the same after normalisation, also where nothing is left of both; else 0."""
    return float(normalised(answer) == normalised(reference))


def token_f1(answer: str, reference: str) -> float:
    """F1 of the words that two texts share, each as often as both have it; 0 where they share none.

    As in the script, two texts of which nothing is left share none, though they match exactly.
    """
    words, expected = normalised(answer).split(), normalised(reference).split()
    shared = sum((Counter(words) & Counter(expected)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(words), shared / len(expected)
    return 2 * precision * recall / (precision + recall)
