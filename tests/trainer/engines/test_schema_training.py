"""Rows without labels train and are scored in both engines, by the loss that plain transformers gives."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from analysis.errors import ConfigError
from analysis.folder import TrialFolder
from tests.trainer.packs import at_step, distance, drive, packed_engine
from trainer.baselines import score_baseline
from trainer.config import Baseline, DataConfig, ModelConfig, TrialConfig, check_trial
from trainer.device_cache import DeviceCache
from trainer.engine import Ended
from trainer.engines.hf_engine import HfEngine
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.metric_names import metric_names

WORDS = ["apple", "pear", "plum", "iron", "copper", "zinc", "wren", "owl", "hawk"]
TEMPLATE = (
    "{% for m in messages %}{{ 'Label ' if m.role == 'user' else ': ' }}{{ m.content }}{{ ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ ': ' }}{% endif %}"
)


def rows(schema: str, n: int, shift: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for i in range(n):
        a, b, c = (WORDS[(i * 2 + k + shift) % len(WORDS)] for k in range(3))
        if schema == "completion":
            found.append({"prompt": f"the {a} is", "completion": f" a {b}" + f" and {c}" * (i % 3)})
        elif schema == "chat":
            turns = [("user", f"the {a}"), ("assistant", f"a {b}"), ("user", a), ("assistant", f"{c} and {b}")]
            found.append({"messages": [{"role": r, "content": t} for r, t in turns[: 2 + i % 3]]})
        else:
            found.append({"text": f"the {a} is a {b} " * (1 + i % 4)})
    return found


@pytest.fixture(scope="module")
def materials() -> DeviceCache:
    return DeviceCache(torch.device("cpu"))


@pytest.fixture
def schema_trial(
    make_trial: Callable[..., TrialConfig], tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], TrialConfig]:
    folder = tmp_path_factory.mktemp("schemas")
    shutil.copytree(tiny_models["llama"], folder / "model")
    (folder / "model" / "chat_template.jinja").write_text(TEMPLATE)

    def make(schema: str, **changes: Any) -> TrialConfig:
        for split, n in (("train", 24), ("validation", 10)):
            content = "".join(json.dumps(row) + "\n" for row in rows(schema, n, n))
            (folder / f"{schema}-{split}.jsonl").write_text(content)
        data = DataConfig(
            "jsonl",
            train=str(folder / f"{schema}-train.jsonl"),
            validation=str(folder / f"{schema}-validation.jsonl"),
            schema=schema,
            max_length=16,
        )
        trial = make_trial("llama", rung_items=6, max_steps=4, rungs=[2, 4], **changes)
        return replace(trial, data=data, model=ModelConfig(source="local", path=str(folder / "model")))

    return make


def least(metrics: Any) -> float:
    return -float(metrics["perplexity"])


@pytest.mark.parametrize("schema", ["completion", "chat", "text"])
def test_both_engines_train_and_score_rows_without_labels_alike(
    schema: str, schema_trial: Callable[..., TrialConfig], materials: DeviceCache, tmp_path: Path
) -> None:
    trial = schema_trial(schema)
    other = replace(trial, trial_id="t0001", seed=8, lora=replace(trial.lora, rank=8))
    engine = packed_engine(materials)
    engine.score = least
    packed = drive(engine, [trial, other], tmp_path / "packed")
    drive(HfEngine(materials, least), [trial], tmp_path / "hf")
    assert distance(at_step(tmp_path / "packed", trial, 4), at_step(tmp_path / "hf", trial, 4)) < 1e-5

    ended = packed["t0000"][-1]
    assert isinstance(ended, Ended)
    assert ended.row is not None, ended
    assert set(ended.row.metrics) == set(metric_names(trial.task, trial.bias, trial.data, trial.eval))
    files, step = TrialFolder(tmp_path / "packed" / "t0000"), ended.row.step
    items = files.read_items("task", "validation", step)
    assert items.keys() == TrialFolder(tmp_path / "hf" / "t0000").read_items("task", "validation", step).keys()
    assert len(items["item_id"]) == ended.row.n_items == len(set(items["item_id"]))
    untuned = score_baseline(materials, Baseline("zero_shot", trial), TrialFolder(tmp_path / "zero_shot"))
    assert untuned.metrics["perplexity"] > ended.row.metrics["perplexity"]
    assert len(materials.validation(trial).rung) == 6


@pytest.mark.parametrize("schema", ["completion", "chat", "text"])
def test_metrics_are_those_of_the_loss_that_transformers_gives(
    schema: str, schema_trial: Callable[..., TrialConfig], materials: DeviceCache, tmp_path: Path
) -> None:
    trial = schema_trial(schema)
    metrics = score_baseline(materials, Baseline("zero_shot", trial), TrialFolder(tmp_path / "zero_shot")).metrics
    base, validation = materials.base(trial), materials.validation(trial)
    borne_nll = borne_tokens = nll = tokens = 0.0
    for row in validation.encoded:
        ids = torch.tensor([row.tokens])
        targets = [-100] * len(row.context) + list(row.targets())
        with torch.no_grad():
            borne_nll += float(base.model(ids, labels=torch.tensor([targets])).loss) * row.n_bearing
            nll += float(base.model(ids, labels=ids).loss) * (len(row.tokens) - 1)
        borne_tokens += row.n_bearing
        tokens += len(row.tokens) - 1
    if schema == "text":  # the context of a window was scored by the one before it
        nll, tokens = borne_nll, borne_tokens
    assert metrics["perplexity"] == pytest.approx(math.exp(nll / tokens), rel=1e-4)
    if schema == "text":
        assert "completion_loss" not in metrics
        n_bytes = sum(len(row.text.encode()) for row in materials.dataset(trial).validation)
        assert metrics["bits_per_byte"] == pytest.approx(nll / math.log(2) / n_bytes, rel=1e-4)
    else:
        assert metrics["completion_loss"] == pytest.approx(borne_nll / borne_tokens, rel=1e-4)
        assert metrics["completion_perplexity"] == pytest.approx(math.exp(borne_nll / borne_tokens), rel=1e-4)
    if schema == "chat":
        assert any(row.bears for row in validation.encoded)  # a question between two answers bears none


def test_plain_texts_fill_windows_in_training_and_are_scored_whole(
    schema_trial: Callable[..., TrialConfig], materials: DeviceCache
) -> None:
    trial = schema_trial("text")
    dataset, base = materials.dataset(trial), materials.base(trial)
    windows = materials.training(trial)
    assert {len(window.tokens) for window in windows[:-1]} == {16}
    stream = [token for window in windows for token in window.tokens]
    expected = []
    for row in dataset.train:
        expected += [*base.tokenizer(row.text).input_ids, base.tokenizer.eos_token_id]
    assert stream == expected
    validation = materials.validation(trial)
    scored = [token for row in validation.encoded for token in row.completion]
    texts = [base.tokenizer(row.text, add_special_tokens=False).input_ids for row in dataset.validation]
    assert scored == [token for text in texts for token in text]
    assert sum(row.n_bytes for row in validation.encoded) == sum(len(r.text.encode()) for r in dataset.validation)
    assert [row.item_id.rsplit(":", 1)[-1] for row in validation.rows[3:5]] == ["0-15", "15-20"]


@pytest.mark.parametrize("stride", [1, 4, 15])
def test_a_stride_gives_every_scored_token_its_context_and_counts_it_once(
    stride: int, schema_trial: Callable[..., TrialConfig], materials: DeviceCache
) -> None:
    trial = schema_trial("text")
    trial = replace(trial, eval=replace(trial.eval, stride=stride))
    dataset, base, window = materials.dataset(trial), materials.base(trial), trial.data.max_length
    validation = materials.validation(trial)
    texts = [base.tokenizer(row.text, add_special_tokens=False).input_ids for row in dataset.validation]
    assert [t for row in validation.encoded for t in row.completion] == [t for text in texts for t in text]
    assert sum(row.n_bytes for row in validation.encoded) == sum(len(r.text.encode()) for r in dataset.validation)
    expected = 0.0
    for text in texts:
        ids = [base.tokenizer.bos_token_id, *text]
        for place in range(1, len(ids)):
            # the window that scores this token moved on by so many strides
            moved = -(-max(0, place + 1 - window) // stride)
            begin = max(0, min(len(ids), window + moved * stride) - window)
            with torch.no_grad():
                table = base.model(torch.tensor([ids[begin:place]])).logits[0, -1].log_softmax(-1)
            expected -= float(table[ids[place]])
    everything = list(range(len(validation.rows)))
    found = evaluate(base, base.model, trial, validation, everything).metrics
    assert found["perplexity"] == pytest.approx(math.exp(expected / sum(map(len, texts))), rel=1e-4)
    with pytest.raises(ConfigError, match=r"eval.stride=16 is not below data.max_length=16"):
        check_trial(replace(trial, eval=replace(trial.eval, stride=16)))


@pytest.mark.parametrize("max_length", [8, 9, 10])
def test_long_prompts_lose_their_beginning_and_completions_their_end(
    max_length: int, schema_trial: Callable[..., TrialConfig], materials: DeviceCache
) -> None:
    trial = schema_trial("completion")
    short = replace(trial, data=replace(trial.data, max_length=max_length))
    whole, cut = materials.validation(trial).encoded, materials.validation(short).encoded
    assert max(len(row.tokens) for row in whole) > max_length
    for before, after in zip(whole, cut, strict=True):
        assert len(after.tokens) <= max_length
        assert after.context[0] == before.context[0]  # the start-of-text token
        assert after.context[-1] == before.context[-1]
        assert after.completion == before.completion[: len(after.completion)]
        assert len(after.tokens) == min(max_length, len(before.tokens))
