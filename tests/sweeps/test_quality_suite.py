"""The scripts of ``make bench-quality``: tasks that are the same everywhere, and figures that are right."""

import csv
import json
import random

import numpy as np
import pytest
from sklearn.metrics import f1_score

from sweeps import cli
from tests.benchmarks import quality, quality_references, quality_scoring, quality_tasks

CHECKSUMS = {
    "newsgroups8": "30ff560cf69969bf",
    "hardware": "41975e567c501b7a",
    "boolq": "48e22f4ef28a00ff",
    "pubmedqa": "badea38c6b5cfaf8",
    "privacy": "602da24a605d1499",
    "subjects": "24420647810626fc",
    "topics6": "67a0ae9de78d473c",
    "tweets": "82f2936b217f17e3",
}


@pytest.mark.heavy
@pytest.mark.parametrize("name", quality_tasks.TASKS)
def test_a_task_is_the_same_everywhere_and_its_test_texts_are_new(name, tmp_path):
    folder = quality_tasks.write(name, tmp_path)
    assert quality_tasks.checksum(folder).startswith(CHECKSUMS[name])
    train, test = (quality_tasks.read(folder / f"{split}.csv") for split in ("train", "test"))
    assert not set(train[0]) & set(test[0])
    assert set(test[1]) <= set(train[1])


def test_every_task_has_a_grid_for_its_reference():
    assert set(quality_references.GRIDS) == set(quality_tasks.TASKS) == set(CHECKSUMS)


def test_references_say_something_of_every_test_row():
    kept = json.loads(quality_references.FILE.read_text()) if quality_references.FILE.exists() else {}
    for name, entry in kept.items():
        assert entry["checksum"].startswith(CHECKSUMS[name]), name
        said = quality_references.reference(name, entry["checksum"])
        assert said is not None
        assert set(said) <= set(entry["labels"])
        assert quality_references.reference(name, "another") is None


def test_the_bootstrap_is_paired():
    draw = random.Random(0)
    truth = draw.choices("abc", [6, 3, 1], k=300)
    ours = [label if draw.random() < 0.8 else draw.choice("abc") for label in truth]
    theirs = [label if draw.random() < 0.6 else draw.choice("abc") for label in truth]
    for metric in quality.METRICS:
        gap = quality_scoring.figures(truth, ours)[metric] - quality_scoring.figures(truth, theirs)[metric]
        low, high = quality_scoring.difference(truth, ours, theirs, metric)
        assert 0 < low < gap < high
        assert quality_scoring.difference(truth, ours, ours, metric) == (0.0, 0.0)


def test_the_fast_macro_f1_is_that_of_scikit_learn():
    draw = np.random.default_rng(0)
    for labels in (2, 5):
        true, said = draw.integers(0, labels, (2, 200))
        expected = f1_score(true, said, labels=range(labels), average="macro")
        assert quality_scoring.macro_f1_of(true, said, labels + 1) == pytest.approx(expected)


def test_the_verdict_is_what_stands_below_the_table():
    printed = (
        "0:21  completed\n#  trial  status\n1  t0000  completed\n2  t0001  stopped\n\n"
        "t0001: scheduler: not among the best at step 6\n\nThe best trial, t0000,\nis good.\n\nResults: runs/x/\n"
    )
    assert quality.verdict(printed) == "The best trial, t0000, is good."


@pytest.mark.parametrize("task", ["completion", "classification"])
def test_an_exported_adapter_says_in_plain_peft_what_it_said_in_the_sweep(task, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [f"task={task}", "optim.lr=5e-3", "lora.rank=4", "precision=fp32", "sweep.name=one"]
    arguments = tiny("llama" if task == "completion" else "bert", *words)
    assert cli.main(["trial", *arguments]) == 0
    assert cli.main(["export", "runs/one", "--to", "adapter"]) == 0
    validation = next(word.split("=", 1)[1] for word in arguments if word.startswith("data.validation="))
    with open(validation, newline="") as file:
        rows = list(csv.DictReader(file))
    said = quality_scoring.predictions(tmp_path / "adapter", [row["text"] for row in rows])
    card = json.loads((tmp_path / "adapter" / "lorasweep.json").read_text())
    figures = quality_scoring.figures([row["label"] for row in rows], said)
    for metric in quality.METRICS:
        assert figures[metric] == pytest.approx(card["metrics"][metric])
