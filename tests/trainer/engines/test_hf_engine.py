"""The reference engine: what a trial yields, and that nothing but its own configuration decides it."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, get_scheduler

from analysis.errors import ModelError
from analysis.folder import State, TrialFolder
from trainer.baselines import score_baseline
from trainer.config import Baseline, TrialConfig
from trainer.device_cache import DeviceCache
from trainer.engine import Admitted, Ended, Event, Full, RungResult
from trainer.engines.batches import micro_batches
from trainer.engines.hf_engine import HfEngine
from trainer.engines.keyed_dropout import DropoutKeys, row_keys, use_keyed_dropout
from trainer.evaluation.evaluate import Evaluation, evaluate
from trainer.models.base_state import BaseState
from trainer.models.lora import add_adapter, remove_adapter


@pytest.fixture(scope="module")
def materials() -> DeviceCache:
    return DeviceCache(torch.device("cpu"))


def accuracy(metrics: Any) -> float:
    return float(metrics["accuracy"])


def run(engine: HfEngine, trial: TrialConfig, folder: Path, checkpoint: Path | None = None) -> list[Event]:
    """Drive one trial to its end, saving a checkpoint at every rung."""
    files = TrialFolder(folder)
    assert isinstance(engine.admit(trial, files, checkpoint), Admitted)
    events: list[Event] = []
    while not (events and isinstance(events[-1], Ended)):
        events += engine.advance()
        if isinstance(events[-1], RungResult):
            engine.snapshot(trial.trial_id, files.checkpoint_dir(events[-1].row.step))()
            engine.proceed(trial.trial_id)
    return events


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("model", ["llama", "gpt2", "bert"])
def test_a_trial_learns_and_its_adapter_gives_the_recorded_predictions_in_plain_peft(
    model: str, make_trial: Callable[..., TrialConfig], materials: DeviceCache, tmp_path: Path
) -> None:
    trial = make_trial(model, max_steps=40, rungs=[10, 40], batch_size=12, lr=2e-2)
    untuned = score_baseline(materials, Baseline("zero_shot", trial), TrialFolder(tmp_path / "zero_shot"))
    events = run(HfEngine(materials, accuracy), trial, tmp_path / "t0000")
    assert [type(e).__name__ for e in events] == ["RungResult", "RungResult", "Ended"]
    assert [e.row.n_items for e in events] == [12, 12, 30]
    final = events[-1].row
    assert final.final
    assert final.metrics["accuracy"] >= 0.9 > untuned.metrics["accuracy"]

    items = TrialFolder(tmp_path / "t0000").read_items("task", "validation", final.step)
    folder = trial.model.path
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = {row.item_id: row.text for row in materials.dataset(trial).validation}
    labels = materials.dataset(trial).labels
    if model == "bert":
        base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    else:
        base = AutoModelForCausalLM.from_pretrained(folder)
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "t0000" / "adapter")).eval()
    for item_id, predicted, recorded in zip(items["item_id"], items["prediction"], items["logprobs"], strict=True):
        if model == "bert":
            with torch.no_grad():
                scores = loaded(**tokenizer(texts[item_id], return_tensors="pt")).logits[0].log_softmax(-1)
        else:
            context = tokenizer(texts[item_id]).input_ids + tokenizer("\nLabel:", add_special_tokens=False).input_ids
            answers = [tokenizer(f" {label}", add_special_tokens=False).input_ids for label in labels]
            assert all(len(answer) == 1 for answer in answers)
            with torch.no_grad():
                logits = loaded(torch.tensor([context])).logits[0, -1]
            scores = logits[[answer[0] for answer in answers]].log_softmax(-1)
        assert labels[int(scores.argmax())] == predicted
        torch.testing.assert_close(scores, torch.tensor(recorded), atol=1e-4, rtol=0, check_dtype=False)


@pytest.mark.parametrize("model", ["llama", "bert"])
@pytest.mark.parametrize(
    "changes", [{}, {"dropout": 0.3, "weight_decay": 0.1, "schedule": "cosine", "accumulation": 2}]
)
def test_a_trial_equals_a_plain_peft_training_loop(
    model: str, changes: dict[str, Any], make_trial: Callable[..., TrialConfig], materials: DeviceCache, tmp_path: Path
) -> None:
    trial = make_trial(model, **changes)
    run(HfEngine(materials, lambda metrics: 0.0), trial, tmp_path)  # every rung ties: the last is kept

    base = materials.base(trial)
    routing = DropoutKeys()
    peft_model = add_adapter(base.model, trial.lora, trial.task.name, base.heads, trial.seed)
    use_keyed_dropout(peft_model.get_base_model(), trial.lora.dropout, routing)
    trained = {name: p for name, p in peft_model.named_parameters() if p.requires_grad}
    decayed = [p for name, p in trained.items() if "bias" not in name]
    rest = [p for name, p in trained.items() if "bias" in name]
    groups = [{"params": decayed, "weight_decay": trial.optim.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=trial.optim.lr, betas=(0.9, 0.999), eps=1e-8)
    schedule = get_scheduler(trial.optim.schedule, optimizer, num_warmup_steps=1, num_training_steps=6)
    peft_model.train()
    for step in range(trial.train.max_steps):
        for made in micro_batches(trial, materials.training(trial), base.tokenizer.pad_token_id, step):
            batch = made.tensors()
            routing.keys = row_keys(trial.seed, step, batch["samples"])
            logits = peft_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            targets = batch["labels"]
            if model != "bert":
                logits, targets = logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten()
            loss = torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
            (loss / batch["denominator"]).backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), trial.train.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    peft_model.save_pretrained(str(tmp_path / "alone"))
    remove_adapter(peft_model)
    alone, engine = weights(tmp_path / "alone"), weights(tmp_path / "adapter")
    assert alone.keys() == engine.keys()
    for name in alone:
        # the engine takes logits only where loss is borne: other sums, and Adam makes much of tiny gradients
        torch.testing.assert_close(engine[name], alone[name], atol=1e-4, rtol=1e-3)


def test_a_trial_does_not_depend_on_what_ran_before(
    make_trial: Callable[..., TrialConfig], materials: DeviceCache, tmp_path: Path
) -> None:
    engine, trial = HfEngine(materials, accuracy), make_trial("llama", dropout=0.1)
    first = run(engine, trial, tmp_path / "a")
    run(engine, make_trial("llama", rank=16, lr=0.1, seed=3), tmp_path / "b")
    again = run(engine, trial, tmp_path / "c")
    assert [e.row.metrics for e in first] == [e.row.metrics for e in again]
    assert all(
        torch.equal(a, weights(tmp_path / "c" / "adapter")[n]) for n, a in weights(tmp_path / "a" / "adapter").items()
    )


def test_the_base_model_is_left_as_it_was(make_trial: Callable[..., TrialConfig], tmp_path: Path) -> None:
    materials, trial = DeviceCache(torch.device("cpu")), make_trial("llama")
    ids = torch.arange(4, 20)[None]
    before = materials.base(trial).model(ids).logits
    run(HfEngine(materials, accuracy), trial, tmp_path)
    base = materials.base(trial).model
    assert torch.equal(base(ids).logits, before)
    assert not any("lora" in name for name, _ in base.named_modules())


@pytest.mark.parametrize("model", ["llama", "bert"])
def test_a_trial_that_goes_on_from_its_checkpoint_equals_an_uninterrupted_one(
    model: str, make_trial: Callable[..., TrialConfig], materials: DeviceCache, tmp_path: Path
) -> None:
    trial = make_trial(model, dropout=0.2, weight_decay=0.1)
    whole = run(HfEngine(materials, accuracy), trial, tmp_path / "whole")
    checkpoint = TrialFolder(tmp_path / "whole").checkpoint_dir(2)
    resumed = run(HfEngine(materials, accuracy), trial, tmp_path / "resumed", checkpoint)
    assert [e.row.step for e in resumed[:-1]] == [4, 6]
    assert [e.row.metrics for e in resumed[:-1]] == [e.row.metrics for e in whole[1:-1]]
    # the best rung was scored in another folder: all rows are scored anew, in other batches
    assert resumed[-1].row.metrics == pytest.approx(whole[-1].row.metrics, rel=1e-6)
    assert resumed[-1].row.tokens == whole[-1].row.tokens
    for name, tensor in weights(tmp_path / "whole" / "adapter").items():
        torch.testing.assert_close(weights(tmp_path / "resumed" / "adapter")[name], tensor, atol=1e-7, rtol=1e-6)


def test_accumulation_changes_memory_not_the_result(
    make_trial: Callable[..., TrialConfig], materials: DeviceCache, tmp_path: Path
) -> None:
    for accumulation in (1, 4):
        trial = make_trial("llama", accumulation=accumulation, dropout=0.2)
        run(HfEngine(materials, lambda metrics: 0.0), trial, tmp_path / str(accumulation))
    one, four = (weights(tmp_path / str(n) / "adapter") for n in (1, 4))
    for name in one:
        torch.testing.assert_close(one[name], four[name], atol=2e-5, rtol=1e-3)


def test_the_best_rung_is_what_is_saved_and_reported(
    make_trial: Callable[..., TrialConfig], materials: DeviceCache, tmp_path: Path
) -> None:
    scores = iter([0.5, 0.9, 0.1])
    trial, files = make_trial("llama", lr=2e-2), TrialFolder(tmp_path)
    final = run(HfEngine(materials, lambda metrics: next(scores)), trial, tmp_path)[-1].row
    assert final.step == 4
    best, saved = weights(files.checkpoint_dir(4)), weights(files.adapter_dir)
    assert all(torch.equal(saved[name], best[name]) for name in saved)

    base = materials.base(trial)
    before = BaseState(base.model)
    peft_model = PeftModel.from_pretrained(base.model, str(files.adapter_dir))
    validation = materials.validation(trial)
    rescored = evaluate(base, peft_model, trial, validation, list(range(30)))
    before.restore()
    assert rescored.metrics == pytest.approx(final.metrics)


def test_a_loss_that_is_not_finite_is_a_result_and_frees_the_slot(
    make_trial: Callable[..., TrialConfig], materials: DeviceCache, tmp_path: Path
) -> None:
    engine = HfEngine(materials, accuracy)
    engine.admit(make_trial("llama"), TrialFolder(tmp_path), None)
    engine.advance()
    assert engine.run is not None
    with torch.no_grad():
        next(p for p in engine.run.model.parameters() if p.requires_grad).fill_(math.inf)
    engine.proceed("t0000")
    (ended,) = engine.advance()
    assert isinstance(ended, Ended)
    assert (ended.state, ended.reason, ended.step) == (State.DIVERGED, "the loss was nan in step 3", 2)
    assert isinstance(run(engine, make_trial("llama"), tmp_path / "next")[-1], Ended)


def test_an_infinite_gradient_norm_is_a_result_and_not_a_trial_that_never_steps(
    make_trial: Callable[..., TrialConfig], materials: DeviceCache, tmp_path: Path
) -> None:
    trial = make_trial("llama", alpha_rule="fixed", alpha_value=1e38)
    (ended,) = run(HfEngine(materials, accuracy), trial, tmp_path)
    assert isinstance(ended, Ended)
    assert (ended.state, ended.reason) == (State.DIVERGED, "the gradient norm was inf in step 1")


def test_an_encoder_is_no_model_for_completion(make_trial: Callable[..., TrialConfig], materials: DeviceCache) -> None:
    trial = make_trial("bert")
    trial = replace(trial, task=replace(trial.task, name="completion"))
    with pytest.raises(ModelError, match="no language-model head"):
        materials.base(trial)


def test_a_metric_that_is_not_finite_is_a_result(
    make_trial: Callable[..., TrialConfig], materials: DeviceCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Evaluation({"accuracy": 0.5, "perplexity": math.nan}, {}, 12)
    monkeypatch.setattr("trainer.engines.hf_engine.evaluate", lambda *args: broken)
    (ended,) = run(HfEngine(materials, accuracy), make_trial("llama"), tmp_path)
    assert isinstance(ended, Ended)
    assert (ended.state, ended.reason) == (State.DIVERGED, "perplexity not finite after step 2")


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), State.OUT_OF_MEMORY),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9"),
            State.OUT_OF_MEMORY,
        ),
        (RuntimeError("shapes do not match"), State.FAILED),
        (KeyError("surprise"), State.FAILED),
    ],
)
def test_an_error_in_a_trial_ends_the_trial_with_its_reason_and_frees_the_slot(
    error: Exception,
    state: State,
    make_trial: Callable[..., TrialConfig],
    materials: DeviceCache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*args: Any) -> None:
        raise error

    engine = HfEngine(materials, accuracy)
    with monkeypatch.context() as patched:
        patched.setattr("trainer.engines.hf_engine.evaluate", broken)
        ended = run(engine, make_trial("llama"), tmp_path)[-1]
    assert isinstance(ended, Ended)
    assert ended.state is state
    assert str(error).strip("'")[:20] in ended.reason
    assert isinstance(run(engine, make_trial("llama"), tmp_path / "next")[-1], Ended)


def test_one_slot_and_a_trial_stopped_at_a_rung_leaves_its_best_adapter(
    make_trial: Callable[..., TrialConfig], materials: DeviceCache, tmp_path: Path
) -> None:
    engine, files = HfEngine(materials, accuracy), TrialFolder(tmp_path)
    engine.admit(make_trial("llama"), files, None)
    assert isinstance(engine.admit(make_trial("llama", trial_id="t0001"), TrialFolder(tmp_path / "b"), None), Full)
    assert isinstance(engine.advance()[0], RungResult)
    assert engine.advance() == [], "a slot rests after its rung until it is told to go on"
    engine.snapshot("t0000", files.checkpoint_dir(2))()
    engine.end("t0000", State.STOPPED_EARLY)
    assert weights(files.adapter_dir).keys() == weights(files.checkpoint_dir(2)).keys()
    assert json.loads((files.checkpoint_dir(2) / "counters.json").read_text())["step"] == 2
    assert isinstance(engine.admit(make_trial("llama", trial_id="t0001"), TrialFolder(tmp_path / "b"), None), Admitted)
    engine.end("t0001", State.STOPPED_EARLY)


def test_four_bit_on_a_cpu_trains_and_saves_the_same_before_and_after_evaluation(
    make_trial: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    """bitsandbytes 0.50 repacks 4-bit weights in evaluation on CPUs with AVX512-BF16, and breaks training silently.

    Train, evaluate, train, save, evaluate: gradients, losses and the reloaded model must not notice the evaluations.
    """
    materials, trial = DeviceCache(torch.device("cpu")), make_trial("llama", precision="nf4")
    base = materials.base(trial)
    validation = materials.validation(trial)
    everything = list(range(len(validation.rows)))
    peft_model = add_adapter(base.model, trial.lora, "completion", base.heads, trial.seed)
    batch = micro_batches(trial, materials.training(trial), base.tokenizer.pad_token_id, 0)[0].tensors()

    def gradient() -> tuple[float, float]:
        peft_model.train()
        peft_model.zero_grad()
        loss = peft_model(**{k: batch[k] for k in ("input_ids", "attention_mask", "labels")}).loss
        loss.backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in peft_model.parameters() if p.grad is not None))
        return float(loss), norm

    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)  # so that gradients reach A, through the base model
    before = gradient()
    scored = evaluate(base, peft_model, trial, validation, everything).metrics
    assert gradient() == pytest.approx(before, rel=1e-6)
    peft_model.save_pretrained(str(tmp_path))
    assert evaluate(base, peft_model, trial, validation, everything).metrics == pytest.approx(scored, rel=1e-6)
    assert gradient() == pytest.approx(before, rel=1e-6)
    fresh = PeftModel.from_pretrained(DeviceCache(torch.device("cpu")).base(trial).model, str(tmp_path)).eval()
    peft_model.eval()
    assert torch.equal(fresh(batch["input_ids"]).logits, peft_model(batch["input_ids"]).logits)


@pytest.mark.parametrize("precision", ["bf16", "int8", "nf4"])
def test_every_precision_trains_and_reloads(
    precision: str, make_trial: Callable[..., TrialConfig], materials: DeviceCache, tmp_path: Path
) -> None:
    trial = make_trial("llama", precision=precision, max_steps=30, rungs=[30], batch_size=12, lr=2e-2)
    ended = run(HfEngine(materials, accuracy), trial, tmp_path)[-1]
    assert isinstance(ended, Ended)
    assert ended.row is not None, ended.reason
    assert ended.row.metrics["accuracy"] >= 0.9
    base = materials.base(trial)
    before = BaseState(base.model)
    peft_model = PeftModel.from_pretrained(base.model, str(tmp_path / "adapter"))
    validation = materials.validation(trial)
    # in two parts, as the engine does: in bf16 a row's score depends a little on the batch it is in
    rung = evaluate(base, peft_model, trial, validation, validation.rung)
    rescored = evaluate(base, peft_model, trial, validation, list(range(30)), rung)
    before.restore()
    assert rescored.metrics == pytest.approx(ended.row.metrics, rel=1e-5)
