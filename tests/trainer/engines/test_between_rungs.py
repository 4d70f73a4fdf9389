"""A trial that is checkpointed between two steps, released and gone on with elsewhere is the undisturbed one.

Rungs, metrics, tokens, counters and weights are compared; equal to the last bit where rows have equal lengths.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.folder import State, TrialFolder
from tests.trainer.engines.test_pack import trials  # noqa: F401  # a fixture
from tests.trainer.engines.test_pack_equivalence import equal_lengths, materials  # noqa: F401  # fixtures
from tests.trainer.packs import EXACT, at_step, distance, drive, packed_engine, score
from trainer.config import TrialConfig
from trainer.engine import Admitted, Ended, RungResult
from trainer.engines.checkpoints import fault, scored_rung
from trainer.engines.hf_engine import HfEngine

MAKE: dict[str, Callable[[Any], Any]] = {
    "packed": packed_engine,
    "grouped": lambda materials: packed_engine(materials, "grouped"),  # noqa: F811
    "hf": lambda materials: HfEngine(materials, score),  # noqa: F811
}
ASKED = lambda: True  # noqa: E731


def leave(engine: Any, trial: TrialConfig, root: Path, ready: Callable[[], bool]) -> Path:
    """Drive a trial, a step at a time, until it is ``ready``; checkpoint and release it. Gives the checkpoint."""
    files = TrialFolder(root / trial.trial_id)
    while not ready():
        for event in engine.advance(ASKED):
            if event.trial_id == trial.trial_id:
                assert isinstance(event, RungResult)
                engine.snapshot(trial.trial_id, files.checkpoint_dir(event.row.step))()
            engine.proceed(event.trial_id)
    to = files.checkpoint_dir(engine.steps(trial.trial_id))
    engine.snapshot(trial.trial_id, to)()
    engine.release(trial.trial_id)
    assert not files.adapter_dir.exists(), "nothing has ended"
    return to


def counters(root: Path, trial: TrialConfig, step: int) -> dict[str, Any]:
    read = json.loads((TrialFolder(root / trial.trial_id).checkpoint_dir(step) / "counters.json").read_text())
    return {name: value for name, value in read.items() if name not in ("seconds", "sha256")}


def rows(events: Sequence[Any]) -> list[tuple[Any, ...]]:
    read = [event.row for event in events]
    return [(row.step, row.tokens, row.final, row.n_items, row.metrics) for row in read]


def compare(root: Path, whole: Path, trial: TrialConfig, then: Sequence[Any], expected: Sequence[Any]) -> None:
    """What came after a trial was gone on with, and the same of the undisturbed one."""
    assert rows(then) == rows(expected)
    assert isinstance(then[-1], Ended)
    assert then[-1].state is State.COMPLETED
    for event in then[:-1]:
        step = event.row.step
        assert distance(at_step(root, trial, step), at_step(whole, trial, step)) <= EXACT
        assert counters(root, trial, step) == counters(whole, trial, step)


@pytest.mark.parametrize("first", ["packed", "hf"])
@pytest.mark.parametrize("then", ["packed", "hf"])
@pytest.mark.parametrize("step", [1, 6])
def test_between_two_rungs_in_either_engine(first, then, step, trials, materials, tmp_path) -> None:  # noqa: F811
    [one] = trials(1, accumulation=2, patience=3, schedule="cosine", weight_decay=0.1)
    whole = drive(MAKE[then](materials), [one], tmp_path / "whole")["t0000"]
    engine = MAKE[first](materials)
    assert isinstance(engine.admit(one, TrialFolder(tmp_path / "left" / "t0000"), None), Admitted)
    at = leave(engine, one, tmp_path / "left", lambda: engine.steps("t0000") == step)
    assert (at.name, fault(at), scored_rung(at)) == (str(step), "", 4 if step > 4 else 0)
    events = drive(MAKE[then](materials), [one], tmp_path / "left", {"t0000": at})["t0000"]
    compare(tmp_path / "left", tmp_path / "whole", one, events, whole if step < 4 else whole[1:])


def test_in_the_middle_of_micro_steps_the_step_is_done_again(trials, materials, tmp_path) -> None:  # noqa: F811
    """In a pack whose other slot is at another micro-step, and goes on."""
    one, two = trials(1, accumulation=4, batch_size=16)[0], trials(2, max_steps=28, rungs=[25, 28])[1]
    whole = drive(packed_engine(materials), [one, two], tmp_path / "whole")
    engine = packed_engine(materials)
    for trial in (one, two):
        engine.admit(trial, TrialFolder(tmp_path / "left" / trial.trial_id), None)
    slot = engine._find("t0000")[1]
    at = leave(engine, one, tmp_path / "left", lambda: (slot.record.step, slot.micro) == (5, 3))
    assert at.name == "5"
    events = drive(packed_engine(materials), [one], tmp_path / "left", {"t0000": at})["t0000"]
    compare(tmp_path / "left", tmp_path / "whole", one, events, whole["t0000"][1:])

    neighbour: list[Any] = []
    while not isinstance((neighbour := neighbour + engine.advance())[-1], Ended):
        engine.proceed("t0001")
    assert rows(neighbour) == rows(whole["t0001"])


@pytest.mark.parametrize(
    ("engine_name", "model", "changes"),
    [
        ("hf", "llama", {"dora": True}),
        ("hf", "gpt2", {"bias": "all"}),
        ("hf", "bert", {"targets": "attention"}),
        ("packed", "bert", {"head_ratio": 20.0, "b_ratio": 4.0}),
        ("packed", "llama", {"precision": "nf4"}),
        ("packed", "gpt2", {"init": "orthogonal", "rank": 4}),
        ("grouped", "llama", {"beta2": 0.95}),
    ],
)
def test_every_kind_of_slot(engine_name, model, changes, trials, materials, tmp_path) -> None:  # noqa: F811
    [one] = trials(1, model, **changes)
    made = lambda: MAKE[engine_name](materials)  # noqa: E731
    whole = drive(made(), [one], tmp_path / "whole")["t0000"]
    engine = made()
    engine.admit(one, TrialFolder(tmp_path / "left" / "t0000"), None)
    at = leave(engine, one, tmp_path / "left", lambda: engine.steps("t0000") == 6)
    events = drive(made(), [one], tmp_path / "left", {"t0000": at})["t0000"]
    compare(tmp_path / "left", tmp_path / "whole", one, events, whole[1:])


@pytest.mark.parametrize("first", ["packed", "hf"])
@pytest.mark.parametrize("then", ["packed", "hf"])
@pytest.mark.parametrize("rung", [4, 8])
def test_a_scoring_is_broken_off_and_the_rung_is_scored_elsewhere(
    first,
    then,
    rung,
    trials,  # noqa: F811
    materials,  # noqa: F811
    tmp_path,
) -> None:
    [one] = trials(1)
    whole = drive(MAKE[then](materials), [one], tmp_path / "whole")["t0000"]
    engine, files = MAKE[first](materials), TrialFolder(tmp_path / "left" / "t0000")
    engine.admit(one, files, None)
    at_rung = lambda: engine.steps("t0000") == rung  # noqa: E731
    while engine.advance(at_rung, at_rung):
        engine.proceed("t0000")
    assert at_rung()
    at = files.checkpoint_dir(rung)
    engine.snapshot("t0000", at)()
    engine.release("t0000")
    assert scored_rung(at) == rung - 4
    events = drive(MAKE[then](materials), [one], tmp_path / "left", {"t0000": at})["t0000"]
    compare(tmp_path / "left", tmp_path / "whole", one, events, whole[0 if rung == 4 else 1 :])


@pytest.mark.parametrize("name", ["packed", "hf"])
def test_a_scoring_that_was_broken_off_is_begun_anew_where_the_trial_stays(
    name,
    trials,  # noqa: F811
    materials,  # noqa: F811
    tmp_path,
) -> None:
    """At each rung, and in the final scoring."""
    [one] = trials(1)
    whole = drive(MAKE[name](materials), [one], tmp_path / "whole")["t0000"]
    engine, files, events = MAKE[name](materials), TrialFolder(tmp_path / "left" / "t0000"), []
    engine.admit(one, files, None)
    broken_off: list[int] = []

    def leaving() -> bool:
        """In the first pass of each scoring that was not broken off before."""
        if len(broken_off) > len(events):
            return False
        broken_off.append(engine.steps("t0000"))
        return True

    while not (events and isinstance(events[-1], Ended)):
        new = engine.advance(ASKED, leaving)
        events += new
        if new and isinstance(new[0], RungResult):
            engine.snapshot("t0000", files.checkpoint_dir(new[0].row.step))()
            engine.proceed("t0000")
    assert broken_off == [4, 8, 8]
    compare(tmp_path / "left", tmp_path / "whole", one, events, whole)


def test_hugging_face_trainer_waits_between_two_steps_where_it_is_asked_to(
    make_trial: Callable[..., TrialConfig],
    materials,  # noqa: F811
    tmp_path,
) -> None:
    engine = HfEngine(materials, score)
    trial = replace(make_trial("llama"), trial_id="t0000")
    engine.admit(trial, TrialFolder(tmp_path), None)
    for step in (1, 2):
        assert [type(event) for event in engine.advance(ASKED)] == ([RungResult] if step == 2 else [])
        assert engine.steps("t0000") == step
    engine.end("t0000", State.STOPPED_EARLY)
    assert TrialFolder(tmp_path).adapter_dir.exists()
