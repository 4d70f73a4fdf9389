"""That a tracker's errors and delays stay its own: the other trackers and the sweep do not notice."""

import math
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from analysis.folder import State, SweepFolder
from analysis.rows import Row
from sweeps.tracking.base import Hint, Outcome, Run, TrackedSweep, Tracker
from sweeps.tracking.from_folder import Due
from sweeps.tracking.record import TrackingRecord
from sweeps.tracking.tracker_thread import TrackerThread
from sweeps.tracking.tune_callback import TrackerCallback, spare_imports_for_usage_reports
from tests.sweeps.tracking.test_wandb_tracker import complete, config_of, report, start, tell, trial
from tests.wandb_server import wait_for


class Noting(Tracker):
    """Remembers what it is told; ``fails`` and ``hangs`` name methods that do so."""

    def __init__(self, sweep: TrackedSweep, title: str = "Noting", fails: str = "", hangs: str = "") -> None:
        super().__init__(sweep)
        self.title = title  # type: ignore[misc]
        self.fails, self.hangs, self.release = fails, hangs, threading.Event()
        self.calls: list[tuple[Any, ...]] = []
        self.outcomes: dict[str, Outcome] = {}
        self.threads: set[int] = set()

    def called(self, *call: Any) -> None:
        self.calls.append(call)
        self.threads.add(threading.get_ident())
        if call[0] == self.hangs:
            self.release.wait(30)
        if call[0] == self.fails:
            raise RuntimeError(f"{call[0]} is broken\nlong story")

    def connect(self) -> None:
        self.called("connect")

    def start_run(self, run: Run) -> None:
        self.called("start_run", run.name)

    def log_point(self, name: str, step: int, values: Mapping[str, Any]) -> None:
        self.called("log_point", name, step)

    def finish_run(self, name: str, outcome: Outcome) -> None:
        self.outcomes[name] = outcome
        self.called("finish_run", name)

    def close(self) -> None:
        self.called("close")

    def hint(self, cut_short: bool = False) -> Hint | None:
        return Hint("look", "look at it") if cut_short else None


WHOLE = [
    ("connect",), ("start_run", "t0000"), ("log_point", "t0000", 12), ("log_point", "t0000", 24),
    ("finish_run", "t0000"), ("close",),
]  # fmt: skip


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def sweep(tmp_path: Path, notes: list[str]) -> TrackedSweep:
    return TrackedSweep(SweepFolder(tmp_path / "runs" / "x"), "ab12cd34", notes.append)


def follow(callback: TrackerCallback, timeout: float = 20.0) -> float:
    """One trial of two rungs, and the end. Returns how long the trial was held up, in seconds."""
    one = trial("t0000")
    began = time.monotonic()
    callback.setup()
    start(callback, one)
    for step in (12, 24):
        tell(callback, one, report(step, 0.5))
    complete(callback, one)
    held_up = time.monotonic() - began
    callback.close(timeout)
    return held_up


def test_every_tracker_is_told_all_in_order_in_a_thread_of_its_own(sweep: TrackedSweep, notes: list[str]) -> None:
    first, second = Noting(sweep), Noting(sweep)
    follow(TrackerCallback([first, second], sweep.folder, config_of))
    assert first.calls == second.calls == WHOLE
    assert len(first.threads | second.threads) == 2
    assert threading.get_ident() not in first.threads | second.threads
    outcome = first.outcomes["t0000"]
    assert outcome.state is State.STOPPED_EARLY
    assert outcome.metrics == {"objective": 0.4, "accuracy": 0.5, "bias.crows_pairs.pct": 55.5}
    assert {"state": "stopped_early", "step": 24, "n_items": 96}.items() <= outcome.facts.items()
    assert notes == []


def test_runs_of_several_seeds_say_of_which_configuration_they_are_and_the_sweep_has_the_best_mean(
    sweep: TrackedSweep,
) -> None:
    configs: dict[str, Any] = {}
    noting = Noting(sweep)
    noting.start_run = lambda run: configs.update({run.name: run.config})  # type: ignore[method-assign]
    callback = TrackerCallback([noting], sweep.folder, config_of, repeats=2)
    for name in ("t0000", "t0000.1"):
        start(callback, trial(name))
    runs = [Row("trial", f"t0001{k}", "completed", 8, objective=it) for k, it in (("", 0.4), (".1", 0.8))]
    best = Row("trial", "t0001", "completed", 8, final=True, objective=0.6, seeds=tuple(runs))
    callback.log_sweep([best], {}, {})
    callback.close()
    assert [configs[name]["configuration"] for name in ("t0000", "t0000.1")] == ["t0000", "t0000"]
    told = noting.outcomes["sweep"]
    assert {"best.trial": "t0001", "best.seeds": 2}.items() <= told.facts.items()
    assert told.metrics["best.objective"] == 0.6
    assert told.adapter is not None
    assert told.adapter.trial_id == "t0001.1"
    once = TrackerCallback([noting], sweep.folder, config_of)
    start(once, trial("t0005"))
    once.close()
    assert "configuration" not in configs["t0005"]


@pytest.mark.parametrize(
    ("method", "calls", "note"),
    [
        ("connect", WHOLE[:1], "Bad: the trials are not tracked there (connect is broken)."),
        ("start_run", [*WHOLE[:2], WHOLE[-1]], "Bad: t0000 is not tracked (start_run is broken)."),
        ("log_point", WHOLE, "Bad: t0000 lacks a point (log_point is broken)."),
        ("finish_run", WHOLE, "Bad: t0000 lacks its end (finish_run is broken)."),
        ("close", WHOLE, "Bad: it could not be closed (close is broken)."),
    ],
)
def test_an_error_is_noted_once_and_the_other_tracker_misses_nothing(
    sweep: TrackedSweep, notes: list[str], method: str, calls: list[Any], note: str
) -> None:
    bad, good = Noting(sweep, "Bad", fails=method), Noting(sweep)
    follow(TrackerCallback([bad, good], sweep.folder, config_of))
    assert bad.calls == calls
    assert good.calls == WHOLE
    assert notes == [f"{note} Results are in the sweep folder all the same."]


@pytest.mark.parametrize("method", ["connect", "start_run", "log_point", "finish_run", "close"])
def test_a_tracker_that_hangs_holds_up_neither_the_trials_nor_the_other_tracker(
    sweep: TrackedSweep, notes: list[str], method: str
) -> None:
    slow, good = Noting(sweep, "Slow", hangs=method), Noting(sweep)
    callback = TrackerCallback([slow, good], sweep.folder, config_of)
    try:
        began = time.monotonic()
        assert follow(callback, timeout=0.5) < 0.3
        assert time.monotonic() - began < 3
        assert good.calls == WHOLE
        assert notes == ["Slow is still busy after 0 s: not waiting for it. Look at it: `look`"]
        start(callback, trial("t0001"))  # and nothing is queued any more
    finally:
        slow.release.set()
    assert wait_for(lambda: slow.calls[-1:] == [("close",)])
    assert slow.calls == WHOLE


class Keeping(Noting):
    """Has all of a run as soon as that has ended."""

    def kept(self, name: str) -> str | None:
        return "here" if name in self.outcomes else None

    def start_run(self, run: Run) -> None:
        self.outcomes.pop(run.name, None)
        super().start_run(run)


@pytest.mark.parametrize(("of", "method"), [(TrackerCallback, "on_experiment_end"), (TrackerThread, "stop")])
def test_what_tune_reports_while_the_driver_closes_is_left_to_the_next_one(
    sweep: TrackedSweep, monkeypatch: pytest.MonkeyPatch, of: type, method: str
) -> None:
    """Ray dies: the driver closes, and Tune's thread, beside it, still hears of the end of a trial."""
    slow = Keeping(sweep, hangs="log_point")
    callback = TrackerCallback([slow], sweep.folder, config_of)
    one = trial("t0000")
    start(callback, one)
    tell(callback, one, report(12, 0.5))
    closes = getattr(of, method)

    def and_tune_goes_on(self: Any, *arguments: Any) -> None:
        closes(self, *arguments)
        tell(callback, one, report(24, 0.5))
        complete(callback, one)
        callback.log_baseline("majority", {"accuracy": 0.5}, {})
        slow.release.set()

    monkeypatch.setattr(of, method, and_tune_goes_on)
    callback.close()
    baseline = 3 * (method == "on_experiment_end")  # calls: it was scored in time, and is whole
    assert slow.calls == [*WHOLE[:3], WHOLE[-2], *slow.calls[4 : 4 + baseline], WHOLE[-1]]
    assert slow.outcomes["t0000"].state is State.RUNNING
    assert len(slow.threads) == 1
    assert TrackingRecord(sweep.folder).get("Noting", "t0000") is None  # so that the next driver writes it


def test_a_run_that_is_gone_on_with_is_not_taken_for_complete(sweep: TrackedSweep) -> None:
    """A trial was extended, or is written again: its driver may be killed at once."""

    def lacks() -> bool:
        due = Due("t0000", str(State.STOPPED_EARLY), lambda: pytest.fail("nothing is to be written"))
        return TrackerThread(Keeping(sweep), TrackingRecord(sweep.folder)).lacks(due)

    follow(TrackerCallback([Keeping(sweep)], sweep.folder, config_of))
    assert not lacks()
    keeping = Keeping(sweep, hangs="start_run")
    callback = TrackerCallback([keeping], sweep.folder, config_of)
    start(callback, trial("t0000"))
    assert wait_for(lambda: ("start_run", "t0000") in keeping.calls)
    assert lacks()
    keeping.release.set()
    callback.close()
    assert lacks()  # it has not ended


def test_a_trial_without_a_config_is_tracked_with_its_values(sweep: TrackedSweep, notes: list[str]) -> None:
    def broken(trial_id: str, values: dict[str, Any]) -> dict[str, Any]:
        raise ValueError

    tracker = Noting(sweep)
    follow(TrackerCallback([tracker], sweep.folder, broken))
    assert tracker.calls == WHOLE


def test_without_trackers_nothing_is_done(sweep: TrackedSweep) -> None:
    callback = TrackerCallback([], sweep.folder, lambda trial_id, values: pytest.fail("asked for a config"))
    follow(callback)
    callback.log_baseline("zero_shot", {"accuracy": math.nan}, {})
    assert (callback.active, callback.hints()) == (False, [])


def test_ray_still_asks_for_what_is_spared() -> None:
    from ray.air._internal import usage
    from ray.tune import tune

    assert tune.air_usage is usage
    spare_imports_for_usage_reports()
    assert tune.air_usage.tag_callbacks([]) is False


class Spoiling(Noting):
    """Changes what it is given, as libraries do with what they make their own objects of."""

    def start_run(self, run: Run) -> None:
        super().start_run(run)
        dict.clear(run.config)  # type: ignore[arg-type]

    def finish_run(self, name: str, outcome: Outcome) -> None:
        super().finish_run(name, outcome)
        for figure in outcome.charts.values():
            dict.clear(figure)  # type: ignore[arg-type]


def test_what_one_tracker_does_with_its_arguments_the_other_does_not_see(sweep: TrackedSweep, notes: list[str]) -> None:
    """Plotly takes a trace's type out of the dictionary for a moment: two threads that make its figure would clash."""
    figure, config = {"data": [{"type": "scatter", "x": [1], "y": [2]}]}, {"lora": {"rank": 8}}
    spoiling, other = Spoiling(sweep), Noting(sweep)
    configs: list[Mapping[str, Any]] = []
    other.start_run = lambda run: configs.append(run.config)  # type: ignore[method-assign]
    callback = TrackerCallback([spoiling, other], sweep.folder, config_of)
    callback.setup()
    callback.log_sweep([], config, {"chart/objective": figure})
    callback.close(20.0)
    assert dict(spoiling.outcomes["sweep"].charts) == {"chart/objective": {}}
    assert dict(other.outcomes["sweep"].charts) == {"chart/objective": figure}
    assert figure["data"] == [{"type": "scatter", "x": [1], "y": [2]}]
    assert (configs, config) == ([{"lora": {"rank": 8}}], {"lora": {"rank": 8}})
    assert notes == []
