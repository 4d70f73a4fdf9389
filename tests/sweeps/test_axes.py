"""Sweeps over what a classifier wants, from the command line to plain PEFT: rates, class weights, start values."""

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from analysis.folder import SweepFolder

AXES = [
    "task=classification",
    "space=classifier",
    "lora.init=orthogonal",
    "optim.b_ratio=choice(1.0,16.0)",
    "scheduler=fifo",
    "baselines=[majority]",
    "precision=fp32",
]


@pytest.fixture(scope="module")
def swept(lorasweep, tiny, tmp_path_factory):
    command = lorasweep(tmp_path_factory.mktemp("axes"))
    done = command("run", *tiny("bert", *AXES, "search.trials=3", "sweep.name=axes"))
    assert done.returncode == 0, done.stderr
    return command, SweepFolder(command.cwd / "runs" / "axes")


def test_each_trial_trains_with_the_values_that_the_leaderboard_names(swept) -> None:
    _, folder = swept
    with folder.leaderboard_file.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "trial"]
    assert [row["status"] for row in rows] == ["completed"] * 3
    for row in rows:
        config = yaml.safe_load(folder.trial(row["trial_id"]).config_file.read_text())
        assert config["lora"]["init"] == "orthogonal"
        assert config["optim"]["head_ratio"] == pytest.approx(float(row["optim.head_ratio"]), rel=1e-5)
        assert config["optim"]["b_ratio"] == float(row["optim.b_ratio"])
        assert config["train"]["class_weight"] == row["train.class_weight"]
    assert len({row["optim.head_ratio"] for row in rows}) == 3


def test_its_adapter_gives_the_recorded_predictions_in_plain_peft(swept, tmp_path: Path) -> None:
    command, folder = swept
    done = command("export", "runs/axes", "--to", str(tmp_path / "adapter"))
    assert done.returncode == 0, done.stderr
    card = json.loads((tmp_path / "adapter" / "lorasweep.json").read_text())
    trial = folder.trial(card["trial_id"])
    path = yaml.safe_load(trial.config_file.read_text())["model"]["path"]
    base = AutoModelForSequenceClassification.from_pretrained(path, num_labels=len(card["labels"]))
    model = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    final = [row for row in trial.read_metrics() if row.final][-1]
    items = trial.read_items("task", "validation", final.step)
    validation = yaml.safe_load(folder.sweep_file.read_text())["config"]["data"]["validation"]
    with open(validation, newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    assert len(texts) == len(items["item_id"])
    places = [int(item_id.split("-")[1]) for item_id in items["item_id"]]
    for place, recorded in zip(places, items["logprobs"], strict=True):
        with torch.no_grad():
            scores = model(**tokenizer(texts[place], return_tensors="pt")).logits[0].log_softmax(-1)
        torch.testing.assert_close(scores, torch.tensor(recorded), atol=1e-4, rtol=0, check_dtype=False)


def test_a_sweep_that_goes_on_keeps_its_trials(swept) -> None:
    command, folder = swept
    before = {files.trial_id: files.read_metrics() for files in folder.trials()}
    done = command("resume", "runs/axes", "search.trials=4")
    assert done.returncode == 0, done.stderr
    after = {files.trial_id: files.read_metrics() for files in folder.trials()}
    assert len(after) == 4
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("engine", ["packed", "hf"])
def test_one_trial_alone_takes_them_too(engine: str, lorasweep, tiny, tmp_path: Path) -> None:
    command = lorasweep(tmp_path)
    settings = ["task=classification", "optim.head_lr=2e-2", "train.class_weight=effective", "lora.init=orthogonal"]
    done = command("trial", *tiny("bert", *settings, f"engine={engine}", "sweep.name=one", "baselines=[]"))
    assert done.returncode == 0, done.stdout + done.stderr
    config = yaml.safe_load(SweepFolder(tmp_path / "runs" / "one").trial("t0000").config_file.read_text())
    assert (config["optim"]["head_lr"], config["train"]["class_weight"]) == (2e-2, "effective")
