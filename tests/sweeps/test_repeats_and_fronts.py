"""Several seeds, several objectives, and constraints: what the sampler is told, and again after a death."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search.search_generator import SearchGenerator
from ray.tune.utils import flatten_dict

from analysis.errors import ConfigError
from analysis.folder import SweepFolder, read_lines
from sweeps.compose.compose import compose
from sweeps.search.pacing import PacedSearch
from sweeps.search.scheduler import build_sampler
from sweeps.search.searcher import GuardedOptunaSearch, SearchPlan, names_one_class
from sweeps.space.dimensions import Choices, DefineByRun, Space, Uniform
from sweeps.store.manifest import make_manifest
from tests.sweeps.loop import Loop

RANDOM = {"_target_": "optuna.samplers.RandomSampler"}
TPE = {"_target_": "optuna.samplers.TPESampler", "n_startup_trials": 6, "multivariate": True, "group": True}
NSGA2 = {"_target_": "optuna.samplers.NSGAIISampler", "population_size": 6}
ASHA = {"_target_": "ray.tune.schedulers.ASHAScheduler", "grace_period": 4, "reduction_factor": 2}
FIFO = {"_target_": "ray.tune.schedulers.FIFOScheduler"}
SPACE: Space = {"optim.lr": Uniform(0.0, 1.0), "lora.dropout": Uniform(0.0, 0.9)}
RUNGS = [4, 8, 16]


def by_trial(root: Path, event: str) -> dict[str, Any]:
    return {line["trial_id"]: line for line in read_lines(SweepFolder(root).asks_file) if line["event"] == event}


# --- several seeds


def seeded(values: Mapping[str, Any], step: int) -> float | str:
    """Seeds differ by a tenth each; the third diverges where the dropout is high."""
    if values.get("seed") == 7 and values["lora.dropout"] > 0.3:
        return "diverged"
    return float(values["optim.lr"]) * step / 16 + 0.1 * (values.get("seed", 5) - 5)


def repeated(root: Path, scheduler: dict[str, Any] = ASHA, **more: Any) -> Loop:
    options = {"seeds": (5, 6, 7), **more}
    return Loop(root, SPACE, seeded, RUNGS, RANDOM, scheduler, 10, 3, search_options=options)


def test_a_configuration_that_completes_is_trained_with_every_seed_and_told_as_their_mean(tmp_path: Path) -> None:
    done = repeated(tmp_path).run()
    ended = {trial.trial_id: trial for trial in done.ended}
    means, tells = by_trial(tmp_path, "mean"), by_trial(tmp_path, "tell")
    firsts = {name for name in ended if "." not in name}
    assert sorted(firsts) == [f"t{n:04d}" for n in range(10)]
    completed = {name for name in firsts if ended[name].state == "completed"}
    assert 2 <= len(completed) < 10
    assert {name.split(".")[0] for name in ended if "." in name} == completed == set(means)
    seen = set()
    for name in completed:
        told = done.search._study.trials[int(name[1:])]
        for repeat, seed in ((1, 6), (2, 7)):
            other = ended[f"{name}.{repeat}"]
            assert other.values == {**ended[name].values, "seed": seed}
            assert other.state in ("completed", "diverged")  # never stopped by the scheduler
        diverges = ended[name].values["lora.dropout"] > 0.3
        seen.add(diverges)
        if diverges:
            assert (told.state.name, means[name]["told"]) == ("FAIL", "FAIL")
        else:
            assert told.value == pytest.approx(ended[name].objective + 0.1)
        assert tells[name]["told"] == "WAIT"
    assert seen == {True, False}
    for name in firsts - completed:
        assert tells[name]["told"] == "PRUNED"
    assert "RUNNING" not in [trial.state.name for trial in done.search._study.trials]


def test_seeds_that_had_not_ended_when_the_driver_died_are_trained_and_no_other_again(tmp_path: Path) -> None:
    repeated(tmp_path / "whole", FIFO).run()
    rungs, ran = 0, []
    while not ran or ran[-1].ended:
        ran.append(repeated(tmp_path / "cut", FIFO).run(rungs=11 + rungs % 3))
        rungs += 1
        assert rungs < 30
    ended = [trial.trial_id for loop in ran for trial in loop.ended]
    assert sorted(ended) == sorted(set(ended)) == sorted(by_trial(tmp_path / "whole", "tell"))
    for event in ("mean", "ask"):
        whole, cut = (by_trial(tmp_path / name, event) for name in ("whole", "cut"))
        assert {k: (v["values"], v["objective"]) for k, v in cut.items()} == {
            k: (v["values"], v["objective"]) for k, v in whole.items()
        }


def test_a_grid_that_is_used_up_still_has_its_last_points_trained_with_every_seed(tmp_path: Path) -> None:
    grid = {"_target_": "sweeps.search.samplers.GridSampler"}
    space: Space = {"optim.lr": Choices((0.2, 0.4)), "lora.dropout": Choices((0.0, 0.1))}
    done = Loop(tmp_path, space, seeded, RUNGS, grid, FIFO, 50, 3, search_options={"seeds": (5, 6)}).run()
    assert sorted(it.trial_id for it in done.ended) == sorted(f"t000{n}{s}" for n in range(4) for s in ("", ".1"))
    assert [trial.state.name for trial in done.search._study.trials].count("COMPLETE") == 4


def test_the_seed_is_a_column_of_the_leaderboard() -> None:
    manifest = make_manifest(compose(["search.repeats=3", "seed=5"]), {"fingerprint": "f"}, [])
    assert manifest["space"]["seed"]["values"] == (5, 6, 7)
    assert "seed" not in make_manifest(compose([]), {"fingerprint": "f"}, [])["space"]


def test_seeds_cannot_be_repeated_and_searched_at_once_nor_in_a_population() -> None:
    with pytest.raises(ConfigError, match=r"search.repeats=3 .*space.seed"):
        compose(["search.repeats=3", "seed=choice(1,2)"])
    with pytest.raises(ConfigError, match=r"search.repeats=2 must be 1"):
        compose(["search.repeats=2", "scheduler=pbt", "space=optimizer"])


# --- several objectives, and constraints


def search(root: Path, sampler: dict[str, Any], seed: int = 0, **more: Any) -> Any:
    made = GuardedOptunaSearch(
        DefineByRun(SPACE), build_sampler(sampler, seed), SweepFolder(root), SearchPlan(40, seed, **more)
    )
    if records := list(read_lines(SweepFolder(root).asks_file)):
        made.replay(records)
    return made


def play(made: Any, tune_id: str) -> dict[str, Any]:
    """Two losses that pull the learning rate in two directions, both worse with dropout; every fifth is stopped."""
    point: dict[str, Any] = made.suggest(tune_id)
    x, p = point["values"]["optim.lr"], point["values"]["lora.dropout"]
    losses = [(x - 0.2) ** 2 + p, (x - 0.6) ** 2 + p]
    made.on_trial_result(tune_id, {"step": 4, "objective": -sum(losses), "state": "running", "losses": []})
    if int(point["trial_id"][1:]) % 5 == 4:
        made.on_trial_complete(tune_id, {"step": 8, "objective": -sum(losses), "state": "running", "losses": []})
    else:
        end = {"step": 16, "objective": -sum(losses), "state": "completed", "losses": losses, "metrics": {"lr": x}}
        made.on_trial_complete(tune_id, end)
    return point


@pytest.mark.parametrize("sampler", [TPE, NSGA2], ids=["tpe", "nsga2"])
def test_a_study_of_several_objectives_is_told_every_loss_and_goes_on_exactly(
    tmp_path: Path, sampler: dict[str, Any]
) -> None:
    whole = search(tmp_path / "whole", sampler, objectives=2)
    points = [play(whole, str(k)) for k in range(24)]
    assert [direction.name for direction in whole._study.directions] == ["MINIMIZE", "MINIMIZE"]
    told = whole._study.trials
    assert all(len(trial.values) == 2 for trial in told if trial.state.name == "COMPLETE")
    assert [trial.state.name for trial in told].count("PRUNED") == 4
    late = [point["values"]["lora.dropout"] for point in points[14:]]
    assert sum(late) / len(late) < 0.4  # at random it would be 0.45
    front = {trial.number for trial in whole._study.best_trials}
    assert len(front) >= 2
    got = []
    while len(got) < 24:
        cut = search(tmp_path / "cut", sampler, objectives=2)
        got += [play(cut, str(k)) for k in range(5)][: 24 - len(got)]
    assert got == points
    assert {t.number for t in search(tmp_path / "whole", sampler, objectives=2)._study.best_trials} == front


def test_tune_asks_reports_for_the_one_number_and_no_loss_of_its_own(tmp_path: Path) -> None:
    made = PacedSearch(search(tmp_path, TPE, objectives=3), lambda: 2)
    assert (SearchGenerator(made).metric, made.mode) == ("objective", "max")
    assert len(made.inner._study.directions) == 3


def test_constraints_reach_the_sampler_which_keeps_to_where_they_hold(tmp_path: Path) -> None:
    """Quality grows with the learning rate; what is above 0.5 is forbidden by a constraint on a metric."""

    def inside(name: str, **more: Any) -> int:
        made, kept = search(tmp_path / name, TPE, **more), 0
        for k in range(40):
            x = made.suggest(str(k))["values"]["optim.lr"]
            kept += k >= 20 and x <= 0.55
            end = {"step": 16, "objective": x, "state": "completed", "losses": [1 - x], "metrics": {"bias": x}}
            made.on_trial_complete(str(k), end)
        return kept

    def violated(metrics: Mapping[str, float], final: bool) -> dict[str, float]:
        return {"bias": metrics["bias"] - 0.5}

    assert inside("bound", violated=violated) > inside("free") + 5
    again = search(tmp_path / "bound", TPE, violated=violated)
    for trial in again._study.trials:
        assert trial.constraints == {"bias": pytest.approx(trial.value - 0.5)}


def test_a_constraint_whose_figure_is_not_known_counts_as_violated_and_a_failure_has_none(tmp_path: Path) -> None:
    made = search(tmp_path, RANDOM, violated=lambda metrics, final: {"bias": math.inf})
    for name, state in (("a", "completed"), ("b", "diverged")):
        made.suggest(name)
        made.on_trial_complete(name, {"step": 16, "objective": 0.5, "state": state, "metrics": {}})
    assert [trial.constraints for trial in made._study.trials] == [{"bias": 1.0}, {}]


def test_one_class_is_seen_in_a_report_as_tune_hands_it_on() -> None:
    report = {"step": 2, "metrics": {"accuracy": 0.5, "classes_predicted": 1.0}}
    assert names_one_class(report)
    assert names_one_class(flatten_dict(report))
    assert not names_one_class(flatten_dict(report | {"metrics": {"classes_predicted": 2.0}}))


def test_the_sampler_s_constraints_know_on_which_rows_a_trial_was_scored(tmp_path: Path) -> None:
    """A completed trial on all of them; one that was stopped early on those of a rung, as its baseline is."""
    made = search(tmp_path, RANDOM, violated=lambda metrics, final: {"bias": metrics["bias"] - (0.5 if final else 0.7)})
    for name, state in (("a", "completed"), ("b", "stopped_early")):
        made.suggest(name)
        end = {"step": 16, "objective": 0.5, "state": state, "final": state == "completed", "metrics": {"bias": 0.6}}
        made.on_trial_complete(name, flatten_dict(end))  # as Tune does
    assert "metrics" not in flatten_dict(end)
    assert [trial.constraints["bias"] for trial in made._study.trials] == pytest.approx([0.1, -0.1])


def test_the_trial_reports_its_losses_at_its_best_rung(tmp_path: Path) -> None:
    from analysis.folder import MetricsRow, State, TrialFolder
    from analysis.objective import Objective
    from sweeps.driver.device_client import TrialPlacement
    from sweeps.driver.trial_proxy import TrialProxy
    from tests.sweeps.driver.fakes import FakeDispatcher
    from trainer.engine import Ended

    proxy: Any = TrialProxy.__new__(TrialProxy)
    proxy.objective = Objective.from_config(compose(["objective=pareto", "bias=none"]).resolved()["objective"])
    proxy.best_score, proxy.best_losses, proxy.asked_last = math.nan, [math.nan], ""
    proxy.trial = compose(["train.max_steps=48", "data.max_length=128", "precision=fp32"]).trial("t0000", {})
    proxy.placement = TrialPlacement(FakeDispatcher(), proxy.trial, TrialFolder(tmp_path))
    rows = [
        MetricsRow("t0000", step, 0, 0.0, False, 9, {"macro_f1": f1, "log_loss": 1.0})
        for step, f1 in ((4, 0.5), (8, 0.8), (16, 0.7))
    ]
    for row in rows:
        proxy._note_score(row)
    report = proxy._end_report(Ended("t0000", State.COMPLETED, "", 16, rows[1]), rows[2])
    assert report["losses"] == pytest.approx([0.2, 0.2])
