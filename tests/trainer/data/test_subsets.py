"""Fixed subsets: how many of each group, and which."""

from collections import Counter

import pytest

from trainer.data.subsets import fixed_draw, proportional_shares, stratified


@pytest.mark.parametrize(
    ("sizes", "n", "shares"),
    [
        ({"a": 50, "b": 30, "c": 20}, 10, {"a": 5, "b": 3, "c": 2}),
        ({"a": 98, "b": 1, "c": 1}, 10, {"a": 8, "b": 1, "c": 1}),  # at least one each
        ({"a": 1, "b": 1, "c": 1}, 2, {"a": 1, "b": 1, "c": 0}),  # fewer than groups: ties by name
        ({"a": 1, "b": 5, "c": 3}, 2, {"a": 0, "b": 1, "c": 1}),  # fewer than groups: the biggest
        ({"a": 2, "b": 2, "c": 2}, 4, {"a": 2, "b": 1, "c": 1}),
        ({"a": 2, "b": 3}, 99, {"a": 2, "b": 3}),
        ({"a": 2, "b": 3}, 0, {"a": 0, "b": 0}),
        ({}, 5, {}),
    ],
)
def test_shares_are_proportional_with_one_each(sizes: dict[str, int], n: int, shares: dict[str, int]) -> None:
    assert proportional_shares(sizes, n) == shares


@pytest.mark.parametrize("n", range(0, 130, 7))
def test_shares_add_up_and_are_never_more_than_there_are(n: int) -> None:
    sizes = {"a": 60, "b": 31, "c": 17, "d": 8, "e": 3, "f": 1}
    shares = proportional_shares(sizes, n)
    assert sum(shares.values()) == min(n, 120)
    assert all(0 <= shares[name] <= sizes[name] for name in sizes)
    if n >= len(sizes):
        assert min(shares.values()) >= 1
    if n >= 60:  # nobody is lifted to one, so shares are whole neighbours of the exact proportion
        assert all(abs(shares[name] - min(n, 120) * sizes[name] / 120) < 1 for name in sizes)


def test_a_smaller_draw_is_part_of_a_larger_and_of_one_from_more_items() -> None:
    ids = [f"item-{i}" for i in range(200)]
    assert set(fixed_draw(ids, 20, 3)) < set(fixed_draw(ids, 80, 3))
    kept = {ids[i] for i in fixed_draw(ids, 50, 3)} & set(ids[:100])
    assert kept <= {ids[i] for i in fixed_draw(ids[:100], 50, 3)}


def test_a_draw_is_the_same_everywhere() -> None:
    # SHA-256 of "0:a" … "0:e" begin 9d e0 be 7d e0 (sha256sum): those of d, a and c are the smallest three
    assert fixed_draw(["a", "b", "c", "d", "e"], 3, 0) == [0, 2, 3]


def test_the_items_drawn_do_not_depend_on_their_order() -> None:
    ids, groups = [f"i{i}" for i in range(40)], ["even" if i % 2 == 0 else "odd" for i in range(40)]
    forwards = {ids[i] for i in stratified(ids, groups, 10, 1)}
    backwards = {ids[::-1][i] for i in stratified(ids[::-1], groups[::-1], 10, 1)}
    assert forwards == backwards


def test_a_stratified_subset_holds_the_shares() -> None:
    groups = ["a"] * 30 + ["b"] * 10
    chosen = stratified([str(i) for i in range(40)], groups, 8, 0)
    assert Counter(groups[i] for i in chosen) == {"a": 6, "b": 2}
    assert chosen == sorted(chosen)


def test_draws_are_even() -> None:
    """Over many seeds every item is drawn about equally often: 400 draws of 5 from 20 give each about 100."""
    ids = [f"x{i}" for i in range(20)]
    counts = Counter(i for seed in range(400) for i in fixed_draw(ids, 5, seed))
    assert min(counts.values()) > 65
    assert max(counts.values()) < 140
