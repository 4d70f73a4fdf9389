"""Counterfactual copies and loss weights, and that both engines train the same with them."""

import csv
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sklearn.utils.class_weight import compute_sample_weight

from analysis.errors import DataError
from tests.conftest import WORDS
from tests.trainer.packs import alone, distance, furthest, together
from trainer.config import TrialConfig
from trainer.data.counterfactual_text import swap_terms
from trainer.data.dataset import Row
from trainer.data.mitigation import counterfactual_copies, row_weights
from trainer.device_cache import DeviceCache
from trainer.engines.batches import micro_batches
from trainer.models.lora import add_adapter, remove_adapter

ROWS = [Row(f"train-{i}", f"{name} is a {job}", job) for i, (name, job) in enumerate(
    [("John", "nurse"), ("the cat", "pet"), ("Mary", "pilot"), ("She", "pilot"), ("water", "thing"), ("his", "thing")]
)]  # fmt: skip


def test_a_share_of_the_rows_with_something_to_swap_gets_a_copy_with_its_label() -> None:
    whole, half = counterfactual_copies(ROWS, 1.0), counterfactual_copies(ROWS, 0.5)
    assert [copy.item_id for copy in whole] == [f"train-{i}-swapped" for i in (0, 2, 3, 5)]
    assert [copy.label for copy in whole] == ["nurse", "pilot", "pilot", "thing"]
    assert whole[0].text == swap_terms(ROWS[0].text, 0) != ROWS[0].text
    assert len(half) == 2
    assert set(half) < set(whole)
    assert counterfactual_copies(ROWS, 0.0) == []


def test_nothing_to_swap_is_an_error_that_says_so() -> None:
    with pytest.raises(DataError, match="no training row holds a name"):
        counterfactual_copies([ROWS[1], ROWS[4]], 0.5)


def test_weights_with_exponent_one_are_scikit_learns_balanced_ones() -> None:
    cells = [("a", "x"), ("a", "x"), ("a", "y"), ("b", "x"), ("b", None), ("b", None), ("a", "x")]
    rows = [Row(f"{i}", "text", label, group) for i, (label, group) in enumerate(cells)]
    weights = row_weights(rows, 1.0)
    assert weights == pytest.approx(compute_sample_weight("balanced", [f"{cell}" for cell in cells]))
    assert sum(row_weights(rows, 0.5)) == pytest.approx(len(rows))
    assert row_weights(rows, 0.5)[2] / row_weights(rows, 0.5)[0] == pytest.approx(3**0.5)
    assert row_weights(rows, 0.0) == [1.0] * len(rows)


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of five words, labels and groups going together, with pronouns."""
    chooser = random.Random(5)
    path = tmp_path_factory.mktemp("grouped") / "train.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "who"])
        for i in range(40):
            label = sorted(WORDS)[min(i % 5, 2)]
            who = "f" if i % 7 < 5 - 2 * min(i % 5, 2) else "m"
            writer.writerow(
                [" ".join([*chooser.choices(WORDS[label].split(), k=4), {"f": "she", "m": "he"}[who]]), label, who]
            )
    return path


@pytest.fixture(scope="module")
def materials() -> DeviceCache:
    return DeviceCache(torch.device("cpu"))


@pytest.fixture
def three(make_trial: Callable[..., TrialConfig], grouped: Path) -> Callable[[str], list[TrialConfig]]:
    """Trials without, with weights, and with weights and copies."""

    def make(model: str) -> list[TrialConfig]:
        settings = [(0.0, 0.0), (0.0, 1.0), (0.5, 2.0)]
        trials = []
        for i, (augment, reweight) in enumerate(settings):
            trial = make_trial(
                model, trial_id=f"t{i:04}", seed=i, max_steps=12, rungs=[12], accumulation=2,
                augment=augment, reweight=reweight,
            )  # fmt: skip
            data = replace(trial.data, train=str(grouped), validation=str(grouped), group="who")
            trials.append(replace(trial, data=data))
        return trials

    return make


def test_copies_and_weights_reach_the_training_rows(three, materials) -> None:
    plain, weighted, both = (materials.training(trial) for trial in three("llama"))
    assert [row.weight for row in plain] == [1.0] * 40
    assert [row.weight for row in weighted] == row_weights(materials.dataset(three("llama")[1]).train, 1.0)
    assert max(row.weight for row in weighted) > 2 > 1 > min(row.weight for row in weighted)
    assert [row.context for row in weighted] == [row.context for row in plain]
    assert len(both) == 60
    assert sum(row.weight for row in both) == pytest.approx(60)


@pytest.mark.parametrize("model", ["llama", "bert"])
def test_a_slot_with_weights_is_the_trial_alone_and_its_neighbour_is_left_as_it_was(
    model: str, three, materials, tmp_path: Path
) -> None:
    trials = three(model)
    lone = alone(materials, trials, tmp_path / "alone")
    packed = together(materials, trials, tmp_path / "pack", "loop")
    assert furthest(lone, packed) < 1e-5
    without = [replace(trial, mitigation=replace(trial.mitigation, reweight=0.0)) for trial in trials]
    unweighted = together(materials, without, tmp_path / "without", "loop")
    assert distance(packed[0], unweighted[0]) == 0.0, "not a bit of a neighbour"
    assert min(distance(a, b) for a, b in zip(packed[1:], unweighted[1:], strict=True)) > 1e-3


def test_weights_are_those_of_pytorchs_weighted_loss(make_trial, grouped: Path, materials, tmp_path: Path) -> None:
    trial = make_trial("bert", max_steps=5, rungs=[5], reweight=1.0, accumulation=2)
    trial = replace(trial, data=replace(trial.data, train=str(grouped), validation=str(grouped)))  # no group: by label
    [ours] = together(materials, [trial], tmp_path, "loop")

    base, encoded = materials.base(trial), materials.training(trial)
    of_class = torch.tensor([next(row.weight for row in encoded if row.target == k) for k in range(3)])
    assert len(set(of_class.tolist())) > 1
    model = add_adapter(base.model, trial.lora, trial.task.name, base.heads, trial.seed)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=trial.optim.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step == 0 else (5 - step) / 4)
    model.train()
    for step in range(5):
        for made in micro_batches(trial, encoded, base.tokenizer.pad_token_id, step):
            batch = made.tensors()
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            loss = torch.nn.functional.cross_entropy(logits, batch["labels"], weight=of_class, reduction="sum")
            (loss / batch["denominator"]).backward()
        torch.nn.utils.clip_grad_norm_(trained, trial.train.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    theirs = {
        name.replace(".default", "").replace(".modules_to_save", ""): p
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    assert set(theirs) == set(ours)
    assert max(float((theirs[name] - ours[name]).abs().max()) for name in ours) < 1e-5
    remove_adapter(model)
