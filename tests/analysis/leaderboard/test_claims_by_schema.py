"""Each schema of rows has intervals, ties, and the winner's sentence, in the units of what ranks."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import yaml

from analysis.folder import MetricsRow, State
from analysis.leaderboard import leaderboard

N = 200
LABELS = ("ham", "spam")
SINGLE = {
    "label": ("macro_f1", "max", [0.0, 1.0]),
    "classification": ("macro_f1", "max", [0.0, 1.0]),
    "completion": ("completion_loss", "min", [0.0, 8.0]),
    "chat": ("completion_loss", "min", [0.0, 8.0]),
    "text": ("bits_per_byte", "min", [0.0, 8.0]),
}
BASELINES = {
    "label": ("majority", "zero_shot"),
    "classification": ("majority", "zero_shot"),
    "completion": ("zero_shot",),
    "chat": ("zero_shot",),
    "text": ("zero_shot",),
}


def scored(schema: str, quality: float, seed: int) -> tuple[dict[str, float], dict[str, list[Any]]]:
    """Metrics and item table of a row that is as good as ``quality`` says, from 0 to 1."""
    rng, shared = np.random.default_rng(seed), np.random.default_rng(99)
    ids = [f"item-{i}" for i in range(N)]
    if schema in ("label", "classification"):
        gold = [LABELS[i % 2] for i in range(N)]
        right = shared.random(N) * 0.9 + rng.random(N) * 0.1 < quality
        said = [label if ok else LABELS[label == "ham"] for label, ok in zip(gold, right, strict=True)]
        metrics = {"accuracy": float(np.mean(right)), "macro_f1": _macro_f1(gold, said)}
        return metrics, {"item_id": ids, "label": gold, "prediction": said}
    tokens, n_bytes = shared.integers(5, 30, N), shared.integers(40, 120, N)
    nll = tokens * (4 - 2 * quality + shared.normal(0, 0.5, N) + rng.normal(0, 0.05, N))
    items = {"item_id": ids, "nll": nll.tolist(), "n_tokens": tokens.tolist(), "n_bytes": n_bytes.tolist()}
    loss = nll.sum() / tokens.sum()
    metrics = {"perplexity": math.exp(loss), "bits_per_byte": nll.sum() / n_bytes.sum() / math.log(2)}
    if schema != "text":
        items |= {"completion_nll": nll.tolist(), "completion_tokens": tokens.tolist()}
        metrics |= {"completion_loss": float(loss)}
    return metrics, items


def _macro_f1(gold: list[str], said: list[str]) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(gold, said, average="macro"))


@pytest.fixture
def of_schema(make_sweep: Any) -> Callable[..., Any]:
    """A sweep of a schema with its baselines and trials of given quality."""

    def make(schema: str, *trials: float) -> Any:
        metric, direction, ends = SINGLE[schema]
        term = {"metric": metric, "direction": direction, "target": None, "range": ends, "weight": 1.0}
        sweep = make_sweep(
            {"name": "single", "rho": 0.0, "ties": "score", "terms": {"quality": term}}, {"optim.lr": {}}
        )
        content = yaml.safe_load(sweep.folder.sweep_file.read_text())
        content["config"]["task"] = {"name": "classification" if schema == "classification" else "completion"}
        content["data"] = {"labels": list(LABELS) if schema in ("label", "classification") else []}
        sweep.folder.sweep_file.write_text(yaml.safe_dump(content))
        for number, name in enumerate(BASELINES[schema]):
            write(sweep, name, scored(schema, 0.6 if name == "majority" else 0.1, 50 + number), 0.0)
        for number, quality in enumerate(trials):
            write(sweep, f"t{number:04d}", scored(schema, quality, number), 1e-4 * (number + 1))
        write(sweep, "t0009", scored(schema, 0.1, 9), 9e-4, State.STOPPED_EARLY)
        return sweep

    return make


def write(sweep: Any, name: str, made: Any, rate: float, state: State = State.COMPLETED) -> None:
    metrics, items = made
    files = sweep.trial(name, None, state, kind="trial" if rate else "baseline", step=8)
    files.append_metrics(MetricsRow(name, 8, 100, 1.0, state is State.COMPLETED, N, metrics))
    files.write_items("task", "validation", 8, items)
    if rate:
        files.config_file.write_text(yaml.safe_dump({"optim": {"lr": rate}}))


def shown(sweep: Any, by: list[str] | None = None) -> tuple[str, list[str]]:
    ranking = leaderboard.ranked(sweep.folder, by)
    table = leaderboard.plain(ranking.rows, 200)
    return table, leaderboard.verdict(sweep.folder, ranking.rows, ranking.judgement).splitlines()


@pytest.mark.parametrize("schema", list(SINGLE))
def test_a_clear_best_beats_the_baselines_and_is_the_winner(of_schema: Any, schema: str) -> None:
    table, said = shown(of_schema(schema, 0.9, 0.5))
    assert re.search(r"t0000 +completed +\d.\d+ +\d\.\d\d–\d\.\d\d ", table)
    unit = {"text": "bits a byte", "completion": "nats a token", "chat": "nats a token"}.get(schema, "points")
    assert re.match(
        r"The best trial, t0000, beats the .*; paired 95 % interval \[\d.*\] " + unit + " on 200 items.", said[0]
    )
    assert said[1].startswith("t0000 is better than the other completed trial on 200 items (")
    assert said[2].startswith(
        "t0000 was chosen among 3 configurations on these same items (2 ran to the end, 1 was stopped early);"
        " corrected for that, expect "
    )


@pytest.mark.parametrize("schema", list(SINGLE))
def test_equals_are_tied_and_it_is_said_what_these_items_could_have_shown(of_schema: Any, schema: str) -> None:
    table, said = shown(of_schema(schema, 0.9, 0.895, 0.3))
    assert re.search(r"1= +t000[01] ", table)
    assert re.search(r"2= +t000[01] ", table)
    assert "3= " not in table
    [no_winner] = [line for line in said if line.startswith("No winner: ")]
    assert re.search(r"but cannot be told from t000[01] on 200 items", no_winner)
    power = said[said.index(no_winner) + 1]
    unit = {"text": "bits a byte", "completion": "nats a token", "chat": "nats a token"}.get(schema, "points")
    seen = rf"the one seen, (less than )?[\d.]+ {unit}, would take (about [\d,]+|more than 1,000,000) items\."
    alike = "the two score the same."
    shown_first = rf"These 200 items could have shown a difference of [\d.]+ {unit} to t000[01] \(80 % power\);"
    assert re.match(rf"{shown_first} ({seen}|{alike})$", power)


@pytest.mark.parametrize("schema", ["label", "classification"])
def test_a_random_head_is_called_that_and_a_language_model_is_not(of_schema: Any, schema: str) -> None:
    sweep = of_schema(schema, 0.9)
    majority = sweep.folder.baseline("majority")
    for file in majority.root.rglob("*"):
        if file.is_file():
            file.unlink()
    _, said = shown(sweep)
    if schema == "label":
        assert "beats the untuned model by" in said[0]
    else:
        assert "beats the model with an untrained head by" in said[0]
        config_file = sweep.folder.baseline("zero_shot").config_file
        config_file.write_text("head: own\n")
        assert "beats the untuned model by" in shown(sweep)[1][0]
        config_file.write_text("head: untrained\n")
        assert "beats the model with an untrained head by" in shown(sweep)[1][0]
    assert said[1] == (
        "The most frequent label, ham, is right on 50.0 % of the items, and none of the baselines is as good:"
        " baselines=[majority] is one."
    )
