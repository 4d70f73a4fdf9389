"""Every shipped sampler and scheduler runs a short sweep, and goes on after any death as if nothing had happened."""

import functools
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.samplers import RandomSampler

from analysis.errors import ConfigError
from analysis.folder import SweepFolder, read_lines
from sweeps.compose import conf_tree
from sweeps.compose.compose import compose
from sweeps.search.samplers import reseed
from sweeps.search.scheduler import build_sampler, build_scheduler
from sweeps.space.dimensions import Choices, Space, Uniform
from sweeps.space.grid import combinations, gridded, on_grid, size_note
from tests.sweeps.loop import Loop, TuneTrial

RUNGS = [4, 8, 16, 32]
SPACE: Space = {
    "lora.rank": Choices((4, 8, 16, 32)),
    "lora.alpha_rule": Choices(("fixed", "ratio")),
    "lora.alpha_value": Uniform(4.0, 64.0, log=True, when={"lora.alpha_rule": ("fixed",)}),
    "optim.lr": Uniform(1e-5, 1e-1, log=True),
}
GRID = gridded(SPACE, 3)


@functools.cache
def shipped(group: str, option: str) -> dict[str, Any]:
    rungs = f"train.rungs=[{','.join(map(str, RUNGS))}]"
    space = ["space=optimizer"] if option == "pbt" else []
    config = compose([f"{group}={option}", f"train.max_steps={RUNGS[-1]}", rungs, *space]).config
    return dict(getattr(config, group))


def curve(values: Mapping[str, Any], step: int) -> float | str:
    """Best at 1e-3; diverges above 3e-2; runs out of memory at rank 32 with a small alpha."""
    off = abs(math.log10(values["optim.lr"]) + 3)
    if values["optim.lr"] > 3e-2 and step > 4:
        return "diverged"
    if values["lora.rank"] == 32 and values.get("lora.alpha_value", 64) < 6:
        return "out_of_memory"
    return (1 - 0.3 * off + 0.01 * math.log2(values["lora.rank"])) * (1 - step**-0.5)


def sweep(root: Path, sampler: str = "tpe", scheduler: str = "asha", **options: Any) -> Loop:
    space = GRID if sampler == "grid" else SPACE
    given = {"trials": 14, "concurrent": 3, **options}
    return Loop(root, space, curve, RUNGS, shipped("sampler", sampler), shipped("scheduler", scheduler), **given)


SAMPLERS = conf_tree.groups()["sampler"]
SCHEDULERS = conf_tree.groups()["scheduler"]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_shipped_sampler_runs_a_sweep_with_conditions(tmp_path: Path, sampler: str) -> None:
    done = sweep(tmp_path, sampler).run()
    assert sorted(trial.trial_id for trial in done.ended) == [f"t{n:04d}" for n in range(14)]
    for trial in done.ended:
        assert ("lora.alpha_value" in trial.values) == (trial.values["lora.alpha_rule"] == "fixed")
    told = Counter(trial.state.name for trial in done.search._study.trials)
    assert told["RUNNING"] == 0
    assert told["COMPLETE"] >= 1


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_shipped_scheduler_runs_a_sweep(tmp_path: Path, scheduler: str) -> None:
    done = sweep(tmp_path, "random", scheduler, trials=24, concurrent=4).run()
    ends = Counter(trial.state for trial in done.ended)
    assert sum(ends.values()) == 24
    assert ends["completed"] >= 2
    if scheduler in ("asha", "median"):
        assert ends["stopped_early"] >= 5
        cut = [t.objective for t in done.ended if t.state == "stopped_early"]
        assert max(t.objective for t in done.ended if t.state == "completed") > max(cut)
    else:
        assert ends["stopped_early"] == 0


def asked(root: Path) -> list[tuple[str, dict[str, Any]]]:
    seen: dict[str, dict[str, Any]] = {}
    for line in read_lines(SweepFolder(root).asks_file):
        if line["event"] == "ask":
            assert seen.setdefault(line["trial_id"], line["values"]) == line["values"]
    return sorted(seen.items())


def answers(root: Path) -> list[tuple[Any, ...]]:
    """Rungs and ends in their order; what is repeated after a death is there once."""
    lines = [line for line in read_lines(SweepFolder(root).asks_file) if line["event"] in ("rung", "tell")]
    return [(line["event"], line["trial_id"], line["step"], line["objective"], line["state"]) for line in lines]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_resumed_search_suggests_what_an_undisturbed_one_would(tmp_path: Path, sampler: str) -> None:
    """One trial at a time, the driver dies every 19 rungs; NSGA-II is then in its third generation."""
    trials = 28 if sampler == "nsga2" else 12
    scheduler = "asha" if sampler == "tpe" else "fifo"
    sweep(tmp_path / "whole", sampler, scheduler, trials=trials, concurrent=1).run()
    expected = asked(tmp_path / "whole")
    assert len(expected) == trials
    while len(asked(tmp_path / "cut")) < trials:
        np.random.seed(len(asked(tmp_path / "cut")))
        sweep(tmp_path / "cut", sampler, scheduler, trials=trials, concurrent=1).run(rungs=19)
    sweep(tmp_path / "cut", sampler, scheduler, trials=trials, concurrent=1).run()
    assert asked(tmp_path / "cut") == expected
    assert answers(tmp_path / "cut") == answers(tmp_path / "whole")


def test_generations_of_trials_side_by_side_are_the_same_after_a_death(tmp_path: Path) -> None:
    """A generation's parents are chosen once, among those that had completed then, and are written down."""
    search = sweep(tmp_path, "nsga2", "fifo", trials=40, concurrent=6)
    search.run(rungs=115)
    parents = {k: v for k, v in search.search._study_attrs().items() if "parent" in k}
    assert parents
    again = sweep(tmp_path, "nsga2", "fifo", trials=40, concurrent=6)
    assert {k: v for k, v in again.search._study_attrs().items() if "parent" in k} == parents


def test_median_stopping_compares_at_equal_steps_with_the_running_and_never_pauses() -> None:
    median = build_scheduler({**shipped("scheduler", "median"), "keep_best": 0}, RUNGS)

    def reaches(name: str, step: int, score: float) -> str:
        trial = TuneTrial(name, {"trial_id": name, "values": {}})
        median.on_trial_add(None, trial)
        decision: str = median.on_trial_result(None, trial, {"step": step, "objective": score, "state": "running"})
        return decision

    # Tune is not asked which trials wait, which is what pausing would need: the controller is None
    assert [reaches(f"t{k}", 4, score) for k, score in enumerate([0.5, 0.4, 0.6])] == ["CONTINUE"] * 3
    assert reaches("t2", 8, 0.9) == "CONTINUE"  # what the others score later must not count at step 4
    assert reaches("t3", 4, 0.49) == "STOP"  # below 0.5, the median of three that still run
    assert reaches("t4", 4, 0.55) == "CONTINUE"


def test_a_grid_makes_ranges_finite_and_counts_combinations_with_conditions() -> None:
    assert GRID["optim.lr"] == Choices((1e-5, 1e-3, 1e-1))
    assert GRID["lora.alpha_value"].when == {"lora.alpha_rule": ("fixed",)}
    points = [tuple(point.items()) for point in combinations(GRID)]
    assert len(points) == len(set(points)) == 4 * (3 + 1) * 3
    grid = {"_target_": "sweeps.search.samplers.GridSampler", "points": 3}
    assert on_grid(SPACE, grid) == GRID
    assert "48 combinations, of which search.trials=20" in size_note(GRID, grid, lambda values: True, 20)
    assert "24 combinations: the sweep ends" in size_note(GRID, grid, lambda values: values["lora.rank"] < 16, 48)
    assert gridded({"x": Uniform(1, 4, integer=True)}, 9)["x"] == Choices((1, 2, 3, 4))
    when = {"b": Uniform(0.1, 0.9), "a": Choices((1,), when={"b": (0.3,)})}
    with pytest.raises(ConfigError, match=r"a is searched when b is 0.3, which is not on the grid"):
        gridded(when, 3)


def test_a_grid_tries_every_combination_once_and_ends_the_sweep(tmp_path: Path) -> None:
    done = sweep(tmp_path, "grid", "asha", trials=100, concurrent=4).run()
    tried = Counter(tuple(sorted(trial.values.items())) for trial in done.ended)
    assert set(tried.values()) == {1}
    assert set(tried) == {tuple(sorted(point.items())) for point in combinations(GRID)}


def test_a_forbidden_point_never_becomes_a_trial_and_is_written_down(tmp_path: Path) -> None:
    def allowed(values: Mapping[str, Any]) -> bool:
        return values["lora.rank"] < 32 and values["optim.lr"] < 1e-2

    for sampler in ("tpe", "grid"):
        root = tmp_path / sampler
        options = {"search_options": {"allowed": allowed, "start_from": [{"optim.lr": 1e-3}]}, "concurrent": 1}
        done = sweep(root, sampler, "fifo", trials=9, **options).run()
        assert len(done.ended) == 9
        assert all(allowed(trial.values) for trial in done.ended)
        assert done.ended[0].values["optim.lr"] == 1e-3
        rejected = [line for line in read_lines(SweepFolder(root).asks_file) if line["event"] == "reject"]
        assert rejected
        assert not any(allowed(line["values"]) or line["trial_id"] for line in rejected)
        sweep(root / "cut", sampler, "fifo", trials=9, **options).run(rungs=21)
        sweep(root / "cut", sampler, "fifo", trials=9, **options).run()
        assert asked(root / "cut") == asked(root)


class Stubborn(RandomSampler):
    """Suggests one learning rate for ever, as GP does with the place that its model likes best."""

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        drawn = super().sample_independent(study, trial, param_name, param_distribution)
        return 1e-3 if param_name == "optim.lr" else drawn


def test_a_sampler_that_insists_on_a_forbidden_point_gets_one_that_is_drawn(tmp_path: Path) -> None:
    def allowed(values: Mapping[str, Any]) -> bool:
        return bool(values["optim.lr"] < 1e-4)

    fifo = {"_target_": "ray.tune.schedulers.FIFOScheduler"}
    done = Loop(
        tmp_path, SPACE, curve, RUNGS, shipped("sampler", "random"), fifo, 4, search_options={"allowed": allowed}
    )
    done.search._own_sampler = done.search._study.sampler = Stubborn()
    done.run()
    assert len(done.ended) == 4
    assert all(allowed(trial.values) for trial in done.ended)


def test_gp_forgets_its_last_fit_which_a_resumed_search_does_not_have() -> None:
    sampler: Any = build_sampler(shipped("sampler", "gp"), 0)
    sampler._gprs_cache_list = sampler._constraints_gprs_cache_list = ["a fit"]
    reseed(sampler, 0, 1)
    assert sampler._gprs_cache_list is sampler._constraints_gprs_cache_list is None


def test_constraints_that_forbid_everything_are_an_error_not_a_loop(tmp_path: Path) -> None:
    search = sweep(tmp_path, "random", search_options={"allowed": lambda values: False})
    with pytest.raises(ConfigError, match="none is allowed"):
        search.run()
