"""The restored best checkpoint is what is scored, saved and reported, when the best rung is not the last one too."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from analysis.folder import State, TrialFolder
from trainer.config import EngineConfig, TrialConfig
from trainer.device_cache import DeviceCache
from trainer.engine import Admitted, Ended, RungResult
from trainer.engines.hf_engine import HfEngine
from trainer.engines.packed_engine import PackedEngine
from trainer.evaluation.evaluate import evaluate, restricted
from trainer.models.base_model import BaseModel


@pytest.mark.parametrize("engine", ["hf", "packed"])
@pytest.mark.parametrize("model", ["llama", "bert"])
def test_the_saved_adapter_in_plain_peft_gives_the_reported_numbers_of_the_best_rung(
    engine: str, model: str, make_trial: Callable[..., TrialConfig], kept: DeviceCache, tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("more,less\n" + "".join(f"the {a} is a bird,the {b} is a fruit\n" for a, b in PAIRS))
    bias = {"pairs_file": str(pairs)} if model == "llama" else {}
    trial, files = make_trial(model, lr=2e-2, **bias), TrialFolder(tmp_path / "t0000")
    scores = iter([0.5, 0.9, 0.1])  # of the rungs at steps 2, 4, 6

    def score(metrics: object) -> float:
        return next(scores)

    runner = HfEngine(kept, score) if engine == "hf" else PackedEngine(kept, score, EngineConfig(), slots=1)
    assert isinstance(runner.admit(trial, files, None), Admitted)
    rungs = []
    while True:
        [event] = runner.advance()
        if isinstance(event, Ended):
            break
        assert isinstance(event, RungResult)
        rungs.append(event.row)
        runner.proceed(trial.trial_id)
    final = event.row
    assert final is not None
    assert (final.step, final.n_items, event.step) == (4, 30, 6)

    alone = plain_peft(trial, kept, files)
    validation = kept.validation(trial)
    rescored = evaluate(alone, alone.model, trial, validation, list(range(30)))
    assert rescored.metrics == pytest.approx(final.metrics, abs=1e-4)
    on_rung = restricted(rescored, validation, validation.rung).metrics
    best, last = rungs[1].metrics, rungs[2].metrics
    assert on_rung == pytest.approx(best, abs=1e-4)
    assert last["log_loss"] != pytest.approx(best["log_loss"], abs=1e-5)  # the last rung is another model


@pytest.mark.parametrize("engine", ["hf", "packed"])
@pytest.mark.parametrize("killed", [False, True], ids=["in one go", "resumed at its third rung"])
def test_a_trial_without_a_better_rung_is_done_with_its_best_one(
    engine: str, killed: bool, make_trial: Callable[..., TrialConfig], kept: DeviceCache, tmp_path: Path
) -> None:
    trial, files = make_trial("bert", lr=1e-2), TrialFolder(tmp_path / "t0000")
    trial = replace(trial, train=replace(trial.train, max_steps=12, rungs=[2, 4, 6, 8, 10, 12], patience=2))
    scores = iter([0.5, 0.9, 0.1, 0.2, 0.3, 0.4])

    def made() -> HfEngine | PackedEngine:
        score = lambda metrics: next(scores)  # noqa: E731
        return HfEngine(kept, score) if engine == "hf" else PackedEngine(kept, score, EngineConfig(), slots=1)

    runner = made()
    assert isinstance(runner.admit(trial, files, None), Admitted)
    steps = []
    while not isinstance(event := runner.advance()[0], Ended):
        steps.append(event.row.step)
        if killed and event.row.step == 6:
            runner.snapshot(trial.trial_id, files.checkpoint_dir(6))()
            runner.end(trial.trial_id, State.STOPPED_EARLY)
            runner = made()
            assert isinstance(runner.admit(trial, files, files.checkpoint_dir(6)), Admitted)
            continue
        runner.proceed(trial.trial_id)
    assert steps == [2, 4, 6, 8]
    assert (event.state, event.step) == (State.COMPLETED, 8)
    assert event.reason == "train.patience: no better objective in the last 2 rungs"
    assert event.row is not None
    assert event.row.step == 4


PAIRS = [("wren", "pear"), ("owl", "plum"), ("hawk", "iron"), ("crow", "zinc")]


def plain_peft(trial: TrialConfig, kept: DeviceCache, files: TrialFolder) -> BaseModel:
    """The adapter loaded as anybody would, over a base model that lorasweep never touched."""
    path = str(trial.model.path)
    if trial.task.name == "classification":
        base = AutoModelForSequenceClassification.from_pretrained(path, num_labels=3)
        base.config.pad_token_id = kept.base(trial).tokenizer.pad_token_id
    else:
        base = AutoModelForCausalLM.from_pretrained(path)
    model = PeftModel.from_pretrained(base, str(files.adapter_dir)).eval()
    assert not any(torch.is_grad_enabled() and p.requires_grad for n, p in model.named_parameters() if "lora" not in n)
    return BaseModel(model, AutoTokenizer.from_pretrained(path), "fp32")
