"""Layers that are applied to something else than the rows: to relative positions, to rows and tokens in one, turned."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.trainer.engines.architectures import save, two_trials
from tests.trainer.packs import CLOSE, alone, at_step, drive, furthest, packed_engine, together
from trainer.config import ModelConfig, TrialConfig
from trainer.device_cache import DeviceCache

_CASES = [
    ("DeBERTa", "classification"),
    ("DeBERTa-v2", "classification"),
    ("DeBERTa-v3", "classification"),
    ("OPT", "completion"),
    ("Longformer", "classification"),
]


@pytest.fixture
def pair(
    make_trial: Callable[..., TrialConfig], tiny_models: dict[str, Path], tmp_path: Path
) -> Callable[..., list[TrialConfig]]:
    """Two trials on a tiny random model of an architecture, with dropout; the second's rows are mostly shorter."""

    def make(name: str, task: str) -> list[TrialConfig]:
        folder = save(name, task, tmp_path / name, tiny_models["llama"])
        model = ModelConfig(source="local", path=str(folder))
        trials = [replace(trial, model=model) for trial in two_trials(make_trial, task)]
        trials[1] = replace(trials[1], train=replace(trials[1].train, batch_size=2))
        return [replace(trial, lora=replace(trial.lora, dropout=0.3)) for trial in trials]

    return make


@pytest.mark.parametrize("kernel", ["auto", "bmm"])
@pytest.mark.parametrize(("name", "task"), _CASES)
def test_with_dropout_a_slot_is_the_trial_alone(
    name: str, task: str, kernel: str, pair: Callable[..., list[TrialConfig]], tmp_path: Path
) -> None:
    trials, materials = pair(name, task), DeviceCache(torch.device("cpu"))
    lone = alone(materials, trials, tmp_path / "alone")
    assert furthest(lone, together(materials, trials, tmp_path / "pack", kernel)) <= CLOSE
    undropped = [replace(trial, lora=replace(trial.lora, dropout=0.0)) for trial in trials]
    assert furthest(lone, together(materials, undropped, tmp_path / "undropped", kernel)) > 10 * CLOSE


@pytest.mark.parametrize(("name", "task"), _CASES)
def test_masks_do_not_depend_on_how_a_batch_is_cut(
    name: str, task: str, pair: Callable[..., list[TrialConfig]], tmp_path: Path
) -> None:
    (trial, _), materials = pair(name, task), DeviceCache(torch.device("cpu"))
    cut = replace(trial, train=replace(trial.train, accumulation=4))  # a row at a time
    whole = alone(materials, [trial], tmp_path / "whole")
    assert furthest(whole, alone(materials, [cut], tmp_path / "cut")) <= CLOSE
    assert furthest(whole, together(materials, [cut], tmp_path / "pack")) <= CLOSE


@pytest.mark.parametrize("name", ["DeBERTa", "DeBERTa-v3"])
def test_recomputed_activations_change_nothing(
    name: str, pair: Callable[..., list[TrialConfig]], tmp_path: Path
) -> None:
    trials, materials = pair(name, "classification"), DeviceCache(torch.device("cpu"))
    kept = together(materials, trials, tmp_path / "kept")
    drive(packed_engine(materials, checkpointing=True), trials, tmp_path / "recomputed")
    again = [at_step(tmp_path / "recomputed", trial, trial.train.max_steps) for trial in trials]
    assert furthest(kept, again) == 0.0


def test_slots_that_leave_the_shared_layers_alone_go_through_them_together(
    pair: Callable[..., list[TrialConfig]], tmp_path: Path
) -> None:
    trials, materials = pair("DeBERTa-v3", "classification"), DeviceCache(torch.device("cpu"))
    trials[1] = replace(
        trials[1], train=replace(trials[1].train, batch_size=6)
    )  # 4 + 6 rows: no pass of scoring has ten
    layer = materials.base(trials[0]).model.get_submodule("deberta.encoder.layer.0")
    rows: dict[str, list[int]] = {"attention.self.value_proj": [], "intermediate.dense": []}
    for name, seen in rows.items():
        hooked: torch.nn.Module = layer.get_submodule(name)
        hooked.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(len(inputs[0])))  # type: ignore[misc]
    for targets, in_one_pass in (("value_proj", True), ("value_proj+query_proj", False)):
        for seen in rows.values():
            seen.clear()
        chosen = [replace(trial, lora=replace(trial.lora, targets=targets)) for trial in trials]
        drive(packed_engine(materials), chosen, tmp_path / targets)
        assert (4 + 6 in rows["attention.self.value_proj"]) == in_one_pass
        assert 4 + 6 in rows["intermediate.dense"], "all that is not such a module is passed through together"
    assert "forward" not in vars(layer.get_submodule("attention.self")), "the base model is its old self again"
