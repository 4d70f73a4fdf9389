"""The same configurations under both engines: equal rung scores, and equal decisions of the scheduler."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sweeps.search.scheduler import StandIn, build_scheduler
from tests.trainer.conftest import make_trial  # noqa: F401  # fixture
from tests.trainer.packs import drive, packed_engine, score
from trainer.config import TrialConfig
from trainer.device_cache import DeviceCache
from trainer.engine import Ended, RungResult
from trainer.engines.hf_engine import HfEngine

RUNGS = [3, 6, 12]
ASHA = {"_target_": "ray.tune.schedulers.ASHAScheduler", "grace_period": RUNGS[0], "reduction_factor": 2}
# Rows of unequal length are padded otherwise in a pack: the last bit of a sum, over twelve steps of AdamW.
CLOSE = 2e-3


def configurations(make: Callable[..., TrialConfig], model: str, n: int) -> list[TrialConfig]:
    """As a search would draw them: fixed here."""
    chooser = random.Random(3)
    return [
        make(
            model,
            trial_id=f"t{i:04}",
            seed=i,
            rank=chooser.choice([2, 4, 8]),
            lr=10 ** chooser.uniform(-4, -1.5),
            dropout=chooser.choice([0.0, 0.2]),
            targets=chooser.choice(["attention", "all_linear"]),
            schedule=chooser.choice(["linear", "cosine"]),
            batch_size=chooser.choice([4, 8]),
            max_steps=RUNGS[-1],
            rungs=RUNGS,
            rung_items=30,
        )
        for i in range(n)
    ]


def decisions(rungs: dict[tuple[str, int], dict[str, float]]) -> list[str]:
    """ASHA's, where every trial's result of a rung comes before any of the next; stopped trials report no more."""
    scheduler = build_scheduler(ASHA, RUNGS)
    trials = {trial_id: StandIn(trial_id) for trial_id, _ in rungs}
    for trial in trials.values():
        scheduler.on_trial_add(None, trial)
    found, stopped = [], set()
    for (trial_id, step), metrics in sorted(rungs.items(), key=lambda rung: (rung[0][1], rung[0][0])):
        if trial_id in stopped:
            continue
        result: dict[str, Any] = {"step": step, "objective": score(metrics), "state": "running"}
        found.append(scheduler.on_trial_result(None, trials[trial_id], result))
        if found[-1] == "STOP":
            stopped.add(trial_id)
    return found


@pytest.mark.parametrize("model", ["llama", "bert"])
def test_the_same_configurations_get_the_same_scores_and_the_same_decisions(
    model: str,
    make_trial: Callable[..., TrialConfig],  # noqa: F811
    tmp_path: Path,
) -> None:
    trials = configurations(make_trial, model, 6)
    materials = DeviceCache(torch.device("cpu"))
    found: dict[str, dict[tuple[str, int], dict[str, float]]] = {}
    finals: dict[str, list[dict[str, float]]] = {}
    for name, engine in (("packed", packed_engine(materials, slots=4)), ("hf", HfEngine(materials, score))):
        events = drive(engine, trials, tmp_path / name)
        found[name] = {
            (trial_id, event.row.step): event.row.metrics
            for trial_id, seen in events.items()
            for event in seen
            if isinstance(event, RungResult)
        }
        last = [seen[-1] for seen in events.values()]
        finals[name] = [dict(event.row.metrics) for event in last if isinstance(event, Ended) and event.row]
    assert found["packed"].keys() == found["hf"].keys()
    assert len(found["hf"]) == len(trials) * len(RUNGS)
    for rung, metrics in found["hf"].items():
        assert found["packed"][rung] == pytest.approx(metrics, abs=CLOSE, rel=CLOSE), rung
    assert len(finals["hf"]) == len(trials)
    for ours, reference in zip(finals["packed"], finals["hf"], strict=True):
        assert ours == pytest.approx(reference, abs=CLOSE, rel=CLOSE)
    decided = decisions(found["hf"])
    assert decisions(found["packed"]) == decided
    assert {"STOP", "CONTINUE"} <= set(decided), "otherwise the comparison says nothing"
