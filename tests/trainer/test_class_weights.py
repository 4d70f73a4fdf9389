"""Weights of rows by their label: the published formulas, their product with others, and the same in both engines."""

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
from trainer.class_weights import class_weights
from trainer.config import TrialConfig
from trainer.data.mitigation import row_weights
from trainer.device_cache import DeviceCache

LABELS = ["a"] * 90 + ["b"] * 9 + ["c"]


def test_balanced_weights_are_scikit_learns() -> None:
    assert class_weights(LABELS, "balanced") == pytest.approx(compute_sample_weight("balanced", LABELS))


def test_effective_weights_are_the_published_ones() -> None:
    """Cui et al. 2019: the weight of a class is (1 - beta) / (1 - beta^n); here with a mean of 1 over the rows."""
    published = {"a": (1 - 0.999) / (1 - 0.999**90), "b": (1 - 0.999) / (1 - 0.999**9), "c": 1.0}
    weights = class_weights(LABELS, "effective")
    assert sum(weights) == pytest.approx(len(LABELS))
    assert weights[-1] / weights[0] == pytest.approx(published["c"] / published["a"])
    assert weights[90] / weights[0] == pytest.approx(published["b"] / published["a"])
    frequent = class_weights(["a"] * 100_000 + ["b"] * 20_000, "effective")
    assert frequent[0] == pytest.approx(frequent[-1], rel=1e-6), "labels of very many rows weigh alike"


def test_no_rule_gives_equal_weights() -> None:
    assert class_weights(LABELS, "none") == [1.0] * len(LABELS)


@pytest.fixture(scope="module")
def skewed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of five words: 30 of one label, 8 of another, 4 of the third; with a group."""
    chooser = random.Random(5)
    path = tmp_path_factory.mktemp("skewed") / "train.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "who"])
        for n, label in zip((30, 8, 4), sorted(WORDS), strict=True):
            for i in range(n):
                writer.writerow([" ".join(chooser.choices(WORDS[label].split(), k=5)), label, "fm"[i % 3 == 0]])
    return path


@pytest.fixture(scope="module")
def materials() -> DeviceCache:
    return DeviceCache(torch.device("cpu"))


@pytest.fixture
def trials(make_trial: Callable[..., TrialConfig], skewed: Path) -> Callable[[str], list[TrialConfig]]:
    def make(model: str) -> list[TrialConfig]:
        made = []
        for i, (rule, reweight) in enumerate([("none", 0.0), ("balanced", 0.0), ("effective", 1.0)]):
            trial = make_trial(
                model, trial_id=f"t{i:04}", seed=i, max_steps=8, rungs=[8], batch_size=8, accumulation=2,
                class_weight=rule, reweight=reweight,
            )  # fmt: skip
            data = replace(trial.data, train=str(skewed), validation=str(skewed), group="who")
            made.append(replace(trial, data=data))
        return made

    return make


def test_weights_reach_the_training_rows_and_multiply_those_of_groups(trials, materials: DeviceCache) -> None:
    _, balanced, both = trials("bert")
    rows = materials.dataset(balanced).train
    labels = [row.label for row in rows]
    assert [row.weight for row in materials.training(balanced)] == pytest.approx(class_weights(labels, "balanced"))
    product = [a * b for a, b in zip(class_weights(labels, "effective"), row_weights(rows, 1.0), strict=True)]
    weights = [row.weight for row in materials.training(both)]
    assert weights == pytest.approx([w * len(rows) / sum(product) for w in product])
    assert sum(weights) == pytest.approx(len(rows))


@pytest.mark.parametrize("model", ["llama", "bert"])
def test_a_slot_with_class_weights_is_the_trial_alone_and_its_neighbour_is_left_as_it_was(
    model: str, trials, materials: DeviceCache, tmp_path: Path
) -> None:
    lone = alone(materials, trials(model), tmp_path / "alone")
    packed = together(materials, trials(model), tmp_path / "pack", "loop")
    assert furthest(lone, packed) < 1e-5
    plain = [replace(t, train=replace(t.train, class_weight="none")) for t in trials(model)]
    unweighted = together(materials, plain, tmp_path / "without", "loop")
    assert distance(packed[0], unweighted[0]) == 0.0, "not a bit of a neighbour"
    assert min(distance(a, b) for a, b in zip(packed[1:], unweighted[1:], strict=True)) > 1e-4


def test_rows_without_labels_cannot_be_weighed_by_them(
    make_trial: Callable[..., TrialConfig], materials: DeviceCache, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("prompt,completion\none and,two\nthree and,four\n")
    trial = make_trial("llama", class_weight="balanced")
    data = replace(trial.data, train=str(rows), validation=str(rows), schema="completion", allow_overlap=True)
    with pytest.raises(DataError, match=r"train.class_weight=balanced .* the rows have no labels"):
        materials.training(replace(trial, data=data))
