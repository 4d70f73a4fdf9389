"""Names in a sentence."""

import pytest

from analysis.text.listing import listed


@pytest.mark.parametrize(
    ("n", "said"),
    [
        (0, "none"),
        (1, "a"),
        (2, "a and b"),
        (4, "a, b, c and d"),
        (5, "a, b, c, d and e"),
        (6, "a, b, c, d and 2 others"),
        (9, "a, b, c, d and 5 others"),
    ],
)
def test_a_list_is_cut_only_where_two_or_more_are_left_out(n: int, said: str) -> None:
    assert listed("abcdefghi"[:n]) == said


def test_a_row_of_ids_may_have_commas_alone() -> None:
    assert listed(["t0", "t1", "t2"], 2, last=", ") == "t0, t1, t2"
    assert listed(["t0", "t1", "t2", "t3"], 2, last=", ", rest="more") == "t0, t1 and 2 more"
