"""The judge in an evaluation: when it is asked, against what, and what its silence costs."""

import json
from dataclasses import replace

import pytest
import torch

from trainer.answers.judge import Judge
from trainer.answers.judge_server import Reply
from trainer.config import DataConfig, JudgeConfig
from trainer.device_cache import DeviceCache
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.judging import ask_model

BIRDS = ("wren", "owl", "hawk", "crow")
SETTINGS = JudgeConfig(server="http://127.0.0.1:9/v1", prompt="{prompt}|{first}|{second}")


@pytest.fixture
def trial(make_trial, tmp_path):
    lines = [{"prompt": f"{BIRDS[i % 3]} {BIRDS[i % 4]}", "completion": f" {BIRDS[i % 4]}"} for i in range(12)]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "validation")}
    data = DataConfig(source="jsonl", schema="completion", max_length=32, allow_overlap=True, **files)
    made = make_trial("llama")
    settings = replace(made.eval, generate="rung", generate_items=4, generate_final_items=6, judge=SETTINGS)
    return replace(made, data=data, eval=settings)


def scored(trial, settings: JudgeConfig, ask, moment: str = "final"):
    """An evaluation of the base model with a judge that asks ``ask``."""
    trial = replace(trial, eval=replace(trial.eval, judge=settings))
    kept = DeviceCache(torch.device("cpu"))
    base, validation = kept.base(trial), kept.validation(trial)
    how = replace(validation.to_answer, judge=Judge(settings, ask))
    return evaluate(base, base.model, trial, replace(validation, to_answer=how), [0, 1], moment=moment)


def shorter(prompts):
    """Says that the shorter answer is better, whatever its place."""
    said = []
    for prompt in prompts:
        _, first, second = prompt.split("|")
        said.append(Reply("1" if len(first) < len(second) else "2"))
    return said


def test_an_answer_is_compared_with_its_reference_in_both_orders(trial) -> None:
    found = scored(trial, SETTINGS, shorter)
    table = found.tables["generated"]
    better = [
        0.5 if text == reference else float(len(text) < len(reference))
        for text, reference in zip(table["generated"], table["label"], strict=True)
    ]
    assert table["judge"] == better
    assert found.metrics["generate.judge"] == sum(better) / len(better)
    assert not found.missing


def test_a_judge_is_asked_at_the_end_unless_rungs_are_wanted(trial) -> None:
    assert "generate.judge" not in scored(trial, SETTINGS, shorter, "rung").metrics
    assert "generate.judge" in scored(trial, replace(SETTINGS, at="rung"), shorter, "rung").metrics


def test_the_untuned_model_ties_with_itself_and_nobody_is_asked(trial) -> None:
    def never(prompts):
        raise AssertionError("two texts that are the same are a tie")

    found = scored(trial, replace(SETTINGS, against="zero_shot"), never)
    assert found.metrics["generate.judge"] == 0.5


def test_a_judge_that_is_gone_leaves_its_figure_out_with_the_reason(trial) -> None:
    found = scored(trial, SETTINGS, lambda prompts: [Reply(fault="could not be reached (gone)")] * len(prompts))
    assert "generate.judge" not in found.metrics
    assert "could not be reached (gone)" in found.missing["generate.judge"]
    assert "generate.token_f1" in found.metrics


def test_a_local_model_is_asked_and_what_is_too_long_for_it_is_said(trial) -> None:
    base = DeviceCache(torch.device("cpu")).base(trial)
    said = ask_model(base, ["wren owl", "hawk"])
    assert [reply.fault for reply in said] == ["", ""]
    [reply] = ask_model(base, ["owl " * base.window])
    assert f"window of {base.window} tokens" in reply.fault
