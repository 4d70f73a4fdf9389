"""Work that is done only as often as it takes a small share of the time."""

import pytest

from sweeps.process import throttle


def test_work_takes_its_share_of_the_time_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    now, done = [0.0], []

    def work() -> None:
        done.append(now[0])
        now[0] += 1.0

    monkeypatch.setattr(throttle.time, "monotonic", lambda: now[0])
    asked = throttle.Throttle(work, share=0.1)
    while now[0] < 100:
        asked()
        now[0] += 0.5
    assert done[0] == 0.0, "the first time at once"
    assert 0.08 <= len(done) / now[0] <= 0.1


def test_work_that_costs_nothing_is_always_done() -> None:
    done: list[int] = []
    asked = throttle.Throttle(lambda: done.append(1), share=1e9)
    for _ in range(5):
        asked()
    assert len(done) == 5
