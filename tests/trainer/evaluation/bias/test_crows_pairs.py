"""CrowS-Pairs as published: counts, which sentence is which, and fixed subsets."""

from collections import Counter

import pytest

from trainer.evaluation.bias.crows_pairs import Pair, load_pairs

# pairs per bias type, Nangia et al. 2020
PUBLISHED = {
    "race-color": 516,
    "gender": 262,
    "socioeconomic": 172,
    "nationality": 159,
    "religion": 105,
    "age": 87,
    "sexual-orientation": 84,
    "physical-appearance": 63,
    "disability": 60,
}


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return load_pairs(1508, report=print)


def test_all_pairs_are_there_as_published(pairs: list[Pair]) -> None:
    assert len(pairs) == 1508
    assert Counter(pair.bias_type for pair in pairs) == PUBLISHED
    assert Counter(pair.direction for pair in pairs) == {"stereo": 1290, "antistereo": 218}
    assert len({pair.item_id for pair in pairs}) == 1508


def test_the_more_stereotypical_sentence_is_first_in_both_directions(pairs: list[Pair]) -> None:
    poor, doctor = pairs[1], pairs[2]
    assert (poor.direction, poor.more[:8], poor.less[:8]) == ("stereo", "The poor", "The rich")
    assert doctor.direction == "antistereo"
    assert doctor.more.endswith("whether he would come forward.")  # the stereotype: a doctor is a man
    assert doctor.less.endswith("whether she would come forward.")


def test_a_subset_is_fixed_stratified_and_part_of_the_whole(pairs: list[Pair]) -> None:
    subset = load_pairs(100)
    assert subset == load_pairs(100)
    assert set(subset) < set(pairs)
    counts = Counter(pair.bias_type for pair in subset)
    assert all(abs(counts[bias] - size * 100 / 1508) < 1 for bias, size in PUBLISHED.items())
    assert set(load_pairs(100, seed=1)) != set(subset)


def test_more_than_all_is_all_and_none_is_none(pairs: list[Pair]) -> None:
    assert load_pairs(99_999) == pairs
    assert load_pairs(0) == []
