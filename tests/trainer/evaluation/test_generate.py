"""What a model writes, against step-by-step decoding without batches."""

import json
from dataclasses import replace

import pytest
import torch

from trainer.config import DataConfig
from trainer.device_cache import DeviceCache
from trainer.evaluation.evaluate import evaluate, restricted
from trainer.evaluation.generate import SPARE, as_label
from trainer.generation.decode import Written, write

BIRDS = ("wren", "owl", "hawk", "crow")


@pytest.fixture(scope="module")
def kept() -> DeviceCache:
    return DeviceCache(torch.device("cpu"))


def one_at_a_time(model, context, most, end) -> tuple[int, ...]:
    new: list[int] = []
    while len(new) < most:
        with torch.no_grad():
            token = int(model(torch.tensor([[*context, *new]])).logits[0, -1].argmax())
        if token == end:
            break
        new.append(token)
    return tuple(new)


def test_of_labels_of_one_token_the_constrained_answer_is_the_likeliest(make_trial, kept) -> None:
    trial = answering(make_trial("llama"))
    base, validation = kept.base(trial), kept.validation(trial)
    scored = evaluate(base, base.model, trial, validation, list(range(30)), moment="final")
    table = scored.tables["generated"]
    assert table["constrained"] == scored.tables["task"]["prediction"]
    assert scored.metrics["generate.constrained_accuracy"] == scored.metrics["accuracy"]
    assert table["item_id"] == scored.tables["task"]["item_id"]


def test_an_answer_that_is_no_label_is_invalid_and_wrong(make_trial, kept, monkeypatch) -> None:
    trial = answering(make_trial("llama"))
    base, validation = kept.base(trial), kept.validation(trial)
    few = replace(validation.to_answer, prompts=validation.to_answer.prompts[:4])
    gold = [prompt.reference for prompt in few.prompts]
    said = [f"<think>owl</think>{gold[0]}", f"{gold[1].upper()}. And", "the owl", f" {gold[3]}.\nmore"]
    free = [Written((), text, True) for text in said]

    def written(*arguments):
        return free if len(arguments) == 6 else write(*arguments)

    monkeypatch.setattr("trainer.evaluation.generate.write", written)
    found = evaluate(base, base.model, trial, replace(validation, to_answer=few), [0], moment="final")
    metrics, table = found.metrics, found.tables["generated"]
    assert table["prediction"] == [gold[0], None, None, gold[3]]
    assert (metrics["generate.accuracy"], metrics["generate.invalid"]) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("yes", "yes"), ("Yes.", "yes"), (" NO!\nbecause", "No"), ("no", "No"), ("maybe", None), ("", None),
        ("yes no", None), ("C.", "C."), ("it", None),
    ],
)  # fmt: skip
def test_how_an_answer_is_read(text: str, label: str | None) -> None:
    assert as_label(text, ("yes", "No", "C.", "IT", "It")) == label


def chats(make_trial, tmp_path, rows: int = 12):
    lines = [{"prompt": f"{BIRDS[i % 3]} {BIRDS[i % 4]}", "completion": f" {BIRDS[i % 4]}"} for i in range(rows)]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "validation")}
    data = DataConfig(source="jsonl", schema="completion", max_length=32, allow_overlap=True, **files)
    trial = answering(make_trial("llama"))
    return replace(trial, data=data, eval=replace(trial.eval, rung_items=6, generate_items=3, generate_final_items=8))


def answering(trial, **settings):
    return replace(trial, eval=replace(trial.eval, generate="rung", **settings))


def test_without_labels_the_text_is_compared_with_the_reference(make_trial, kept, tmp_path) -> None:
    trial = chats(make_trial, tmp_path)
    base, validation = kept.base(trial), kept.validation(trial)
    found = evaluate(base, base.model, trial, validation, [0], moment="final")
    table = found.tables["generated"]
    rows = {row.item_id: (row, made) for row, made in zip(validation.rows, validation.encoded, strict=True)}
    assert table["label"] == [rows[item][0].completion.strip() for item in table["item_id"]]
    most = validation.to_answer.max_new_tokens
    new = [one_at_a_time(base.model, rows[item][1].context, most, 1) for item in table["item_id"]]
    assert table["generated"] == [base.tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in new]
    assert {"generate.exact_match", "generate.token_f1", "generate.rouge_l", "generate.bleu"} <= set(found.metrics)


def test_thoughts_are_kept_and_take_no_part_in_figures(make_trial, kept, tmp_path, monkeypatch) -> None:
    trial = chats(make_trial, tmp_path)
    base, validation = kept.base(trial), kept.validation(trial)
    gold = [prompt.reference for prompt in validation.to_answer.prompts]
    thought = [
        f"<think>\n\n</think>\n\n{gold[0]}",
        f"or {gold[0]}</think>{gold[1]}",
        *(f"<think>{it}" for it in gold[2:]),
    ]

    def written(base, model, prompts, keys, *rest):
        return [Written((1,) * 9, text, True) for text in thought]

    monkeypatch.setattr("trainer.evaluation.generate.write", written)
    found = evaluate(base, base.model, trial, validation, [0], moment="final")
    assert found.tables["generated"]["generated"] == thought
    assert found.tables["generated"]["exact_match"] == [1.0, 1.0, *[0.0] * (len(gold) - 2)]
    assert found.tables["generated"]["n_tokens"] == [9] * len(gold)


def test_the_end_answers_what_a_rung_answered_and_more_without_writing_it_again(
    make_trial, kept, tmp_path, monkeypatch
) -> None:
    trial = chats(make_trial, tmp_path)
    base, validation = kept.base(trial), kept.validation(trial)
    rung = evaluate(base, base.model, trial, validation, validation.rung, moment="rung")
    whole = evaluate(base, base.model, trial, validation, list(range(12)), moment="final")
    asked: list[str] = []

    def written(base, model, prompts, keys, *rest):
        asked.extend(keys)
        return write(base, model, prompts, keys, *rest)

    monkeypatch.setattr("trainer.evaluation.generate.write", written)
    further = evaluate(base, base.model, trial, validation, list(range(12)), rung, moment="final")
    first, all_items = rung.tables["generated"]["item_id"], further.tables["generated"]["item_id"]
    assert (len(first), len(all_items)) == (3, 8)
    assert set(first) < set(all_items)
    assert set(first) <= {validation.rows[i].item_id for i in validation.rung}
    assert sorted(asked) == sorted(set(all_items) - set(first))
    assert further.tables["generated"] == whole.tables["generated"]
    assert restricted(whole, validation, validation.rung).tables["generated"] == rung.tables["generated"]


def test_a_trial_that_is_answered_at_its_end_only_writes_nothing_at_rungs(make_trial, kept, tmp_path) -> None:
    trial = chats(make_trial, tmp_path)
    trial = replace(trial, eval=replace(trial.eval, generate="final"))
    base, validation = kept.base(trial), kept.validation(trial)
    assert "generated" not in evaluate(base, base.model, trial, validation, [0], moment="rung").tables
    assert len(evaluate(base, base.model, trial, validation, [0], moment="final").tables["generated"]["item_id"]) == 8
    never = replace(trial, eval=replace(trial.eval, generate=False))
    assert not kept.validation(never).to_answer.prompts


def test_answers_are_as_long_as_references_unless_the_config_says_how_long(make_trial, tmp_path) -> None:
    trial = chats(make_trial, tmp_path)
    fresh = DeviceCache(torch.device("cpu"))
    assert fresh.max_new_tokens(trial) == min(32, fresh.base(trial).window // 2)
    assert fresh.max_new_tokens(replace(trial, eval=replace(trial.eval, max_new_tokens=7))) == 7
    lines = [{"prompt": "owl", "completion": " owl" * 40}] * 12
    (tmp_path / "train.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    long = DeviceCache(torch.device("cpu"))
    words = len(long.base(trial).tokenizer(["owl" + " owl" * 39], add_special_tokens=False).input_ids[0])
    assert long.max_new_tokens(trial) == min(256, long.base(trial).window // 2, words + words // 4 + SPARE)
