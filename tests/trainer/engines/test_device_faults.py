"""A GPU that answers no more ends no trial: its error goes through the engine, to whoever owns the process."""

from pathlib import Path
from typing import Any

import pytest
import torch

from analysis.folder import State, TrialFolder
from tests.trainer.engines.test_pack import states, trials  # noqa: F401  # fixture
from tests.trainer.engines.test_pack_equivalence import equal_lengths, materials  # noqa: F401  # fixtures
from tests.trainer.packs import drive, packed_engine, score
from trainer.engine import Admitted, DeviceFault
from trainer.engines import hf_engine
from trainer.engines.hf_engine import HfEngine
from trainer.engines.pack import Pack
from trainer.engines.slot import Slot

ASSERT = "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported at some other"


def lost(*arguments: Any, **named: Any) -> Any:
    raise torch.AcceleratorError(ASSERT)


def go_on(engine: Any) -> None:
    while True:
        for event in engine.advance():
            engine.proceed(event.trial_id)


@pytest.mark.parametrize("where", ["pass", "rung", "end"])
def test_no_trial_of_a_pack_is_blamed_for_a_device_that_answers_no_more(
    where: str,
    trials: Any,  # noqa: F811
    materials: Any,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, tried = packed_engine(materials), []
    for trial in (three := trials(3)):
        assert isinstance(engine.admit(trial, TrialFolder(tmp_path / trial.trial_id), None), Admitted)

    def failing(*arguments: Any, **named: Any) -> Any:
        tried.append(arguments)
        monkeypatch.setattr(Slot, "forget_micro_steps", lost)  # as everything else on the device
        return lost()

    evaluate = Pack._evaluate
    with monkeypatch.context() as patch:
        if where == "pass":
            patch.setattr(Pack, "_one_pass", failing)
        else:
            done = {"rung": 4, "end": 8}[where]
            patch.setattr(
                Pack,
                "_evaluate",
                lambda self, models, slot, indices, known, moment: (
                    failing() if slot.record.step == done and (known is not None) == (where == "end")
                    else evaluate(self, models, slot, indices, known, moment)
                ),
            )  # fmt: skip
        with pytest.raises(DeviceFault) as raised:
            go_on(engine)
        assert str(raised.value) == ASSERT.splitlines()[0]
    assert len(tried) == 1, "every further call would have failed"
    again = packed_engine(materials)  # of the next process
    monkeypatch.undo()
    for pack in list(engine._packs):
        pack._detach()
    assert set(states(drive(again, three, tmp_path / "again")).values()) == {State.COMPLETED}


def test_a_trial_of_the_other_engine_is_not_blamed_either_and_nothing_is_asked_of_the_device(
    trials: Any,  # noqa: F811
    materials: Any,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = HfEngine(materials, score)
    [trial] = trials(1)
    engine.admit(trial, TrialFolder(tmp_path), None)
    monkeypatch.setattr(hf_engine, "evaluate", lost)
    monkeypatch.setattr(hf_engine._Run, "_save_best", lambda self: pytest.fail("weights of the device were read"))
    with pytest.raises(DeviceFault, match="device-side assert"):
        engine.advance()
