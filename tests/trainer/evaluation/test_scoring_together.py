"""Slots scored in one pass over the base model get what each gets alone.

Rows of a pass are as many for each slot and padded alike, so nothing but the base model's larger products can round
otherwise: ``CLOSE`` in log-probabilities, and nothing in what is predicted.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel

from analysis.folder import State, TrialFolder
from tests.trainer.engines.test_pack_equivalence import materials  # noqa: F401  # fixture
from tests.trainer.packs import at_step, drive, packed_engine
from trainer.config import TrialConfig
from trainer.device_cache import DeviceCache
from trainer.engine import Admitted, RungResult
from trainer.engines import pack
from trainer.engines.packed_engine import PackedEngine
from trainer.evaluation.bias.crows_pairs import Pair
from trainer.evaluation.bias.items import BiasItems
from trainer.evaluation.evaluate import Evaluation, evaluate
from trainer.likelihood.log_likelihood import SlotModel, Together, in_batches
from trainer.models.ranks import ALONE

CLOSE = 2e-5
PAIRS = [Pair(f"p{i}", f"the {a} is a bird", f"the {b} is a bird", "x", "stereo") for i, (a, b) in enumerate(
    [("wren", "tin"), ("hawk and owl", "iron"), ("crow", "pear and a plum and a cherry")]
)]  # fmt: skip


@pytest.fixture
def three(make_trial: Callable[..., TrialConfig]) -> Callable[..., list[TrialConfig]]:
    """Trials of different rank, dropout, targets and learning rate."""
    differing: list[dict[str, Any]] = [
        {"rank": 2, "dropout": 0.3, "lr": 2e-2},
        {"rank": 8, "lr": 5e-3},
        {"rank": 4, "dropout": 0.1, "targets": "attention", "lr": 1e-2},
    ]
    return lambda model, **changes: [
        make_trial(model, **{"trial_id": f"t{i:04}", "seed": i} | d | changes) for i, d in enumerate(differing)
    ]


def with_pairs(materials: DeviceCache, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Bias pairs of our own: the real ones are fetched."""
    validation = DeviceCache.validation
    monkeypatch.setattr(
        DeviceCache,
        "validation",
        lambda self, trial: replace(
            validation(self, trial), bias=BiasItems({"crows_pairs": PAIRS} if trial.task.name == "completion" else {})
        ),
    )


def trained(engine: PackedEngine, trials: list[TrialConfig], root: Path) -> pack.Pack:
    """A pack whose slots have just been scored at their first rung."""
    for trial in trials:
        assert isinstance(engine.admit(trial, TrialFolder(root / trial.trial_id), None), Admitted)
    events = engine.advance()
    assert [event.trial_id for event in events] == [trial.trial_id for trial in trials]
    assert all(isinstance(event, RungResult) for event in events)
    return engine._packs[0]


def same(a: Evaluation, b: Evaluation) -> None:
    assert a.tables.keys() == b.tables.keys()
    for name, columns in a.tables.items():
        for column, values in columns.items():
            if column in ("logprobs", "nll", "completion_nll"):
                torch.testing.assert_close(
                    torch.tensor(values), torch.tensor(b.tables[name][column]), atol=CLOSE, rtol=0
                )
            else:
                assert values == b.tables[name][column], column


@pytest.mark.parametrize("kernel", ["loop", "bmm"])
@pytest.mark.parametrize("model", ["llama", "bert"])
def test_a_rung_of_three_slots_is_one_pass_and_equals_each_alone_and_peft(
    model: str,
    kernel: str,
    three: Callable[..., list[TrialConfig]],
    materials: DeviceCache,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_pairs(materials, monkeypatch)
    trials = three(model)
    engine = packed_engine(materials, kernel)
    packed = trained(engine, trials, tmp_path)
    base, rung = packed.base, packed.slots[0].validation.rung
    body = base.output.body if model == "llama" else base.model.base_model
    passes: list[int] = []
    hook = body.register_forward_hook(lambda *_: passes.append(1))

    def scored(groups: list[list[int]]) -> list[Evaluation]:
        found = []
        for places in groups:
            together = Together(places, packed._route)
            for place in places:
                slot = packed.slots[place]
                found.append(evaluate(base, SlotModel(base.model, place, together), slot.trial, slot.validation, rung))
        return found

    together = scored([[0, 1, 2]])
    shared, passes[:] = len(passes), []
    apart = scored([[0], [1], [2]])
    assert len(passes) == 3 * shared
    hook.remove()
    for one, other in zip(together, apart, strict=True):
        same(one, other)
    assert together[0].metrics != together[1].metrics
    if kernel == "loop":
        for trial, evaluation in zip(trials, together, strict=True):
            folder = TrialFolder(tmp_path / trial.trial_id)
            engine.snapshot(trial.trial_id, folder.checkpoint_dir(2))()
            plain = materials.__class__(torch.device("cpu"))
            lone = PeftModel.from_pretrained(plain.base(trial).model, str(folder.checkpoint_dir(2)))
            same(evaluation, evaluate(plain.base(trial), lone, trial, packed.slots[0].validation, rung))


def test_final_scorings_of_slots_that_end_together_share_their_passes(three, materials, tmp_path, monkeypatch) -> None:  # noqa: F811
    asked: list[tuple[int, ...]] = []
    route = pack.Pack._route
    monkeypatch.setattr(
        pack.Pack, "_route", lambda self, places, rows: asked.append(tuple(places)) or route(self, places, rows)
    )
    drive(packed_engine(materials), three("llama"), tmp_path)
    assert set(asked) == {(0, 1, 2)}


def test_a_slot_at_a_rung_waits_for_one_that_is_a_step_behind(three, materials, tmp_path) -> None:  # noqa: F811
    first, second, _ = three("llama", max_steps=20, rungs=[8, 20])
    engine = packed_engine(materials)
    assert isinstance(engine.admit(first, TrialFolder(tmp_path / "a"), None), Admitted)
    assert engine.advance(lambda: True) == []  # one step
    assert isinstance(engine.admit(second, TrialFolder(tmp_path / "b"), None), Admitted)
    assert [event.row.step for event in engine.advance()] == [8, 8]


def test_a_slot_does_not_wait_for_one_that_is_far_behind(three, materials, tmp_path) -> None:  # noqa: F811
    first, second, _ = three("llama", max_steps=20, rungs=[8, 20])
    engine = packed_engine(materials)
    assert isinstance(engine.admit(first, TrialFolder(tmp_path / "a"), None), Admitted)
    for _ in range(5):
        assert engine.advance(lambda: True) == []
    assert isinstance(engine.admit(second, TrialFolder(tmp_path / "b"), None), Admitted)
    assert [event.trial_id for event in engine.advance()] == [first.trial_id]


def test_a_slot_whose_weights_are_not_finite_leaves_the_scores_of_the_others(three, materials, tmp_path) -> None:  # noqa: F811
    good = trained(packed_engine(materials), three("llama"), tmp_path / "good")
    expected = [slot.record.best.evaluation for slot in good.slots]
    engine = packed_engine(materials)
    for trial in three("llama"):
        assert isinstance(engine.admit(trial, TrialFolder(tmp_path / "bad" / trial.trial_id), None), Admitted)
    [packed] = engine._packs
    while not all(slot.due for slot in packed.slots):
        packed.step()
    with torch.no_grad():
        next(iter(packed.slots[1].modules.values())).b.fill_(float("nan"))
    events = engine.advance()
    assert [getattr(event, "state", None) for event in events] == [None, State.DIVERGED, None]
    for k, slot in ((0, packed.slots[0]), (2, packed.slots[-1])):
        same(expected[k], slot.record.best.evaluation)


def test_what_is_too_much_for_all_slots_is_scored_for_each_alone(three, materials, tmp_path, monkeypatch) -> None:  # noqa: F811
    route = pack.Pack._route

    def tight(self: pack.Pack, places: Any, rows: int) -> Any:
        if len(places) > 1:
            raise MemoryError("no room")
        return route(self, places, rows)

    monkeypatch.setattr(pack.Pack, "_route", tight)
    trials = three("llama")
    drive(packed_engine(materials), trials, tmp_path / "tight")
    monkeypatch.setattr(pack.Pack, "_route", route)
    drive(packed_engine(materials), trials, tmp_path / "roomy")
    for trial in trials:
        tight_rows, roomy_rows = (
            TrialFolder(tmp_path / name / trial.trial_id).read_items("task", "validation", 6)
            for name in ("tight", "roomy")
        )
        torch.testing.assert_close(
            torch.tensor(tight_rows["logprobs"]), torch.tensor(roomy_rows["logprobs"]), atol=CLOSE, rtol=0
        )
        tensors = (at_step(tmp_path / name, trial, 6) for name in ("tight", "roomy"))
        assert all(torch.equal(x, y) for x, y in zip(*(t.values() for t in tensors), strict=True))


@pytest.mark.parametrize("mistake", ["the first slot's scores for all", "the first slot's adapter for all"])
def test_a_known_mistake_is_seen(mistake, three, materials, tmp_path, monkeypatch) -> None:  # noqa: F811
    right = trained(packed_engine(materials), three("llama"), tmp_path / "right")
    expected = [slot.record.best.evaluation for slot in right.slots]
    if "scores" in mistake:
        result = Together.result
        monkeypatch.setattr(Together, "result", lambda self, place, *args: result(self, self.places[0], *args))
    else:
        route = pack.Pack._route
        monkeypatch.setattr(pack.Pack, "_route", lambda self, places, rows: route(self, [0] * len(places), rows))
    wrong = trained(packed_engine(materials), three("llama"), tmp_path / "wrong")
    same(expected[0], wrong.slots[0].record.best.evaluation)
    for place in (1, 2):
        with pytest.raises(AssertionError):
            same(expected[place], wrong.slots[place].record.best.evaluation)


def test_a_batch_that_is_too_large_is_halved_until_it_fits() -> None:
    done: list[list[int]] = []

    alone: Any = SimpleNamespace(ranks=ALONE, sharded=False)

    def score(batch: list[int]) -> str:
        if len(batch) > 3:
            raise MemoryError("no room")
        return "scores"

    in_batches(alone, range(10), 8, score, lambda batch, scores: done.append(batch))
    assert [i for batch in done for i in batch] == list(range(10))
    assert max(map(len, done)) == 2
    with pytest.raises(MemoryError):
        in_batches(alone, range(2), 2, lambda batch: (_ for _ in ()).throw(MemoryError("none at all")), lambda *_: None)
