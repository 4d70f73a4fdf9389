"""A slot of a pack is the same experiment as the trial alone: the reference is Hugging Face Trainer with PEFT."""

import csv
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import WORDS
from tests.trainer.packs import DEVICE, EXACT, alone, distance, furthest, together
from trainer.config import TrialConfig
from trainer.device_cache import DeviceCache

STEPS = 30
MIXED = [  # four slots that differ in everything a slot may differ in
    {"rank": 2, "lr": 5e-3, "schedule": "linear", "warmup": 0.2, "clip": 0.5},
    {
        "rank": 8,
        "lr": 1e-3,
        "schedule": "cosine",
        "batch_size": 8,
        "accumulation": 2,
        "weight_decay": 0.1,
        "alpha_rule": "sqrt",
    },
    {"rank": 4, "lr": 2e-2, "schedule": "constant", "beta1": 0.8, "beta2": 0.99, "batch_size": 12, "accumulation": 3},
    {"rank": 3, "lr": 5e-3, "targets": "attention", "alpha_rule": "fixed", "alpha_value": 16.0, "clip": 0.1},
]


@pytest.fixture(scope="module")
def materials() -> DeviceCache:
    return DeviceCache(DEVICE)


@pytest.fixture(scope="session")
def equal_lengths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of five words each: nothing is padded, so the base model's sums have the same length alone and packed."""
    chooser = random.Random(3)
    path = tmp_path_factory.mktemp("equal") / "train.csv"
    words = {label: line.split() for label, line in WORDS.items()}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for i in range(48):
            label = sorted(words)[i % 3]
            writer.writerow([" ".join(chooser.choices(words[label], k=5)), label])
    return path


@pytest.fixture
def four(make_trial: Callable[..., TrialConfig]) -> Callable[..., list[TrialConfig]]:
    def make(model: str, dropout: float = 0.0, **changes: object) -> list[TrialConfig]:
        return [
            make_trial(
                model,
                **{"max_steps": STEPS, "rungs": [STEPS], "trial_id": f"t{i:04}", "seed": 11 * i, "dropout": dropout}
                | changes
                | differing,
            )
            for i, differing in enumerate(MIXED)
        ]

    return make


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("model", ["llama", "gpt2", "bert"])
def test_on_the_loop_path_with_equal_lengths_a_slot_is_exactly_the_trial_alone(
    model: str,
    dropout: float,
    four: Callable[..., list[TrialConfig]],
    equal_lengths: Path,
    materials: DeviceCache,
    tmp_path: Path,
) -> None:
    trials = [replace(t, data=replace(t.data, train=str(equal_lengths))) for t in four(model, dropout)]
    lone = alone(materials, trials, tmp_path / "alone")
    packed = together(materials, trials, tmp_path / "pack", "loop")
    assert furthest(lone, packed) <= EXACT


@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_over_a_quantised_base_too(
    precision: str,
    four: Callable[..., list[TrialConfig]],
    equal_lengths: Path,
    materials: DeviceCache,
    tmp_path: Path,
) -> None:
    trials = four("llama", 0.3, precision=precision)
    trials = [replace(t, data=replace(t.data, train=str(equal_lengths))) for t in trials]
    lone = alone(materials, trials, tmp_path / "alone")
    packed = together(materials, trials, tmp_path / "pack")  # on a CPU the loop, on a GPU the stack
    for one, other in zip(lone, packed, strict=True):
        moved = max(float(value.abs().max()) for name, value in one.items() if "lora_B" in name)
        # on a GPU the base computes in bf16: a product of four times the rows may be rounded otherwise
        assert distance(one, other) <= (EXACT if DEVICE.type == "cpu" else 0.1 * moved)
