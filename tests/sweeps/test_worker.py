"""What a device worker does when its engine, the disk or the driver fails it."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from analysis.folder import MetricsRow, State, TrialFolder
from analysis.objective import Objective
from sweeps.place import package_root
from sweeps.worker import DeviceWorker
from trainer.config import EngineConfig
from trainer.engine import Admitted, Ended, Event, RungResult

TRIAL: Any = SimpleNamespace(trial_id="t0000")


def row(step: int) -> MetricsRow:
    return MetricsRow("t0000", step, 0, 0.0, False, 1, {"accuracy": 0.5})


class FakeEngine:
    """Yields one event, or raises; remembers what it was asked."""

    patience = 0.0

    def __init__(self, advance: Callable[[], list[Event]] = list, checkpoint: Callable[[], None] = lambda: None):
        self._advance, self._checkpoint = advance, checkpoint
        self.admitted_from: list[Path | None] = []
        self.ended: list[str] = []

    def admit(self, trial: Any, folder: TrialFolder, checkpoint: Path | None) -> Admitted:
        self.admitted_from.append(checkpoint)
        return Admitted(0)

    def advance(self, until: Callable[[], bool]) -> list[Event]:
        return self._advance()

    def checkpoint(self, trial_id: str, to: Path) -> None:
        self._checkpoint()

    def end(self, trial_id: str, state: State) -> None:
        self.ended.append(trial_id)


def worker(engine: FakeEngine) -> Any:
    made: Any = DeviceWorker(EngineConfig(), None, Objective("single", 0.05, ()), 1, "beta", package_root())
    made._engine, made._materials = engine, None
    return made


def first_event(engine: FakeEngine, folder: Path) -> Event:
    async def run() -> Event:
        device = worker(engine)
        assert isinstance(await device.admit(TRIAL, str(folder)), Admitted)
        return await asyncio.wait_for(device.next_event("t0000"), timeout=30)

    return asyncio.run(run())


def test_a_broken_engine_ends_its_trials_with_the_reason(tmp_path: Path) -> None:
    def broken() -> list[Event]:
        raise IndexError("list index out of range")

    TrialFolder(tmp_path).append_metrics(row(4))
    event = first_event(FakeEngine(advance=broken), tmp_path)
    assert event == Ended("t0000", State.FAILED, "the engine broke: IndexError: list index out of range", 4)


def test_a_checkpoint_that_cannot_be_written_ends_its_trial_and_frees_its_slot(tmp_path: Path) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    engine = FakeEngine(advance=lambda: [RungResult("t0000", row(2))], checkpoint=full)
    event = first_event(engine, tmp_path)
    assert isinstance(event, Ended)
    assert (event.state, engine.ended) == (State.FAILED, ["t0000"])
    assert "its checkpoint could not be written" in event.reason
    assert "No space left on device" in event.reason


@pytest.mark.parametrize(("recorded", "expected"), [([], None), ([2], 2), ([2, 4], 4)])
def test_a_rung_that_was_not_recorded_is_done_again(recorded: list[int], expected: int | None, tmp_path: Path) -> None:
    folder, engine = TrialFolder(tmp_path), FakeEngine()
    for step in (2, 4):
        folder.checkpoint_dir(step).mkdir(parents=True)
        (folder.checkpoint_dir(step) / "counters.json").write_text("{}")
    for step in recorded:
        folder.append_metrics(row(step))
    worker(engine)._admit(TRIAL, folder)
    assert engine.admitted_from == [None if expected is None else folder.checkpoint_dir(expected)]
