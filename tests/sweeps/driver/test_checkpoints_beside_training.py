"""A device worker writes checkpoints beside training, and tells nobody of a rung before its checkpoint is sealed."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import trainer.engines.trial_record
from analysis.folder import MetricsRow, State, TrialFolder
from sweeps.store.checkpoint_writer import MOST_SNAPSHOTS
from tests.sweeps.driver.test_device_worker import LEFT, TRIAL, FakeEngine, until, worker
from tests.trainer.conftest import make_trial  # noqa: F401  # a fixture
from tests.trainer.packs import DEVICE, packed_engine
from trainer.device_cache import DeviceCache
from trainer.engine import Ended, Event, Full, Halted, RankLost, Requeued, RungResult
from trainer.engines.checkpoints import fault, seal


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Until it is set, no checkpoint is written; it is at the end of the test."""
    opened = threading.Event()
    yield opened
    opened.set()


def rung(trial_id: str, step: int = 2) -> RungResult:
    return RungResult(trial_id, MetricsRow(trial_id, step, 0, 0.0, False, 1, {"accuracy": 0.5}))


class GatedEngine(FakeEngine):
    """Its trials reach a rung together, in its first ``advance``; checkpoints wait for a gate.

    Args:
        names: of the trials.
        gate: that writing waits for.
        later: the further calls of ``advance``.
    """

    def __init__(self, names: list[str], gate: threading.Event, later: Callable[[], list[Event]] = list):
        super().__init__(self._next, gate.wait)
        self.names, self.later = names, later
        self.begun, self.total = False, 0
        self.written: list[str] = []
        self.steps_of: dict[str, int] = {}
        self.proceeded: list[str] = []
        self.calls: list[list[str]] = []  # which trials had been told to go on at each later call

    def _next(self) -> list[Event]:
        if not self.begun:
            if len(self.admitted_from) < self.total:
                return []
            self.begun = True
            return [rung(name) for name in self.names]
        self.calls.append(list(self.proceeded))
        return self.later()

    def steps(self, trial_id: str) -> int:
        return self.steps_of.get(trial_id, 2)

    def proceed(self, trial_id: str) -> None:
        self.proceeded.append(trial_id)

    def snapshot(self, trial_id: str, to: Path) -> Callable[[], None]:
        self.checkpoints.append(to)

        def write() -> None:
            self._checkpoint()
            to.mkdir(parents=True)
            seal(to, {"step": int(to.name)})
            self.written.append(trial_id)

        return write


async def admitted(engine: Any, folders: dict[str, TrialFolder]) -> Any:
    device, engine.total = worker(engine), len(folders)
    for name, folder in folders.items():
        await device.admit(SimpleNamespace(trial_id=name), str(folder.root))
    return device


def folders(root: Path, n: int) -> dict[str, TrialFolder]:
    return {f"t{i:04}": TrialFolder(root / f"t{i:04}") for i in range(n)}


async def event_of(device: Any, trial_id: str, proceed: bool = False) -> Any:
    return await asyncio.wait_for(device.next_event(trial_id, proceed), 30)


def test_other_slots_of_the_pack_train_on_while_a_checkpoint_is_written(
    make_trial,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gate: threading.Event,
) -> None:
    """A real pack; the disk takes as long as the other slot needs for ten steps."""

    def slow_seal(*arguments: Any) -> None:
        assert gate.wait(60)
        seal(*arguments)

    monkeypatch.setattr(trainer.engines.trial_record, "seal", slow_seal)
    one = make_trial(trial_id="t0000", max_steps=4, rungs=[2, 4])
    two = make_trial(trial_id="t0001", max_steps=4000, rungs=[4000])
    engine, files = packed_engine(DeviceCache(DEVICE)), TrialFolder(tmp_path / "t0000")

    async def run() -> None:
        device = worker(engine)  # type: ignore[arg-type]
        await device.admit(one, str(files.root))
        await device.admit(two, str(tmp_path / "t0001"))
        await asyncio.to_thread(until, lambda: device._writing)
        steps = engine.steps("t0001")
        await asyncio.to_thread(until, lambda: engine.steps("t0001") >= steps + 10)
        assert (files.checkpoints(), device._saved["t0000"], engine.steps("t0000")) == ([], 0, 2)
        assert device._events["t0000"].empty(), "it is told when the checkpoint is sealed"
        gate.set()
        event = await event_of(device, "t0000")
        assert (event.row.step, files.checkpoints(), fault(files.checkpoint_dir(2))) == (2, [2], "")
        event = await event_of(device, "t0000", proceed=True)
        assert (event.row.step, files.checkpoints()) == (4, [2, 4])
        event = await event_of(device, "t0000", proceed=True)
        assert event.state is State.COMPLETED
        assert await device.leave(30) == ["t0001"]
        [step] = TrialFolder(tmp_path / "t0001").checkpoints()
        assert step > steps + 10

    asyncio.run(run())


def test_few_snapshots_are_in_memory_and_trials_are_told_in_order(tmp_path: Path, gate: threading.Event) -> None:
    there = folders(tmp_path, MOST_SNAPSHOTS + 3)
    engine = GatedEngine(list(there), gate)

    async def run() -> None:
        device = await admitted(engine, there)
        await asyncio.to_thread(until, lambda: len(engine.checkpoints) == MOST_SNAPSHOTS)
        await asyncio.sleep(0.2)
        assert len(engine.checkpoints) == MOST_SNAPSHOTS
        gate.set()
        for name in there:
            assert await event_of(device, name) == rung(name)

    asyncio.run(run())
    assert engine.written == list(there)


def test_slots_that_reached_a_rung_together_go_on_together(tmp_path: Path, gate: threading.Event) -> None:
    """The first is told to go on before the others' checkpoints are sealed."""
    there = folders(tmp_path, 3)
    engine = GatedEngine(list(there), gate)
    engine.patience = 30.0
    first, later = threading.Event(), threading.Event()
    waits = iter([first, later, later])
    engine._checkpoint = lambda: next(waits).wait(30)  # type: ignore[assignment, return-value]

    async def run() -> None:
        device = await admitted(engine, there)
        first.set()
        assert await event_of(device, "t0000") == rung("t0000")
        assert await device.proceed("t0000")
        later.set()
        for name in ("t0001", "t0002"):
            assert await event_of(device, name) == rung(name)
            assert await device.proceed(name)
        await asyncio.to_thread(until, lambda: any(engine.calls))
        await device.leave(10)

    asyncio.run(run())
    assert next(call for call in engine.calls if call) == list(there)


def test_a_trial_is_told_at_once_though_the_engine_is_busy_with_others(tmp_path: Path, gate: threading.Event) -> None:
    busy, done = threading.Event(), threading.Event()

    def step() -> list[Event]:
        busy.set()
        assert done.wait(30)
        return []

    engine = GatedEngine(["t0000"], gate, step)

    async def run() -> None:
        device = await admitted(engine, folders(tmp_path, 2))
        await asyncio.to_thread(busy.wait, 30)
        gate.set()
        assert await event_of(device, "t0000") == rung("t0000")
        assert not done.is_set()
        done.set()

    asyncio.run(run())


@pytest.mark.parametrize("how", ["ended", "admitted again", "told to go on", "taken over"])
def test_whatever_frees_or_moves_a_slot_waits_for_its_checkpoint(
    how: str, tmp_path: Path, gate: threading.Event
) -> None:
    """Nothing is written into the folder afterwards."""
    there = folders(tmp_path, 1)
    engine = GatedEngine(["t0000"], gate)
    again = SimpleNamespace(trial_id="t0000")

    async def run() -> None:
        device = await admitted(engine, there)
        waiting = asyncio.ensure_future(event_of(device, "t0000"))
        await asyncio.to_thread(until, lambda: device._writing)
        root = str(there["t0000"].root)
        call = asyncio.ensure_future(
            {
                "ended": lambda: device.end("t0000", "stopped_early"),
                "admitted again": lambda: device.admit(again, root),
                "told to go on": lambda: device.proceed("t0000"),
                "taken over": lambda: device.take_over(again, root, 7),
            }[how]()
        )
        await asyncio.sleep(0.2)
        assert not call.done()
        gate.set()
        answer = await asyncio.wait_for(call, 30)
        assert there["t0000"].checkpoints() == [2]
        assert await waiting == rung("t0000"), "its proxy heard first"
        if how == "taken over":
            assert answer == "it has gone on to its next rung"
        assert engine.ended == (["t0000"] if how in ("ended", "admitted again") else [])

    asyncio.run(run())


def test_a_worker_that_leaves_waits_for_what_is_being_written_and_writes_what_waits(
    tmp_path: Path, gate: threading.Event
) -> None:
    """More trials rest at a rung than there are snapshots; one trains, and gets a checkpoint of now."""
    there = folders(tmp_path, MOST_SNAPSHOTS + 2)
    *at_rung, training = there
    engine = GatedEngine(at_rung, gate)
    engine.steps_of[training] = 1

    async def run() -> None:
        device = await admitted(engine, there)
        await asyncio.to_thread(until, lambda: len(engine.checkpoints) == MOST_SNAPSHOTS)
        leaving = asyncio.ensure_future(device.leave(30))
        await asyncio.sleep(0.2)
        assert not leaving.done()
        gate.set()
        assert sorted(await leaving) == sorted(there)
        for name in at_rung:
            assert await event_of(device, name) == rung(name)
            assert there[name].checkpoints() == [2]
        for name in there:
            assert await event_of(device, name) == Requeued(name, LEFT.reason)
        assert there[training].checkpoints() == [1]

    asyncio.run(run())
    assert len(engine.checkpoints) == len(there), "none twice"
    assert sorted(engine.released) == sorted(there)


@pytest.mark.parametrize("in_the_end", ["written", "broken"])
def test_a_trial_that_was_given_back_without_its_checkpoint_is_not_written_afterwards(
    in_the_end: str, tmp_path: Path, gate: threading.Event
) -> None:
    """The disk hangs; what waits behind is another worker's by now. What is told later is heard by nobody."""
    there = folders(tmp_path, 2)
    engine = GatedEngine(list(there), gate)
    if in_the_end == "broken":
        engine._checkpoint = lambda: [gate.wait(30), 1 / 0]  # type: ignore[assignment, return-value]

    async def run() -> None:
        device = await admitted(engine, there)
        await asyncio.to_thread(until, lambda: len(device._writing) == 2)
        assert await device.leave(0.1) == list(there)
        for name in there:
            assert await event_of(device, name) == Requeued(name, LEFT.reason)
        gate.set()
        await asyncio.to_thread(until, lambda: len(engine.released) == 2)
        assert await asyncio.wait_for(device.admit(TRIAL, str(tmp_path)), 10) == Full()
        assert all(device._events[name].empty() for name in there)

    asyncio.run(run())
    assert engine.written == (["t0000"] if in_the_end == "written" else []), "which was under way"
    assert engine.ended == [], "no adapter is written"
    assert there["t0001"].checkpoints() == []


@pytest.mark.parametrize(("error", "kind"), [(IndexError("list index"), Ended), (OSError(28, "No space"), Halted)])
def test_an_engine_that_breaks_loses_no_rung_that_was_reached(
    error: Exception, kind: type, tmp_path: Path, gate: threading.Event
) -> None:
    """One of them waits for room yet."""

    def broken() -> list[Event]:
        assert len(engine.checkpoints) == MOST_SNAPSHOTS
        gate.set()
        raise error

    there = folders(tmp_path, MOST_SNAPSHOTS + 2)
    *at_rung, _ = there
    engine = GatedEngine(at_rung, gate, broken)

    async def run() -> None:
        device = await admitted(engine, there)
        for name in at_rung:
            assert await event_of(device, name) == rung(name)
            assert there[name].checkpoints() == [2]
        for name in there:
            assert type(await event_of(device, name)) is kind

    asyncio.run(run())


def test_memory_for_a_snapshot_that_is_not_there_ends_its_trial_alone(tmp_path: Path, gate: threading.Event) -> None:
    there = folders(tmp_path, 3)
    engine = GatedEngine(["t0000", "t0001"], gate)
    engine.names = ["t0000", "t0001", "t0002"]
    taken = engine.snapshot

    def snapshot(trial_id: str, to: Path) -> Callable[[], None]:
        if trial_id == "t0001":
            raise MemoryError("no memory")
        if trial_id == "t0002":
            raise RankLost("a process died")
        return taken(trial_id, to)

    engine.snapshot = snapshot  # type: ignore[method-assign]
    gate.set()

    async def run() -> list[Any]:
        device = await admitted(engine, there)
        return [await event_of(device, name) for name in there]

    first, second, third = asyncio.run(run())
    assert first == rung("t0000")
    assert second == Ended("t0001", State.FAILED, "its checkpoint could not be written: MemoryError: no memory", 0)
    assert third == Requeued("t0002", "a process died")
    assert engine.ended == ["t0001"]
