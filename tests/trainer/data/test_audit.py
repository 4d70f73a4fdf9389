"""The data audit against cases made by hand."""

import random

import pytest

from analysis.errors import DataError
from trainer.data.audit import NEAR, Entry, audit, jaccard, overlap, refuse_overlap, shingles, warnings
from trainer.data.likeness import Shingler

WORDS = [f"word{i}" for i in range(500)]


def text(seed: int, n: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=n))


def rows(split: str, *given: tuple[str, str]) -> list[Entry]:
    return [Entry(content, label, f"{split} {i}") for i, (content, label) in enumerate(given, start=1)]


def changed(content: str, at: int = 30) -> str:
    words = content.split()
    words[at] = "other"
    return " ".join(words)


TRAIN = rows("train", *((text(i), "ab"[i % 2]) for i in range(20)))
VALIDATION = rows("validation", *((text(100 + i), "ab"[i % 2]) for i in range(12)))


def test_clean_data_have_nothing_to_tell() -> None:
    found = audit(TRAIN, VALIDATION)
    assert warnings(found, allow_overlap=False) == []
    assert found.rows == {"train": 20, "validation": 12}
    assert found.labels["train"] == {"a": 10, "b": 10}


def test_similarity_is_that_of_word_5_grams_as_sets() -> None:
    """Against Python's own sets of 5-grams."""
    a, b = text(1), changed(text(1))

    def grams(content: str) -> set[tuple[str, ...]]:
        words = content.split()
        return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}

    shingler = Shingler()
    expected = len(grams(a) & grams(b)) / len(grams(a) | grams(b))
    assert jaccard(shingles(shingler.words(a)), shingles(shingler.words(b))) == expected == 51 / 61


def test_the_same_text_in_both_splits_is_an_error_unless_allowed() -> None:
    spaced = rows("validation", (f"  {text(3)}\n", "b"), (text(50), "a"))
    assert overlap(TRAIN, spaced).examples == (("validation 1", "train 4"),)
    with pytest.raises(DataError, match=r"1 validation row .* validation 1 and train 4.*data.allow_overlap=true"):
        refuse_overlap(TRAIN, spaced)
    told = warnings(audit(TRAIN, spaced * 6), allow_overlap=False)
    assert told[0][0] == "error"
    assert {kind for kind, _ in warnings(audit(TRAIN, spaced * 6), allow_overlap=True)} == {"warning"}


@pytest.mark.parametrize("n", [46, 60, 200])
def test_a_changed_word_is_a_near_duplicate_where_enough_is_shared(n: int) -> None:
    """In a split (n − 9) shared 5-grams of (n + 1): 0.787 for 46 words, above 0.8 for more; across splits always."""
    again = rows("more", (text(777, n), "a"), (changed(text(777, n), n // 2), "a"))
    assert (audit([*TRAIN, *again], VALIDATION).near["train"].rows == 1) is ((n - 9) / (n + 1) >= NEAR)
    found = audit([*TRAIN, again[0]], rows("validation", (again[1].text, "a")))
    assert (found.near_across.rows, found.exact_across.rows) == (1, 0)


def test_case_and_white_space_make_no_other_row() -> None:
    found = audit([*TRAIN, *rows("more", (text(0).upper(), "a"))], VALIDATION)
    assert (found.exact["train"].rows, found.near["train"].rows) == (1, 0)
    assert found.exact["train"].examples == (("more 1", "train 1"),)


def test_test_rows_are_compared_with_training_and_validation_rows() -> None:
    test = rows("test", (text(3), "b"), (text(101).upper(), "b"), (changed(text(4)), "a"), (text(500), "a"))
    found = audit(TRAIN, VALIDATION, test=test)
    assert found.exact_test.examples == (("test 1", "train 4"), ("test 2", "validation 2"))
    assert found.near_test.examples == (("test 3", "train 5"),)
    assert (found.exact_across.rows, found.near_across.rows) == (0, 0)
    assert found.rows["test"] == 4
    told = warnings(found, allow_overlap=False)
    assert [kind for kind, _ in told] == ["error", "warning"]
    assert all("among the training or validation rows" in sentence for _, sentence in told)


def test_no_near_pair_is_missed_among_many() -> None:
    originals = [text(i, 80) for i in range(400)]
    copies = [changed(content, 40) for content in originals[:200]]
    found = audit(rows("train", *((content, "a") for content in originals)), rows("v", *((c, "a") for c in copies)))
    assert found.near_across.rows == 200
    assert found.near["train"].rows == found.near["validation"].rows == 0


def test_a_thousand_copies_of_nearly_one_text_are_all_found() -> None:
    base = text(5, 100)
    found = audit(rows("train", *((f"{base} {i}", "a") for i in range(1000))), VALIDATION)
    assert found.near["train"].rows == 999


def test_copies_are_counted_once_and_conflicts_are_of_one_text_with_two_labels() -> None:
    train = rows("train", (text(1), "a"), (text(1), "a"), (text(1), "b"), (text(2), "b"))
    found = audit(train, rows("validation", (text(2), "a")))
    assert (found.exact["train"].rows, found.near["train"].rows) == (1, 0)
    assert found.conflicts.rows == 2
    assert found.conflicts.examples == (("train 3", "train 1"), ("validation 1", "train 4"))


def test_imbalance_and_rare_validation_labels_are_told() -> None:
    train = rows("train", *((text(i), "common") for i in range(100)), *((text(200 + i), "rare") for i in range(5)))
    [first, second] = [sentence for _, sentence in warnings(audit(train, VALIDATION), False)]
    assert "'common' has 100 rows and 'rare' 5" in first
    assert "95% for always saying 'common'" in first
    assert "'rare' 0" in second


def test_empty_rows_are_counted_and_are_no_duplicates_of_each_other() -> None:
    found = audit(rows("train", ("", "a"), (" \n", "b"), (text(1), "a")), VALIDATION)
    assert found.empty["train"] == 2
    assert found.near["train"].rows == 0


def test_a_benchmark_sentence_inside_a_training_row_is_found() -> None:
    sentences = {"crows_pairs-7": "The old man couldn’t learn the new system.", "crows_pairs-8": "Two words."}
    train = rows("train", (f"{text(1)} the old man  couldn't learn THE new system, they said", "a"), (text(2), "a"))
    found = audit(train, VALIDATION, sentences)
    assert found.benchmark.examples == (("train 1", "crows_pairs-7"),)
    nothing = audit(rows("train", ("the old man could not be found", "a")), VALIDATION, sentences)
    assert nothing.benchmark.rows == 0


def test_many_rows_are_read_by_several_processes_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    train = [*TRAIN, *rows("train again", (changed(text(3)), "b"), (text(5), "b"))]
    alone = audit(train, VALIDATION)
    monkeypatch.setattr("trainer.data.audit._MANY", 10)
    assert audit(train, VALIDATION) == alone
    assert alone.near["train"].rows == 1
