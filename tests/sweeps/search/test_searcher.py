"""What the search hands out, what it tells the sampler, and how it goes on from study/asks.jsonl."""

import logging
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import optuna
import pytest
import ray
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import TrialState
from ray import cloudpickle, tune
from ray.tune.search import Searcher

from analysis.errors import FolderError
from analysis.folder import SweepFolder, append_line, read_lines
from sweeps.search.scheduler import build_sampler, build_scheduler
from sweeps.search.searcher import GuardedOptunaSearch, SearchPlan
from sweeps.space.dimensions import Choices, DefineByRun, Uniform

TPE = {"_target_": "optuna.samplers.TPESampler", "n_startup_trials": 4, "multivariate": True, "group": True}
RANDOM = {"_target_": "optuna.samplers.RandomSampler"}
SPACE = DefineByRun(
    {
        "lora.rank": Uniform(1, 64, integer=True),
        "optim.lr": Uniform(1e-5, 1e-1, log=True),
        "precision": Choices(("fp32", "nf4")),
        "lora.dropout": Uniform(0.0, 0.5, when={"precision": ("nf4",)}),
    }
)


def make(root: Path, sampler: dict[str, Any] = RANDOM, space: Any = SPACE, seed: int = 7, **given: Any) -> Any:
    return GuardedOptunaSearch(
        space, build_sampler(sampler, seed), SweepFolder(root), SearchPlan(**{"trials": 100, "seed": seed, **given})
    )


def resumed(root: Path, **given: Any) -> Any:
    search = make(root, **given)
    search.replay(read_lines(SweepFolder(root).asks_file))
    return search


def rung(step: int, objective: float, **more: Any) -> dict[str, Any]:
    return {"step": step, "objective": objective, "state": "running", "reason": "", "done": False, **more}


def end(state: str, objective: float = math.nan, step: int = 24, reason: str = "") -> dict[str, Any]:
    return {"step": step, "objective": objective, "state": state, "reason": reason, "done": True}


def quality(values: dict[str, Any]) -> float:
    return float(values["lora.rank"] / 64 - abs(math.log10(values["optim.lr"]) + 3))


def play(search: Any, tune_id: str) -> dict[str, Any]:
    """One whole trial; every third is stopped early, every seventh diverges, every eleventh runs out of memory."""
    suggestion: dict[str, Any] = search.suggest(tune_id)
    number, score = int(suggestion["trial_id"][1:]), quality(suggestion["values"])
    search.on_trial_result(tune_id, rung(8, score - 0.1))
    if number % 11 == 10:
        search.on_trial_complete(tune_id, end("out_of_memory", step=9))
    elif number % 7 == 6:
        search.on_trial_complete(tune_id, end("diverged", step=9))
    elif number % 3 == 2:
        search.on_trial_complete(tune_id, rung(12, score - 0.05))
    else:
        search.on_trial_complete(tune_id, end("completed", score))
    return suggestion


def told(search: Any, number: int) -> Any:
    return search._study.trials[number]


def events(root: Path) -> list[tuple[str, str]]:
    return [(record["event"], record["trial_id"]) for record in read_lines(SweepFolder(root).asks_file)]


def test_points_carry_our_ids_and_flat_values_and_end_after_the_number_asked_for(tmp_path: Path) -> None:
    search = make(tmp_path, trials=3)
    points = [search.suggest(name) for name in "abc"]
    assert [point["trial_id"] for point in points] == ["t0000", "t0001", "t0002"]
    for point in points:
        assert set(point) == {"trial_id", "values"}
        expected = {"lora.rank", "optim.lr", "precision"} | (
            {"lora.dropout"} if point["values"]["precision"] == "nf4" else set()
        )
        assert set(point["values"]) == expected
    assert search.suggest("d") == Searcher.FINISHED


def test_known_good_points_come_first_count_as_trials_and_may_be_partial(tmp_path: Path) -> None:
    search = make(tmp_path, trials=3, start_from=[{"lora.rank": 8, "precision": "nf4"}, {"lora.rank": 16}])
    first, second, third = (search.suggest(name)["values"] for name in "abc")
    assert (first["lora.rank"], first["precision"]) == (8, "nf4")
    assert 1e-5 <= first["optim.lr"] <= 1e-1
    assert second["lora.rank"] == 16
    assert third["lora.rank"] not in (8, 16)
    assert search.suggest("d") == Searcher.FINISHED


def test_no_more_points_after_close_but_running_trials_are_still_told(tmp_path: Path) -> None:
    search = make(tmp_path)
    search.suggest("a")
    search.close()
    assert search.suggest("b") == Searcher.FINISHED
    search.on_trial_complete("a", end("completed", 0.5))
    assert told(search, 0).state is TrialState.COMPLETE


def test_trials_stopped_by_an_interrupt_stay_unfinished_and_those_that_end_are_told(tmp_path: Path) -> None:
    search = make(tmp_path)
    points = [search.suggest(name) for name in "abcd"]
    search.abandon()
    assert search.suggest("e") == Searcher.FINISHED
    search.on_trial_complete("a", rung(8, 0.3))
    search.on_trial_complete("b", None, error=True)
    search.on_trial_complete("c", end("completed", 0.5))
    again = resumed(tmp_path)
    assert [again.suggest(f"again {name}") for name in "abd"] == [points[0], points[1], points[3]]
    assert (told(again, 2).state, told(again, 0).intermediate_values) == (TrialState.COMPLETE, {8: 0.3})


@pytest.mark.parametrize(
    ("answer", "error", "state", "value"),
    [
        (end("completed", 0.75), False, TrialState.COMPLETE, 0.75),
        (end("completed", math.nan), False, TrialState.FAIL, None),
        (end("completed", math.inf), False, TrialState.FAIL, None),
        (rung(12, 0.4), False, TrialState.PRUNED, 0.4),
        (rung(12, math.nan), False, TrialState.PRUNED, 0.3),  # the last finite value
        (end("diverged"), False, TrialState.FAIL, None),
        (end("failed"), False, TrialState.FAIL, None),
        (end("out_of_memory"), False, TrialState.PRUNED, 0.3),
        (None, True, TrialState.FAIL, None),
        (None, False, TrialState.PRUNED, 0.3),  # stopped from outside, after its first rung
    ],
)
def test_how_a_trial_ended_is_what_the_sampler_is_told(
    tmp_path: Path, answer: Any, error: bool, state: TrialState, value: float | None
) -> None:
    search = make(tmp_path)
    search.suggest("a")
    search.on_trial_result("a", rung(8, 0.3))
    search.on_trial_complete("a", answer, error=error)
    assert (told(search, 0).state, told(search, 0).value) == (state, value)
    assert told(search, 0).intermediate_values[8] == 0.3
    (line,) = [record for record in read_lines(SweepFolder(tmp_path).asks_file) if record["event"] == "tell"]
    assert line["told"] == state.name
    again = resumed(tmp_path)
    assert (told(again, 0).state, told(again, 0).value) == (state, value)
    assert told(again, 0).constraints == told(search, 0).constraints


def test_a_trial_stopped_before_its_first_rung_teaches_the_sampler_nothing(tmp_path: Path) -> None:
    search = make(tmp_path)
    search.suggest("a")
    search.on_trial_complete("a")
    assert told(search, 0).state is TrialState.FAIL


def test_a_second_or_unknown_answer_is_ignored(tmp_path: Path) -> None:
    search = make(tmp_path)
    search.suggest("a")
    search.on_trial_complete("a", end("completed", 0.5))
    before = events(tmp_path)
    search.on_trial_complete("a", end("completed", 0.9))
    search.on_trial_result("a", rung(30, 0.9))
    search.on_trial_complete("a", None, error=True)
    search.on_trial_complete("nobody", end("completed", 0.9))
    assert (told(search, 0).state, told(search, 0).value) == (TrialState.COMPLETE, 0.5)
    assert events(tmp_path) == before


def test_a_rung_counts_once_even_if_a_retried_trial_reports_it_again(tmp_path: Path) -> None:
    search = make(tmp_path)
    search.suggest("a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search.on_trial_result("a", rung(8, 0.3))
        search.on_trial_result("a", rung(8, 0.9))
    assert search._study.trials[0].intermediate_values == {8: 0.3}
    assert events(tmp_path) == [("ask", "t0000"), ("rung", "t0000")]


def test_asks_and_answers_are_written_in_order_as_strict_json(tmp_path: Path) -> None:
    search = make(tmp_path)
    values = [search.suggest(name)["values"] for name in "ab"]
    search.on_trial_result("b", rung(8, math.nan))
    search.on_trial_complete("b", end("diverged", step=9, reason="the loss is not finite"))
    search.on_trial_complete("a", rung(8, 0.2))
    assert events(tmp_path) == [
        ("ask", "t0000"), ("ask", "t0001"), ("rung", "t0001"), ("tell", "t0001"), ("rung", "t0000"), ("tell", "t0000"),
    ]  # fmt: skip
    assert "NaN" not in SweepFolder(tmp_path).asks_file.read_text()
    records = list(read_lines(SweepFolder(tmp_path).asks_file))
    assert [record["values"] for record in records[:2]] == values
    assert (records[3]["state"], records[3]["told"], records[3]["step"]) == ("diverged", "FAIL", 9)
    assert records[3]["reason"] == "the loss is not finite"
    assert (records[5]["state"], records[5]["told"], records[5]["objective"]) == ("stopped_early", "PRUNED", 0.2)


def test_the_sampler_stays_away_from_where_memory_ran_out(tmp_path: Path) -> None:
    """Quality grows towards the points that do not fit. Told FAIL, as a crash is, TPE goes on trying them."""

    def misses(state: str, seed: int) -> int:
        missed, search = 0, make(tmp_path / f"{state}{seed}", TPE, seed=seed)
        for number in range(60):
            point = search.suggest(str(number))["values"]
            if point["lora.rank"] > 24 and point["precision"] == "fp32":
                missed += number >= 20
                search.on_trial_complete(str(number), end(state))
            else:
                bonus = 0.3 if point["precision"] == "fp32" else 0.0
                search.on_trial_complete(str(number), end("completed", point["lora.rank"] / 64 + bonus))
        return missed

    assert sum(misses("out_of_memory", seed) for seed in (2, 3)) < 0.5 * sum(misses("failed", seed) for seed in (2, 3))


@pytest.mark.parametrize("sampler", [RANDOM, TPE])
def test_the_same_seed_gives_the_same_points_and_another_seed_others(tmp_path: Path, sampler: dict[str, Any]) -> None:
    def points(name: str, seed: int) -> list[Any]:
        search = make(tmp_path / name, sampler, seed=seed)
        return [play(search, str(k)) for k in range(14)]

    assert points("a", 1) == points("b", 1)
    assert points("c", 2) != points("a2", 1)


def test_without_conditions_tpe_suggests_the_same_whether_it_groups_keys_or_not(tmp_path: Path) -> None:
    """So conf/sampler/tpe.yaml may leave grouping, which costs more with each trial, to the spaces that need it."""
    plain = DefineByRun({path: SPACE.space[path] for path in ("lora.rank", "optim.lr", "precision")})
    whole, grouped = (make(tmp_path / str(group), {**TPE, "group": group}, plain) for group in (False, True))
    assert [play(whole, str(k)) for k in range(30)] == [play(grouped, str(k)) for k in range(30)]


@pytest.mark.parametrize("sampler", [RANDOM, TPE], ids=["random", "tpe"])
@pytest.mark.parametrize("died", ["between trials", "during a trial", "after a rung"])
def test_a_resumed_search_suggests_what_an_undisturbed_one_would(
    tmp_path: Path, sampler: dict[str, Any], died: str
) -> None:
    start = [{"lora.rank": 4}, {"lora.rank": 12, "precision": "nf4"}]
    whole = make(tmp_path / "whole", sampler, start_from=start)
    expected = [play(whole, str(k)) for k in range(24)]

    got: list[Any] = []
    for k in range(24):
        search = resumed(tmp_path / "cut", sampler=sampler, start_from=start)
        if died != "between trials":
            lost = search.suggest("lost")  # the driver dies before the answer
            if died == "after a rung":
                search.on_trial_result("lost", rung(8, quality(lost["values"]) - 0.1))
            search = resumed(tmp_path / "cut", sampler=sampler, start_from=start)
        got.append(play(search, f"again{k}"))
    assert got == expected
    assert [trial.state for trial in search._study.trials] == [trial.state for trial in whole._study.trials]
    assert [trial.intermediate_values for trial in search._study.trials] == [
        trial.intermediate_values for trial in whole._study.trials
    ]


def test_unfinished_trials_are_handed_out_again_first_with_the_same_id_and_values(tmp_path: Path) -> None:
    search = make(tmp_path, TPE)
    points = [search.suggest(str(k)) for k in range(8)]
    for k in (0, 2, 3, 4, 6):
        search.on_trial_complete(str(k), end("completed", quality(points[k]["values"])))
    again = resumed(tmp_path, sampler=TPE)
    assert [again.suggest(f"n{k}") for k in range(3)] == [points[1], points[5], points[7]]
    assert again.suggest("new")["trial_id"] == "t0008"
    again.on_trial_complete("n1", end("completed", 0.5))
    assert (told(again, 5).state, told(again, 5).value) == (TrialState.COMPLETE, 0.5)


def test_a_resumed_trial_keeps_the_rungs_it_had(tmp_path: Path) -> None:
    search = make(tmp_path)
    search.suggest("a")
    search.on_trial_result("a", rung(8, 0.3))
    again = resumed(tmp_path)
    again.suggest("b")
    again.on_trial_result("b", rung(8, 0.9))  # it went on from a checkpoint before the rung
    again.on_trial_complete("b", rung(12, 0.4))
    assert told(again, 0).intermediate_values == {8: 0.3, 12: 0.4}


def test_a_finished_search_is_extended_by_more_trials_and_only_new_points_are_enqueued(tmp_path: Path) -> None:
    search = make(tmp_path, trials=3, start_from=[{"lora.rank": 8}, {"lora.rank": 9}])
    for k in range(3):
        play(search, str(k))
    assert resumed(tmp_path, trials=3).suggest("x") == Searcher.FINISHED
    more = resumed(tmp_path, trials=5, start_from=[{"lora.rank": 8}, {"lora.rank": 50}, {"lora.rank": 9}])
    points = [more.suggest(f"m{k}") for k in range(2)]
    assert [point["trial_id"] for point in points] == ["t0003", "t0004"]
    assert points[0]["values"]["lora.rank"] == 50
    assert more.suggest("x") == Searcher.FINISHED


def test_start_points_that_were_not_reached_are_tried_after_a_resume(tmp_path: Path) -> None:
    start = [{"lora.rank": rank} for rank in (8, 9, 10)]
    play(make(tmp_path, start_from=start), "a")
    again = resumed(tmp_path, start_from=start)
    assert [again.suggest(name)["values"]["lora.rank"] for name in "bc"] == [9, 10]


def test_a_grid_goes_on_after_a_resume_and_ends_the_search_when_it_is_used_up(tmp_path: Path) -> None:
    grid = {
        "_target_": "optuna.samplers.GridSampler",
        "search_space": {"lora.rank": [2, 4], "lora.dropout": [0.0, 0.1, 0.2]},
    }
    space = DefineByRun({"lora.rank": Choices((2, 4)), "lora.dropout": Choices((0.0, 0.1, 0.2))})
    seen = []
    for k in range(6):
        resumed(tmp_path, sampler=grid, space=space).suggest("lost")  # the driver dies before the answer
        search = resumed(tmp_path, sampler=grid, space=space)
        values = search.suggest(str(k))["values"]
        seen.append((values["lora.rank"], values["lora.dropout"]))
        search.on_trial_complete(str(k), end("completed", 0.1))
    assert search.suggest("none left") == Searcher.FINISHED
    assert sorted(seen) == [(rank, p) for rank in (2, 4) for p in (0.0, 0.1, 0.2)]


def test_a_disk_that_takes_no_line_stops_the_sweep_with_the_reason(tmp_path: Path) -> None:
    told: list[str] = []
    search = make(tmp_path, disk_fault=told.append)
    SweepFolder(tmp_path).asks_file.mkdir(parents=True)  # root writes where it may not, and no line into a directory
    with pytest.raises(IsADirectoryError):
        search.suggest("a")
    assert ["Is a directory" in it for it in told] == [True]


def test_a_torn_last_line_is_a_trial_that_was_never_asked(tmp_path: Path) -> None:
    search = make(tmp_path)
    play(search, "a")
    expected = search.suggest("b")
    file = SweepFolder(tmp_path).asks_file
    file.write_bytes(file.read_bytes()[:-30])
    assert resumed(tmp_path).suggest("c") == expected


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"event": "tell", "trial_id": "t0009", "number": 9}, "record 3"),
        (
            {"event": "ask", "number": 4, "values": {}, "distributions": {}, "attrs": {}, "start": None, "time": 0},
            "t0001",
        ),
        ({"trial_id": "t0000"}, "'number'"),
    ],
)
def test_records_that_do_not_belong_together_are_refused(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    search = make(tmp_path)
    search.suggest("a")
    search.on_trial_complete("a", end("completed", 0.5))
    append_line(SweepFolder(tmp_path).asks_file, record)
    with pytest.raises(FolderError, match=message):
        resumed(tmp_path)


def mirrored(root: Path) -> list[Any]:
    storage = JournalStorage(JournalFileBackend(str(SweepFolder(root).journal_file)))
    return optuna.load_study(study_name=root.name, storage=storage).trials


def plain(trial: Any) -> tuple[Any, ...]:
    return trial.number, trial.state, trial.values, trial.params, trial.intermediate_values, trial.constraints


def test_the_dashboard_journal_shows_the_study_while_it_runs_and_after_a_resume(tmp_path: Path) -> None:
    search = make(tmp_path, start_from=[{"lora.rank": 4}])
    for k in range(11):
        play(search, str(k))
    search.suggest("running")
    search.on_trial_result("running", rung(8, 0.25))
    shown = mirrored(tmp_path)
    assert [plain(trial) for trial in shown] == [plain(trial) for trial in search._study.trials]
    assert (shown[11].state, shown[11].intermediate_values) == (TrialState.RUNNING, {8: 0.25})
    assert shown[6].user_attrs == {"trial_id": "t0006", "state": "diverged", "reason": ""}
    assert shown[10].constraints == {"out_of_memory": 1.0}

    journal = SweepFolder(tmp_path).journal_file
    journal.write_bytes(journal.read_bytes()[:-20])  # torn by a crash, its lock still there
    journal.with_name("journal.log.lock").symlink_to(journal)
    again = resumed(tmp_path)
    play(again, "again")
    play(again, "next")
    assert [plain(trial) for trial in mirrored(tmp_path)] == [plain(trial) for trial in again._study.trials]


def test_a_broken_mirror_does_not_stop_the_search(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    search = make(tmp_path)
    SweepFolder(tmp_path).journal_file.mkdir(parents=True)
    for k in range(3):
        play(search, str(k))
    assert [trial.state.name for trial in search._study.trials] == ["COMPLETE", "COMPLETE", "PRUNED"]
    assert len([record for record in caplog.records if "journal.log" in record.getMessage()]) == 1


def test_optuna_and_the_search_print_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shown = logging.StreamHandler()  # Optuna's own was bound to the stderr of its import
    logging.getLogger("optuna").addHandler(shown)
    optuna.logging.set_verbosity(optuna.logging.INFO)
    try:
        search = make(tmp_path, TPE)
        for k in range(12):
            play(search, str(k))
    finally:
        logging.getLogger("optuna").removeHandler(shown)
    assert capfd.readouterr() == ("", "")


def test_tunes_snapshot_of_the_searcher_is_no_pickle(tmp_path: Path) -> None:
    search = make(tmp_path)
    play(search, "a")
    search.save(str(tmp_path / "snapshot"))
    assert "asks.jsonl" in (tmp_path / "snapshot").read_text()


class Outcome(tune.Trainable):
    """Reports as trials do; ``outcome`` says how it ends after the rung at step 2."""

    def setup(self, config: dict[str, Any]) -> None:
        self.values, self.at = config["values"], 0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        (Path(checkpoint_dir) / "pointer.json").write_text("{}")

    def step(self) -> dict[str, Any]:
        self.at += 2 if self.at == 0 else 4
        outcome, x = self.values["outcome"], self.values["x"]
        if self.at == 2:
            return rung(2, x - 0.1, metrics={"accuracy": x})
        if outcome == "crashed":
            raise RuntimeError("the process died")
        return end(outcome, x if outcome == "completed" else math.nan, step=6, reason=f"it {outcome}")


@pytest.fixture(scope="module")
def small_ray(tmp_path_factory: pytest.TempPathFactory) -> Any:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield tmp_path_factory.mktemp("tune")
    ray.shutdown()
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


OUTCOMES = ("completed", "diverged", "out_of_memory", "failed", "crashed")
TOY = DefineByRun({"outcome": Choices(OUTCOMES), "x": Uniform(0.0, 1.0)})


def fit(scratch: Path, name: str, search: Any) -> Any:
    scheduler = build_scheduler(
        {"_target_": "ray.tune.schedulers.ASHAScheduler", "grace_period": 2, "reduction_factor": 3}, rungs=[2, 6]
    )
    config = tune.TuneConfig(
        metric="objective", mode="max", num_samples=-1, search_alg=search, scheduler=scheduler,
        max_concurrent_trials=1, reuse_actors=True,
    )  # fmt: skip
    run = tune.RunConfig(name=name, storage_path=str(scratch), verbose=0)
    trainable = tune.with_resources(Outcome, {"cpu": 0.001})
    return tune.Tuner(trainable, tune_config=config, run_config=run).fit()


def test_a_tune_run_tells_the_study_how_each_trial_ended_and_can_be_extended(tmp_path: Path, small_ray: Path) -> None:
    script = [
        ("completed", 0.7),
        ("completed", 0.8),
        ("completed", 0.9),
        ("completed", 0.1),
    ]  # the last: stopped by ASHA
    script += [("diverged", 0.91), ("out_of_memory", 0.92), ("failed", 0.93), ("crashed", 0.94), ("completed", 0.95)]
    start = [{"outcome": outcome, "x": x} for outcome, x in script]
    search = make(tmp_path, space=TOY, trials=len(script), start_from=start)
    fit(small_ray, "first", search)
    ended = {
        record["trial_id"]: record
        for record in read_lines(SweepFolder(tmp_path).asks_file)
        if record["event"] == "tell"
    }
    assert [(ended[name]["state"], ended[name]["told"]) for name in sorted(ended)] == [
        ("completed", "COMPLETE"), ("completed", "COMPLETE"), ("completed", "COMPLETE"), ("stopped_early", "PRUNED"),
        ("diverged", "FAIL"), ("out_of_memory", "PRUNED"), ("failed", "FAIL"), ("failed", "FAIL"),
        ("completed", "COMPLETE"),
    ]  # fmt: skip
    assert [trial.state.name for trial in search._study.trials] == [ended[name]["told"] for name in sorted(ended)]
    assert (told(search, 0).value, told(search, 3).value) == (0.7, 0.1 - 0.1)
    assert told(search, 5).constraints == {"out_of_memory": 1.0}
    assert search._study.best_trial.number == 8

    more = resumed(
        tmp_path, space=TOY, trials=len(script) + 1, start_from=[*start, {"outcome": "completed", "x": 0.99}]
    )
    results = fit(small_ray, "second", more)
    assert [result.config["trial_id"] for result in results] == ["t0009"]
    assert more._study.best_trial.number == 9


def test_a_trial_whose_process_was_lost_is_handed_out_again_but_not_for_ever(tmp_path: Path) -> None:
    search = make(tmp_path, trials=2, second_chances=2)
    first = search.suggest("a")
    search.on_trial_result("a", rung(8, 0.3))
    for name, again in (("a", "b"), ("b", "c")):
        search.on_trial_complete(name, None, error=True)
        assert search.waits("t0000")
        assert search.suggest(again) == first
        assert not search.waits("t0000")
    search.on_trial_complete("c", None, error=True)
    assert not search.waits("t0000")
    assert told(search, 0).state is TrialState.FAIL
    assert search.suggest("d")["trial_id"] == "t0001"
    assert events(tmp_path) == [("ask", "t0000"), ("rung", "t0000"), ("tell", "t0000"), ("ask", "t0001")]


def test_an_enqueued_point_is_tried_next_counts_and_is_named_in_the_record(tmp_path: Path) -> None:
    search = make(tmp_path, trials=3, start_from=[{"lora.rank": 4}])
    search.enqueue("enqueue-1", {"lora.rank": 50})
    search.enqueue("enqueue-1", {"lora.rank": 50})
    assert search.enqueued == set()
    assert search.suggest("a")["values"]["lora.rank"] == 50
    assert search.enqueued == {"enqueue-1"}
    assert search.suggest("b")["values"]["lora.rank"] == 4
    again = resumed(tmp_path, trials=3, start_from=[{"lora.rank": 4}])
    again.enqueue("enqueue-1", {"lora.rank": 50})  # its file was there still when the driver died
    again.enqueue("enqueue-2", {"lora.rank": 60})
    again.enqueue("enqueue-3", {"lora.rank": 61})
    assert [again.suggest(name)["values"]["lora.rank"] for name in "cde"] == [50, 4, 60]
    assert again.suggest("f") == Searcher.FINISHED
    assert again.enqueued == {"enqueue-1", "enqueue-2"}, "the third waits for more trials"


SMALL = DefineByRun({"lora.rank": Choices((4, 8, 16)), "lora.dropout": Uniform(0.0, 0.3, step=0.1)})  # 12 points
SAMPLERS = {
    "tpe": TPE,
    "random": RANDOM,
    "nsga2": {"_target_": "optuna.samplers.NSGAIISampler", "population_size": 4},
    "gp": {"_target_": "optuna.samplers.GPSampler", "n_startup_trials": 3},
}


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_no_point_is_handed_out_twice_and_a_space_that_is_used_up_ends_the_search(tmp_path: Path, sampler: str) -> None:
    """Also over a death: the driver dies after five trials."""
    said: list[str] = []
    options = {"sampler": SAMPLERS[sampler], "space": SMALL, "trials": 20, "used_up": said.append}
    search, points = make(tmp_path, **options), []
    for number in range(20):
        if number == 5:
            search = resumed(tmp_path, **options)
        suggestion = search.suggest(str(number))
        if suggestion == Searcher.FINISHED:
            break
        values = suggestion["values"]
        points.append((values["lora.rank"], round(values["lora.dropout"], 6)))
        search.on_trial_complete(str(number), end("completed", values["lora.rank"] - values["lora.dropout"]))
    assert len(points) == len(set(points)) == 12
    assert len(said) == 1
    assert "12 points was handed out" in said[0]


def test_a_point_that_somebody_asks_for_in_full_is_tried_again(tmp_path: Path) -> None:
    point = {"lora.rank": 8, "lora.dropout": 0.1}
    search = make(tmp_path, space=SMALL, start_from=[point])
    assert search.suggest("a")["values"] == point
    search.enqueue("again", point)
    assert search.suggest("b")["values"] == point
    search.enqueue("in part", {"lora.rank": 8})
    assert search.suggest("c")["values"]["lora.rank"] == 8


def test_points_of_another_sweep_are_tried_ever_more_seldom_and_the_same_ones_after_a_resume(tmp_path: Path) -> None:
    start = [{"lora.rank": k, "optim.lr": 1e-3, "precision": "fp32"} for k in (1, 2, 3)]
    prior = [{"lora.rank": k, "optim.lr": 2e-3, "precision": "fp32"} for k in range(1, 60)]

    def taken(root: Path, die_at: int) -> list[int]:
        search, numbers = make(root, start_from=start, prior=prior), []
        for number in range(60):
            if number == die_at:
                search = resumed(root, start_from=start, prior=prior)
            values = search.suggest(str(number))["values"]
            search.on_trial_complete(str(number), end("completed", 0.1))
            if values in prior:
                numbers.append(number)
        return numbers

    whole = taken(tmp_path / "whole", -1)
    assert whole == taken(tmp_path / "cut", 9)
    assert whole[0] == 3  # three points first, then the next one for certain
    assert 4 <= len(whole) <= 20
    assert sum(number < 20 for number in whole) > sum(number >= 40 for number in whole)


def test_what_is_to_come_are_all_seeds_of_all_configurations(tmp_path: Path) -> None:
    search = make(tmp_path, trials=3, seeds=(7, 8, 9))
    assert search.open_trials() == (set(), 9)
    first = search.suggest("a")
    assert search.open_trials() == ({first["trial_id"]}, 6), "its further seeds are due once it has completed"
    search.on_trial_complete("a", end("completed", 0.5))
    assert search.open_trials() == (set(), 2 + 6)
    further = search.suggest("b")
    assert search.open_trials() == ({further["trial_id"]}, 1 + 6)
    search.close()
    assert search.open_trials() == ({further["trial_id"]}, 0)


def test_a_configuration_whose_seeds_had_not_all_ended_goes_on_with_those_that_lack(tmp_path: Path) -> None:
    search = make(tmp_path, trials=2, seeds=(7, 8, 9))
    first = search.suggest("a")
    search.on_trial_complete("a", end("completed", 0.3))
    one, two = search.suggest("b"), search.suggest("c")
    assert [one["values"]["seed"], two["values"]["seed"]] == [8, 9]
    search.on_trial_result("c", rung(8, 0.4))
    search.on_trial_complete("b", end("completed", 0.6))
    again = resumed(tmp_path, trials=2, seeds=(7, 8, 9))
    assert again.suggest("d") == two, "neither the first seed nor the second is trained again"
    second = again.suggest("e")
    assert second["trial_id"] == "t0001"
    again.on_trial_result("d", rung(8, 0.9))  # from a checkpoint before the rung, which counts once
    again.on_trial_complete("d", end("completed", 0.9))
    assert (told(again, 0).state, told(again, 0).value) == (TrialState.COMPLETE, pytest.approx(0.6))
    means = [line for line in read_lines(SweepFolder(tmp_path).asks_file) if line["event"] == "mean"]
    assert [(line["trial_id"], line["objective"]) for line in means] == [(first["trial_id"], pytest.approx(0.6))]
    whole = resumed(tmp_path, trials=2, seeds=(7, 8, 9))
    assert [taken for _, taken in whole.take_up()] == [second]
    assert whole.open_trials() == ({second["trial_id"]}, 0)


@pytest.mark.parametrize("died", ["between trials", "after each ask"])
def test_what_a_genetic_sampler_remembers_in_the_study_survives_a_death(tmp_path: Path, died: str) -> None:
    genetic = {"_target_": "optuna.samplers.NSGAIISampler", "population_size": 4}
    whole = make(tmp_path / "whole", genetic)
    expected = [play(whole, str(k)) for k in range(20)]
    got: list[Any] = []
    for k in range(20):
        search = resumed(tmp_path / "cut", sampler=genetic)
        if died == "after each ask":
            search.suggest("lost")
            search = resumed(tmp_path / "cut", sampler=genetic)
        got.append(play(search, f"again{k}"))
    assert got == expected
