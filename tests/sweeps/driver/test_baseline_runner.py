"""Which baselines a sweep has, who scores them, and when."""

import asyncio
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from analysis.errors import ConfigError, ModelError
from analysis.folder import MetricsRow, State, Status, SweepFolder
from sweeps.compose.compose import compose
from sweeps.driver.baseline_runner import BaselineRunner, missing, planned
from sweeps.driver.device_worker import DeviceWorker
from tests.sweeps.driver.test_device_worker import FakeEngine, worker
from trainer.config import PRECISIONS, Baseline
from trainer.engine import Admitted


@lru_cache
def wanted_baselines(names: str) -> list[Baseline]:
    return planned_for(f"baselines={names}", "precision=fp32")


def planned_for(*overrides: str) -> list[Baseline]:
    composed = compose([*overrides, "train.max_steps=8", "data.max_length=64"]).on_machine(PRECISIONS)
    return planned(composed.template, composed.precisions)


def names(*overrides: str) -> list[str]:
    return [baseline.name for baseline in planned_for(*overrides)]


def test_a_row_for_each_precision_that_is_searched_but_one_where_no_model_takes_part() -> None:
    assert names("baselines=[majority,few_shot]", "precision=choice(nf4,fp32)") == [
        "majority",
        "few_shot",
        "few_shot@fp32",
    ]
    assert names("precision=choice(bf16,nf4)") == ["zero_shot", "majority", "linear", "zero_shot@nf4"]
    assert names("baselines=[zero_shot,retrieval]", "precision=bf16") == ["zero_shot", "retrieval"]
    by_name = {baseline.name: baseline for baseline in planned_for("precision=choice(bf16,nf4)")}
    assert [by_name[name].trial.precision for name in ("zero_shot", "zero_shot@nf4")] == ["bf16", "nf4"]


CLASSIFICATION = ("task=classification", "bias=none", "objective=single")
OWN = ("data=csv", "data.train=a.csv", "data.validation=b.csv")


def test_by_default_words_are_counted_where_there_are_labels_and_the_frozen_model_is_probed_for_a_head() -> None:
    assert names("precision=fp32") == ["zero_shot", "majority", "linear"]
    assert names(*CLASSIFICATION, "precision=choice(fp32,bf16)") == [
        "zero_shot",
        "majority",
        "linear",
        "frozen",
        "zero_shot@bf16",
    ]
    for schema in ("completion", "chat", "text"):
        assert names(*OWN, f"data.schema={schema}", "precision=fp32") == ["zero_shot"]


def test_the_default_follows_a_schema_that_the_columns_tell(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,completion\nwhy,because\nwho,me\n")
    (tmp_path / "b.csv").write_text("text,label\nan apple,fruit\na crow,bird\n")
    given = ("data=csv", "data.split.validation=0.5", "precision=fp32")
    assert names(*given, f"data.train={tmp_path / 'a.csv'}") == ["zero_shot"]
    assert names(*given, f"data.train={tmp_path / 'b.csv'}") == ["zero_shot", "majority", "linear"]


def test_the_vote_of_neighbours_by_words_needs_no_model_and_by_hidden_states_does() -> None:
    common = ["task=classification", "bias=none", "objective=single", "baselines=[retrieval]"]
    common += ["precision=choice(fp32,nf4)"]
    assert names(*common, "retrieval.neighbours=tfidf") == ["retrieval"]
    assert names(*common) == ["retrieval", "retrieval@nf4"]
    assert compose(common).config.retrieval.neighbours == "hidden"


def test_settings_of_the_config_reach_the_baseline() -> None:
    few, retrieval = planned_for("baselines=[few_shot,retrieval]", "few_shot.k=7", "few_shot.seed=3", "retrieval.k=2")[
        :2
    ]
    assert (few.few_shot.k, few.few_shot.seed) == (7, 3)
    assert (retrieval.retrieval.k, retrieval.retrieval.neighbours) == (2, "tfidf")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["baselines=[few_shot]", "task=classification", "bias=none", "objective=single"], "reads no prompt"),
        (["baselines=[zero_shot,zero_shot]"], "named twice"),
        (["baselines=[fewshot]"], "'few_shot'"),
        ([*OWN, "data.schema=chat", "baselines=[linear]"], "linear with data.schema=chat: there are no labels"),
        ([*OWN, "data.schema=completion", "baselines=[frozen]"], "frozen with data.schema=completion: there are no"),
        (["few_shot.k=0"], "few_shot.k=0"),
        (["retrieval.neighbours=bm25"], "tfidf, hidden, minilm"),
    ],
)
def test_baselines_that_cannot_be_are_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        compose(overrides)


class FakeFleet:
    """Scores what it is called with, by what the script says of each baseline: a row, or an error to raise."""

    def __init__(self, **script: Any):
        self.script, self.asked, self.precisions = script, list[str](), list[str]()

    def call(self, work: Any, precision: str) -> Any:
        self.precisions.append(precision)

        def score_baseline(baseline: Baseline, files: Any) -> Any:
            self.asked.append(baseline.name)
            return self.script[baseline.name]

        answer = work(SimpleNamespace(score_baseline=score_baseline))
        if isinstance(answer, Exception):
            raise answer
        return answer


def row(name: str = "zero_shot") -> MetricsRow:
    return MetricsRow(name, 0, 0, 1.0, True, 30, {"accuracy": 0.5, "macro_f1": 0.25})


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """Scores the baselines of a sweep; gives the folder, what was noted, and what was handed on."""

    def run(fleet: Any, wanted: str = "[zero_shot]") -> tuple[SweepFolder, list[str], list[str]]:
        folder, notes, handed = SweepFolder(tmp_path), list[str](), list[str]()
        todo = missing(folder, wanted_baselines(wanted))
        runner = BaselineRunner(
            folder, fleet, todo, notes.append, lambda baseline, row: handed.append(baseline.name), lambda: False
        )
        runner.start()
        runner.finish()
        assert runner.unscored == []
        return folder, notes, handed

    return run


def test_each_is_scored_once_and_told_in_a_line(run: Any) -> None:
    fleet = FakeFleet(zero_shot=row(), majority=row("majority"))
    _, notes, handed = run(fleet, wanted="[zero_shot,majority]")
    assert sorted(fleet.asked) == sorted(handed) == ["majority", "zero_shot"]
    assert fleet.precisions == ["fp32", "fp32"]
    assert "zero_shot  scored  accuracy 0.500  F1 0.250" in notes
    assert "majority  scored  accuracy 0.500  F1 0.250" in notes


def test_one_that_kills_every_worker_fails_with_the_reason_and_is_tried_again_on_resume(run: Any) -> None:
    folder, _, handed = run(FakeFleet(zero_shot=RayActorError(error_msg="worker died of SIGSEGV")))
    assert handed == []
    assert folder.baseline("zero_shot").read_status() == Status(State.FAILED, "worker died of SIGSEGV")
    assert run(FakeFleet(zero_shot=row()))[2] == ["zero_shot"]


def test_an_error_is_the_reason_and_the_others_go_on(run: Any) -> None:
    fleet = FakeFleet(zero_shot=ModelError("no such head"), majority=row("majority"))
    folder, notes, handed = run(fleet, wanted="[zero_shot,majority]")
    assert handed == ["majority"]
    assert folder.baseline("zero_shot").read_status() == Status(State.FAILED, "no such head")
    assert "zero_shot  could not be scored: no such head" in notes


def test_what_was_scored_before_is_not_scored_again(run: Any, tmp_path: Path) -> None:
    SweepFolder(tmp_path).baseline("zero_shot").write_status(Status(State.COMPLETED))
    fleet = FakeFleet(majority=row("majority"))
    run(fleet, wanted="[zero_shot,majority]")
    assert fleet.asked == ["majority"]


def test_a_worker_scores_baselines_while_it_has_no_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial: Any = SimpleNamespace(trial_id="t0000")
    done: list[str] = []
    monkeypatch.setattr(DeviceWorker, "_score_baseline", lambda self, baseline, folder, test: done.append(baseline))

    async def scenario() -> None:
        device = worker(FakeEngine())
        await asyncio.wait_for(device.score_baseline("before", str(tmp_path)), 30)
        assert isinstance(await device.admit(trial, str(tmp_path)), Admitted)
        waiting = asyncio.create_task(device.score_baseline("after", str(tmp_path)))
        for _ in range(5):
            await device.proceed("t0000")  # the worker answers others meanwhile
        assert done == ["before"]
        await device.end("t0000", "stopped_early")
        await asyncio.wait_for(waiting, 30)

    monkeypatch.setattr(FakeEngine, "proceed", lambda self, trial_id: None, raising=False)
    asyncio.run(scenario())
    assert done == ["before", "after"]


def test_what_writes_nothing_is_asked_for_no_answers() -> None:
    assert compose(["eval.generate=true"]).config.eval.generate is True
    with pytest.raises(ConfigError, match="writes nothing"):
        compose(["eval.generate=true", "task=classification", "bias=none", "objective=single"])
