"""BLEU and chrF as sums over items, from which ``sacrebleu``'s figures of a whole set follow.

Both are figures of a set: counts are added up over the items, and the score is made of the sums
(``analysis.item_sums.bleu`` and ``chrf``). So the item table has the counts, a list for each item.
"""

import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU

CHAR_ORDER = 6  # longest run of characters that chrF counts, as sacrebleu's default
_HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_NO_SPACES = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff]")  # kana, Thai and kin


def tokenizer_of(references: Sequence[str]) -> str:
    """The name of ``sacrebleu``'s tokenizer for BLEU against these references.

    Its default ``13a`` splits at white space and punctuation. References in whose letters Chinese characters are most
    have ``zh``, which splits those too; where they are mixed with kana (Japanese), and in other scripts that are
    written without spaces (Thai, Lao, Burmese, Khmer), every character is a word (``char``): the tokenizer for
    Japanese needs a dictionary that is not installed with sacrebleu. Korean has spaces, and ``13a``.
    """
    text = "".join(references)
    letters = sum(map(str.isalpha, text))
    han, others = len(_HAN.findall(text)), len(_NO_SPACES.findall(text))
    if 2 * (han + others) <= letters:
        return "13a"
    return "zh" if 10 * others < han else "char"


@cache
def _bleu(tokenizer: str) -> "BLEU":
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=tokenizer, effective_order=True)  # the order changes a sentence's score alone, no count


def bleu_counts(answer: str, reference: str, tokenizer: str) -> list[float]:
    """(10,) tokens of the answer and of the reference; runs of 1 to 4 tokens that both have; and those of the answer.

    Args:
        answer: what a model wrote.
        reference: what it is compared with.
        tokenizer: see ``tokenizer_of``.
    """
    score: Any = _bleu(tokenizer).sentence_score(answer, [reference])
    return [float(count) for count in (score.sys_len, score.ref_len, *score.counts, *score.totals)]


def chrf_counts(answer: str, reference: str) -> list[float]:
    """(18,) of runs of 1 to 6 characters, white space aside: those of the answer, of the reference, and of both.

    As in sacrebleu, runs of an answer do not count where the reference has none of their length.
    """
    from sacrebleu.metrics.helpers import extract_all_char_ngrams

    counts: list[float] = []
    pairs = (extract_all_char_ngrams(text, CHAR_ORDER, include_whitespace=False) for text in (answer, reference))
    for ours, theirs in zip(*pairs, strict=True):
        runs = ours.total() if theirs else 0
        counts += [float(runs), float(theirs.total()), float((ours & theirs).total())]
    return counts
