"""A sweep played through: times that can be worked out by hand, and the real scheduler's decisions."""

from sweeps.checks.simulate import Cost, Decide, forecast, play
from sweeps.compose.compose import compose

TRIAL = Cost(pack="fp32", own=1.0, shared=0.5, rungs=(4, 8), rung_seconds=2.0, final_seconds=3.0, tokens=10.0)


def never_stops() -> Decide:
    return lambda trial, step, score: True


def test_one_trial_alone() -> None:
    found = forecast([TRIAL], 1, 1, never_stops, overhead=0.0)
    assert found.seconds == 8 * 1.5 + 2 * 2 + 3
    assert (found.completed, found.steps, found.tokens, found.scorings) == (1, 8, 80.0, 2)


def test_slots_of_a_pack_share_what_is_fixed() -> None:
    found = forecast([TRIAL] * 2, 2, 1, never_stops, overhead=0.0)
    assert found.seconds == 8 * (0.5 + 2 * 1.0) + 2 * (2 * 2 + 3)


def test_two_precisions_do_not() -> None:
    other = Cost("nf4", 1.0, 0.5, (4, 8), 2.0, 3.0, 10.0)
    assert forecast([TRIAL, other], 2, 1, never_stops, overhead=0.0).seconds == 8 * (2 * 0.5 + 2 * 1.0) + 2 * (
        2 * 2 + 3
    )


def test_devices_halve_the_time_and_the_overhead_counts() -> None:
    one, two = (forecast([TRIAL] * 4, 1, n, never_stops, overhead=1.0).seconds for n in (1, 2))
    assert one == 2 * two == 4 * (19 + 1)


def test_stopped_trials_make_room() -> None:
    def first_only() -> Decide:
        return lambda trial, step, score: trial == 0

    found = forecast([TRIAL] * 3, 1, 1, first_only, overhead=0.0)
    assert (found.completed, found.steps) == (1, 8 + 4 + 4)
    assert found.seconds == 19 + 2 * (4 * 1.5 + 2)


def test_the_sweeps_own_scheduler_decides() -> None:
    base = ["objective=single", "train.max_steps=8", "train.rungs=[2,8]", "space=learning_rate"]
    cost = Cost("fp32", 1.0, 0.0, (2, 8), 0.0, 0.0)
    halving = play(compose([*base, "scheduler=asha"]).config, [cost] * 16, 1, 1)
    everything = play(compose([*base, "scheduler=fifo"]).config, [cost] * 16, 1, 1)
    assert everything.completed == 16
    assert 2 <= halving.completed <= 10
    assert halving.steps == 2 * 16 + 6 * halving.completed
    assert halving.low <= halving.seconds <= halving.high
