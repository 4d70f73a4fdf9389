"""Where a search starts: known points, and earlier sweeps whose trials it knows."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from analysis.effective_rate import effective_rate
from analysis.errors import ConfigError
from analysis.folder import MetricsRow, State, Status, SweepFolder, read_lines
from analysis.objective import Objective
from sweeps.compose.compose import compose
from sweeps.search.scheduler import build_sampler
from sweeps.search.searcher import GuardedOptunaSearch, SearchPlan
from sweeps.search.warm_start import carried_over, to_carry
from sweeps.space.dimensions import Choices, DefineByRun, Space, Uniform
from sweeps.space.known_points import BaseModel, RatePoint, placed, portfolio
from tests.benchmarks.lr_rank_grid import models
from tests.benchmarks.search_grid import learnt
from trainer.config import LoraSettings
from trainer.models.lora import scaling

SPACE: Space = {
    "lora.rank": Choices((4, 32)),
    "lora.targets": Choices(("attention", "all_linear")),
    "optim.lr": Uniform(3e-4, 1e-2, log=True),
}
RATE: Space = {"optim.lr": SPACE["optim.lr"]}


def lora(rule: str = "fixed") -> Any:
    """Settings of an adapter whose alpha is 16, 2 · rank or 6 · √rank, as by default."""
    values = {"fixed": 16.0, "ratio": 2.0, "sqrt": 6.0}

    def settings(given: Any) -> LoraSettings:
        kind = given.get("lora.alpha_rule", rule)
        return LoraSettings(rank=given.get("lora.rank", 8), alpha_rule=kind, alpha_value=values[kind])

    return settings


def test_a_known_point_has_the_spaces_nearest_rank_and_the_rate_that_its_alpha_asks_for() -> None:
    (values,) = placed([RatePoint(1e-3, 64)], SPACE, lora())  # rank 32 is the nearest; alpha 16: twice the rate of 32
    assert values == {"lora.rank": 32, "lora.targets": "all_linear", "optim.lr": 2e-3}
    rules: Space = {"lora.rank": Choices((64,)), "lora.alpha_rule": Choices(("fixed", "ratio", "sqrt")), **RATE}
    (values,) = placed([RatePoint(1e-3, 64)], rules, lora())
    assert (values["lora.alpha_rule"], values["optim.lr"]) == ("sqrt", pytest.approx(1e-3 * 32 / 48, rel=2e-3))
    (values,) = placed([RatePoint(2e-4, 64)], rules, lora())  # below the range with sqrt and ratio
    assert (values["lora.alpha_rule"], values["optim.lr"]) == ("fixed", pytest.approx(4e-4))


def test_a_known_point_that_a_space_does_not_hold_is_left_out_and_so_are_all_without_a_rate() -> None:
    assert placed([RatePoint(1e-5, 8), RatePoint(1e-3, 8)], SPACE, lora()) == placed(
        [RatePoint(1e-3, 8)], SPACE, lora()
    )
    assert placed([RatePoint(1e-3, 8)], {"lora.rank": SPACE["lora.rank"]}, lora()) == []


def test_effective_rate_is_the_adapters_own_scaling() -> None:
    for rule, value in (("fixed", 16.0), ("ratio", 2.0), ("sqrt", 6.0)):
        settings = LoraSettings(rank=8, alpha_rule=rule, alpha_value=value)
        alpha, rslora = scaling(settings)
        assert effective_rate(1.0, rule, value, 8) * 32 == pytest.approx(8 * alpha / (8**0.5 if rslora else 8))


def test_narrow_models_get_higher_rates_by_the_published_rule() -> None:
    plain, narrow = portfolio(BaseModel(4096, "llama")), portfolio(BaseModel(512, "llama"))
    assert [it.rate for it in portfolio(BaseModel())] == [it.rate for it in plain]
    assert narrow[0].rate / plain[0].rate == pytest.approx(4**0.781)
    assert portfolio(BaseModel(1024, "qwen3"))[0].rate / plain[0].rate == pytest.approx(2**0.0775)
    assert len(narrow) == len(plain)


def test_the_portfolio_is_what_the_published_grid_teaches() -> None:
    assert [RatePoint(it.rate, it.rank) for it in portfolio(BaseModel())] == learnt(list(models()))


@pytest.mark.parametrize("space", ["default", "wide", "qlora", "learning_rate", "optimizer", "targets"])
def test_the_portfolio_comes_first_by_default_in_every_shipped_space(space: str) -> None:
    composed = compose([f"space={space}"])
    assert 3 <= len(composed.start) <= 4
    assert all(composed.space[path].holds(value) for point in composed.start for path, value in point.items())
    assert compose([f"space={space}", "search.trials=2"]).start == composed.start[:2]
    assert compose([f"space={space}", "search.start_from=[]"]).start == []


def test_a_known_point_that_breaks_a_constraint_or_asks_too_much_of_the_machine_stands_in_nobodys_way() -> None:
    composed = compose(["space_constraints=['optim.lr < 1e-3']"])
    assert composed.start
    assert all(point["optim.lr"] < 1e-3 for point in composed.start)
    assert compose([]).on_machine(["fp32"]).start == compose([]).start


def test_given_points_come_before_the_portfolio_and_keep_their_place() -> None:
    composed = compose(["search.start_from=[{optim.lr: 1e-3},portfolio]", "search.trials=3"])
    assert composed.start[0] == {"optim.lr": 1e-3}
    assert composed.start[1:] == compose([]).start[:2]


@pytest.mark.parametrize("given", ["[portfolo]", "[3]", "portfol"])
def test_an_unknown_name_is_refused_with_the_nearest(given: str) -> None:
    with pytest.raises(ConfigError, match=r"search.start_from\[0\].*portfolio"):
        compose([f"search.start_from={given}"])


def earlier(root: Path, name: str, trials: list[dict[str, Any]], searched: list[str]) -> str:
    folder = SweepFolder(root / name)
    folder.root.mkdir(parents=True)
    folder.sweep_file.write_text(yaml.safe_dump({"space": {path: {} for path in searched}}))
    for number, it in enumerate(trials):
        files = folder.trial(it.get("id", f"t{number:04d}"))
        files.root.mkdir(parents=True)
        config = {
            "lora": {"rank": it.get("rank", 4), "targets": it.get("targets", "attention")},
            "optim": {"lr": it.get("lr", 1e-3), "schedule": it.get("schedule", "linear")},
        }
        files.config_file.write_text(yaml.safe_dump(config))
        files.write_status(Status(it.get("state", State.COMPLETED), "", 8, ""))
        for step, accuracy in it.get("rungs", {4: 0.5, 8: 0.6}).items():
            files.append_metrics(MetricsRow(files.trial_id, step, 0, 0.0, False, 9, {"accuracy": accuracy}))
    return str(folder.root)


NOW = {"lora": {"rank": 8, "targets": "attention", "dropout": 0.0}, "optim": {"lr": 1e-3, "schedule": "linear"}}


ACCURACY = Objective.from_config(
    {
        "name": "single",
        "rho": 0.0,
        "terms": {"quality": {"metric": "accuracy", "direction": "max", "range": [0.0, 1.0]}},
    }
)


def test_what_fits_an_earlier_sweep_is_carried_over_and_what_does_not_is_named(tmp_path: Path) -> None:
    run = earlier(
        tmp_path,
        "first",
        [
            {"rank": 4, "targets": "all_linear"},
            {"rank": 32, "lr": 5e-3, "state": State.STOPPED_EARLY, "rungs": {4: 0.3}, "schedule": "cosine"},
            {"rank": 16},
            {"lr": 0.5},
            {"state": State.DIVERGED},
            {"rungs": {4: float("nan")}},
        ],
        ["lora.rank"],
    )
    found, (note,) = carried_over([run], SPACE, NOW, ACCURACY)
    assert [(it.source, it.completed, it.objective) for it in found] == [
        (f"{run}/t0000", True, pytest.approx(0.6)), (f"{run}/t0001", False, pytest.approx(0.3)),
    ]  # fmt: skip
    assert found[0].values == {"lora.rank": 4, "lora.targets": "all_linear", "optim.lr": 1e-3}
    assert "2 of 6 trials" in note
    for words in ("lora.rank=16 is outside", "optim.lr=0.5 is outside", "diverged (1)", "was not measured"):
        assert words in note
    assert "differ: optim.schedule" in note


def test_a_key_that_was_searched_there_and_is_fixed_here_must_have_its_value(tmp_path: Path) -> None:
    run = earlier(tmp_path, "first", [{"targets": "attention"}, {"targets": "all_linear"}], ["lora.targets"])
    space = {path: it for path, it in SPACE.items() if path != "lora.targets"}
    found, (note,) = carried_over([run], space, NOW, ACCURACY)
    assert [it.source for it in found] == [f"{run}/t0000"]
    assert "lora.targets=all_linear there, attention here (1)" in note


def test_of_several_seeds_the_mean_is_carried_over_once(tmp_path: Path) -> None:
    run = earlier(
        tmp_path,
        "first",
        [
            {"id": "t0000", "rungs": {4: 0.5, 8: 0.6}},
            {"id": "t0000.1", "rungs": {4: 0.9, 8: 0.8}},
            {"id": "t0000.2", "state": State.FAILED, "rungs": {4: 0.1}},
            {"id": "t0001", "rungs": {4: 0.95}},
            {"id": "t0001.1", "state": State.DIVERGED, "rungs": {}},
        ],
        ["lora.rank", "seed"],
    )
    (found,), (note,) = carried_over([run], SPACE, NOW, ACCURACY)
    assert (found.source, found.completed, found.rungs) == (f"{run}/t0000", True, {4: 0.5, 8: 0.6})
    assert found.objective == pytest.approx(0.75)
    assert found.losses == (pytest.approx(0.25),)
    assert "1 of 2 trials" in note
    assert "diverged (1)" in note
    root = tmp_path / "new"
    root.mkdir()
    made = search(root, [found])
    made.suggest("a")
    (line,) = [it for it in read_lines(SweepFolder(root).asks_file) if it["event"] == "warm"]
    assert line["objective"] == pytest.approx(0.75)
    assert made._study.trials[0].value == pytest.approx(0.75)


def test_a_sweep_of_which_nothing_fits_is_refused(tmp_path: Path) -> None:
    run = earlier(tmp_path, "first", [{"rank": 16}], ["lora.rank"])
    with pytest.raises(ConfigError, match=r"nothing of .*first fits.*lora.rank=16 is outside the space \(1 trials\)"):
        carried_over([run], SPACE, NOW, ACCURACY)


def search(root: Path, warm: Any) -> Any:
    made = GuardedOptunaSearch(
        DefineByRun(SPACE),
        build_sampler({"_target_": "optuna.samplers.TPESampler", "n_startup_trials": 3}, 0),
        SweepFolder(root),
        SearchPlan(trials=20, warm=warm),
    )
    records = list(read_lines(SweepFolder(root).asks_file))
    if records:
        made.replay(records)
    return made


def test_the_sampler_knows_earlier_trials_at_once_and_a_resume_needs_no_old_folder(tmp_path: Path) -> None:
    trials = [{"rank": 32, "lr": 10 ** (-3.5 + 0.15 * k), "rungs": {8: 1 - abs(k - 3) / 4}} for k in range(10)]
    run = earlier(tmp_path, "first", trials, [])
    warm, _ = carried_over([run], SPACE, NOW, ACCURACY)
    warmed, cold = search(tmp_path / "warmed", warm), search(tmp_path / "cold", [])
    near = dict.fromkeys(("warmed", "cold"), 0)
    for name, made in (("warmed", warmed), ("cold", cold)):
        for k in range(6):
            point = made.suggest(str(k))
            assert point["trial_id"] == f"t{k:04d}"  # earlier trials take none of the names
            near[name] += 5e-4 < point["values"]["optim.lr"] < 2e-3
            if k < 5:
                made.on_trial_complete(str(k), {"step": 8, "objective": 0.1, "state": "completed"})
    assert near["warmed"] > near["cold"]
    told = [trial.state.name for trial in warmed._study.trials]
    assert told == ["COMPLETE"] * 15 + ["RUNNING"]
    assert warmed._study.trials[3].user_attrs["source"] == f"{run}/t0003"

    records = list(read_lines(SweepFolder(tmp_path / "warmed").asks_file))
    config = compose([f"search.warm_start=[{run}/]"]).config
    assert to_carry(records, config) == []
    again = search(tmp_path / "warmed", [])
    assert [t.state.name for t in again._study.trials] == ["COMPLETE"] * 15 + ["WAITING"]
    plain = [(t.params, t.values, t.intermediate_values) for t in again._study.trials[:15]]
    assert plain == [(t.params, t.values, t.intermediate_values) for t in warmed._study.trials[:15]]
    assert again.suggest("5")["trial_id"] == "t0005"
    again.on_trial_complete("5", {"step": 8, "objective": 0.1, "state": "completed"})
    warmed.on_trial_complete("5", {"step": 8, "objective": 0.1, "state": "completed"})
    assert again.suggest("6") == warmed.suggest("6")
    assert search(tmp_path / "warmed", warm)._warm == []
