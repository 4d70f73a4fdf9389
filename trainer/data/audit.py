"""Finds faults in readable data: repeated rows, rows of one split in another, labels that contradict.

Rows are the same where their normal form is (``trainer/data/likeness.py``). Near duplicates of a split share at least
four fifths of their word 5-grams (Jaccard), found by MinHash and locality-sensitive hashing (Broder 1997; Leskovec,
Rajaraman and Ullman, Mining of Massive Datasets, chapter 3) and then compared exactly. Between splits, where a near
duplicate makes scores too good, rows also count that are quoted in one another, or short and much alike.
"""

import multiprocessing
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from analysis.errors import DataError
from analysis.text.listing import listed
from trainer.data.likeness import Shingler, lookalikes, near_rows, normal_form

NEAR = 0.8  # Jaccard similarity
_WORDS = 5  # of a shingle; a shorter text is one shingle
_BANDS, _ROWS = 20, 5  # of the MinHash signature: a pair at 0.8 is missed once in 2,700 times
_MANY = 20_000  # rows; with more, one process per core is faster than one for all
_COMPARED = 50  # candidates a row is compared with exactly
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
        exact_test, near_test: test rows that stand in the training or validation rows.
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
    exact_test: Pairs = field(default_factory=Pairs)
    near_test: Pairs = field(default_factory=Pairs)


def audit(
    train: Sequence[Entry],
    validation: Sequence[Entry],
    sentences: Mapping[str, str] | None = None,
    test: Sequence[Entry] = (),
) -> Audit:
    """Check all rows of all splits.

    Args:
        train: training rows.
        validation: validation rows.
        sentences: of bias benchmarks: where each stands → the sentence.
        test: test rows, where they are known.
    """
    splits = {"train": _normal(train), "validation": _normal(validation)} | ({"test": _normal(test)} if test else {})
    shingler = Shingler()
    near, across = _near(splits, shingler)
    known = [*splits["train"], *splits["validation"]]
    return Audit(
        rows={name: len(rows) for name, rows in splits.items()},
        empty={name: sum(not row.text for row in rows) for name, rows in splits.items()},
        labels={name: _labels(rows) for name, rows in splits.items()},
        exact={name: _repeated(rows) for name, rows in splits.items()},
        near=near,
        exact_across=_overlap(splits["train"], splits["validation"]),
        near_across=across["validation"],
        conflicts=_conflicts([row for rows in splits.values() for row in rows]),
        benchmark=_with_sentences(splits["train"], sentences or {}, shingler),
        exact_test=_overlap(known, splits.get("test", ())),
        near_test=across.get("test", Pairs()),
    )


def overlap(known: Iterable[Entry], rows: Iterable[Entry]) -> Pairs:
    """Rows that say what a known row says (``normal_form``)."""
    return _overlap(_normal(known), _normal(rows))


def near_overlap(known: Iterable[Entry], rows: Iterable[Entry]) -> Pairs:
    """Rows that nearly say what a known row says; those that say the same are not counted."""
    _, across = _near({"train": _normal(known), "test": _normal(rows)}, Shingler())
    return across["test"]


def _overlap(known: Iterable[Entry], rows: Iterable[Entry]) -> Pairs:
    places: dict[str, str] = {}
    for row in known:
        places.setdefault(row.text, row.place)
    return _pairs((row.place, places[row.text]) for row in rows if row.text in places)


def refuse_overlap(train: Iterable[Entry], validation: Iterable[Entry]) -> None:
    """Raises DataError where validation rows stand in the training rows."""
    repeated = overlap(train, validation)
    if repeated.rows:
        raise DataError(overlap_message(repeated))


def overlap_message(repeated: Pairs, of_test: bool = False) -> str:
    """A sentence on rows that stand in another split too, and what to do.

    Args:
        repeated: validation rows among the training rows.
        of_test: they are test rows, among the training or validation rows.
    """
    split, known = ("test", "training or validation rows") if of_test else ("validation", "training rows")
    rows = f"1 {split} row stands" if repeated.rows == 1 else f"{repeated.rows:,} {split} rows stand"
    why = "that trained or chose the trial" if of_test else "that were trained on"
    return (
        f"{rows} among the {known} too, such as {repeated.shown()}: scores would be of rows {why}. (Letter case,"
        " markup, a reply mark such as Re: and a full stop at the end make no other row.) Remove them from one of the"
        " two, or keep them: data.allow_overlap=true"
    )


def near_message(near: Pairs, of_test: bool = False) -> str:
    """A sentence on rows that nearly stand in another split too; the arguments are those of ``overlap_message``."""
    split, known = ("test", "training or validation rows") if of_test else ("validation", "training rows")
    return (
        f"{_rows(near.rows, f'{split} row')} nearly repeated among the {known} (some words differ, or one quotes the"
        f" other), such as {near.shown()}: scores on them tell little of new text."
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
    if result.exact_test.rows:
        sentences.append(("warning" if allow_overlap else "error", overlap_message(result.exact_test, of_test=True)))
    if result.near_across.rows:
        sentences.append(("warning", near_message(result.near_across)))
    if result.near_test.rows:
        sentences.append(("warning", near_message(result.near_test, of_test=True)))
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
    sentences += [
        ("warning", text) for text in lookalikes(label for split in result.labels.values() for label in split)
    ]
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
        named = listed([f"{label!r} {validation.get(label, 0)}" for label in few], _SHOWN, last=", ", rest="more")
        yield f"validation: few rows of {named}: what is said of a class on so few rows is mostly chance."


def _count(item: tuple[str, int]) -> int:
    return item[1]


def _labels(rows: Sequence[Entry]) -> dict[str, int]:
    return dict(Counter(row.label for row in rows if row.label).most_common())


def _normal(rows: Iterable[Entry]) -> list[Entry]:
    """The rows with their texts in normal form."""
    return [Entry(normal_form(row.text), row.label, row.place) for row in rows]


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


def shingles(words: np.ndarray) -> np.ndarray:
    """Hashes of a text's word 5-grams, sorted, without repetition; ``words`` are from ``Shingler.words``."""
    return np.unique(Shingler.runs(words, _WORDS))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Jaccard similarity: shared elements over all elements.

    Args:
        a, b: sorted arrays without repetition.
    """
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def _near(splits: Mapping[str, Sequence[Entry]], shingler: Shingler) -> tuple[dict[str, Pairs], dict[str, Pairs]]:
    """Rows that nearly repeat an earlier one: of their split, and of the splits before it."""
    kept: list[tuple[str, Entry]] = []  # one row of each text of a split: exact copies are counted elsewhere
    for split, rows in splits.items():
        first: dict[str, Entry] = {}
        for row in rows:
            first.setdefault(row.text, row)
        first.pop("", None)
        kept += [(split, row) for row in first.values()]
    words, grams, signatures = _all_signatures([row.text for _, row in kept], shingler)
    within: dict[str, list[tuple[str, str]]] = {name: [] for name in splits}
    twins: dict[int, int] = {}  # row → a row of an earlier split
    for number, others in _candidates(signatures):
        split, row = kept[number]
        open_ = {"within", "across"}
        for other in others:
            other_split, twin = kept[other]
            kind = "within" if other_split == split else "across"
            if kind in open_ and jaccard(grams[number], grams[other]) >= NEAR:
                open_.discard(kind)
                if kind == "across":
                    twins[number] = other
                else:
                    within[split].append((row.place, twin.place))
            if not open_:
                break
    across: dict[str, Pairs] = {}
    begin = 0
    for split in splits:
        end = begin + sum(name == split for name, _ in kept)
        nearest = near_rows(words[:begin], words[begin:end])
        of_split = {number: twins[number] for number in range(begin, end) if number in twins}
        of_split = {begin + number: other for number, other in nearest.items()} | of_split
        before = {row.text for _, row in kept[:begin]}
        across[split] = _pairs(
            (kept[number][1].place, kept[other][1].place)
            for number, other in sorted(of_split.items())
            if kept[number][1].text not in before
        )
        begin = end
    return {name: _pairs(pairs) for name, pairs in within.items()}, across


def _all_signatures(texts: Sequence[str], shingler: Shingler) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Words, shingles and MinHash signature of each text, on all cores where there are many."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if len(texts) < _MANY or cores < 2:
        return _signatures(texts, shingler)
    size = -(-len(texts) // cores)
    parts = [texts[i : i + size] for i in range(0, len(texts), size)]
    # Spawned, not forked: a caller may have threads of torch's or of a progress display.
    with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as pool:
        done = list(pool.map(_signatures, parts))
    words, grams = ([row for part in done for row in part[i]] for i in (0, 1))
    return words, grams, np.concatenate([signatures for *_, signatures in done])


def _signatures(
    texts: Sequence[str], shingler: Shingler | None = None
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    from datasketch import MinHash

    shingler, width = shingler or Shingler(), _BANDS * _ROWS
    hasher: Any = MinHash(num_perm=width, hashfunc=int, scheme="affine32")
    words, grams, signatures = [], [], np.empty((len(texts), width), dtype=np.uint32)
    for number, text in enumerate(texts):
        words.append(shingler.words(text))
        row = shingles(words[-1])
        hasher.clear()
        hasher.update_batch(row.tolist())
        signatures[number] = hasher.hashvalues
        grams.append(row)
    return words, grams, signatures


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
        words = normal_form(sentence).rstrip(" .!?").split()
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
