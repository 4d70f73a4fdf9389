"""Sampler and scheduler from config, and the guard around the scheduler."""

import inspect
import math
import random
import warnings
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from optuna.samplers import GPSampler, RandomSampler, TPESampler
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule

from analysis.errors import ConfigError
from sweeps.compose import conf_tree, resolvers
from sweeps.config import KEYWORDS
from sweeps.search.scheduler import StandIn, build_sampler, build_scheduler, replay_scheduler, rungs_of

ASHA = {"_target_": "ray.tune.schedulers.ASHAScheduler", "grace_period": 8, "reduction_factor": 3}
FIFO = {"_target_": "ray.tune.schedulers.FIFOScheduler"}
TPE = {"_target_": "optuna.samplers.TPESampler"}
STOP, CONTINUE = "STOP", "CONTINUE"


class TuneTrial:
    """As Tune knows a trial: its own id, and ours in the config."""

    def __init__(self, trial_id: str, tune_id: str = ""):
        self.trial_id, self.config, self.status = tune_id or f"tune-{trial_id}", {"trial_id": trial_id}, "RUNNING"


def report(step: int, objective: float, state: str = "running") -> dict[str, Any]:
    return {"step": step, "objective": objective, "state": state}


def reaches(scheduler: Any, trial_id: str, step: int, objective: float, tune_id: str = "") -> str:
    trial = TuneTrial(trial_id, tune_id)
    scheduler.on_trial_add(None, trial)
    decision: str = scheduler.on_trial_result(None, trial, report(step, objective))
    return decision


def scores_at(scheduler: Any, milestone: float) -> list[float]:
    rungs = [rung for bracket in scheduler.inner._brackets for rung in bracket._rungs]
    return sorted(value for at, recorded in rungs if at == milestone for value in recorded.values())


def test_samplers_are_built_from_their_mapping_and_seeded_by_the_sweep() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing experimental is announced to the user
        tpe = build_sampler({**TPE, "n_startup_trials": 3, "multivariate": True, "group": True, "seed": 5}, seed=5)
    assert isinstance(tpe, TPESampler)
    assert tpe._n_startup_trials == 3
    same = [build_sampler({"_target_": "optuna.samplers.RandomSampler", "seed": None}, seed=5) for _ in range(2)]
    assert all(isinstance(sampler, RandomSampler) for sampler in same)
    assert same[0]._rng.rng.random() == same[1]._rng.rng.random()  # type: ignore[attr-defined]


def test_points_that_a_search_starts_from_do_not_count_among_those_drawn_at_random() -> None:
    gp = {"_target_": "optuna.samplers.GPSampler"}
    for config, drawn in (({**TPE, "n_startup_trials": 4}, 7), (TPE, 13), ({**gp, "n_startup_trials": 5}, 8), (gp, 13)):
        sampler: Any = build_sampler(config, seed=0, start_points=3)
        assert sampler._n_startup_trials == drawn
    assert isinstance(build_sampler({"_target_": "optuna.samplers.RandomSampler"}, 0, start_points=3), RandomSampler)


def test_schedulers_get_the_sweeps_own_settings() -> None:
    asha = build_scheduler(ASHA, [8, 24]).inner
    assert isinstance(asha, AsyncHyperBandScheduler)
    assert (asha._time_attr, asha._metric, asha._mode, asha._max_t) == ("step", "objective", "max", 24)
    assert isinstance(build_scheduler(FIFO, [8, 24]).inner, FIFOScheduler)
    spelled_out = {"time_attr": "step", "metric": "objective", "mode": "max", "max_t": 24, "stop_last_trials": True}
    build_scheduler({**ASHA, **spelled_out}, [8, 24])


@pytest.mark.parametrize("name", [*(f"{g}/{o}" for g in ("sampler", "scheduler") for o in conf_tree.groups()[g])])
def test_shipped_files_can_be_built(name: str) -> None:
    resolvers.register()
    group = name.split("/")[0]
    shipped = OmegaConf.load(conf_tree.SHIPPED / f"{name}.yaml")
    around = {"sweep": {"seed": 3}, "train": {"rungs": [8, 24], "max_steps": 24}, "search": {"trials": 20}, "space": {}}
    config: Any = OmegaConf.to_container(OmegaConf.merge(around, {group: shipped}), resolve=True)
    if group == "sampler":
        build_sampler(config[group], seed=3)
    else:
        build_scheduler(config[group], [8, 24])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, ["scheduler._target_=None", "ray.tune.schedulers.ASHAScheduler"]),
        ({"_target_": "asha"}, ["'asha'", "dotted class"]),
        ({"_target_": "ray.tune.schedulrs.ASHAScheduler"}, ["No module named", "schedulrs"]),
        ({"_target_": "ray.tune.schedulers.AshaScheduler"}, ["not there", "Did you mean 'ASHAScheduler'"]),
        ({"_target_": "optuna.samplers.TPESampler"}, ["no TrialScheduler"]),
        ({"_target_": "ray.tune.schedulers.TrialScheduler"}, ["no TrialScheduler that can be made", "FIFOScheduler"]),
        ({"_target_": "ray.tune.schedulers.HyperBandScheduler"}, ["does not work", "pauses", "ASHAScheduler"]),
        ({"_target_": "ray.tune.schedulers.PopulationBasedTraining"}, ["does not work"]),
        ({**ASHA, "grace": 8}, ["'grace' is not a keyword", "grace_period", "reduction_factor", "brackets"]),
        ({**ASHA, "max_t": 100}, ["scheduler.max_t=100", "expected 24", "train.max_steps"]),
        ({**ASHA, "metric": "accuracy"}, ["scheduler.metric='accuracy'", "group objective"]),
        ({**ASHA, "stop_last_trials": False}, ["stop_last_trials=False", "always completes"]),
        ({**ASHA, "brackets": "two"}, ["brackets='two'", "like 1"]),
        ({**ASHA, "brackets": 0}, ["refuses", "brackets must be positive"]),
        ({**ASHA, "reduction_factor": 1}, ["reduction_factor=1", "above 1"]),
        ({**ASHA, "grace_period": "8"}, ["grace_period='8'"]),
        ({**FIFO, "grace_period": 8}, ["'grace_period' is not a keyword"]),
    ],
)
def test_a_scheduler_that_cannot_be_used_is_refused_with_what_can(config: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        build_scheduler(config, [8, 24])
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**TPE, "n_startup": 5}, ["'n_startup' is not a keyword", "Did you mean 'n_startup_trials'", "multivariate"]),
        ({**TPE, "seed": 6}, ["sampler.seed=6", "expected 5", "sweep.seed"]),
        ({**TPE, "n_startup_trials": "five"}, ["n_startup_trials='five'", "like 10"]),
        ({**TPE, "multivariate": False, "group": True}, ["refuses", "multivariate"]),
        ({"_target_": "optuna.samplers.BaseSampler"}, ["no BaseSampler that can be made", "TPESampler"]),
        ({"_target_": "optuna.samplers.QMCSampler"}, ["does not work", "resume"]),
        ({"_target_": "optuna.samplers.CmaEsSampler"}, ["does not work", "pickle"]),
        ({"_target_": "os.path.join"}, ["no BaseSampler"]),
        ({"_target_": "optuna.samplers.GridSampler"}, ["refuses", "search_space"]),
    ],
)
def test_a_sampler_that_cannot_be_used_is_refused_with_what_can(config: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        build_sampler(config, seed=5)
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    ("grace", "factor", "rungs"),
    [
        (8, 3, [8, 24]),
        (12, 2, [12, 24, 48]),
        (12, 2.0, [12, 24, 48]),
        (4, 2, [4, 6, 8, 16, 20]),
        (9, 10 / 3, [9, 30, 100]),
    ],
)
def test_milestones_are_those_that_asha_really_decides_at(grace: int, factor: float, rungs: list[int]) -> None:
    config = {**ASHA, "grace_period": grace, "reduction_factor": factor}
    asha = build_scheduler(config, rungs).inner
    real = [at for at, _ in reversed(asha._brackets[0]._rungs) if at < rungs[-1] - 1e-6]
    assert rungs_of(config, rungs) == pytest.approx(real)
    assert rungs_of(FIFO, rungs) == []


@pytest.mark.parametrize(("grace", "factor", "rungs"), [(8, 2, [8, 24]), (4, 3, [8, 24]), (8, 3, [8, 12, 48])])
def test_milestones_that_are_no_rungs_are_refused(grace: int, factor: int, rungs: list[int]) -> None:
    with pytest.raises(ConfigError, match="no trial is evaluated at"):
        build_scheduler({**ASHA, "grace_period": grace, "reduction_factor": factor}, rungs)


def test_asha_stops_the_worse_share_at_a_rung() -> None:
    scheduler = build_scheduler(ASHA, [8, 24])
    decisions = [reaches(scheduler, f"t{k:04d}", 8, value) for k, value in enumerate([0.5, 0.6, 0.4, 0.7, 0.55])]
    assert decisions == [CONTINUE, CONTINUE, STOP, CONTINUE, STOP]


MEDIAN = {"_target_": "ray.tune.schedulers.MedianStoppingRule", "grace_period": 8, "min_samples_required": 1}


@pytest.mark.parametrize(("config", "alone"), [(ASHA, 1), (MEDIAN, 1), (FIFO, 9)])
def test_the_best_few_so_far_at_a_rung_go_on(config: dict[str, Any], alone: int) -> None:
    values = [0.9, 0.8, 0.7, 0.6, 0.85, 0.5, 0.75, 0.95, 0.86]
    best_three = [values[k] in sorted(values[: k + 1])[-3:] for k in range(len(values))]

    def goes_on(keep_best: int) -> list[bool]:
        scheduler = build_scheduler({**config, "keep_best": keep_best}, [8, 24])
        return [reaches(scheduler, f"t{k:04d}", 8, value) == CONTINUE for k, value in enumerate(values)]

    without, with_three = goes_on(0), goes_on(3)
    assert sum(without) >= alone
    assert with_three == [left or kept for left, kept in zip(without, best_three, strict=True)]
    assert without == goes_on(1) or config is MEDIAN
    assert with_three != without or config is FIFO


def test_the_best_few_are_the_same_after_a_replay_and_counted_at_each_rung() -> None:
    config, values = {**ASHA, "keep_best": 2}, [0.9, 0.8, 0.7, 0.85]
    whole = build_scheduler(config, [8, 24, 48])
    rungs = [("rung", f"t{k:04d}", 8, value) for k, value in enumerate(values)] + [("rung", "t0003", 24, 0.8)]
    records = [{"event": "ask", "trial_id": f"t{k:04d}"} for k in range(len(values))]
    records += [{"event": event, "trial_id": trial, **report(step, value)} for event, trial, step, value in rungs]
    replay_scheduler(whole, records)
    assert reaches(whole, "t0001", 24, 0.7) == CONTINUE
    assert reaches(whole, "t0000", 24, 0.6) == STOP
    assert reaches(whole, "t0004", 8, 0.84) == STOP


@pytest.mark.parametrize("config", [ASHA, MEDIAN])
def test_a_trial_that_goes_on_against_its_scheduler_is_decided_at_its_next_rung_too(config: dict[str, Any]) -> None:
    scheduler = build_scheduler({**config, "keep_best": 2}, [8, 24, 48])
    assert [reaches(scheduler, f"t{k:04d}", 8, value) for k, value in enumerate([0.9, 0.3])] == [CONTINUE, CONTINUE]
    assert [reaches(scheduler, f"t{k:04d}", 24, value) for k, value in enumerate([0.9, 0.3])] == [CONTINUE, CONTINUE]
    assert [reaches(scheduler, f"t000{k}", step, value) for k, step, value in [(2, 8, 0.6), (2, 24, 0.6)]] == [
        CONTINUE
    ] * 2
    unlearnt = build_scheduler(config, [8, 24, 48])
    for step in (8, 24):
        for k, value in enumerate([0.3, 0.2]):
            trial = TuneTrial(f"t{k:04d}")
            unlearnt.on_trial_add(None, trial)
            one_class = {**report(step, value), "metrics": {"classes_predicted": 1.0}}
            assert unlearnt.on_trial_result(None, trial, one_class) == CONTINUE


@pytest.mark.parametrize("wrong", [-1, 1.5, True, "three", None])
def test_keep_best_is_a_number_of_trials(wrong: object) -> None:
    with pytest.raises(ConfigError, match=r"scheduler\.keep_best=.* expected a number of trials, 0 or more"):
        build_scheduler({**ASHA, "keep_best": wrong}, [8, 24])


def test_a_milestone_a_rounding_error_above_its_rung_is_not_missed() -> None:
    grace = next(n for n in range(1, 400) if n * ((n + 3) / n) > n + 3)
    factor, rungs = (grace + 3) / grace, [grace, grace + 3, grace + 4]
    scheduler = build_scheduler({**ASHA, "grace_period": grace, "reduction_factor": factor}, rungs)
    for k, value in enumerate([0.9, 0.8]):
        reaches(scheduler, f"t{k:04d}", grace + 3, value)
    assert scores_at(scheduler, grace * factor) == [0.8, 0.9]


def test_a_trial_at_its_last_step_is_left_to_complete() -> None:
    scheduler = build_scheduler(ASHA, [8, 24])
    for k, value in enumerate([0.9, 0.1]):
        assert reaches(scheduler, f"t{k:04d}", 24, value) == CONTINUE


@pytest.mark.parametrize("state", ["diverged", "failed", "out_of_memory"])
def test_failures_and_nan_leave_nothing_among_the_scores(state: str) -> None:
    scheduler = build_scheduler(ASHA, [8, 24])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy warns where a percentile meets only NaN
        assert reaches(scheduler, "t0000", 8, math.nan) == CONTINUE
        scheduler.on_trial_complete(None, TuneTrial("t0000"), report(9, math.nan, state))
        scheduler.on_trial_add(None, TuneTrial("t0001"))
        scheduler.on_trial_complete(None, TuneTrial("t0001"), report(9, math.nan, state))
        assert reaches(scheduler, "t0002", 8, 0.2) == CONTINUE
        assert reaches(scheduler, "t0003", 8, 0.1) == STOP
    assert scores_at(scheduler, 8) == [0.1, 0.2]
    scheduler.debug_string()


def test_a_rung_is_decided_once_however_often_and_under_whatever_id_tune_reports_it() -> None:
    scheduler = build_scheduler(ASHA, [8, 24])
    reaches(scheduler, "t0000", 8, 0.5)
    assert reaches(scheduler, "t0001", 8, 0.4, tune_id="first") == STOP
    assert reaches(scheduler, "t0001", 8, 0.9, tune_id="retried") == STOP
    assert reaches(scheduler, "t0000", 8, 0.1, tune_id="retried") == CONTINUE
    assert scores_at(scheduler, 8) == [0.4, 0.5]


def test_late_and_repeated_ends_are_ignored() -> None:
    scheduler = build_scheduler(ASHA, [8, 24])
    reaches(scheduler, "t0000", 8, 0.5)
    scheduler.on_trial_error(None, TuneTrial("t0000"))
    for _ in range(2):
        scheduler.on_trial_complete(None, TuneTrial("t0000"), report(24, 0.6, "completed"))
        scheduler.on_trial_remove(None, TuneTrial("t0000"))
    scheduler.on_trial_complete(None, TuneTrial("t0009"), report(24, 0.6, "completed"))
    assert scheduler.on_trial_result(None, TuneTrial("t0000"), report(12, 0.6)) == CONTINUE
    assert scores_at(scheduler, 8) == [0.5]


def test_a_trial_stopped_by_hand_still_counts_at_its_rung() -> None:
    scheduler = build_scheduler(ASHA, [8, 24])
    scheduler.on_trial_add(None, TuneTrial("t0000"))
    scheduler.on_trial_complete(None, TuneTrial("t0000"), report(8, 0.5))  # Tune asks no scheduler then
    assert reaches(scheduler, "t0001", 8, 0.4) == STOP


def test_tune_may_name_metric_and_mode_again_but_not_others() -> None:
    scheduler = build_scheduler(ASHA, [8, 24])
    assert scheduler.metric == "objective"
    assert scheduler.set_search_properties("objective", "max", unknown="kept for later Ray versions")
    assert scheduler.set_search_properties(None, None)
    assert not scheduler.set_search_properties("accuracy", "max")
    assert not scheduler.set_search_properties("objective", "min")


def history(seed: int, trials: int, rungs: list[int]) -> list[tuple[str, str, int, float]]:
    """What happens in a sweep with four trials at a time: (event, trial id, step, objective), decisions left out."""
    live: dict[str, list[int]] = {}
    draw, done, happened = random.Random(seed), 0, []
    while done < trials or live:
        if done < trials and len(live) < 4:
            name = f"t{done:04d}"
            live[name], done = [*rungs], done + 1
            happened.append(("ask", name, 0, 0.0))
            continue
        name = draw.choice(sorted(live))
        happened.append(("rung", name, live[name].pop(0), draw.choice([draw.random(), draw.random(), math.nan])))
        if not live[name]:
            del live[name]
    return happened


def step_through(
    scheduler: Any, happened: list[tuple[str, str, int, float]], tune_run: str
) -> tuple[list[Any], list[str]]:
    """Feed a history to a scheduler as Tune does. Returns the log's records and the decisions."""
    records: list[Any] = []
    decisions: list[str] = []
    stopped: set[str] = set()
    for event, name, step, objective in happened:
        if name in stopped:
            decisions.append("gone")
            continue
        trial = TuneTrial(name, f"{tune_run}-{name}")
        scheduler.on_trial_add(None, trial)
        record = {"event": event, "trial_id": name, **report(step, objective)}
        if event == "rung":
            decision = scheduler.on_trial_result(None, trial, report(step, objective))
            decisions.append(decision)
            records.append(record)
            if decision == STOP or step == 48:
                scheduler.on_trial_complete(None, trial, report(step, objective))
                stopped.add(name)
                state = "completed" if step == 48 else "stopped_early"
                records.append({**record, "event": "tell", "state": state})
        else:
            decisions.append("asked")
            records.append(record)
    return records, decisions


MEDIAN = {"_target_": "ray.tune.schedulers.MedianStoppingRule", "grace_period": 6}


@pytest.mark.parametrize("kind", ["asha", "asha, two brackets", "median"])
@pytest.mark.parametrize("cut", [7, 40, 75])
def test_after_a_replay_every_decision_equals_that_of_an_undisturbed_scheduler(kind: str, cut: int) -> None:
    rungs = [6, 12, 20, 24, 48]  # 20 is no milestone: an unfinished trial must not be counted at 12 a second time
    config = {**ASHA, "grace_period": 6, "reduction_factor": 2, "brackets": 1 + ("two" in kind)}
    config = MEDIAN if kind == "median" else config
    happened = history(3, 30, rungs)

    np.random.seed(1)
    whole = build_scheduler(config, rungs)
    _, expected = step_through(whole, happened, "undisturbed")
    assert expected.count(STOP) >= 5

    np.random.seed(4)  # its first number would draw another bracket than that of 1
    before = build_scheduler(config, rungs)
    records, first = step_through(before, happened[:cut], "first")
    after = build_scheduler(config, rungs)
    replay_scheduler(after, records)
    stopped = {record["trial_id"] for record in records if record["event"] == "tell"}
    rest = [event for event in happened[cut:] if event[1] not in stopped]
    _, second = step_through(after, rest, "second")
    gone_too = [("gone" if event[1] in stopped else None) for event in happened[cut:]]
    remaining = iter(second)
    assert first + [mark or next(remaining) for mark in gone_too] == expected
    brackets = [scheduler.inner._brackets if kind != "median" else [] for scheduler in (whole, after)]
    for bracket_whole, bracket_after in zip(*brackets, strict=True):
        assert bracket_whole._rungs == bracket_after._rungs


def test_drawing_a_bracket_leaves_numpys_global_generator_alone() -> None:
    np.random.seed(0)
    expected = np.random.random()
    np.random.seed(0)
    build_scheduler({**ASHA, "brackets": 2}, [8, 24]).on_trial_add(None, StandIn("t0000"))
    assert np.random.random() == expected


def test_the_keywords_that_are_refused_early_are_those_of_the_classes() -> None:
    classes = (AsyncHyperBandScheduler, MedianStoppingRule, TPESampler, GPSampler, RandomSampler)
    known = {
        cls.__name__.replace("AsyncHyperBand", "ASHA"): tuple(inspect.signature(cls).parameters) for cls in classes
    }
    assert known == KEYWORDS
