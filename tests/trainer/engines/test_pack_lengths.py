"""Rows of differing lengths: short ones get passes of their own, and no result changes but for rounding."""

import csv
import math
import random
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from analysis.folder import TrialFolder
from tests.conftest import WORDS
from tests.trainer.engines.test_pack_equivalence import materials  # noqa: F401  # fixture
from tests.trainer.packs import CLOSE, alone, at_step, drive, furthest, packed_engine
from trainer.config import EngineConfig, TrialConfig
from trainer.engines import batches
from trainer.engines.batches import MicroBatch, cut_by_length
from trainer.engines.pack import Pack
from trainer.engines.slot_budget import SlotBudget


def batch(lengths: list[int], completion: bool, first: int = 1) -> MicroBatch:
    """Rows whose tokens are all different, so that it shows where each of them went."""
    width = max(lengths)
    ids = np.arange(len(lengths) * width).reshape(-1, width) + first
    mask = np.arange(width) < np.array(lengths)[:, None]
    return MicroBatch(
        input_ids=ids * mask,
        labels=ids * mask + 7 if completion else np.arange(len(lengths)),
        samples=np.arange(len(lengths)),
        weights=np.random.default_rng(0).random(len(lengths), dtype=np.float32),
        lengths=tuple(lengths),
        step=3,
        denominator=11,
    )


def rows_of(part: MicroBatch) -> dict[int, tuple[Any, ...]]:
    """Place in the step → everything that a row has, without padding."""
    tensors = part.tensors()
    return {
        int(sample): (
            tensors["input_ids"][r, :n].tolist(),
            tensors["attention_mask"][r].sum().item() == n == part.lengths[r],
            tensors["labels"][r, :n].tolist() if part.labels.ndim == 2 else part.labels[r].item(),
            tensors["weights"][r].item(),
            part.step,
            part.denominator,
        )
        for r, (sample, n) in enumerate(zip(part.samples, part.lengths, strict=True))
    }


def padded(parts: list[list[tuple[int, MicroBatch]]]) -> int:
    """Tokens of all passes, with their padding: a pass is as wide as its longest row."""
    return sum(sum(b.shape[0] for _, b in part) * max(b.shape[1] for _, b in part) for part in parts)


@pytest.mark.parametrize("completion", [True, False])
@pytest.mark.parametrize("cost", [0.0, 64.0])
@pytest.mark.parametrize("seed", range(20))
def test_every_row_is_in_one_pass_and_each_cut_saves_more_than_it_costs(
    completion: bool, cost: float, seed: int
) -> None:
    chooser = random.Random(seed)
    given = [
        batch([chooser.randint(1, 90) for _ in range(chooser.choice([1, 4, 8]))], completion, 1000 * k)
        for k in range(chooser.randint(1, 6))
    ]
    parts = cut_by_length(given, cost)
    for k, whole in enumerate(given):
        found = [rows_of(part) for passed in parts for i, part in passed if i == k]
        assert sum(len(rows) for rows in found) == len(whole.lengths)
        assert {s: row for rows in found for s, row in rows.items()} == rows_of(whole)
    for passed in parts:
        assert [k for k, _ in passed] == sorted({k for k, _ in passed}), "a pass's rows are sorted by slot"
    uncut = padded([list(enumerate(given))])
    assert padded(parts) <= uncut - (len(parts) - 1) * max(cost, 0.05 * uncut)
    assert len(parts) > 1 or len(given) == 1 or cost


def test_rows_of_equal_length_and_unmeasured_devices_have_one_pass_as_it_was() -> None:
    equal, ragged = [batch([9] * 4, True), batch([9] * 8, True)], [batch([1, 90], True), batch([2, 80, 3], True)]
    for given, cost in ((equal, 0.0), (ragged, math.inf)):
        [only] = cut_by_length(given, cost)
        assert [k for k, _ in only] == [0, 1]
        assert all(got is whole for (_, got), whole in zip(only, given, strict=True))


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chooser = random.Random(3)
    path = tmp_path_factory.mktemp("ragged") / "train.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for i in range(48):
            label = sorted(WORDS)[min(i % 6, 2)]  # one is frequent, so that rows have weights
            writer.writerow([" ".join(chooser.choices(WORDS[label].split(), k=chooser.randint(1, 24))), label])
    return path


@pytest.mark.parametrize("model", ["llama", "bert"])
@pytest.mark.parametrize("kernel", ["loop", "bmm", "grouped"])
def test_a_trial_whose_passes_are_cut_is_the_trial_alone(
    kernel: str,
    model: str,
    ragged: Path,
    make_trial: Callable[..., TrialConfig],
    materials: Any,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batches, "_PASS_COST", {"cpu": 0.0, "cuda": 0.0})
    passes: list[int] = []
    one_pass = Pack._one_pass

    def noted(self: Pack, slots: list[Any], given: list[MicroBatch]) -> Any:
        passes.append(sum(len(b.lengths) for b in given))
        return one_pass(self, slots, given)

    differing = [{"dropout": 0.3}, {"rank": 3, "batch_size": 8, "accumulation": 2}, {"dropout": 0.1, "reweight": 0.7}]
    trials = [
        make_trial(model, **{"trial_id": f"t{i:04}", "seed": i, "max_steps": 8, "rungs": [8], "clip": 0.2} | own)
        for i, own in enumerate(differing)
    ]
    trials = [replace(t, data=replace(t.data, train=str(ragged))) for t in trials]
    expected = alone(materials, trials, tmp_path / "alone")
    engine = packed_engine(materials, kernel, cut_by_length=True)
    engine._budget(engine._pack(trials[0]), trials[0])  # the probe's own passes are not counted
    monkeypatch.setattr(Pack, "_one_pass", noted)
    drive(engine, trials, tmp_path / "pack")
    assert len(passes) > 16, "more than the steps"
    got = [at_step(tmp_path / "pack", trial, 8) for trial in trials]
    assert furthest(got, expected) <= CLOSE

    engine = packed_engine(materials, kernel, cut_by_length=False)
    engine._budget(engine._pack(trials[0]), trials[0])
    passes.clear()
    drive(engine, trials, tmp_path / "uncut")
    assert len(passes) == 16, "the steps of the trial that accumulates"


def test_on_a_cpu_passes_stay_small() -> None:
    def passes(device: str) -> list[int]:
        base: Any = SimpleNamespace(device=torch.device(device), autocast=None)
        slots: list[Any] = [
            SimpleNamespace(next_batch=lambda n=n: SimpleNamespace(shape=(n, 256))) for n in (4, 12, 4, 32, 1)
        ]
        return [len(group) for group in Pack(base, "classification")._passes(slots)]

    assert passes("cpu") == [2, 1, 1, 1], "4096 tokens; a slot that has more has a pass to itself"
    assert passes("cuda") == [5]


def test_what_a_pass_costs_is_no_matter_of_the_clock_on_a_cpu_and_measured_on_a_gpu_unless_the_config_says_it() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert batches.pass_cost(EngineConfig(), cpu) == 128.0
    assert batches.pass_cost(EngineConfig(), gpu) is None
    assert batches.pass_cost(EngineConfig(pass_cost=512.0), gpu) == 512.0
    assert batches.pass_cost(EngineConfig(pass_cost=512.0), cpu) == 512.0
    assert batches.pass_cost(EngineConfig(cut_by_length=False, pass_cost=512.0), gpu) == math.inf
    assert batches.pass_cost(EngineConfig(cut_by_length=False), cpu) == math.inf
    assert batches.pass_cost(EngineConfig(name="hf"), cpu) == math.inf


@pytest.mark.parametrize(
    ("fixed", "per_token", "tokens"),
    [(1e-3, 1e-6, 1024.0), (0.7e-3, 1e-6, 512.0), (0.75e-3, 1e-6, 1024.0), (0.0, 1e-6, 1.0), (1e-3, 0.0, 2.0**20)],
)
def test_a_measured_cost_is_a_power_of_two(fixed: float, per_token: float, tokens: float) -> None:
    told: dict[str, Any] = {item.name: None for item in fields(SlotBudget)}
    assert SlotBudget(**told | {"fixed": fixed, "per_token": per_token}).pass_cost == tokens


def test_a_cost_is_measured_once_and_another_ones_counts_where_it_is_set_before(
    ragged: Path,
    make_trial: Callable[..., TrialConfig],
    materials: Any,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batches, "_PASS_COST", {})  # as on a GPU
    monkeypatch.setattr(SlotBudget, "pass_cost", 64.0)
    trial = replace(make_trial("llama"), data=replace(make_trial("llama").data, train=str(ragged)))
    for slots in (None, 4):
        engine = packed_engine(materials, "loop", slots=slots, cut_by_length=True)
        engine.capacity(trial)
        assert engine.pass_cost == 64.0, "though the number of slots is given"
        told = packed_engine(materials, "loop", slots=slots, cut_by_length=True)
        told.pass_cost = 32.0
        told.capacity(trial)
        assert told.pass_cost == 32.0
        for there in (engine, told):
            there.admit(trial, TrialFolder(tmp_path / "t0000"), None)
            assert [pack.pass_cost for pack in there._packs] == [there.pass_cost]
            there.release(trial.trial_id)
    uncut = packed_engine(materials, "loop", cut_by_length=False)
    uncut.capacity(trial)
    assert uncut.pass_cost is None


def test_two_costs_give_other_last_bits_and_one_gives_the_same_after_a_kill(
    ragged: Path,
    make_trial: Callable[..., TrialConfig],
    materials: Any,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the record is for: another process may measure another figure, and must not use it."""
    monkeypatch.setattr(batches, "_PASS_COST", {})
    clock = iter([1.0, 2.0**20, 2.0**20])
    monkeypatch.setattr(SlotBudget, "pass_cost", property(lambda budget: next(clock)))
    plain = make_trial("llama", batch_size=8, max_steps=8, rungs=[4, 8])
    trial = replace(plain, data=replace(plain.data, train=str(ragged)))

    def engine(recorded: float | None = None) -> Any:
        made = packed_engine(materials, "loop", cut_by_length=True)
        made.pass_cost = recorded
        return made

    first = engine()
    drive(first, [trial], tmp_path / "whole")
    [whole] = [at_step(tmp_path / "whole", trial, 8)]
    at_4 = {trial.trial_id: TrialFolder(tmp_path / "whole" / trial.trial_id).checkpoint_dir(4)}
    drive(engine(first.pass_cost), [trial], tmp_path / "resumed", at_4)
    assert furthest([at_step(tmp_path / "resumed", trial, 8)], [whole]) == 0.0
    drive(engine(), [trial], tmp_path / "measured again", at_4)
    assert 0.0 < furthest([at_step(tmp_path / "measured again", trial, 8)], [whole]) <= CLOSE
