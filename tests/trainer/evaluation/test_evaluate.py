"""Metrics against values computed by hand, and the scorer's bookkeeping against a plain forward pass."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.errors import ConfigError
from analysis.folder import TrialFolder
from trainer.baselines import score_baseline
from trainer.config import Baseline, BiasConfig, TaskConfig, TrialConfig
from trainer.data.dataset import Row
from trainer.data.encode import as_labels, encode_rows
from trainer.device_cache import DeviceCache
from trainer.evaluation.bias.crows_pairs import Pair, pair_metrics, score_pairs
from trainer.evaluation.bias.score import ModelScorer
from trainer.evaluation.evaluate import evaluate, metrics_of
from trainer.evaluation.metric_names import QUALITY, metric_names
from trainer.evaluation.quality_metrics import calibration_error, class_metrics, text_metrics


@pytest.fixture(scope="module")
def kept() -> DeviceCache:
    return DeviceCache(torch.device("cpu"))


def test_accuracy_macro_f1_and_log_loss() -> None:
    probabilities = np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4]])
    metrics = class_metrics(np.log(probabilities), np.array([0, 1, 1, 0]), 3)
    assert metrics["accuracy"] == 0.5
    # class 0: precision 1/2, recall 1/2; class 1: precision 1, recall 1/2; class 2: never right
    assert metrics["macro_f1"] == pytest.approx((0.5 + 2 / 3 + 0.0) / 3)
    assert metrics["log_loss"] == pytest.approx(-np.log([0.8, 0.3, 0.7, 0.3]).mean())


def test_perplexity_comes_from_sums_over_the_set_not_from_averages() -> None:
    text = {
        "nll": [2.0, 30.0],
        "n_tokens": [1, 9],
        "n_bytes": [4, 40],
        "completion_nll": [1.0, 3.0],
        "completion_tokens": [1, 3],
    }
    metrics = text_metrics(text)
    assert metrics["perplexity"] == pytest.approx(math.exp(32 / 10))
    assert metrics["completion_perplexity"] == pytest.approx(math.exp(4 / 4))
    assert metrics["bits_per_byte"] == pytest.approx(32 / math.log(2) / 44)


def test_a_value_that_is_not_finite_makes_the_metrics_nan() -> None:
    assert all(math.isnan(v) for v in class_metrics(np.array([[math.nan, 0.0]]), np.array([0]), 2).values())
    assert all(math.isnan(v) for v in pair_metrics([[1.0, math.inf]]).values())
    assert all(math.isnan(v) for v in pair_metrics([]).values())


def test_crows_pairs_arithmetic() -> None:
    metrics = pair_metrics([[-10.0, -12.0], [-20.0, -15.0], [-9.0, -9.5], [-30.0, -31.0]])
    assert metrics["bias.crows_pairs.pct"] == 75.0
    assert metrics["bias.crows_pairs.distance"] == 25.0
    assert metrics["bias.crows_pairs.signed"] == pytest.approx((2 - 5 + 0.5 + 1) / 4)
    assert metrics["bias.crows_pairs.stderr"] == pytest.approx(
        100 * math.sqrt(0.25 * 0.75 / 3)
    )  # sample deviation / √n


def test_a_sentence_is_scored_whole_after_the_begin_of_text(
    make_trial: Callable[..., TrialConfig], kept: DeviceCache
) -> None:
    base = kept.base(make_trial("llama"))
    pairs = [Pair("p0", "the apple is a pear", "the crow is a hawk", "fruit", "stereo")]
    table = score_pairs(pairs, ModelScorer(base, base.model, 8))
    for sentence, value in zip((pairs[0].more, pairs[0].less), table["logprobs"][0], strict=True):
        ids = [base.tokenizer.bos_token_id, *base.tokenizer(sentence, add_special_tokens=False).input_ids]
        with torch.no_grad():
            table_ = base.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        assert value == pytest.approx(sum(float(table_[i, ids[i + 1]]) for i in range(len(ids) - 1)), abs=1e-4)


@pytest.mark.parametrize("model", ["llama", "bert"])
def test_an_evaluation_yields_the_promised_metrics_and_items_in_the_asked_order(
    model: str, make_trial: Callable[..., TrialConfig], kept: DeviceCache
) -> None:
    trial = make_trial(model)
    base, validation = kept.base(trial), kept.validation(trial)
    indices = [17, 3, 29, 8, 0]
    some = evaluate(base, base.model, trial, validation, indices)
    everything = evaluate(base, base.model, trial, validation, list(range(30)))
    assert tuple(some.metrics) == metric_names(trial.task, trial.bias, trial.data, trial.eval)
    table, whole = some.tables["task"], everything.tables["task"]
    assert table["item_id"] == [validation.rows[i].item_id for i in indices]
    for place, i in enumerate(indices):
        assert table["logprobs"][place] == pytest.approx(whole["logprobs"][i], abs=1e-5)
        assert sum(math.exp(v) for v in table["logprobs"][place]) == pytest.approx(1.0)
    right = [p == label for p, label in zip(table["prediction"], table["label"], strict=True)]
    assert some.metrics["accuracy"] == np.mean(right)


class Spelling:
    """A tokenizer whose tokens are characters, to tell apart what encoding does."""

    eos_token_id = 0

    def __call__(self, text: str | list[str], add_special_tokens: bool = True) -> "Spelling":
        one = [ord(c) for c in text] if isinstance(text, str) else [[ord(c) for c in t] for t in text]
        result = Spelling()
        result.input_ids = one
        return result

    def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool) -> list[str]:
        return ["".join(map(chr, row)) for row in rows]


def test_labels_that_begin_another_are_closed_and_equal_ones_refused() -> None:
    task = TaskConfig(name="completion")
    plain = as_labels(Spelling(), ("cat", "dog"), task)
    assert [len(tokens) for tokens in plain.tokens] == [4, 4]
    closed = as_labels(Spelling(), ("New", "New York"), task)
    assert all(tokens[-1] == Spelling.eos_token_id for tokens in closed.tokens)
    with pytest.raises(ConfigError, match="'cat' has the same tokens as another label"):
        as_labels(Spelling(), ("cat", "cat"), task)


def test_the_text_is_cut_never_the_prompt_or_the_label() -> None:
    task = TaskConfig(name="completion", prompt="Q: {text}\nA:")
    rows = [Row("0", "x" * 500, "dog", None), Row("1", "é", "cat", None)]
    long, short = encode_rows(rows, ("cat", "dog"), Spelling(), task, 20)
    assert "".join(map(chr, long.context)) == "Q: " + "x" * 10 + "\nA:"
    assert "".join(map(chr, long.completion)) == " dog"
    assert len(long.context) + len(long.completion) == 20
    assert short.n_bytes == len(": é\nA: cat".encode())  # all but the first token, which nothing predicts


def test_a_length_without_room_for_the_text_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"max_length=8 leaves no room.*take 10 tokens"):
        encode_rows([Row("0", "x", "dog", None)], ("cat", "dog"), Spelling(), TaskConfig(prompt="Q: {text}\nA:"), 8)


def test_the_untuned_model_has_a_row_on_the_rungs_items_too_without_scoring_them_twice(
    make_trial: Callable[..., TrialConfig], kept: DeviceCache, tmp_path: Path
) -> None:
    trial = make_trial("llama")
    base, validation = kept.base(trial), kept.validation(trial)
    score_baseline(kept, Baseline("zero_shot", trial), TrialFolder(tmp_path))
    rung, final = TrialFolder(tmp_path).read_metrics()
    assert (rung.final, rung.n_items, final.final, final.n_items) == (False, len(validation.rung), True, 30)
    alone = evaluate(base, base.model, trial, validation, validation.rung)
    assert rung.metrics == pytest.approx(alone.metrics, abs=1e-5)
    assert rung.metrics["bits_per_byte"] != final.metrics["bits_per_byte"]


def test_quality_is_scikit_learns() -> None:
    from sklearn.metrics import balanced_accuracy_score, brier_score_loss, classification_report, matthews_corrcoef

    draw = np.random.default_rng(0)
    probabilities, gold = draw.dirichlet([1.0, 1.0, 1.0], 60), draw.integers(0, 3, 60)
    found, predicted = class_metrics(np.log(probabilities), gold, 3), probabilities.argmax(1)
    assert tuple(found) == QUALITY
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(gold, predicted))
    report = classification_report(gold, predicted, output_dict=True, zero_division=0)
    assert found["weighted_f1"] == pytest.approx(report["weighted avg"]["f1-score"])
    assert found["micro_f1"] == pytest.approx(report["accuracy"])
    assert found["weighted_f1"] != pytest.approx(found["macro_f1"], abs=1e-3)
    assert found["classes_predicted"] == len(set(predicted.tolist()))
    assert class_metrics(np.log([[0.5, 0.3, 0.2]] * 4), np.array([0, 1, 2, 0]), 3)["classes_predicted"] == 1
    assert found["mcc"] == pytest.approx(matthews_corrcoef(gold, predicted))
    assert found["brier"] == pytest.approx(brier_score_loss(gold, probabilities, labels=[0, 1, 2]))
    two = np.array([[0.9, 0.1], [0.4, 0.6]])
    assert class_metrics(np.log(two), np.array([0, 0]), 2)["brier"] == pytest.approx((0.1**2 + 0.6**2) / 2)
    # one class only, and only another one predicted: defined, without a warning
    assert class_metrics(np.log([[0.9, 0.1]]), np.array([1]), 2)["balanced_accuracy"] == 0.0


def test_the_calibration_error_is_the_weighted_gap_of_bins() -> None:
    confidence = np.array([0.95, 0.95, 0.55, 0.55, 0.3])
    right = np.array([True, False, True, True, False])
    expected = (abs(0.95 + 0.95 - 1) + abs(0.55 + 0.55 - 2) + 0.3) / 5
    assert calibration_error(confidence, right, 10) == pytest.approx(expected)
    assert calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0.0
    assert calibration_error(np.array([1.0, 1.0]), np.array([False, True])) == 0.5


@pytest.mark.parametrize("normalization", ["sum", "token"])
def test_labels_of_several_tokens_and_labels_that_begin_another_are_scored_whole(
    normalization: str, make_trial: Callable[..., TrialConfig], kept: DeviceCache, tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "a wren,bird\nthe tin,metal\nan owl,bird hawk\na crow,bird hawk\n" * 4)
    trial = make_trial("llama", train=str(path), validation=str(path), normalization=normalization)
    base, validation = kept.base(trial), kept.validation(trial)
    assert validation.labels == ("bird", "bird hawk", "metal")
    tokenizer, end = base.tokenizer, base.tokenizer.eos_token_id
    found = evaluate(base, base.model, trial, validation, [0, 1, 2])
    for row, recorded in zip(("a wren", "the tin", "an owl"), found.tables["task"]["logprobs"], strict=True):
        context = tokenizer(row + "\nLabel:").input_ids
        scores = []
        for label in validation.labels:
            answer = [*tokenizer(label, add_special_tokens=False).input_ids, end]  # closed: "bird" begins "bird hawk"
            with torch.no_grad():
                table = base.model(torch.tensor([context + answer])).logits[0].log_softmax(-1)
            values = [float(table[len(context) - 1 + i, token]) for i, token in enumerate(answer)]
            scores.append(sum(values) / (len(values) if normalization == "token" else 1))
        assert recorded == pytest.approx(torch.tensor(scores).log_softmax(-1).tolist(), abs=1e-4)


def test_logits_that_are_not_a_number_make_every_figure_nan_and_no_error(
    make_trial: Callable[..., TrialConfig], kept: DeviceCache, tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("more,less\nthe apple,the pear\n")
    trial = make_trial("llama", pairs_file=str(pairs), stereoset=10, bbq=44)
    base, validation = kept.base(trial), kept.validation(trial)
    weight = base.model.model.norm.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(math.nan)
    try:
        found = evaluate(base, base.model, trial, validation, [0, 1, 2])
    finally:
        with torch.no_grad():
            weight.copy_(before)
    assert set(found.metrics) == set(metric_names(trial.task, trial.bias, trial.data, trial.eval))
    assert [name for name, value in found.metrics.items() if not math.isnan(value)] == []


def test_rows_longer_than_the_models_window_are_refused(
    make_trial: Callable[..., TrialConfig], kept: DeviceCache
) -> None:

    with pytest.raises(ConfigError, match=r"data.max_length=129 is longer than the model's window of 128 tokens"):
        kept.validation(make_trial("gpt2", max_length=129))


def test_a_figure_without_a_row_in_the_metric_table_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    items = {"nll": [1.0], "n_tokens": [2], "n_bytes": [3]}
    assert list(metrics_of({"task": items}, (), BiasConfig())) == ["perplexity", "bits_per_byte"]
    monkeypatch.setattr(
        "trainer.evaluation.evaluate.bias_metrics", lambda tables, labels, settings: {"bias.new.share": 0.5}
    )
    with pytest.raises(ValueError, match=r"no row in analysis/metrics\.py or analysis/bias_sets\.py: bias\.new\.share"):
        metrics_of({"task": items}, (), BiasConfig())
