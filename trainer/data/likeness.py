"""Tells texts that say the same, or nearly: a normal form, and a search for rows that share runs of words.

The search is of two kinds. Runs of three words find what is quoted, or changed here and there (containment: Broder
1997). In rows too short for that, pairs of words find candidates, and the rarity of the words that both have decides.
"""

import html
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio, as in Fibonacci hashing
_RUN = 3  # words
_SHORT = 24  # words: up to here three changed words leave too few runs of three
_FEWEST = 6  # words of a text that counts as quoted
_CONTAINED = 0.5  # share of the smaller text's runs, of two longer texts
_QUOTED = 0.75  # the same, of a short text
_ALIKE = 0.6  # share of the words of two short texts, weighted by rarity
_COMMON = 20  # rows: a run that more have is a set phrase
_PER_ROW = 8  # short candidates of a row that are compared
_CHUNK = 4_000_000  # pairs of rows at a time, as 8 bytes each

_TAGS = (
    "a|abbr|article|b|blockquote|body|br|center|cite|code|dd|del|div|dl|dt|em|font|footer|h[1-6]|head|header|hr|html|i"
    "|img|ins|kbd|li|mark|ol|p|pre|q|s|section|small|span|strike|strong|sub|sup|table|tbody|td|tfoot|th|thead|title|tr"
    "|tt|u|ul"
)
_MARKUP = re.compile(rf"<!--.*?-->|</?(?:{_TAGS})(?:\s[^<>]*)?/?>", re.I | re.S)
_EMPHASIS = re.compile(r"(?<!\w)(\*\*\*|\*\*|\*|___|__|_|~~|`)(?=\S)([^*_~`]+?)(?<=\S)\1(?!\w)")
_LINK = re.compile(r"!?\[([^\]\n]+)\]\((?:https?:|mailto:|/|#)[^)\s]*\)")
_LINE_MARKS = re.compile(r"^[ \t]*(?:#{1,6}[ \t]+|(?:>[ \t]?)+)", re.M)
_REPLY = re.compile(r"^\s*(?:subject\s*:\s*)?(?:(?:re|fwd?|aw|wg|sv|vs|tr|rv|antw)\s*(?:\[\d+\])?\s*:\s*)+", re.I)
_STOP = re.compile(r"[\s.…。]+$")
_QUOTES = {ord(a): b for a, b in zip("‘’‚‛“”„‟‐‑–—", "''''\"\"\"\"----", strict=True)}
# Scripts that are written without spaces: each of their signs counts as a word.
_UNSPACED = re.compile("([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff])")


def normal_form(text: str) -> str:
    """What two texts have in common that differ only in what carries no content.

    That is letter case, white space, markup (HTML, Markdown), invisible characters, Unicode's forms of one character,
    typographic quotes, reply marks (``Re:``) at the beginning and a full stop at the end. A text of nothing else stays.
    """
    plain = text
    if "<" in plain:
        plain = _MARKUP.sub(" ", plain)
    if "&" in plain:
        plain = html.unescape(plain)
    if not plain.isascii():
        plain = visible(unicodedata.normalize("NFKC", plain)).translate(_QUOTES)
    if "](" in plain:
        plain = _LINK.sub(r"\1", plain)
    if any(mark in plain for mark in "*_~`"):
        plain = _EMPHASIS.sub(r"\2", plain)
    if "#" in plain or ">" in plain:
        plain = _LINE_MARKS.sub("", plain)
    if ":" in plain[:80]:
        plain = _REPLY.sub("", plain)
    plain = " ".join(_STOP.sub("", plain).casefold().split())
    return plain or " ".join(text.split())


def visible(text: str) -> str:
    """A text without characters that are not seen, such as zero-width spaces and byte-order marks."""
    return "".join(sign for sign in text if unicodedata.category(sign) != "Cf")


# Letters of the Cyrillic and Greek alphabets that look like Latin ones.
_LATIN = str.maketrans(
    "асеіјорѕухАВСЕНІЈКМОРЅТХоανικουχρΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "aceijopsyxABCEHIJKMOPSTXoavikouxpABEZHIKMNOPTYX"
)
_DIFFERENCES: dict[str, Callable[[str], str]] = {
    "invisible characters": visible,
    "Unicode form": lambda label: unicodedata.normalize("NFKC", label),
    "alphabet": lambda label: label.translate(_LATIN),
    "white space": lambda label: " ".join(label.split()),
    "letter case": str.casefold,
    "how a number is written": lambda label: _number(label),
}


def lookalikes(labels: Iterable[str]) -> list[str]:
    """A sentence for every group of labels that look like one: which they are, and in what they differ.

    Args:
        labels: classes; repetitions count once.
    """
    groups: dict[str, list[str]] = {}
    for label in dict.fromkeys(labels):
        groups.setdefault(_plain(label), []).append(label)
    sentences = []
    for alike in groups.values():
        if len(alike) == 1:
            continue
        differ = [name for name in _DIFFERENCES if len({_plain(label, without=name) for label in alike}) > 1]
        hidden = bool({"invisible characters", "Unicode form", "alphabet"} & set(differ)) or not differ
        shown = " and ".join((ascii if hidden else repr)(label) for label in alike)
        by = " and ".join(differ) or "signs that are not seen"
        sentences.append(f"Labels {shown} differ only by {by}. If they are one class, write them alike.")
    return sentences


def _plain(label: str, without: str = "") -> str:
    """A label as one sees it; ``without`` names a difference that stays."""
    for name, change in _DIFFERENCES.items():
        label = label if name == without else change(label)
    return label


def _number(label: str) -> str:
    try:
        return repr(float(label)) if re.fullmatch(r"[+-]?[0-9.]+(e[+-]?[0-9]+)?", label, re.I) else label
    except ValueError:
        return label


class Shingler:
    """Turns texts into hashes of runs of words, whatever their case, white space and punctuation."""

    def __init__(self) -> None:
        self._words: dict[str, int | None] = {}

    def words(self, text: str) -> np.ndarray:
        """(words,) uint64: a hash for each word of a text; what has no letter or digit is no word."""
        known, hashes = self._words, []
        if not text.isascii():
            text = _UNSPACED.sub(r" \1 ", text)
        for word in text.casefold().split():
            try:
                value = known[word]
            except KeyError:
                bare = re.sub(r"^[\W_]+|[\W_]+$", "", word)
                value = known[word] = zlib.crc32(bare.encode("utf-8", "surrogatepass")) if bare else None
            if value is not None:
                hashes.append(value)
        return np.array(hashes, dtype=np.uint64)

    @staticmethod
    def runs(words: np.ndarray, n: int) -> np.ndarray:
        """Hashes of all runs of ``n`` words; one hash of all words where there are fewer.

        Args:
            words: (words,) from ``words``.
            n: length of a run.

        Returns:
            (runs,) uint32.
        """
        n = min(n, len(words))
        at = len(words) - n + 1
        mixed = np.zeros(at, dtype=np.uint64)
        for i in range(n):
            mixed = (mixed ^ words[i : i + at]) * _GOLDEN
            mixed ^= mixed >> np.uint64(29)
        return (mixed >> np.uint64(32)).astype(np.uint32)


def near_rows(known: Sequence[np.ndarray], new: Sequence[np.ndarray]) -> dict[int, int]:
    """Index of a new row → that of the known row which it nearly repeats, or quotes, or is quoted in.

    Args:
        known: of each row the hashes of its words, from ``Shingler.words``.
        new: the same.
    """
    if not known or not new:
        return {}
    found = _containing(known, new)
    return found | {row: other for row, other in _short_alike(known, new).items() if row not in found}


def _containing(known: Sequence[np.ndarray], new: Sequence[np.ndarray]) -> dict[int, int]:
    """Rows of which a large part of the smaller one's runs of words are in both."""
    runs, others = _Runs(known, _RUN), _Runs(new, _RUN)
    row, other, shared = others.shared(runs)
    smaller = np.minimum(others.distinct[row], runs.distinct[other])
    fewest = np.minimum(others.lengths[row], runs.lengths[other])
    needed = np.where(fewest > _SHORT, _CONTAINED, _QUOTED)
    share = shared / np.maximum(smaller, 1)
    near = (fewest >= _FEWEST) & (share >= needed)
    order = np.lexsort((other[near], share[near]))  # the best of a row comes last
    return dict(zip(row[near][order].tolist(), other[near][order].tolist(), strict=True))


def _short_alike(known: Sequence[np.ndarray], new: Sequence[np.ndarray]) -> dict[int, int]:
    """Short rows that have most of their words in common, rare ones above all."""
    at = [i for i, words in enumerate(known) if 2 <= len(words) <= _SHORT]
    of = [i for i, words in enumerate(new) if 2 <= len(words) <= _SHORT]
    if not at or not of:
        return {}
    row, other, shared = _Runs([new[i] for i in of], 2).shared(_Runs([known[i] for i in at], 2))
    order = np.lexsort((-shared, row))
    row, other = row[order], other[order]
    rank = np.arange(len(row)) - np.searchsorted(row, row, side="left")
    weights = _rarity([known[i] for i in at])
    sets: dict[tuple[bool, int], tuple[frozenset[int], float]] = {}

    def weighed(which: bool, i: int) -> tuple[frozenset[int], float]:
        if (which, i) not in sets:
            words = frozenset((known[i] if which else new[i]).tolist())
            sets[which, i] = words, sum(weights(word) for word in words)
        return sets[which, i]

    best: dict[int, tuple[float, int]] = {}
    for i, j in zip(row[rank < _PER_ROW].tolist(), other[rank < _PER_ROW].tolist(), strict=True):
        (a, weight_a), (b, weight_b) = weighed(False, of[i]), weighed(True, at[j])
        alike = sum(weights(word) for word in a & b) / max(weight_a, weight_b)
        if alike >= max(_ALIKE, best.get(of[i], (0.0, 0))[0]):
            best[of[i]] = alike, at[j]
    return {i: j for i, (_, j) in best.items()}


def _rarity(rows: Sequence[np.ndarray]) -> Callable[[int], float]:
    """A word's weight: the higher, the fewer rows have it."""
    words, counts = np.unique(np.concatenate([np.unique(row) for row in rows]), return_counts=True)
    table = dict(zip(words.tolist(), np.log1p(len(rows) / counts).tolist(), strict=True))
    rarest = float(np.log1p(len(rows)))
    return lambda word: table.get(word, rarest)


class _Runs:
    """Which row has which run of ``n`` words, for all rows at once."""

    def __init__(self, rows: Sequence[np.ndarray], n: int) -> None:
        self.lengths = np.array([len(row) for row in rows], dtype=np.int64)
        of_word = np.repeat(np.arange(len(rows), dtype=np.uint64), self.lengths)
        runs = Shingler.runs(np.concatenate(rows), n) if len(of_word) >= n else np.zeros(0, np.uint32)
        whole = of_word[: len(runs)] == of_word[len(of_word) - len(runs) :]  # begins and ends in one row
        keys = np.sort((runs[whole].astype(np.uint64) << np.uint64(32)) | of_word[: len(runs)][whole])
        keys = keys[np.append(True, keys[1:] != keys[:-1])] if len(keys) else keys  # np.unique takes ten times as long
        self.runs, self.rows = (
            (keys >> np.uint64(32)).astype(np.uint32),
            (keys & np.uint64(0xFFFFFFFF)).astype(np.int64),
        )
        self.distinct = np.bincount(self.rows, minlength=len(rows))

    def shared(self, other: "_Runs") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs of rows, ours and the other's, with the number of runs that both have; set phrases left out."""
        begins, ends = np.searchsorted(other.runs, self.runs), np.searchsorted(other.runs, self.runs, side="right")
        counts = ends - begins
        used = (counts > 0) & (counts <= _COMMON)
        order = np.argsort(self.rows[used], kind="stable")
        rows, begins, counts = self.rows[used][order], begins[used][order], counts[used][order]
        results, total, at = [], np.cumsum(counts), 0
        while at < len(rows):
            end = int(np.searchsorted(total, (total[at - 1] if at else 0) + _CHUNK, side="right"))
            end = len(rows) if end >= len(rows) else int(np.searchsorted(rows, rows[end]))  # at a row's beginning
            end = max(end, int(np.searchsorted(rows, rows[at], side="right")))
            part = counts[at:end]
            within = np.arange(part.sum()) - np.repeat(np.cumsum(part) - part, part)
            others = other.rows[np.repeat(begins[at:end], part) + within]
            results.append(np.unique((np.repeat(rows[at:end], part) << 32) | others, return_counts=True))
            at = end
        if not results:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
        keys, shared = (np.concatenate(part) for part in zip(*results, strict=True))
        return keys >> 32, keys & 0xFFFFFFFF, shared
