"""What a model writes, against step-by-step decoding without batches."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from trainer.device_cache import DeviceCache
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.generate import answers, as_label
from trainer.generation.decode import Written, write


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
    trial = make_trial("llama")
    base, validation = kept.base(trial), kept.validation(trial)
    metrics, table = answers(base, base.model, trial, validation)
    scored = evaluate(base, base.model, trial, validation, list(range(30)))
    assert table["constrained"] == scored.tables["task"]["prediction"]
    assert metrics["generate.constrained_accuracy"] == scored.metrics["accuracy"]
    assert table["item_id"] == scored.tables["task"]["item_id"]


def test_an_answer_that_is_no_label_is_invalid_and_wrong(make_trial, kept, monkeypatch) -> None:
    trial = make_trial("llama")
    base, validation = kept.base(trial), kept.validation(trial)
    some = replace(validation, rows=validation.rows[:4], encoded=validation.encoded[:4])
    gold = [validation.labels[row.target] for row in some.encoded]
    said = [gold[0], f"{gold[1].upper()}. And", "the owl", f" {gold[3]}.\nmore"]
    free = [Written((), text, True) for text in said]

    def written(*arguments):
        return free if len(arguments) == 6 else write(*arguments)

    monkeypatch.setattr("trainer.evaluation.generate.write", written)
    metrics, table = answers(base, base.model, trial, some)
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


def test_without_labels_the_text_is_compared_with_the_reference(make_trial, kept) -> None:
    trial = make_trial("llama")
    base = kept.base(trial)
    encoded = [replace(row, completion=new) for row, new in zip(
        kept.validation(trial).encoded[:3], [(7, 8), (9,), (10, 11)], strict=True)]  # fmt: skip
    rows = [SimpleNamespace(item_id=f"r{i}") for i in range(3)]
    free = replace(kept.validation(trial), rows=rows, encoded=encoded, labels=())
    metrics, table = answers(base, base.model, trial, free)
    assert table["label"] == [base.tokenizer.decode(row.completion) for row in encoded]
    limit = trial.eval.max_new_tokens or 32
    new = [one_at_a_time(base.model, row.context, limit, 1) for row in encoded]
    assert table["generated"] == [base.tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in new]
    assert set(metrics) == {"generate.exact_match", "generate.rouge_l"}
