"""Rates of their own for the head and for B, and start values: the same alone, in a pack, and in PEFT's own terms."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.optimizers import create_loraplus_optimizer
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import nn

from analysis.errors import ConfigError
from analysis.folder import TrialFolder
from tests.trainer.engines.test_pack_equivalence import equal_lengths, materials  # noqa: F401  # fixtures
from tests.trainer.packs import EXACT, alone, at_step, distance, drive, furthest, packed_engine, score, together
from trainer.baselines import score_baseline
from trainer.config import Baseline, LoraSettings, OptimConfig, TrialConfig, check_trial
from trainer.engine import RungResult
from trainer.engines.hf_engine import HfEngine
from trainer.engines.learning_rates import peak_rate, split_by_rate
from trainer.engines.slot import Slot
from trainer.models.lora import add_adapter, initial_values, keyed_generator, remove_adapter

STEPS = 12
AXES: list[dict[str, Any]] = [  # neighbours in one pack
    {},
    {"head_ratio": 8.0, "b_ratio": 16.0, "weight_decay": 0.1},
    {"head_lr": 3e-2, "schedule": "cosine", "init": "orthogonal"},
    {"b_ratio": 4.0, "init": "orthogonal", "dropout": 0.3, "batch_size": 8, "accumulation": 2},
]


def trials_of(make: Callable[..., TrialConfig], model: str, data: Path, **changes: Any) -> list[TrialConfig]:
    trials = []
    for i, axes in enumerate(AXES):
        own = {key: value for key, value in axes.items() if model == "bert" or not key.startswith("head_")}
        settings = {"max_steps": STEPS, "rungs": [6, STEPS], "rank": 2 * i + 2, "lr": 2e-3} | changes | own
        trial = make(model, trial_id=f"t{i:04}", seed=i, **settings)
        trials.append(replace(trial, data=replace(trial.data, train=str(data))))
    return trials


@pytest.mark.parametrize("model", ["llama", "bert"])
def test_a_slot_with_rates_and_start_values_of_its_own_is_exactly_the_trial_alone(
    model: str,
    make_trial: Callable[..., TrialConfig],
    equal_lengths: Path,  # noqa: F811
    materials: Any,  # noqa: F811
    tmp_path: Path,
) -> None:
    trials = trials_of(make_trial, model, equal_lengths)
    lone = alone(materials, trials, tmp_path / "alone")
    packed = together(materials, trials, tmp_path / "pack", "loop")
    assert furthest(lone, packed) <= EXACT
    plain = [replace(t, lora=replace(t.lora, init="default"), optim=OptimConfig(lr=2e-3)) for t in trials]
    without = together(materials, plain, tmp_path / "plain", "loop")
    assert distance(packed[0], without[0]) == 0.0, "not a bit of a neighbour"
    assert min(distance(a, b) for a, b in zip(packed[1:], without[1:], strict=True)) > 1e-3


@pytest.mark.parametrize("kernel", ["bmm", "grouped"])
def test_the_other_kernels_are_close(
    kernel: str,
    make_trial: Callable[..., TrialConfig],
    equal_lengths: Path,  # noqa: F811
    materials: Any,  # noqa: F811
    tmp_path: Path,
) -> None:
    trials = trials_of(make_trial, "bert", equal_lengths)
    lone = alone(materials, trials, tmp_path / "alone")
    assert furthest(lone, together(materials, trials, tmp_path / "pack", kernel)) < 1e-3


@pytest.mark.parametrize("then", ["packed", "hf"])
def test_a_trial_that_goes_on_in_either_engine_is_the_uninterrupted_one(
    then: str,
    make_trial: Callable[..., TrialConfig],
    equal_lengths: Path,  # noqa: F811
    materials: Any,  # noqa: F811
    tmp_path: Path,
) -> None:
    trial = trials_of(make_trial, "bert", equal_lengths, b_ratio=4.0)[2]
    [expected] = alone(materials, [trial], tmp_path / "alone")
    drive(packed_engine(materials), [trial], tmp_path / "first", on_rung=lambda event: False)
    checkpoint = TrialFolder(tmp_path / "first" / trial.trial_id).checkpoint_dir(6)
    engine = packed_engine(materials) if then == "packed" else HfEngine(materials, score)
    events = drive(engine, [trial], tmp_path / "then", {trial.trial_id: checkpoint})[trial.trial_id]
    assert [event.row.step for event in events if isinstance(event, RungResult)] == [STEPS]
    assert distance(at_step(tmp_path / "then", trial, STEPS), expected) <= EXACT


# --- rates


def test_groups_of_an_optimiser_are_those_of_pefts_lora_plus(
    make_trial: Callable[..., TrialConfig],
    materials: Any,  # noqa: F811
    tmp_path: Path,
) -> None:
    trial = make_trial("llama", b_ratio=16.0, lr=1e-3, weight_decay=0.1)
    base = materials.base(trial)
    model = add_adapter(base.model, trial.lora, trial.task.name, base.heads, trial.seed)
    theirs = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16.0, loraplus_weight_decay=0.1
    )
    names = {id(p): name for name, p in model.named_parameters()}
    expected = {
        names[id(p)]: (group["lr"], group["weight_decay"]) for group in theirs.param_groups for p in group["params"]
    }
    remove_adapter(model)
    slot = Slot(trial, TrialFolder(tmp_path), base, materials.training(trial), materials.validation(trial), score, None)
    assert {name: (one.rate, one.decay) for name, one in slot.tensors.items()} == expected
    assert len(set(expected.values())) == 2


def test_a_head_has_its_own_rate_or_its_ratio_and_all_follow_one_schedule(
    make_trial: Callable[..., TrialConfig],
    materials: Any,  # noqa: F811
    tmp_path: Path,
) -> None:
    def rates(**changes: Any) -> tuple[set[float], set[float]]:
        trial = make_trial("bert", lr=1e-3, warmup=0.5, **changes)
        base = materials.base(trial)
        rows = materials.training(trial), materials.validation(trial)
        slot = Slot(trial, TrialFolder(tmp_path), base, *rows, score, None)
        slot.count()
        found: tuple[set[float], set[float]] = (set(), set())
        for name, one in slot.tensors.items():
            found["modules_to_save" in name].add(one.rate * slot.stepping().factor)
        return found

    third = pytest.approx(1e-3 / 3)  # after the first of three steps of warm-up
    for changes, head in [({}, 1e-3), ({"head_lr": 3e-2}, 3e-2), ({"head_ratio": 5.0, "b_ratio": 1.0}, 5e-3)]:
        ((adapter,), (of_head,)) = rates(**changes)
        assert adapter == third
        assert of_head == pytest.approx(head / 3)


def test_one_rate_leaves_the_groups_as_they_are() -> None:
    tensors = [nn.Parameter(torch.zeros(1)) for _ in range(4)]
    groups = [{"params": tensors[:3]}, {"params": tensors[3:], "weight_decay": 0.0}, {"params": []}]
    split = split_by_rate(groups, {id(p): 1e-3 for p in tensors})
    assert split == [{**group, "lr": 1e-3} for group in groups[:2]]


@pytest.mark.parametrize(
    ("name", "dimensions", "rate"),
    [
        ("base_model.model.bert.query.lora_A.default.weight", 2, 1.0),
        ("base_model.model.bert.query.lora_B.default.weight", 2, 4.0),
        ("base_model.model.bert.query.lora_magnitude_vector.default.weight", 1, 4.0),
        ("base_model.model.bert.embeddings.modules_to_save.default.weight", 2, 1.0),
        ("base_model.model.classifier.modules_to_save.default.weight", 2, 7.0),
        ("base_model.model.classifier.modules_to_save.default.bias", 1, 7.0),
    ],
)
def test_whose_rate_is_which(name: str, dimensions: int, rate: float) -> None:
    optim = OptimConfig(lr=1.0, head_ratio=7.0, b_ratio=4.0)
    assert peak_rate(optim, name, dimensions, frozenset({"classifier"})) == rate


# --- start values


def test_orthogonal_start_values_are_pefts() -> None:
    """PEFT draws from torch's global stream; ours, seeded alike, is the same stream."""
    rank, d_in, d_out = 6, 20, 14
    seed = keyed_generator(5, "a.name").initial_seed()
    ours = initial_values(LoraSettings(rank=rank, init="orthogonal"), d_in, d_out, 5, "a.name")
    config = LoraConfig(r=rank, init_lora_weights="orthogonal")
    layer = LoraLinear(nn.Linear(d_in, d_out), "default", config=config, r=rank, lora_alpha=rank)
    assert isinstance(layer, LoraLayer)
    torch.manual_seed(seed)
    layer.orthogonal_init("default")
    assert torch.equal(ours[0], layer.lora_A["default"].weight)
    assert torch.equal(ours[1], layer.lora_B["default"].weight)
    assert float((ours[1] @ ours[0]).abs().max()) < 1e-6 < float(ours[1].abs().max())


def test_the_untuned_model_has_no_adapter_whatever_its_start_values(
    make_trial: Callable[..., TrialConfig],
    materials: Any,  # noqa: F811
    tmp_path: Path,
) -> None:
    scored = [
        score_baseline(
            materials, Baseline("zero_shot", make_trial("bert", init=init, rank=3)), TrialFolder(tmp_path / init)
        ).metrics
        for init in ("default", "orthogonal")
    ]
    assert scored[0] == scored[1]


# --- what does not go together


@pytest.mark.parametrize(
    ("model", "changes", "said"),
    [
        ("llama", {"head_lr": 1e-3}, r"optim.head_lr=0.001 with task=completion, which trains no head"),
        ("llama", {"head_ratio": 2.0}, r"optim.head_ratio=2 with task=completion"),
        ("bert", {"head_ratio": 0.0}, r"optim.head_ratio=0.0 is out of range: expected greater than 0"),
        ("bert", {"b_ratio": -1.0}, r"optim.b_ratio=-1.0 is out of range"),
        ("bert", {"init": "orthogonal", "rank": 3}, "Use an even rank, or lora.init=default"),
        ("bert", {"init": "orthgonal"}, "Did you mean 'orthogonal'"),
        ("llama", {"class_weight": "balanced", "schema": "completion"}, "the rows have no labels to weigh by"),
        ("bert", {"class_weight": "balance"}, "Did you mean 'balanced'"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    model: str, changes: dict[str, Any], said: str, make_trial: Callable[..., TrialConfig]
) -> None:
    with pytest.raises(ConfigError, match=said):
        check_trial(make_trial(model, **changes))
