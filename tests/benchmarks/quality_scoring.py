"""Scores on a test split that share no code with what they judge: plain transformers, PEFT and scikit-learn.

``predictions`` is what an exported adapter says; ``linear`` and ``frozen`` are the two baselines; ``difference`` is the
paired bootstrap.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

RESAMPLES = 2000  # of the bootstrap
_STRENGTHS = [0.01, 0.1, 1.0, 10.0, 100.0]  # C of the logistic regressions
_ROWS = 16  # of a batch


def quiet() -> None:
    """No bars and no remarks of transformers."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def figures(truth: Sequence[str], said: Sequence[str]) -> dict[str, float]:
    """Accuracy, and macro-F1 over the labels that ``truth`` has."""
    labels = sorted(set(truth))
    return {
        "accuracy": float(accuracy_score(truth, said)),
        "macro_f1": float(f1_score(truth, said, labels=labels, average="macro", zero_division=0)),
    }


def difference(truth: Sequence[str], ours: Sequence[str], theirs: Sequence[str], metric: str) -> tuple[float, float]:
    """Percentile interval (95 %) of ``metric`` of one classifier minus another's, both on the same resampled rows.

    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.

    Args:
        truth: labels of the rows.
        ours: what one said of each row.
        theirs: what the other said.
        metric: ``accuracy`` or ``macro_f1``.
    """
    labels = sorted({*truth, *ours, *theirs})
    code = {label: i for i, label in enumerate(labels)}
    rows = np.array([[code[label] for label in column] for column in (truth, ours, theirs)])  # (3, rows)
    random = np.random.default_rng(0)
    differences = []
    for _ in range(RESAMPLES):
        true, first, second = rows[:, random.integers(0, rows.shape[1], rows.shape[1])]
        if metric == "accuracy":
            differences.append(float(np.mean(first == true) - np.mean(second == true)))
        else:
            differences.append(macro_f1_of(true, first, len(labels)) - macro_f1_of(true, second, len(labels)))
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(low), float(high)


def macro_f1_of(true: np.ndarray, said: np.ndarray, n: int) -> float:
    """Macro-F1 over the labels that ``true`` has, as ``figures``, but fast enough for thousands of resamples.

    Args:
        true: (rows,) codes of the labels, below ``n``.
        said: (rows,) codes of what a classifier said.
        n: how many labels there are.
    """
    hits = np.bincount(true[true == said], minlength=n)
    there, told = np.bincount(true, minlength=n), np.bincount(said, minlength=n)
    some = there > 0
    return float(np.mean(2 * hits[some] / (there + told)[some]))


def linear(texts: Sequence[str], labels: Sequence[str], test: Sequence[str]) -> list[str]:
    """What word counts and logistic regression say of the test texts: TF-IDF of one and two words, C by five folds."""
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    return _by_cross_validation(vectors, texts, labels, test)


def frozen(
    folder: Path, max_length: int, texts: Sequence[str], labels: Sequence[str], test: Sequence[str]
) -> list[str]:
    """What logistic regression on the untrained model's mean last hidden states says of the test texts.

    Args:
        folder: the model, as plain transformers loads it.
        max_length: tokens of a text at most.
        texts: training texts.
        labels: theirs.
        test: test texts.
    """
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    states = [_states(model, tokenizer, part, max_length) for part in (texts, test)]
    return _by_cross_validation(StandardScaler(), states[0], labels, states[1])


def _states(model: Any, tokenizer: Any, texts: Sequence[str], max_length: int) -> np.ndarray:
    import torch

    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    rows = np.zeros((len(texts), model.config.hidden_size), dtype=np.float32)
    for begin in range(0, len(order), _ROWS):
        chosen = order[begin : begin + _ROWS]
        batch = tokenizer([texts[i] for i in chosen], truncation=True, max_length=max_length, padding=True)
        mask = torch.tensor(batch["attention_mask"])[..., None]  # (rows, tokens, 1)
        with torch.inference_mode():
            hidden = model(input_ids=torch.tensor(batch["input_ids"]), attention_mask=mask[..., 0]).last_hidden_state
        rows[chosen] = ((hidden * mask).sum(1) / mask.sum(1)).float().numpy()
    return rows


def _by_cross_validation(first: Any, train: Any, labels: Sequence[str], test: Any) -> list[str]:
    steps = make_pipeline(first, LogisticRegression(max_iter=2000))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    search = GridSearchCV(steps, {"logisticregression__C": _STRENGTHS}, cv=folds)
    return [str(label) for label in search.fit(train, labels).predict(test)]


def predictions(adapter: Path, texts: Sequence[str]) -> list[str]:
    """What an exported adapter says of texts, on the base model in float32.

    Args:
        adapter: a folder that ``lorasweep export RUN --to`` wrote.
        texts: to be labelled.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    card = json.loads((adapter / "lorasweep.json").read_text())
    folder = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    tokenizer, labels = AutoTokenizer.from_pretrained(folder), card["labels"]
    if card["task"] == "classification":
        base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(labels))
        scores = _head_scores(PeftModel.from_pretrained(base, adapter).eval(), tokenizer, texts, card["max_length"])
    else:
        base = AutoModelForCausalLM.from_pretrained(folder)
        model = PeftModel.from_pretrained(base, adapter).eval()
        scores = _label_scores(model, tokenizer, texts, labels, card["prompt"], card["max_length"])
    return [labels[i] for i in scores.argmax(1)]


def _head_scores(model: Any, tokenizer: Any, texts: Sequence[str], max_length: int) -> np.ndarray:
    import torch

    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    scores: dict[int, np.ndarray] = {}
    for begin in range(0, len(order), _ROWS):
        chosen = order[begin : begin + _ROWS]
        batch = tokenizer(
            [texts[i] for i in chosen], truncation=True, max_length=max_length, padding=True, return_tensors="pt"
        )
        with torch.inference_mode():
            scores |= zip(chosen, model(**batch).logits.float().numpy(), strict=True)
    return np.stack([scores[i] for i in range(len(texts))])


def _label_scores(
    model: Any, tokenizer: Any, texts: Sequence[str], labels: list[str], prompt: str, max_length: int
) -> np.ndarray:
    """Log-likelihood of each label after each prompt. A prompt is read once; all its labels go on from there."""
    import torch

    before, after = prompt.split("{text}")
    ends = [tokenizer(f" {label}", add_special_tokens=False).input_ids for label in labels]
    if any(a != b and b[: len(a)] == a for a in ends for b in ends):  # else "New" is never less likely than "New York"
        ends = [[*end, tokenizer.eos_token_id] for end in ends]
    tail = tokenizer(after, add_special_tokens=False).input_ids
    longest = max(len(end) for end in ends)
    padded = torch.tensor([[*end, *[end[-1]] * (longest - len(end))] for end in ends])  # (labels, longest)
    counts = torch.tensor([[float(place < len(end)) for place in range(longest)] for end in ends])
    scores = np.zeros((len(texts), len(labels)))
    for row, text in enumerate(texts):
        ids = tokenizer(before + text, truncation=True, max_length=max_length - len(tail) - longest).input_ids
        with torch.inference_mode():
            read = model(input_ids=torch.tensor([[*ids, *tail]]), use_cache=True)
            logits = read.logits[:, -1:].expand(len(ends), -1, -1)
            if longest > 1:
                read.past_key_values.batch_repeat_interleave(len(ends))
                further = model(input_ids=padded[:, :-1], past_key_values=read.past_key_values).logits
                logits = torch.cat([logits, further], dim=1)
            said = logits.float().log_softmax(-1).gather(-1, padded[..., None])[..., 0]  # (labels, longest)
            scores[row] = (said * counts).sum(1).numpy()
    return scores
