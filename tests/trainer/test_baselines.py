"""What fine-tuning has to beat, against scikit-learn and plain forward passes."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from analysis.folder import State, TrialFolder
from tests.conftest import write_rows
from trainer.baselines import score_baseline
from trainer.config import Baseline, DataConfig, FewShotConfig, RetrievalConfig, TaskConfig
from trainer.data.chat import is_learned
from trainer.data.dataset import Row
from trainer.data.encode import as_labels, encode_rows
from trainer.device_cache import DeviceCache
from trainer.evaluation.evaluate import evaluate
from trainer.few_shot import _preceded, embed, few_shot_rows, nearest, with_answers, with_examples
from trainer.generation.decode import write
from trainer.linear_classifier import of_words, tfidf


@pytest.fixture(scope="module")
def kept() -> DeviceCache:
    return DeviceCache(torch.device("cpu"))


def scored(kept: DeviceCache, baseline: Baseline, root: Path) -> tuple[dict[str, float], dict[str, list[Any]]]:
    files = TrialFolder(root / baseline.name)
    row = score_baseline(kept, baseline, files)
    assert files.read_status().state is State.COMPLETED
    rung, final = files.read_metrics()
    assert (rung.final, rung.n_items, final.final, final.step) == (False, 12, True, 0)
    assert final == row
    return row.metrics, files.read_items("task", "validation", 0)


@pytest.mark.parametrize("model", ["llama", "bert"])
def test_majority_is_scikit_learns_prior_classifier(model, make_trial, kept, tmp_path) -> None:
    uneven = write_rows(tmp_path / "train.csv", 62, 0)  # 21, 21 and 20 rows of a label
    trial = make_trial(model, trial_id="majority")
    trial = replace(trial, data=replace(trial.data, train=str(uneven)))
    metrics, items = scored(kept, Baseline("majority", trial), tmp_path)
    data = kept.dataset(trial)
    texts, labels = [[row.text] for row in data.train], [row.label for row in data.train]
    prior = DummyClassifier(strategy="prior").fit(texts, labels)
    wanted = [row.label for row in data.validation]
    asked = [[row.text] for row in data.validation]
    assert items["prediction"] == list(prior.predict(asked))
    assert metrics["accuracy"] == pytest.approx(prior.score(asked, wanted))
    assert metrics["log_loss"] == pytest.approx(log_loss(wanted, prior.predict_proba(asked), labels=prior.classes_))
    assert "perplexity" not in metrics


def chosen_by_hand(features: Any, labels: list[str], strengths: tuple[float, ...], seed: int) -> LogisticRegression:
    """The regression whose penalty and class weights have the best accuracy plus macro-F1 on held-out folds."""
    gold, best = np.array(labels), (-1.0, 0.0, None)
    for strength in strengths:
        for weight in (None, "balanced"):
            said = gold.copy()
            for known, held_out in StratifiedKFold(3, shuffle=True, random_state=seed).split(features, gold):
                model = LogisticRegression(C=strength, class_weight=weight, tol=1e-3, max_iter=200)
                said[held_out] = model.fit(features[known], gold[known]).predict(features[held_out])
            score = float((said == gold).mean() + f1_score(gold, said, average="macro"))
            best = max(best, (score, strength, weight), key=lambda it: it[0])  # of equals, the first
    return LogisticRegression(C=best[1], class_weight=best[2], tol=1e-8, max_iter=2000)


def test_linear_is_scikit_learns_logistic_regression_on_words(make_trial, kept, tmp_path) -> None:
    uneven = write_rows(tmp_path / "train.csv", 62, 0)
    trial = make_trial("llama", trial_id="linear", seed=5)
    trial = replace(trial, data=replace(trial.data, train=str(uneven)))
    metrics, items = scored(kept, Baseline("linear", trial), tmp_path)
    data = kept.dataset(trial)
    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))
    known = words.fit_transform([row.text for row in data.train])
    labels = [row.label for row in data.train]
    model = chosen_by_hand(known, labels, (0.1, 1.0, 10.0), 5).fit(known, labels)
    asked = words.transform([row.text for row in data.validation])
    assert items["prediction"] == list(model.predict(asked))
    assert np.exp(items["logprobs"]) == pytest.approx(model.predict_proba(asked), abs=2e-3)
    assert metrics["accuracy"] == pytest.approx(model.score(asked, [row.label for row in data.validation]))
    assert metrics["accuracy"] > 0.9, "the words tell the label"
    assert "perplexity" not in metrics
    assert f"C={model.C:g}" in TrialFolder(tmp_path / "linear").read_status().reason


@pytest.mark.parametrize("model", ["llama", "bert"])
def test_frozen_is_a_regression_on_the_mean_last_hidden_state(model, make_trial, kept, tmp_path) -> None:
    trial = make_trial(model, trial_id="frozen", seed=5)
    metrics, items = scored(kept, Baseline("frozen", trial), tmp_path)
    base, data = kept.base(trial), kept.dataset(trial)

    def states(texts: list[str]) -> np.ndarray:
        rows = []
        for text in texts:
            prompt = text if model == "bert" else f"{text}\nLabel:"
            ids = base.tokenizer(prompt, truncation=True, max_length=32, return_tensors="pt").input_ids
            with torch.no_grad():
                rows.append(base.model.base_model(ids).last_hidden_state[0].mean(0).numpy())
        return np.stack(rows)

    scaler = StandardScaler()
    known = scaler.fit_transform(states([row.text for row in data.train]))
    labels = [row.label for row in data.train]
    by_hand = chosen_by_hand(known, labels, (0.001, 0.01, 0.1), 5).fit(known, labels)
    asked = scaler.transform(states([row.text for row in data.validation]))
    assert np.exp(items["logprobs"]) == pytest.approx(by_hand.predict_proba(asked), abs=5e-3)
    assert metrics["accuracy"] == pytest.approx(by_hand.score(asked, [row.label for row in data.validation]))


def test_linear_names_rare_classes_where_the_loss_alone_would_not() -> None:
    texts, targets = skewed(300, 0)
    items, gold = skewed(600, 1)
    fit = of_words(texts, targets, items, 3, seed=0)
    assert fit.class_weight == "balanced"
    known, asked = tfidf(texts, items, pairs=True)
    naive = LogisticRegression().fit(known, targets).predict(asked)
    assert f1_score(gold, fit.logprobs.argmax(1), average="macro") > f1_score(gold, naive, average="macro") + 0.1
    assert fit.logprobs.argmax(1).tolist() == of_words(texts, targets, items, 3, seed=0).logprobs.argmax(1).tolist()


def skewed(n: int, seed: int) -> tuple[list[str], list[int]]:
    """Texts of eight words, of which two tell the class; .8, .15 and .05 of the rows."""
    draw = np.random.default_rng(seed)
    targets = draw.choice(3, n, p=[0.8, 0.15, 0.05])
    own = [["apple", "pear", "plum"], ["iron", "tin", "zinc"], ["crow", "hawk", "wren"]]
    others = [f"word{i}" for i in range(40)]
    return [" ".join([*draw.choice(others, 6), *draw.choice(own[t], 2)]) for t in targets], targets.tolist()


@pytest.mark.parametrize(
    ("targets", "expected"),
    [([0, 0, 0, 0], 0), ([0, 1], None), ([0, 0, 0, 0, 0, 0, 2], None), ([1, 1, 1, 1, 1, 1, 1], 1)],
    ids=["one class", "one row each", "a class of one row, another of none", "only the second"],
)
def test_linear_works_with_few_rows_of_a_class(targets, expected) -> None:
    texts = ["an apple", "a pear", "plum", "cherry", "apple pie", "pear", "iron"][: len(targets)]
    fit = of_words(texts, targets, ["apple", "iron", "?"], 3, seed=0)
    assert np.isfinite(fit.logprobs).all()
    assert np.exp(fit.logprobs).sum(1) == pytest.approx(1.0)
    if expected is not None:
        assert fit.logprobs.argmax(1).tolist() == [expected] * 3
    if 1 not in targets:
        assert (fit.logprobs[:, 1] < -15).all(), "no training row has that label"


def test_linear_counts_characters_where_there_are_no_words() -> None:
    fit = of_words(["a b", "a a", "b b", "b a b"] * 3, [0, 0, 1, 1] * 3, ["a a a", "b b b"], 2, seed=0)
    assert fit.logprobs.argmax(1).tolist() == [0, 1]


def test_zero_shot_is_the_base_model_on_all_items(make_trial, kept, tmp_path) -> None:
    trial = make_trial("llama", trial_id="zero_shot")
    metrics, items = scored(kept, Baseline("zero_shot", trial), tmp_path)
    base, validation = kept.base(trial), kept.validation(trial)
    plain = evaluate(base, base.model, trial, validation, list(range(30)))
    assert metrics == plain.metrics
    assert items["item_id"] == [row.item_id for row in validation.rows]


def test_few_shot_is_what_the_model_says_after_the_examples_as_text(make_trial, kept, tmp_path) -> None:
    trial = make_trial("llama", trial_id="few_shot")
    _, items = scored(kept, Baseline("few_shot", trial, FewShotConfig(k=3, seed=5)), tmp_path)
    base, data = kept.base(trial), kept.dataset(trial)
    examples = {tuple(ids) for ids in items["examples"]}
    assert len(examples) == 1, "the same for every item"
    by_id = {row.item_id: row for row in data.train}
    shown = [by_id[i] for i in examples.pop()]
    assert sorted(row.label for row in shown) == ["bird", "fruit", "metal"], "each label in proportion"
    before = "".join(f"{row.text}\nLabel: {row.label}\n\n" for row in shown)
    labels = base.tokenizer.convert_tokens_to_ids(list(data.labels))
    for place in (0, 11, 29):
        prompt = base.tokenizer(f"{before}{data.validation[place].text}\nLabel:", return_tensors="pt").input_ids
        with torch.no_grad():
            last = base.model(prompt).logits[0, -1][labels].log_softmax(-1)
        assert items["logprobs"][place] == pytest.approx(last.tolist(), abs=1e-4)
    config = yaml.safe_load((tmp_path / "few_shot" / "config.yaml").read_text())
    assert (config["baseline"], config["few_shot"]) == ("few_shot", {"k": 3, "seed": 5})


def test_perplexity_counts_the_rows_own_text_not_the_examples(make_trial, kept, tmp_path) -> None:
    trial = make_trial("llama", trial_id="zero_shot")
    _, alone = scored(kept, Baseline("zero_shot", trial), tmp_path)
    _, after = scored(kept, Baseline("few_shot", replace(trial, trial_id="few_shot")), tmp_path)
    assert (after["n_tokens"], after["n_bytes"]) == (alone["n_tokens"], alone["n_bytes"])
    assert after["nll"] != alone["nll"]


def test_neighbours_are_those_of_scikit_learn(make_trial, kept) -> None:
    trial = make_trial("llama")
    data, base = kept.dataset(trial), kept.base(trial)
    for kind in ("tfidf", "hidden"):
        found = nearest(data.train, data.validation, RetrievalConfig(k=5, neighbours=kind), base)
        if kind == "tfidf":
            vectors = TfidfVectorizer(sublinear_tf=True)
            known = vectors.fit_transform([row.text for row in data.train])
            asked = vectors.transform([row.text for row in data.validation])
        else:
            known, asked = (embed(base, [row.text for row in rows]) for rows in (data.train, data.validation))
        distances, _ = NearestNeighbors(n_neighbors=5, metric="cosine", algorithm="brute").fit(known).kneighbors(asked)
        assert found.similarity == pytest.approx(1 - distances, abs=1e-5)
        pick = known[found.rows[3]]
        cosine = (pick @ asked[3].T).toarray() if hasattr(pick, "toarray") else pick @ asked[3]
        assert np.ravel(cosine) == pytest.approx(found.similarity[3], abs=1e-5)


def test_a_mean_hidden_state_does_not_depend_on_the_batch(make_trial, kept) -> None:
    base = kept.base(make_trial("bert"))
    texts = ["the apple", "the crow is a hawk and a wren and an owl", ""]
    alone = [embed(base, [text])[0] for text in texts]
    assert embed(base, texts) == pytest.approx(np.stack(alone), abs=1e-5)
    ids = torch.tensor([base.tokenizer(texts[1]).input_ids])
    with torch.no_grad():
        mean = base.model.bert(ids).last_hidden_state[0].mean(0)
    assert alone[1] == pytest.approx((mean / mean.norm()).numpy(), abs=1e-5)


def test_retrieval_puts_the_nearest_row_last(make_trial, kept, tmp_path) -> None:
    trial = make_trial("llama", trial_id="retrieval")
    _, items = scored(kept, Baseline("retrieval", trial, retrieval=RetrievalConfig(k=3)), tmp_path)
    data = kept.dataset(trial)
    found = nearest(data.train, data.validation, RetrievalConfig(k=3), kept.base(trial))
    assert items["examples"] == [[data.train[i].item_id for i in row[::-1]] for row in found.rows]


def test_retrieval_of_a_classifier_is_the_vote_of_the_neighbours(make_trial, kept, tmp_path) -> None:
    trial = make_trial("bert", trial_id="retrieval")
    settings = RetrievalConfig(k=5, neighbours="tfidf")
    metrics, items = scored(kept, Baseline("retrieval", trial, retrieval=settings), tmp_path)
    data = kept.dataset(trial)
    found = nearest(data.train, data.validation, settings, kept.base(trial))
    place = 7
    votes = dict.fromkeys(data.labels, 1 / 3)  # one vote, spread as the training labels are
    for i, cosine in zip(found.rows[place], found.similarity[place], strict=True):
        votes[data.train[i].label] += float(cosine)
    shares = [votes[label] / sum(votes.values()) for label in data.labels]
    assert np.exp(items["logprobs"][place]) == pytest.approx(shares)
    assert metrics["accuracy"] > 0.8, "the words tell the label"
    assert math.isfinite(metrics["log_loss"])


def test_examples_that_do_not_fit_are_left_out_from_the_farthest_and_that_is_said(make_trial, kept, tmp_path) -> None:
    trial = make_trial("llama", trial_id="few_shot")
    _, items = scored(kept, Baseline("few_shot", trial, FewShotConfig(k=30)), tmp_path)  # a window of 128 tokens
    used = [len(ids) for ids in items["examples"]]
    note = TrialFolder(tmp_path / "few_shot").read_status().reason
    assert 0 < min(used) < 30
    assert f"{np.mean(used):.1f} of 30 examples before an item on average, {min(used)} at least" in note
    assert "the model's window" in note
    data = kept.dataset(trial)
    whole = [data.train[i].item_id for i in few_shot_rows(data.train, 30, 0)]
    assert all(ids == whole[30 - len(ids) :] for ids in items["examples"])


def test_a_label_that_is_closed_by_the_end_of_text_stands_open_in_an_example(make_trial, kept) -> None:
    base = kept.base(make_trial("llama"))
    labels, task = ("bird", "bird hawk"), TaskConfig("completion")
    item, example = encode_rows(
        [Row("0", "a wren", "bird"), Row("1", "a crow", "bird")], labels, base.tokenizer, task, 99
    )
    assert item.completion[-1] == example.completion[-1] == base.tokenizer.eos_token_id
    [prompted], used = with_examples([item], [example], [[0]], base, as_labels(base.tokenizer, labels, task))
    assert prompted.context == tuple(base.tokenizer("a crow\nLabel: bird\n\na wren\nLabel:").input_ids)
    assert prompted.context[prompted.start :] == item.context[item.start :]
    assert used == [1]


def test_bias_figures_of_a_prompted_model_are_the_models_own_and_scored_once(make_trial, tmp_path, monkeypatch) -> None:
    from trainer.evaluation.bias.crows_pairs import Pair
    from trainer.evaluation.bias.items import BiasItems
    from trainer.evaluation.bias.score import ModelScorer

    kept = DeviceCache(torch.device("cpu"))
    pairs = [Pair(f"p{i}", "the apple is a pear", "the crow is a hawk", "fruit", "stereo") for i in range(2)]
    monkeypatch.setattr("trainer.device_cache.load_bias", lambda bias, kind: BiasItems({"crows_pairs": pairs}))
    calls: list[int] = []
    real = ModelScorer.sentences
    monkeypatch.setattr(ModelScorer, "sentences", lambda *args: calls.append(1) or real(*args))
    trial = make_trial("llama", trial_id="zero_shot", crows_pairs=2)
    plain, _ = scored(kept, Baseline("zero_shot", trial), tmp_path)
    prompted, _ = scored(kept, Baseline("few_shot", replace(trial, trial_id="few_shot")), tmp_path)
    assert plain["bias.crows_pairs.signed"] == prompted["bias.crows_pairs.signed"]
    assert len(calls) == 1


def test_what_a_dead_worker_left_is_done_again(make_trial, kept, tmp_path) -> None:
    trial = make_trial("llama", trial_id="zero_shot")
    files = TrialFolder(tmp_path / "zero_shot")
    files.root.mkdir()
    files.metrics_file.write_text('{"trial_id": "zero_shot", "step": 0, "tok')
    scored(kept, Baseline("zero_shot", trial), tmp_path)


BIRDS = ("wren", "owl", "hawk", "crow")


def unlabelled(make_trial, tmp_path, lines, schema: str, **changes):
    """A trial on rows without labels, the same to train on and to rank by, which writes answers."""
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "validation")}
    data = DataConfig(source="jsonl", schema=schema, max_length=64, allow_overlap=True, **files)
    trial = make_trial("llama", **changes)
    return replace(trial, data=data, eval=replace(trial.eval, generate="rung", generate_items=4, max_new_tokens=4))


def test_examples_of_completions_are_whole_rows_with_an_empty_line_between(make_trial, tmp_path) -> None:
    lines = [{"prompt": f"{BIRDS[i % 4]} says", "completion": f" {BIRDS[i % 3]}"} for i in range(12)]
    kept = DeviceCache(torch.device("cpu"))
    trial = unlabelled(make_trial, tmp_path, lines, "completion", trial_id="few_shot")
    base, train = kept.base(trial), kept.tokens(trial, "train")
    rows, encoded, used = with_answers(
        train.rows[:1], train.encoded[:1], train.rows, [[5, 7]], base, "completion", trial.task, 4
    )
    text = "owl says hawk\n\ncrow says owl\n\nwren says"
    assert (rows[0].text, used) == (text, [2])
    prompt = tuple(base.tokenizer(text).input_ids)
    assert encoded[0].context[: len(prompt) - 1] == prompt[:-1]
    assert encoded[0].tokens[encoded[0].start :] == train.encoded[0].tokens[train.encoded[0].start :]
    assert encoded[0].n_bytes == train.encoded[0].n_bytes


def test_examples_of_chats_are_earlier_turns_of_which_none_is_learned() -> None:
    def chat(word: str) -> Row:
        said = [("system", "be brief"), ("user", f"{word}?"), ("assistant", word)]
        return Row(word, "", "", messages=tuple({"role": role, "content": text} for role, text in said))

    made = _preceded(chat("wren"), [chat("owl")])
    assert [(it["role"], it["content"]) for it in made.messages] == [
        ("system", "be brief"), ("user", "owl?"), ("assistant", "owl"), ("user", "wren?"), ("assistant", "wren"),
    ]  # fmt: skip
    assert [is_learned(it) for it in made.messages if it["role"] == "assistant"] == [False, True]


def test_few_shot_of_completions_writes_answers_that_end_at_an_empty_line(make_trial, tmp_path, monkeypatch) -> None:
    lines = [{"prompt": f"{BIRDS[i % 4]} says", "completion": f" {BIRDS[i % 3]}"} for i in range(12)]
    trial = unlabelled(make_trial, tmp_path, lines, "completion", trial_id="few_shot")
    stops: list[tuple[str, ...]] = []

    def written(base, model, prompts, keys, decoding, *rest):
        stops.append(decoding.stop)
        return write(base, model, prompts, keys, decoding, *rest)

    monkeypatch.setattr("trainer.evaluation.generate.write", written)
    kept = DeviceCache(torch.device("cpu"))
    row = score_baseline(kept, Baseline("few_shot", trial, FewShotConfig(k=2)), TrialFolder(tmp_path / "few_shot"))
    assert stops == [("\n\n",)]
    assert {"generate.token_f1", "completion_loss", "perplexity"} <= row.metrics.keys()


def test_answers_of_another_system_are_a_row_of_their_own_figures(make_trial, tmp_path) -> None:
    lines = [{"prompt": f"{BIRDS[i % 4]} {i} says", "completion": f" {BIRDS[i % 3]}"} for i in range(12)]
    trial = unlabelled(make_trial, tmp_path, lines, "completion", trial_id="old")
    old = tmp_path / "old.jsonl"
    old.write_text("".join(f"{json.dumps({'answer': BIRDS[0]})}\n" for _ in lines))
    folder = TrialFolder(tmp_path / "old")
    row = score_baseline(DeviceCache(torch.device("cpu")), Baseline("answers", trial, answers=str(old)), folder)
    assert row.metrics["generate.exact_match"] == 4 / 12
    assert not {"perplexity", "completion_loss"} & row.metrics.keys()
    assert folder.read_items("generated", "validation", 0)["generated"] == [BIRDS[0]] * 12
    assert [it.final for it in folder.read_metrics()] == [False, True]
