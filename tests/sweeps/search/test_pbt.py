"""Population based training: what is decided, whose weights a trial goes on from, and that a death changes nothing."""

import asyncio
import json
import math
import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from analysis.errors import ConfigError
from analysis.folder import State, SweepFolder, TrialFolder, read_lines
from analysis.objective import Objective
from sweeps.compose.compose import compose
from sweeps.driver.device_worker import DeviceWorker
from sweeps.search.lineage import exchanged_values, reconcile, record, take_over
from sweeps.search.pbt import PopulationBasedTraining, perturbed
from sweeps.search.pbt_exchange import Exchange
from sweeps.search.scheduler import build_sampler, build_scheduler, replay_scheduler
from sweeps.search.searcher import GuardedOptunaSearch, SearchPlan
from sweeps.space.dimensions import Choices, DefineByRun, Space, Uniform
from trainer.config import EngineConfig
from trainer.engine import Admitted, Ended, RungResult

RUNGS = [2, 4, 6]
PBT = {"_target_": "sweeps.search.pbt.PopulationBasedTraining", "quantile": 0.25, "seed": 3}
SPACE: Space = {"optim.lr": Uniform(1e-5, 1e-2, log=True), "optim.weight_decay": Choices((0.0, 0.01, 0.1))}


def population(**settings: Any) -> tuple[Any, list[Exchange]]:
    made: list[Exchange] = []
    scheduler = build_scheduler({**PBT, **settings}, RUNGS)
    scheduler.populate(SPACE, lambda decided: not made.append(decided))  # type: ignore[func-returns-value]
    return scheduler, made


def trials(n: int) -> list[Any]:
    values = [{"optim.lr": 1e-4 * (k + 1), "optim.weight_decay": 0.01} for k in range(n)]
    return [SimpleNamespace(trial_id=f"x{k}", config={"trial_id": f"t{k}", "values": values[k]}) for k in range(n)]


def populated(n: int, **settings: Any) -> tuple[Any, list[Exchange], list[Any]]:
    """A population of so many trials, what it decides, and the trials."""
    scheduler, made = population(**settings)
    several = trials(n)
    for trial in several:
        scheduler.on_trial_add(None, trial)
    return scheduler, made, several


def reach(scheduler: Any, trial: Any, step: int, score: float) -> None:
    result = {"step": step, "objective": score, "state": "running"}
    assert scheduler.on_trial_result(None, trial, result) == "CONTINUE"


def test_the_worst_take_up_the_best_once_all_are_at_the_rung_whoever_comes_first() -> None:
    seen = set()
    for seed in range(5):
        scheduler, made, eight = populated(8)
        order = random.Random(seed).sample(eight, 8)
        for trial in order[:-1]:
            reach(scheduler, trial, 2, int(trial.trial_id[1]) / 10)
        assert made == []
        reach(scheduler, order[-1], 2, int(order[-1].trial_id[1]) / 10)
        assert [it.trial_id for it in made] == ["t0", "t1"]
        assert {it.parent for it in made} <= {"t6", "t7"}
        for it in made:
            assert it.step == 2
            assert eight[int(it.trial_id[1])].config["values"] == it.new  # what Tune retries with
        seen.add(json.dumps([vars(it) for it in made]))
    assert len(seen) == 1


def test_perturbed_values_are_the_parents_times_a_factor_or_a_choice_beside_and_stay_in_the_space() -> None:
    ratios, decays = set(), set()
    for seed in range(60):
        scheduler, made, two = populated(2, seed=seed, resample=0.0, quantile=0.5)
        for trial, score in zip(two, (0.1, 0.9), strict=True):
            reach(scheduler, trial, 2, score)
        (it,) = made
        ratios.add(round(it.new["optim.lr"] / 2e-4, 6))
        decays.add(it.new["optim.weight_decay"])
    assert ratios == {0.8, 1.25}
    assert decays == {0.0, 0.1}
    drawn = []
    for seed in range(60):
        scheduler, made, two = populated(2, seed=seed, resample=1.0, quantile=0.5)
        for trial in two:
            reach(scheduler, trial, 2, float(trial.trial_id[1]))
        drawn.append(made[0].new["optim.lr"])
    assert min(drawn) < 1e-4
    assert max(drawn) > 1e-3
    assert all(SPACE["optim.lr"].holds(value) for value in drawn)


def test_a_trial_that_ended_or_has_gone_on_is_no_parent_and_the_last_to_end_lets_the_others_be_decided() -> None:
    scheduler, made, four = populated(4, quantile=0.5)
    reach(scheduler, four[3], 2, 0.9)
    reach(scheduler, four[3], 4, 0.95)
    reach(scheduler, four[0], 2, 0.1)
    reach(scheduler, four[2], 2, 0.5)
    assert made == []
    scheduler.on_trial_complete(None, four[1], {"step": 1, "objective": float("nan"), "state": "diverged"})
    assert [(it.trial_id, it.parent) for it in made] == []  # t3, the only one in the best half, has gone on
    reach(scheduler, four[0], 4, 0.1)
    reach(scheduler, four[2], 4, 0.6)
    assert [(it.trial_id, it.parent) for it in made] == [("t0", "t3")]


def test_a_replayed_population_decides_what_is_open_and_nothing_twice() -> None:
    scheduler, made = population(quantile=0.5)
    four = trials(4)
    lines: list[dict[str, Any]] = []
    for trial in four:
        scheduler.on_trial_add(None, trial)
        lines.append({"event": "ask", "trial_id": trial.config["trial_id"], "values": dict(trial.config["values"])})
    for k, trial in enumerate(four):
        lines.append({
            "event": "rung", "trial_id": f"t{k}", "values": dict(trial.config["values"]),
            "step": 2, "objective": k / 10, "state": "running",
        })  # fmt: skip
        reach(scheduler, trial, 2, k / 10)
    assert [it.trial_id for it in made] == ["t0", "t1"]
    assert scheduler.inner._values["t0"] == made[0].new, "what its next exchange begins from"
    first = {"event": "perturb", "trial_id": "t0", "values": made[0].new, "step": 2}
    again, after = population(quantile=0.5)
    again.inner.exchange = None
    replay_scheduler(again, [*lines[:-1], first])  # the driver died between the two, t3's rung was not written down
    again.populate(SPACE, lambda decided: not after.append(decided))  # type: ignore[func-returns-value]
    for trial in trials(4):
        again.on_trial_add(None, trial)
    reach(again, trials(4)[3], 2, 0.3)
    assert after == made[1:]
    assert again.inner._values["t0"] == made[0].new


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["scheduler=pbt"], ["lora.rank", "space=optimizer"]),
        (["scheduler=pbt", "space=precision"], ["precision"]),
    ],
)
def test_a_space_whose_trials_could_not_share_weights_is_refused(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        compose(overrides)
    for word in words:
        assert word in str(refused.value)
    with pytest.raises(ConfigError, match="quantile"):
        build_scheduler({**PBT, "quantile": 0.7}, RUNGS)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"quantile": 0.0}, "quantile"), ({"quantile": 0.51}, "quantile"), ({"resample": -0.1}, "resample"),
        ({"resample": 1.1}, "resample"), ({"factors": ()}, "factors"), ({"factors": (1.2, 0)}, "factors"),
        ({"factors": (1.2, True)}, "factors"), ({"factors": ("1.2", 0.8)}, "factors"), ({"factors": (-1,)}, "factors"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_named(given: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=f"^{word} must be"):
        PopulationBasedTraining(**given)


def test_settings_at_the_ends_of_what_makes_sense_are_taken() -> None:
    for given in ({"quantile": 0.5}, {"resample": 0.0}, {"resample": 1.0}, {"factors": (2,)}):
        PopulationBasedTraining(**given)  # type: ignore[arg-type]


def test_the_worst_are_the_share_asked_for_rounded_up_and_never_among_the_best() -> None:
    def replaced(n: int, quantile: float) -> list[str]:
        scheduler, made, several = populated(n, quantile=quantile)
        for k, trial in enumerate(several):
            reach(scheduler, trial, 2, k / 10)
        assert {it.parent for it in made} <= {f"t{k}" for k in range(n - len(made), n)}
        return [it.trial_id for it in made]

    assert replaced(5, 0.25) == ["t0", "t1"]
    assert replaced(4, 0.25) == ["t0"]
    assert replaced(3, 0.5) == ["t0"]
    assert replaced(1, 0.5) == []


def test_a_trial_that_has_ended_in_whatever_way_is_not_waited_for() -> None:
    ended = {"step": 6, "objective": 0.5, "state": "completed"}
    for leave, more in (("on_trial_error", ()), ("on_trial_remove", ()), ("on_trial_complete", (ended,))):
        scheduler, made, three = populated(3, quantile=0.5)
        reach(scheduler, three[0], 2, 0.1)
        reach(scheduler, three[1], 2, 0.9)
        assert (made, scheduler.debug_string()) == ([], "population of 3")
        getattr(scheduler, leave)(None, three[2], *more)
        assert [it.trial_id for it in made] == ["t0"]
        assert scheduler.debug_string() == "population of 2"


def test_what_is_drawn_is_on_the_grid_within_the_ends_and_beside_the_donors_choice() -> None:
    space: Space = {
        "optim.lr": Uniform(0.1, 0.9, step=0.2),
        "optim.weight_decay": Choices((0.0, 0.01, 0.1)),
    }
    for resample in (0.0, 1.0):
        how = PopulationBasedTraining(resample=resample, factors=(0.1, 0.5, 1.3, 100.0))
        rates, decays = set(), set()
        for seed in range(200):
            made = perturbed({"optim.lr": 0.5, "optim.weight_decay": 0.0}, space, how, np.random.default_rng(seed))
            rates.add(made["optim.lr"])
            decays.add(made["optim.weight_decay"])
        assert rates == ({0.1, 0.3, 0.7, 0.9} if resample == 0.0 else {0.1, 0.3, 0.5, 0.7, 0.9})
        assert decays == ({0.0, 0.01} if resample == 0.0 else {0.0, 0.01, 0.1})
    how = PopulationBasedTraining(resample=0.0)
    chosen: Space = {"optim.lr": Choices((0.1, 0.2, 0.3)), "optim.weight_decay": Choices((0.0, 0.01, 0.1))}
    ends = [perturbed({"optim.lr": 0.3, "optim.weight_decay": 0.1}, chosen, how, np.random.default_rng(seed))
            for seed in range(40)]  # fmt: skip
    assert {it["optim.lr"] for it in ends} == {0.2, 0.3}
    assert {it["optim.weight_decay"] for it in ends} == {0.01, 0.1}
    how = PopulationBasedTraining(resample=1.0)
    plain: Space = {"optim.lr": Uniform(0.0, 10.0), "optim.weight_decay": Uniform(1e-4, 1.0, log=True)}
    drawn = [perturbed({"optim.lr": 1.0, "optim.weight_decay": 1.0}, plain, how, np.random.default_rng(seed))
             for seed in range(300)]  # fmt: skip
    assert np.mean([it["optim.lr"] for it in drawn]) == pytest.approx(5.0, abs=0.6)  # type: ignore[arg-type]
    logs = [math.log10(it["optim.weight_decay"]) for it in drawn]  # type: ignore[arg-type]
    assert np.mean(logs) == pytest.approx(-2.0, abs=0.3)
    only = {"optim.weight_decay": 1.0}
    assert perturbed(only, plain, how, np.random.default_rng(0)).keys() == only.keys()
    assert perturbed(only, {"optim.lr": plain["optim.lr"]}, how, np.random.default_rng(0)) == {}


def search(root: Path) -> Any:
    made = GuardedOptunaSearch(
        DefineByRun(SPACE),
        build_sampler({"_target_": "optuna.samplers.RandomSampler"}, 0),
        SweepFolder(root),
        SearchPlan(trials=2),
    )
    made.replay(read_lines(SweepFolder(root).asks_file))
    return made


def test_an_exchange_is_written_down_and_a_resumed_trial_has_its_new_values(tmp_path: Path) -> None:
    first = search(tmp_path)
    values = [first.suggest(name)["values"] for name in "ab"]
    for name, score in (("a", 0.1), ("b", 0.8)):
        first.on_trial_result(name, {"step": 2, "objective": score, "state": "running"})
    new = {"optim.lr": 5e-4, "optim.weight_decay": 0.1}
    first.perturb(Exchange("t0000", "t0001", 2, values[0], new))
    first.on_trial_result("a", {"step": 4, "objective": 0.9, "state": "running"})
    again = search(tmp_path)
    assert again.suggest("a2") == {"trial_id": "t0000", "values": new}
    assert again.suggest("b2") == {"trial_id": "t0001", "values": values[1]}
    for study in (first, again):
        name = "a" if study is first else "a2"
        study.on_trial_complete(name, {"step": 6, "objective": 0.95, "state": "completed"})
        told = study._study.trials[0]
        # The sampler must not learn that what it suggested scored 0.95
        assert (told.state.name, told.value, told.params) == ("PRUNED", 0.1, values[0])
    assert search(tmp_path)._study.trials[0].value == 0.1


# --- with a real model


@pytest.fixture
def device(tiny, tmp_path):
    """A device worker with packs, and two trials that differ in their learning rate."""
    more = ("lora.rank=4", "optim.schedule=constant", "space=optimizer", "train.rungs=[2,4,6,8]", "scheduler=fifo")
    composed = compose(tiny("llama", *more, "precision=fp32", "data.max_length=64"))
    worker: Any = DeviceWorker(EngineConfig(), 2, Objective.from_config(composed.resolved()["objective"]), 1, "here")
    return worker, composed, tmp_path


def test_in_a_pack_the_trial_goes_on_from_its_parents_weights_and_moments(device) -> None:
    worker, composed, root = device
    values = {"t0000": 1e-6, "t0001": 5e-3}
    configs = {name: composed.trial(name, {"optim.lr": lr, "optim.weight_decay": 0.0}) for name, lr in values.items()}
    folders = {name: TrialFolder(root / name) for name in configs}

    async def rung(name: str) -> Any:
        return await asyncio.wait_for(worker.next_event(name), timeout=120)

    async def run() -> dict[str, list[Any]]:
        rows: dict[str, list[Any]] = {name: [] for name in configs}
        for name, config in configs.items():
            assert isinstance(await worker.admit(config, str(folders[name].root)), Admitted)
        for _ in range(4):
            for name in configs:
                event = await rung(name)
                assert isinstance(event, RungResult)
                rows[name].append(event.row.metrics)
            step = event.row.step
            if step == 4:
                same = composed.trial("t0000", {"optim.lr": 5e-3, "optim.weight_decay": 0.0})
                assert await worker.take_over(same, str(folders["t0001"].root), 4) == ""
                assert await worker.take_over(composed.trial("t9", {}), str(folders["t0001"].root), 4) is None
            for name in configs:
                await worker.proceed(name)
        ended = [await rung(name) for name in configs]
        assert all(isinstance(event, Ended) for event in ended)
        return rows

    rows = asyncio.run(run())
    assert rows["t0000"][0] != rows["t0001"][0]
    assert rows["t0000"][1] != rows["t0001"][1]
    # With the parent's own rate, every later rung is the parent's: weights, moments, schedule and data are one. Of two
    # slots of a pack some CPUs (AVX2, 5e-8 measured) round the last digits otherwise.
    assert rows["t0000"][2] == pytest.approx(rows["t0001"][2], rel=1e-6)
    assert rows["t0000"][3] == pytest.approx(rows["t0001"][3], rel=1e-6)


def make_checkpoint(folder: TrialFolder, step: int, text: str) -> Path:
    path = folder.checkpoint_dir(step)
    path.mkdir(parents=True)
    for name in ("adapter_model.safetensors", "optimizer.safetensors", "best.safetensors"):
        (path / name).write_text(f"{name} of {text}")
    (path / "counters.json").write_text(json.dumps({"step": step, "of": text}))
    return path


def test_a_checkpoint_that_is_taken_over_keeps_its_own_counters_and_best_rung(tmp_path: Path) -> None:
    own, donor = TrialFolder(tmp_path / "trials" / "t0"), TrialFolder(tmp_path / "trials" / "t1")
    path = make_checkpoint(own, 4, "t0")
    make_checkpoint(donor, 4, "t1")
    assert take_over(own, donor, 4) == ""
    read = {file.name: file.read_text() for file in path.iterdir()}
    assert read["adapter_model.safetensors"] == "adapter_model.safetensors of t1"
    assert read["optimizer.safetensors"] == "optimizer.safetensors of t1"
    assert read["best.safetensors"] == "best.safetensors of t0"
    assert json.loads(read["counters.json"])["of"] == "t0"
    assert json.loads(read["parent.json"]) == {"parent": "t1", "step": 4}
    assert own.checkpoints() == [4]
    (own.checkpoints_dir / f".from-t1.{os.getpid()}").mkdir()  # of an attempt that was killed
    assert take_over(own, donor, 4) == ""
    assert "cannot be taken over" in take_over(own, donor, 6)
    assert own.checkpoints() == [4]
    assert [it.name for it in own.checkpoints_dir.iterdir()] == ["4"]


def test_what_the_driver_did_not_live_to_write_down_is_undone(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    for name in ("t0000", "t0001", "t0002"):
        for step in (2, 4):
            make_checkpoint(folder.trial(name), step, name)
    decided = Exchange("t0000", "t0002", 4, {"optim.lr": 1e-3}, {"optim.lr": 2e-3})
    for name in ("t0000", "t0001"):
        assert take_over(folder.trial(name), folder.trial("t0002"), 4) == ""
    line = {
        "event": "perturb",
        "trial_id": "t0000",
        "step": 4,
        "parent": "t0002",
        "old": decided.old,
        "values": decided.new,
    }
    reconcile(folder, [line])
    assert folder.trial("t0000").checkpoints() == [2, 4]
    assert folder.trial("t0001").checkpoints() == [2]  # goes on from its own weights
    lineage = list(read_lines(folder.trial("t0000").lineage_file))
    assert lineage == [{"step": 4, "parent": "t0002", "old": decided.old, "new": decided.new}]
    assert exchanged_values(folder.trial("t0002")) == {}
    record(folder.trial("t0002"), decided)
    assert list(read_lines(folder.trial("t0002").lineage_file)) == lineage
    record(folder.trial("t0002"), Exchange("t0002", "t0001", 6, decided.new, {"optim.lr": 4e-3}))
    record(folder.trial("t0002"), Exchange("t0002", "t0001", 8, {"optim.lr": 4e-3}, {"optim.lr": 8e-3}))
    assert exchanged_values(folder.trial("t0002")) == {"optim.lr": 8e-3}


def test_the_driver_writes_an_exchange_down_once_a_device_has_made_it(tmp_path, monkeypatch) -> None:
    import yaml

    from sweeps.driver import device_client, tune_run
    from sweeps.driver.device_client import DeviceClient

    asked: list[Any] = []
    said: list[str] = []
    logged: list[Exchange] = []
    answers = {"elsewhere": None, "here": "", "gone": "it has gone on to its next rung"}

    def device(name: str) -> Any:
        def take_over(trial: Any, donor: str, step: int) -> str | None:
            asked.append((name, trial.trial_id, trial.optim.lr, Path(donor).name, step))
            return answers[name]

        client = DeviceClient(SimpleNamespace(take_over=SimpleNamespace(remote=take_over)), name)
        return SimpleNamespace(client=client)

    monkeypatch.setattr(device_client.ray, "get", lambda reference, timeout=None: reference)
    sweep: Any = tune_run.TuneRun.__new__(tune_run.TuneRun)
    sweep.folder, sweep.composed = (
        SweepFolder(tmp_path),
        compose(["space=optimizer", "scheduler=pbt", "precision=fp32", "train.max_steps=8", "data.max_length=64"]),
    )
    sweep.progress = SimpleNamespace(note=said.append)
    sweep.tracking = SimpleNamespace(log_exchange=logged.append)
    sweep.search = search(tmp_path)
    for name in "ab":
        sweep.search.suggest(name)
    new = {"optim.lr": 2e-3, "optim.weight_decay": 0.1}
    decided = Exchange("t0000", "t0001", 4, {"optim.lr": 1e-3, "optim.weight_decay": 0.0}, new)
    sweep.fleet = SimpleNamespace(devices=[device("elsewhere"), device("gone")])
    assert not sweep._exchange(decided)
    assert "keeps its weights at step 4" in said[-1]
    assert not sweep.folder.trial("t0000").lineage_file.exists()
    sweep.fleet = SimpleNamespace(devices=[device("elsewhere"), device("here")])
    assert sweep._exchange(decided)
    assert asked[-1] == ("here", "t0000", 2e-3, "t0001", 4)
    files = sweep.folder.trial("t0000")
    assert [line["parent"] for line in read_lines(files.lineage_file)] == ["t0001"]
    assert yaml.safe_load(files.config_file.read_text())["optim"]["lr"] == 2e-3
    assert [line["event"] for line in read_lines(sweep.folder.asks_file)] == ["ask", "ask", "perturb"]
    assert logged == [decided]
    assert "t0000 goes on from t0001 at step 4" in said[-1]


@pytest.mark.heavy
def test_a_sweep_of_a_population_shows_its_lineage(lorasweep, tiny, tmp_path, wandb_runs):
    command = lorasweep(tmp_path)
    more = ("lora.rank=4", "scheduler=pbt", "sampler=random", "space=optimizer", "scheduler.quantile=0.5",
            "train.max_steps=400", "train.rungs=[100,200,300,400]",  # the last of the four begins a second late
            "search.trials=4", "resources.slots=4", "sweep.name=people")  # fmt: skip
    done = command("run", *tiny("llama", *more))
    assert done.returncode == 0, done.stderr
    folder = SweepFolder(tmp_path / "runs" / "people")
    lines = list(read_lines(folder.asks_file))
    exchanges = [line for line in lines if line["event"] == "perturb"]
    assert len(exchanges) >= 3
    assert "goes on from" in done.stdout
    runs = wandb_runs(folder)
    for line in exchanges:
        trial = folder.trial(line["trial_id"])
        kept = [it for it in read_lines(trial.lineage_file) if it["step"] == line["step"]]
        assert kept == [{"step": line["step"], "parent": line["parent"], "old": line["old"], "new": line["values"]}]
        history = [row for [run] in [runs[line["trial_id"]]] for row in run.history if "parent" in row]
        assert (line["parent"], line["values"]["optim.lr"]) in [(it["parent"], it["new.optim.lr"]) for it in history]
    assert all(trial.read_status().state is State.COMPLETED for trial in folder.trials())
    # the rung right after: not one that falls back to what the trial scored before it took over
    by_step = {(ln["trial_id"], ln["step"]): ln["objective"] for ln in lines if ln["event"] == "rung"}
    for line in exchanges:
        after = by_step.get((line["trial_id"], line["step"] + 100))
        if after is not None:
            assert after >= by_step[line["trial_id"], line["step"]] - 0.05
