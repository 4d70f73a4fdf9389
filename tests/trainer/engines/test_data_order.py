"""The order of training rows: a function of seed and step."""

from collections import Counter

import pytest

from trainer.engines.data_order import data_order, epoch_order, rows_for_step


def test_every_epoch_shows_every_row_once() -> None:
    run = data_order(10, seed=3, start=0, count=40)
    assert all(sorted(run[at : at + 10]) == list(range(10)) for at in range(0, 40, 10))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(epoch_order(50, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


@pytest.mark.parametrize("batch_size", [1, 4, 7, 25])
def test_steps_cut_the_run_into_batches_over_the_ends_of_epochs(batch_size: int) -> None:
    run = data_order(10, seed=1, start=0, count=batch_size * 6)
    steps = [rows_for_step(10, batch_size, 1, step) for step in range(6)]
    assert [row for step in steps for row in step] == run
    assert {len(step) for step in steps} == {batch_size}


def test_a_step_needs_no_history() -> None:
    epoch_order.cache_clear()
    alone = rows_for_step(1000, 16, 5, 400)
    epoch_order.cache_clear()
    in_turn = [rows_for_step(1000, 16, 5, step) for step in range(401)][-1]
    assert alone == in_turn


def test_the_order_is_the_same_everywhere() -> None:
    # keys from Random123's Philox4x64-10 with key (7, epoch) and counters 1, 2, computed without numpy, then sorted
    assert data_order(6, seed=7, start=0, count=12) == [4, 1, 3, 2, 5, 0, 3, 1, 2, 5, 4, 0]


def test_orders_are_even() -> None:
    """Each of 5 rows comes first about 400 times in 2,000 epochs (standard deviation 18)."""
    firsts = Counter(int(epoch_order(5, 0, epoch)[0]) for epoch in range(2000))
    assert all(330 < firsts[row] < 470 for row in range(5))


def test_a_shared_order_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(5, 0, 0)[0] = 1


def test_no_rows_or_a_negative_start_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        rows_for_step(0, 4, 0, 0)
    with pytest.raises(ValueError, match="none negative"):
        rows_for_step(5, 4, 0, -1)
