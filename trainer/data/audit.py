"""Finds faults in readable data: repeated rows, rows of one split in the other, labels that contradict.

Near duplicates share at least four fifths of their word 5-grams (Jaccard), found by MinHash and locality-sensitive
hashing (Broder 1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, chapter 3) and then compared exactly.
"""

import multiprocessing
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from analysis.errors import DataError

NEAR = 0.8  # Jaccard similarity
_WORDS = 5  # of a shingle; a shorter text is one shingle
_BANDS, _ROWS = 20, 5  # of the MinHash signature: a pair at 0.8 is missed once in 2,700 times
_MANY = 20_000  # rows; with more, one process per core is faster than one for all
_COMPARED = 50  # candidates a row is compared with exactly
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio, as in Fibonacci hashing
_SHOWN = 3  # examples of each kind
_IMBALANCE = 10.0  # rows of the largest class for one of the smallest
_FEW = 5  # validation rows of a class, below which its F1 says little
_BIAS_WORDS = 4  # a benchmark's sentence must be longer to be searched for


@dataclass(frozen=True, slots=True)
class Entry:
    """A row as the audit sees it.

    Attributes:
        text: what is read.
        label: empty where the schema has none.
        place: where it stands, for a message.
    """

    text: str
    label: str
    place: str


@dataclass(frozen=True)
class Pairs:
    """Rows that have a counterpart.

    Attributes:
        rows: how many.
        examples: some of them: the row's place and its counterpart's.
    """

    rows: int = 0
    examples: tuple[tuple[str, str], ...] = ()

    def shown(self) -> str:
        """The first pair, as part of a sentence."""
        return f"{self.examples[0][0]} and {self.examples[0][1]}" if self.examples else ""


@dataclass(frozen=True)
class Audit:
    """The faults of a data set.

    Attributes:
        rows, empty: split → rows, and those without text.
        labels: split → label → rows.
        exact, near: split → rows that repeat an earlier one of the same split; exact ones are not counted as near.
        exact_across, near_across: validation rows that stand in the training rows.
        conflicts: rows whose text has another label elsewhere.
        benchmark: training rows that hold a sentence of a bias benchmark.
    """

    rows: dict[str, int]
    empty: dict[str, int]
    labels: dict[str, dict[str, int]]
    exact: dict[str, Pairs]
    near: dict[str, Pairs]
    exact_across: Pairs
    near_across: Pairs
    conflicts: Pairs
    benchmark: Pairs = field(default_factory=Pairs)


def audit(train: Sequence[Entry], validation: Sequence[Entry], sentences: Mapping[str, str] | None = None) -> Audit:
    """Check all rows of both splits.

    Args:
        train: training rows.
        validation: validation rows.
        sentences: of bias benchmarks: where each stands → the sentence.
    """
    splits = {"train": _single_spaced(train), "validation": _single_spaced(validation)}
    shingler = Shingler()
    near, near_across = _near(splits, shingler)
    return Audit(
        rows={name: len(rows) for name, rows in splits.items()},
        empty={name: sum(not row.text for row in rows) for name, rows in splits.items()},
        labels={name: _labels(rows) for name, rows in splits.items()},
        exact={name: _repeated(rows) for name, rows in splits.items()},
        near=near,
        exact_across=_overlap(*splits.values()),
        near_across=near_across,
        conflicts=_conflicts([*splits["train"], *splits["validation"]]),
        benchmark=_with_sentences(splits["train"], sentences or {}, shingler),
    )


def overlap(train: Iterable[Entry], validation: Iterable[Entry]) -> Pairs:
    """Validation rows whose text is that of a training row, whatever the white space."""
    return _overlap(_single_spaced(train), _single_spaced(validation))


def _overlap(train: Iterable[Entry], validation: Iterable[Entry]) -> Pairs:
    known: dict[str, str] = {}
    for row in train:
        known.setdefault(row.text, row.place)
    return _pairs((row.place, known[row.text]) for row in validation if row.text in known)


def refuse_overlap(train: Iterable[Entry], validation: Iterable[Entry]) -> None:
    """Raises DataError where validation rows stand in the training rows."""
    repeated = overlap(train, validation)
    if repeated.rows:
        raise DataError(overlap_message(repeated))


def overlap_message(repeated: Pairs) -> str:
    """A sentence on validation rows that stand among the training rows, and what to do."""
    rows = "1 validation row stands" if repeated.rows == 1 else f"{repeated.rows:,} validation rows stand"
    return (
        f"{rows} among the training rows too, such as {repeated.shown()}: scores would be of rows that were trained on."
        " Remove them from one of the two, or keep them: data.allow_overlap=true"
    )


def warnings(result: Audit, allow_overlap: bool) -> list[tuple[str, str]]:
    """What a user should know, each as ``(error or warning, sentence)``; errors first.

    Args:
        result: of ``audit``.
        allow_overlap: ``data.allow_overlap``: repeated rows are a warning, not an error.
    """
    sentences: list[tuple[str, str]] = []
    if result.exact_across.rows:
        sentences.append(("warning" if allow_overlap else "error", overlap_message(result.exact_across)))
    if result.near_across.rows:
        sentences.append(
            (
                "warning",
                f"{_rows(result.near_across.rows, 'validation row')} nearly repeated among the training rows, such as"
                f" {result.near_across.shown()}: scores on them tell little of new text.",
            )
        )
    if result.conflicts.rows:
        sentences.append(
            (
                "warning",
                f"{_rows(result.conflicts.rows, 'row')} labelled differently where the same text stands again, such as"
                f" {result.conflicts.shown()}: no model can get all of these right.",
            )
        )
    for split in result.rows:
        for kind, pairs in (("exactly", result.exact[split]), ("nearly", result.near[split])):
            if pairs.rows:
                example = pairs.shown()
                sentences.append(
                    ("warning", f"{split}: {_rows(pairs.rows, 'row')} {kind} repeated, such as {example}.")
                )
        if result.empty[split]:
            sentences.append(("warning", f"{split}: {_rows(result.empty[split], 'row')} without text."))
    sentences += [("warning", text) for text in _imbalance(result)]
    if result.benchmark.rows:
        sentences.append(
            (
                "warning",
                f"{_rows(result.benchmark.rows, 'training row')} found to hold a sentence of the bias benchmark,"
                f" such as {result.benchmark.shown()}: its score would be of text that was trained on.",
            )
        )
    return sorted(sentences, key=lambda each: each[0] != "error")


def _rows(n: int, noun: str) -> str:
    return f"1 {noun} is" if n == 1 else f"{n:,} {noun}s are"


def _imbalance(result: Audit) -> Iterable[str]:
    train, validation = result.labels["train"], result.labels["validation"]
    if len(train) < 2:
        return
    (most, n_most), (least, n_least) = max(train.items(), key=_count), min(train.items(), key=_count)
    if n_most >= _IMBALANCE * n_least:
        yield (
            f"train: {most!r} has {n_most:,} rows and {least!r} {n_least:,}. Rank by macro_f1 rather than accuracy,"
            f" which is {n_most / sum(train.values()):.0%} for always saying {most!r}."
        )
    few = [label for label in train if validation.get(label, 0) < _FEW]
    if few:
        named = ", ".join(f"{label!r} {validation.get(label, 0)}" for label in few[:_SHOWN])
        more = f" and {len(few) - _SHOWN} more" if len(few) > _SHOWN else ""
        yield f"validation: few rows of {named}{more}: what is said of a class on so few rows is mostly chance."


def _count(item: tuple[str, int]) -> int:
    return item[1]


def _labels(rows: Sequence[Entry]) -> dict[str, int]:
    return dict(Counter(row.label for row in rows if row.label).most_common())


def _single_spaced(rows: Iterable[Entry]) -> list[Entry]:
    """The rows with every run of white space as one space."""
    return [Entry(" ".join(row.text.split()), row.label, row.place) for row in rows]


def _pairs(pairs: Iterable[tuple[str, str]]) -> Pairs:
    rows, examples = 0, list[tuple[str, str]]()
    for pair in pairs:
        rows += 1
        if len(examples) < _SHOWN:
            examples.append(pair)
    return Pairs(rows, tuple(examples))


def _repeated(rows: Sequence[Entry]) -> Pairs:
    """Rows that say what an earlier one says, with the same label."""
    seen: dict[tuple[str, str], str] = {}
    pairs = []
    for row in rows:
        first = seen.setdefault((row.text, row.label), row.place)
        if first is not row.place:
            pairs.append((row.place, first))
    return _pairs(pairs)


def _conflicts(rows: Sequence[Entry]) -> Pairs:
    """Rows with the text of an earlier row and another label."""
    first: dict[str, Entry] = {}
    pairs = []
    for row in rows:
        other = first.setdefault(row.text, row)
        if other.label != row.label:
            pairs.append((row.place, other.place))
    return _pairs(pairs)


class Shingler:
    """Turns texts into hashes of runs of words, whatever their case and white space."""

    def __init__(self) -> None:
        self._words: dict[str, int] = {}

    def words(self, text: str) -> np.ndarray:
        """(words,) uint64: a hash for each word of a text."""
        known, hashes = self._words, []
        for word in text.casefold().split():
            value = known.get(word)
            if value is None:
                value = known[word] = zlib.crc32(word.encode("utf-8", "surrogatepass"))
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

    def shingles(self, text: str) -> np.ndarray:
        """Hashes of the text's word 5-grams: sorted, without repetition."""
        return np.unique(self.runs(self.words(text), _WORDS))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Jaccard similarity: shared elements over all elements.

    Args:
        a, b: sorted arrays without repetition.
    """
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def _near(splits: Mapping[str, Sequence[Entry]], shingler: Shingler) -> tuple[dict[str, Pairs], Pairs]:
    """Rows that nearly repeat an earlier one: of the same split, and validation rows of the training rows."""
    kept: list[tuple[str, Entry]] = []  # one row of each text of a split: exact copies are counted elsewhere
    for split, rows in splits.items():
        first: dict[str, Entry] = {}
        for row in rows:
            first.setdefault(row.text, row)
        first.pop("", None)
        kept += [(split, row) for row in first.values()]
    grams, signatures = _all_signatures([row.text for _, row in kept], shingler)
    within: dict[str, list[tuple[str, str]]] = {name: [] for name in splits}
    across: list[tuple[str, str]] = []
    for number, others in _candidates(signatures):
        split, row = kept[number]
        open_ = {"train", split}
        for other in others:
            other_split, twin = kept[other]
            if other_split in open_ and jaccard(grams[number], grams[other]) >= NEAR:
                open_.discard(other_split)
                if other_split == split:
                    within[split].append((row.place, twin.place))
                elif row.text != twin.text:
                    across.append((row.place, twin.place))
            if not open_:
                break
    return {name: _pairs(pairs) for name, pairs in within.items()}, _pairs(across)


def _all_signatures(texts: Sequence[str], shingler: Shingler) -> tuple[list[np.ndarray], np.ndarray]:
    """Shingles and MinHash signature of each text, on all cores where there are many."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if len(texts) < _MANY or cores < 2:
        return _signatures(texts, shingler)
    size = -(-len(texts) // cores)
    parts = [texts[i : i + size] for i in range(0, len(texts), size)]
    # Spawned, not forked: a caller may have threads of torch's or of a progress display.
    with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as pool:
        done = list(pool.map(_signatures, parts))
    return [row for grams, _ in done for row in grams], np.concatenate([signatures for _, signatures in done])


def _signatures(texts: Sequence[str], shingler: Shingler | None = None) -> tuple[list[np.ndarray], np.ndarray]:
    from datasketch import MinHash

    shingler, width = shingler or Shingler(), _BANDS * _ROWS
    hasher: Any = MinHash(num_perm=width, hashfunc=int, scheme="affine32")
    grams, signatures = [], np.empty((len(texts), width), dtype=np.uint32)
    for number, text in enumerate(texts):
        row = shingler.shingles(text)
        hasher.clear()
        hasher.update_batch(row.tolist())
        signatures[number] = hasher.hashvalues
        grams.append(row)
    return grams, signatures


def _candidates(signatures: np.ndarray) -> list[tuple[int, list[int]]]:
    """Rows that share a band of their MinHash signature with earlier ones, and those, ascending."""
    candidates: dict[int, set[int]] = {}
    for band in range(0, signatures.shape[1], _ROWS):
        keys = np.ascontiguousarray(signatures[:, band : band + _ROWS]).view(f"V{4 * _ROWS}").ravel()
        order = np.argsort(keys, kind="stable")  # ascending rows within a bucket
        starts = np.flatnonzero(np.r_[True, keys[order][1:] != keys[order][:-1]])
        for start, end in zip(starts, np.r_[starts[1:], len(order)], strict=True):
            if end - start > 1:
                bucket = order[start:end].tolist()
                for i, number in enumerate(bucket[1:], start=1):
                    earlier = (
                        bucket[:i] if i <= _COMPARED else bucket[: _COMPARED // 2] + bucket[i - _COMPARED // 2 : i]
                    )
                    candidates.setdefault(number, set()).update(earlier)
    return [(number, sorted(others)) for number, others in sorted(candidates.items())]


def _with_sentences(rows: Sequence[Entry], sentences: Mapping[str, str], shingler: Shingler) -> Pairs:
    """Rows that hold one of the sentences, whatever its case and the punctuation at its end."""
    by_begin: dict[int, list[tuple[str, str]]] = {}
    for place, sentence in sentences.items():
        words = sentence.casefold().rstrip(" .!?").split()
        if len(words) > _BIAS_WORDS:  # the last word may continue in the text, such as "doctor" in "doctors"
            begin = shingler.runs(shingler.words(" ".join(words)), _BIAS_WORDS)[0]
            by_begin.setdefault(int(begin), []).append((" ".join(words), place))
    begins = np.array(sorted(by_begin), dtype=np.uint32)

    def holders() -> Iterable[tuple[str, str]]:
        for row in rows if by_begin else ():
            runs = shingler.runs(shingler.words(row.text), _BIAS_WORDS)
            shared = runs[begins[np.minimum(np.searchsorted(begins, runs), len(begins) - 1)] == runs]
            if len(shared):
                text = row.text.casefold()
                places = [place for run in shared for sentence, place in by_begin[int(run)] if sentence in text]
                if places:
                    yield row.place, places[0]

    return _pairs(holders())
