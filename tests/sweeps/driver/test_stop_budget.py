"""Budgets: what is used up, when, and that it is counted over all runs of a sweep."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from analysis.errors import ConfigError
from analysis.folder import MetricsRow, SweepFolder, append_line, read_lines
from sweeps.config import BudgetConfig, SearchConfig, SweepConfig, _check_budget
from sweeps.driver.stop_budget import StopBudget
from sweeps.store.control import Spent


def budget(spent: Spent | None = None, **limits: Any) -> StopBudget:
    return StopBudget(BudgetConfig(**limits), spent or Spent())


def report(
    watch: StopBudget, trial_id: str, state: str, objective: float = 0.5, tokens: int = 100, **metrics: float
) -> None:
    trial: Any = SimpleNamespace(config={"trial_id": trial_id, "values": {}})
    result = {"state": state, "objective": objective, "tokens": tokens, "metrics": metrics}
    watch.on_trial_result(0, [], trial, result)
    if state != "running":
        watch.on_trial_complete(0, [], trial)


def test_without_limits_nothing_is_ever_used_up() -> None:
    watch = budget(Spent(1e9, 1e9))
    for k in range(100):
        report(watch, f"t{k:04d}", "completed", tokens=10**9, accuracy=1.0)
    assert watch.used_up() == ""


@pytest.mark.parametrize(("limits", "words"), [({"hours": 2.0}, "hours=2"), ({"device_hours": 4.0}, "device_hours=4")])
def test_time(limits: dict[str, float], words: str) -> None:
    spent = Spent(7199.0, 14399.0)
    watch = budget(spent, **limits)
    assert watch.used_up() == ""
    spent.seconds, spent.device_seconds = 7200.0, 14400.0
    assert f"search.budget.{words} is used up" in watch.used_up()


def test_tokens_are_those_of_all_trials_and_no_rung_counts_twice() -> None:
    watch = budget(tokens=500)
    report(watch, "t0000", "running", tokens=200)
    report(watch, "t0000", "running", tokens=300)
    report(watch, "t0000", "completed", tokens=300)
    report(watch, "t0001", "running", tokens=199)
    assert (watch.tokens, watch.used_up()) == (499, "")
    report(watch, "t0001", "running", tokens=200)
    assert "search.budget.tokens=500 is used up" in watch.used_up()


def test_patience_counts_trials_that_ended_in_a_row_without_a_better_objective() -> None:
    watch = budget(patience=2)
    report(watch, "t0000", "completed", 0.5)
    report(watch, "t0001", "stopped_early", 0.9)  # its objective is of a rung, and of fewer items
    assert watch.used_up() == ""
    report(watch, "t0002", "completed", 0.6)
    report(watch, "t0003", "diverged")
    report(watch, "t0004", "running", 0.1)
    assert watch.used_up() == ""
    report(watch, "t0005", "completed", 0.6)
    assert "search.budget.patience=2" in watch.used_up()


def test_configurations_of_several_seeds_are_counted_by_their_means() -> None:
    watch = StopBudget(BudgetConfig(patience=2, target={"accuracy": 0.8}), Spent(), repeats=2)
    report(watch, "t0000", "completed", 0.5, accuracy=0.9)
    assert watch.used_up() == "", "one lucky seed reaches no target"
    report(watch, "t0000.1", "completed", 0.7, accuracy=0.6)  # mean 0.6
    report(watch, "t0001", "completed", 0.65, accuracy=0.5)
    report(watch, "t0001.1", "completed", 0.45, accuracy=0.5)  # a better seed than one before; mean 0.55
    assert watch.used_up() == ""
    report(watch, "t0002", "completed", 0.9, accuracy=0.9)
    assert watch.used_up() == "", "its other seed is to come"
    report(watch, "t0002.1", "diverged")  # which counts for the configuration
    assert "search.budget.patience=2" in watch.used_up()
    report(watch, "t0003", "completed", 0.9, accuracy=0.9)
    report(watch, "t0003.1", "failed")
    assert "target is reached: t0003, the mean of 1 seeds, has accuracy 0.9" in watch.used_up()


def test_what_configurations_of_several_seeds_had_is_counted_again(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    ends = [
        ("t0000", 0, "completed", 0.9, "WAIT"), ("t0001", 0, "stopped_early", 0.3, "PRUNED"),
        ("t0000", 1, "completed", 0.1, "WAIT"), ("t0002", 0, "completed", 0.6, "WAIT"),
    ]  # fmt: skip
    for name, repeat, state, objective, told in ends:
        own = f"{name}.{repeat}" if repeat else name
        more = {"repeat": repeat} if repeat else {}
        line = {"event": "tell", "trial_id": own, "state": state, "objective": objective, "told": told, **more}
        append_line(folder.asks_file, line)
        folder.trial(own).append_metrics(MetricsRow(own, 8, 100, 1.0, True, 12, {"accuracy": objective}))
    records = list(read_lines(folder.asks_file))
    watch = StopBudget(BudgetConfig(patience=2, target={"accuracy": 0.55}), Spent(), repeats=2)
    watch.replay(folder, records)
    assert watch.used_up() == "", "t0000 has the mean 0.5 and came after t0001; t0002 has not ended"
    report(watch, "t0002.1", "completed", 0.62, accuracy=0.62)
    assert "target is reached: t0002, the mean of 2 seeds, has accuracy 0.61" in watch.used_up()


def test_trials_that_are_only_paused_do_not_try_the_patience() -> None:
    watch = StopBudget(BudgetConfig(patience=1), Spent(), interrupted=lambda: True)
    watch.on_trial_complete(0, [], SimpleNamespace(config={"trial_id": "t0000", "values": {}}))
    assert watch.used_up() == ""


def test_a_target_is_reached_by_one_completed_trial_in_all_its_metrics() -> None:
    watch = budget(target={"accuracy": 0.9, "log_loss": 0.5})
    report(watch, "t0000", "completed", accuracy=0.95, log_loss=0.6)
    report(watch, "t0001", "completed", accuracy=0.8, log_loss=0.1)
    report(watch, "t0002", "running", accuracy=0.99, log_loss=0.1)
    assert watch.used_up() == ""
    report(watch, "t0003", "completed", accuracy=0.9, log_loss=0.5)
    assert "search.budget.target is reached: t0003 has accuracy 0.9 and log_loss 0.5" in watch.used_up()


def test_what_earlier_runs_had_is_counted_again_from_the_folder(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    tells = []
    for number, (state, objective) in enumerate([("completed", 0.7), ("completed", 0.6), ("stopped_early", 0.8)]):
        trial_id = f"t{number:04d}"
        for step, final in ((4, False), (8, False), (8, True)):
            row = MetricsRow(trial_id, step, 10 * step, 0.0, final, 1, {"accuracy": objective})
            folder.trial(trial_id).append_metrics(row)
        append_line(folder.asks_file, {"event": "tell", "trial_id": trial_id, "state": state, "objective": objective})
        tells.append({"event": "tell", "trial_id": trial_id, "state": state, "objective": objective})
    watch = budget(patience=3, tokens=241, target={"objective": 0.75})
    watch.replay(folder, tells)
    assert (watch.tokens, watch.used_up()) == (240, "")
    again = budget(patience=2)
    again.replay(folder, tells)
    assert "patience=2" in again.used_up()
    aimed = budget(target={"objective": 0.7})
    aimed.replay(folder, tells)
    assert "t0000 has objective 0.7" in aimed.used_up()


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ({"acuracy": 0.9}, "Did you mean 'accuracy'"),
        ({"bias.crows_pairs.pct": 50.0}, "not a metric that this sweep can aim at"),
        ({"accuracy": float("nan")}, "expected a number"),
    ],
)
def test_a_target_that_cannot_be_reached_is_refused(target: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        _check_budget(SweepConfig(search=SearchConfig(budget=BudgetConfig(target=target))))


def test_search_time_ends_the_sweep_and_before_that_no_trial_begins_that_would_not_be_over() -> None:
    spent = Spent(100.0)
    watch = StopBudget(BudgetConfig(), spent, time="5m")
    trial: Any = SimpleNamespace(config={"trial_id": "t0000", "values": {}})
    assert watch.room_for(10_000)  # nothing is known yet
    running = {"state": "running", "objective": 0.5, "tokens": 1, "metrics": {}, "step": 20, "seconds": 30.0}
    watch.on_trial_result(0, [], trial, running)
    assert watch.room_for(133)
    assert not watch.room_for(134)  # 100 s and 134 times 1.5 s
    spent.seconds = 299.0
    assert watch.used_up() == ""
    spent.seconds = 300.0
    assert watch.used_up() == "search.time=5m is used up"


@pytest.mark.parametrize("time", [None, "auto"])
def test_without_a_time_there_is_room_for_any_trial(time: str | None) -> None:
    watch = StopBudget(BudgetConfig(), Spent(1e9), time=time)
    assert watch.room_for(10**9)
    assert watch.used_up() == ""
