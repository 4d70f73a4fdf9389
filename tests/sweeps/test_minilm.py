"""A real sweep: MiniLM on four newsgroup topics, from the command line to the adapter in plain PEFT."""

import csv
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from analysis.folder import SweepFolder
from sweeps.cli import main
from trainer.data import load_dataset

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    folder = tmp_path_factory.mktemp("minilm")
    overrides = ["train.max_steps=24", "train.rungs=[12,24]", "eval.rung_items=48", f"sweep.dir={folder}"]
    assert main(["run", "experiment=quickstart_classifier", "search.trials=4", *overrides]) == 0
    return SweepFolder.open(folder / "quickstart_classifier")


def test_four_trials_and_the_untuned_model_are_ranked_and_the_best_has_learnt_it(finished: SweepFolder) -> None:
    rows = list(csv.DictReader(finished.leaderboard_file.open()))
    assert sorted(row["trial_id"] for row in rows) == ["t0000", "t0001", "t0002", "t0003", "zero_shot"]
    best = rows[0]
    assert (best["kind"], best["status"], best["n_items"]) == ("trial", "completed", "160")
    assert float(best["accuracy"]) >= 0.85
    untuned = next(row for row in rows if row["kind"] == "baseline")
    assert float(untuned["accuracy"]) < 0.5


def test_plain_peft_gives_the_recorded_predictions(finished: SweepFolder, tmp_path: Path) -> None:
    best = next(csv.DictReader(finished.leaderboard_file.open()))
    assert main(["export", str(finished.root), "--to", str(tmp_path / "adapter")]) == 0
    card = json.loads((tmp_path / "adapter" / "lorasweep.json").read_text())
    base = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=4)
    model = PeftModel.from_pretrained(model, str(tmp_path / "adapter")).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)

    items = finished.trial(best["trial_id"]).read_items("task", "validation", int(best["step"]))
    from sweeps.compose import compose

    data = compose(["experiment=quickstart_classifier"]).config.data
    texts = {row.item_id: row.text for row in load_dataset(data).validation}
    inputs = tokenizer(
        [texts[item] for item in items["item_id"]],
        truncation=True, max_length=card["max_length"], padding=True, return_tensors="pt",
    )  # fmt: skip
    with torch.no_grad():
        logprobs = model(**inputs).logits.log_softmax(-1)
    assert [card["labels"][i] for i in logprobs.argmax(1)] == items["prediction"]
    torch.testing.assert_close(logprobs, torch.tensor(items["logprobs"]), atol=1e-4, rtol=0, check_dtype=False)
