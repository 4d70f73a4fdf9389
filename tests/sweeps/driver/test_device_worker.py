"""What a device worker does when its engine, the disk or the driver fails it."""

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import sweeps.driver.device_client
import sweeps.driver.trial_proxy
from analysis.errors import HardwareError
from analysis.folder import MetricsRow, State, Status, TrialFolder
from analysis.objective import Objective, Term
from sweeps.driver import device_worker
from sweeps.driver.device_client import DeviceClient
from sweeps.driver.device_worker import DeviceWorker
from sweeps.driver.trial_proxy import TrialProxy
from sweeps.search.lineage import record
from sweeps.search.pbt_exchange import Exchange
from sweeps.store.node_copy import NodeCopy
from tests.benchmarks.simulated import SimulatedEngine
from tests.sweeps.driver.fakes import FakeDispatcher
from trainer.config import EngineConfig
from trainer.engine import Admitted, DeviceFailed, DeviceFault, Ended, Event, Full, Halted, Requeued, RungResult
from trainer.engines.checkpoints import seal

TRIAL: Any = SimpleNamespace(trial_id="t0000", precision="fp32", train=SimpleNamespace(max_steps=4))
LEFT = Requeued("t0000", "its device worker on beta left")


def row(step: int) -> MetricsRow:
    return MetricsRow("t0000", step, 0, 0.0, False, 1, {"accuracy": 0.5})


class FakeEngine:
    """Yields one event, or raises; remembers what it was asked."""

    patience = 0.0
    done = 0

    def __init__(self, advance: Callable[[], list[Event]] = list, checkpoint: Callable[[], None] = lambda: None):
        self._advance, self._checkpoint = advance, checkpoint
        self.admitted_from: list[Path | None] = []
        self.checkpoints: list[Path] = []
        self.ended: list[str] = []
        self.released: list[str] = []
        self.leaving: Callable[[], bool] = lambda: False

    def admit(self, trial: Any, folder: TrialFolder, checkpoint: Path | None) -> Admitted:
        self.admitted_from.append(checkpoint)
        return Admitted(0)

    def advance(self, until: Callable[[], bool], leaving: Callable[[], bool]) -> list[Event]:
        self.leaving = leaving
        return self._advance()

    def steps(self, trial_id: str) -> int:
        return self.done

    def snapshot(self, trial_id: str, to: Path) -> Callable[[], None]:
        self.checkpoints.append(to)
        return self._checkpoint

    def release(self, trial_id: str) -> None:
        self.released.append(trial_id)

    def end(self, trial_id: str, state: State) -> None:
        self.ended.append(trial_id)


def worker(engine: FakeEngine | SimulatedEngine) -> Any:
    made: Any = DeviceWorker(EngineConfig(), None, Objective("single", 0.05, ()), 1, "beta")
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


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (ValueError("no such tensor"), Ended, "its checkpoint could not be written: ValueError: no such tensor"),
        (OSError(28, "No space left on device"), Halted, "beta: [Errno 28] No space left on device"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), Halted, "(os error 28)"),
    ],
)
def test_a_checkpoint_that_cannot_be_written_ends_its_trial_but_a_full_disk_ends_none(
    error: Exception, kind: type, words: str, tmp_path: Path
) -> None:
    def broken() -> None:
        raise error

    engine = FakeEngine(advance=lambda: [RungResult("t0000", row(2))], checkpoint=broken)
    event = first_event(engine, tmp_path)
    assert (type(event), engine.ended) == (kind, ["t0000"])
    assert words in event.reason  # type: ignore[union-attr]


class SlowBucket(NodeCopy):
    """A sweep folder in a bucket that takes a while, or nothing."""

    def __init__(self, error: OSError | None = None):
        super().__init__()
        self.error = error
        self.saved: list[str] = []

    def save(self, folder: TrialFolder) -> None:
        time.sleep(0.2)
        if self.error is not None:
            raise self.error
        self.saved.append(folder.root.name)


@pytest.mark.parametrize("event", [RungResult("t0000", row(2)), Ended("t0000", State.COMPLETED, "", 8, row(8))])
def test_nobody_hears_of_a_rung_or_an_end_before_it_is_in_the_bucket(event: Event, tmp_path: Path) -> None:
    async def run(bucket: SlowBucket) -> tuple[Event, list[str]]:
        waiting = [event]
        device = worker(FakeEngine(advance=lambda: [waiting.pop()] if waiting else []))
        device._copy = bucket
        assert isinstance(await device.admit(TRIAL, str(tmp_path)), Admitted)
        heard = await asyncio.wait_for(device.next_event("t0000"), timeout=30)
        return heard, list(bucket.saved)

    heard, saved = asyncio.run(run(SlowBucket()))
    assert heard == event
    assert saved[:1] == [tmp_path.name]
    heard, _ = asyncio.run(run(SlowBucket(OSError(5, "the store does not answer"))))
    assert heard == Halted("t0000", "beta: [Errno 5] the store does not answer")


def test_a_full_disk_in_the_engine_halts_all_its_trials(tmp_path: Path) -> None:
    def full() -> list[Event]:
        raise OSError(28, "No space left on device")

    assert isinstance(first_event(FakeEngine(advance=full), tmp_path), Halted)


def test_a_trial_that_may_kill_workers_has_the_device_to_itself(tmp_path: Path) -> None:
    device, folder = worker(FakeEngine()), TrialFolder(tmp_path)
    other: Any = SimpleNamespace(trial_id="t0001")
    assert isinstance(device._admit(other, folder), Admitted)
    assert isinstance(device._admit(TRIAL, folder, alone=True), Full)
    device._end("t0001", State.STOPPED_EARLY)
    assert isinstance(device._admit(TRIAL, folder, alone=True), Admitted)
    assert isinstance(device._admit(other, folder), Full)
    device._end("t0000", State.STOPPED_EARLY)
    assert isinstance(device._admit(other, folder), Admitted)


def test_a_trial_whose_proxy_died_leaves_its_slot_before_it_is_admitted_again(tmp_path: Path) -> None:
    device = worker(engine := FakeEngine())
    for _ in range(2):
        assert isinstance(device._admit(TRIAL, TrialFolder(tmp_path)), Admitted)
    assert engine.ended == ["t0000"]
    assert list(device._folders) == ["t0000"]


def test_a_trial_that_has_ended_leaves_its_slot_though_its_proxy_died_before_it_gave_it_back(tmp_path: Path) -> None:
    device, files = worker(engine := FakeEngine()), TrialFolder(tmp_path / "t0001")
    other: Any = SimpleNamespace(trial_id="t0001")
    device._admit(other, files)
    device._resting.add("t0001")
    files.write_status(Status(State.RUNNING))
    device._admit(TRIAL, TrialFolder(tmp_path / "t0000"))
    assert engine.ended == []  # it waits for its decision
    files.write_status(Status(State.STOPPED_EARLY))
    device._admit(SimpleNamespace(trial_id="t0002"), TrialFolder(tmp_path / "t0002"))
    assert engine.ended == ["t0001"]
    assert list(device._folders) == ["t0000", "t0002"]


def test_a_new_proxy_frees_the_slot_of_the_one_that_died_wherever_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the first worker is full, the second takes the trial; the new proxy is given the first one again."""
    calls: list[tuple[str, str]] = []
    full = {"a"}

    def events(proceed: bool) -> Event:
        return Ended("t0000", State.COMPLETED, "", 4) if proceed else RungResult("t0000", row(2))

    def device(name: str) -> Any:
        def admit(trial: Any, path: str, alone: bool, heard: int) -> Any:
            calls.append((name, "admit"))
            return Full() if name in full else Admitted()

        remote = lambda inner: SimpleNamespace(remote=inner)  # noqa: E731
        return SimpleNamespace(
            admit=remote(admit),
            end=remote(lambda trial_id, state: calls.append((name, "end"))),
            next_event=remote(lambda trial_id, proceed: events(proceed)),
        )

    monkeypatch.setattr(sweeps.driver.device_client.ray, "get", lambda answer, timeout=None: answer)
    devices = {name: DeviceClient(device(name), name, name) for name in "ab"}
    monkeypatch.setattr(sweeps.driver.trial_proxy, "device_named", devices.get)
    config = SimpleNamespace(resources=SimpleNamespace(rung_timeout=None))
    template: Any = SimpleNamespace(trial=lambda trial_id, values: TRIAL, config=config)
    objective = Objective("single", 0.05, (Term("quality", "accuracy", "max", None, 0.0, 1.0, 1.0),))
    for _ in range(2):
        proxy: Any = TrialProxy.__new__(TrialProxy)
        proxy.setup(
            {"trial_id": "t0000", "values": {}}, template, objective, str(tmp_path), FakeDispatcher(*devices.values())
        )
        assert proxy.step()["step"] == 2
        full.clear()
    assert calls == [("a", "admit"), ("b", "admit"), ("b", "end"), ("a", "admit")]
    assert proxy.placement.where == "a"
    assert proxy.step()["done"]
    assert not proxy.slot_file.exists()


def test_a_worker_says_that_it_does_not_know_a_trial() -> None:
    async def run() -> None:
        device = worker(FakeEngine())
        assert await device.proceed("t0000") is False
        assert await device.next_event("t0000") is None

    asyncio.run(run())


def checkpoint(folder: TrialFolder, step: int, scored: int | None = None) -> Path:
    """Of a rung that is recorded, or of a step after the rung ``scored``."""
    made = folder.checkpoint_dir(step)
    made.mkdir(parents=True)
    (made / "adapter_model.safetensors").write_bytes(bytes(range(200)))
    seal(made, {"step": step} | ({} if scored is None else {"scored": scored}))
    if scored is None:
        folder.append_metrics(row(step))
    return made


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "counters"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_it_is_said(damage: str, tmp_path: Path) -> None:
    folder, engine = TrialFolder(tmp_path), FakeEngine()
    good, bad = checkpoint(folder, 2), checkpoint(folder, 4)
    weights = bad / "adapter_model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:150])
    elif damage == "flipped":
        weights.write_bytes(b"\x01" + weights.read_bytes()[1:])
    elif damage == "missing":
        weights.unlink()
    else:
        (bad / "counters.json").write_text('{"step": 4, "sha')
    admission = worker(engine)._admit(TRIAL, folder)
    assert engine.admitted_from == [good]
    name = "counters.json" if damage == "counters" else "adapter_model.safetensors"
    assert f"the checkpoint of step 4 is damaged ({name}" in admission.note


@pytest.mark.parametrize(
    ("recorded", "heard", "expected"), [([], 0, None), ([2], 0, 2), ([2, 4], 0, 4), ([2], 4, 4), ([], 2, 2)]
)
def test_a_rung_that_nobody_heard_of_is_done_again(
    recorded: list[int], heard: int, expected: int | None, tmp_path: Path
) -> None:
    folder, engine = TrialFolder(tmp_path), FakeEngine()
    for step in (2, 4):
        folder.checkpoint_dir(step).mkdir(parents=True)
        seal(folder.checkpoint_dir(step), {"step": step})
    for step in recorded:
        folder.append_metrics(row(step))
    worker(engine)._admit(TRIAL, folder, heard=heard)
    assert engine.admitted_from == [None if expected is None else folder.checkpoint_dir(expected)]


@pytest.mark.parametrize(
    ("written", "recorded", "expected"),
    [
        ({1: 0}, [], 1),  # before the first rung
        ({2: 2, 3: 2}, [2], 3),
        ({2: 2, 3: 2}, [], None),  # the rung before it was not recorded
        ({3: 2, 4: 4}, [2], 3),  # the rung after it was not
        ({2: 2, 4: 2}, [2], 4),  # at a rung that is not scored yet
        ({2: 2, 4: 2}, [], None),
        ({2: 2, 4: 4, 5: 4}, [2], 2),
        ({2: 2, 4: 4, 5: 4}, [2, 4], 5),
    ],
)
def test_a_checkpoint_between_two_rungs_is_gone_on_from_where_the_rungs_before_it_are_recorded(
    written: dict[int, int], recorded: list[int], expected: int | None, tmp_path: Path
) -> None:
    folder, engine = TrialFolder(tmp_path), FakeEngine()
    for step, scored in written.items():
        checkpoint(folder, step, scored)
    for step in recorded:
        folder.append_metrics(row(step))
    worker(engine)._admit(TRIAL, folder)
    assert engine.admitted_from == [None if expected is None else folder.checkpoint_dir(expected)]


def test_a_damaged_checkpoint_between_two_rungs_gives_way_to_the_rung_before(tmp_path: Path) -> None:
    folder, engine = TrialFolder(tmp_path), FakeEngine()
    good, bad = checkpoint(folder, 2), checkpoint(folder, 3, scored=2)
    (bad / "adapter_model.safetensors").write_bytes(b"")
    admission = worker(engine)._admit(TRIAL, folder)
    assert engine.admitted_from == [good]
    assert "the checkpoint of step 3 is damaged" in admission.note


# --- leaving


def simulated(trial_id: str, max_steps: int = 2000, rungs: tuple[int, ...] = (1000, 2000)) -> Any:
    part = SimpleNamespace
    optim, lora = part(lr=1e-3), part(rank=8)
    return part(
        trial_id=trial_id, seed=1, optim=optim, lora=lora, train=part(max_steps=max_steps, rungs=rungs, batch_size=8)
    )


def until(true: Callable[[], Any]) -> None:
    gives_up = time.monotonic() + 30
    while not true():
        assert time.monotonic() < gives_up
        time.sleep(0.01)


def simulated_engine(seconds: float) -> SimulatedEngine:
    return SimulatedEngine(4, lambda metrics: metrics["accuracy"], seconds)


def test_a_worker_that_leaves_gives_its_trials_back_between_two_steps(tmp_path: Path) -> None:
    """The engine is in the middle of a rung of a thousand steps and 20 seconds."""
    engine, files = simulated_engine(20), TrialFolder(tmp_path / "trials" / "t0000")

    async def run() -> tuple[list[str], Any, Any]:
        device = worker(engine)
        await device.admit(simulated("t0000"), str(files.root))
        waiting = asyncio.ensure_future(device.next_event("t0000"))
        await asyncio.to_thread(until, lambda: engine.steps("t0000") > 5)
        given_back = await device.leave(10)
        event = await asyncio.wait_for(waiting, 10)
        return given_back, event, await device.admit(simulated("t0001"), str(tmp_path / "trials" / "t0001"))

    given_back, event, admission = asyncio.run(run())
    assert (given_back, event) == (["t0000"], LEFT)
    assert isinstance(admission, Full), "from now on none is admitted"
    [step] = files.checkpoints()
    assert 5 < step < 1000
    assert not files.adapter_dir.exists(), "the trial has not ended"
    assert worker(simulated_engine(0))._admit(simulated("t0000"), files) == Admitted(step)


def test_a_trial_that_rests_is_given_back_too_and_its_proxy_hears_it_when_it_asks(tmp_path: Path) -> None:
    engine, files = simulated_engine(0), TrialFolder(tmp_path / "trials" / "t0000")

    async def run() -> list[Any]:
        device = worker(engine)
        await device.admit(simulated("t0000", 8, (4, 8)), str(files.root))
        rung = await device.next_event("t0000")
        written = (files.checkpoint_dir(4) / "counters.json").stat().st_ino
        given_back = await device.leave(10)
        assert written == (files.checkpoint_dir(4) / "counters.json").stat().st_ino, "it has its checkpoint"
        await device.end("t0000", "stopped_early")
        return [rung.row.step, given_back, await asyncio.wait_for(device.next_event("t0000", proceed=True), 10)]

    assert asyncio.run(run()) == [4, ["t0000"], LEFT]
    assert (files.checkpoints(), engine.slots, files.adapter_dir.exists()) == ([4], {}, False)


def test_a_scoring_is_broken_off_where_the_worker_leaves(tmp_path: Path) -> None:
    def scoring() -> list[Event]:
        engine.done = 4
        until(engine.leaving)
        return []

    engine, files = FakeEngine(advance=scoring), TrialFolder(tmp_path)

    async def run() -> list[Any]:
        device = worker(engine)
        await device.admit(TRIAL, str(files.root))
        await asyncio.to_thread(until, lambda: engine.done)
        return [await device.leave(10), await asyncio.wait_for(device.next_event("t0000"), 10)]

    assert asyncio.run(run()) == [["t0000"], LEFT]
    assert engine.checkpoints == [files.checkpoint_dir(4)]
    assert (engine.released, engine.ended) == (["t0000"], [])


def test_what_cannot_be_broken_off_is_not_waited_for(tmp_path: Path) -> None:
    """It goes on from its last checkpoint; what the engine says of it later is heard by nobody, and writes nothing."""
    busy, go_on, files = threading.Event(), threading.Event(), TrialFolder(tmp_path)

    def scoring() -> list[Event]:
        busy.set()
        assert go_on.wait(30)
        return [RungResult("t0000", row(4))]

    engine = FakeEngine(advance=scoring)

    async def run() -> None:
        device = worker(engine)
        await device.admit(TRIAL, str(files.root))
        await asyncio.to_thread(busy.wait, 30)
        assert await device.leave(0.1) == ["t0000"]
        assert await asyncio.wait_for(device.next_event("t0000", proceed=True), 10) == LEFT
        assert await device.leave(0.1) == ["t0000"], "once"
        other = SimpleNamespace(trial_id="t0001")
        assert await asyncio.wait_for(device.admit(other, str(tmp_path)), 5) == Full(), "at once"
        assert device._admit(other, files) == Full(), "one that had asked before"
        go_on.set()
        await asyncio.to_thread(until, lambda: engine.released)
        assert await device.leave(10) == ["t0000"]
        assert device._events["t0000"].empty()
        assert (engine.checkpoints, device._folders) == ([], {})

    asyncio.run(run())


def test_a_checkpoint_that_cannot_be_written_takes_the_trial_back_to_the_one_before(tmp_path: Path) -> None:
    def broken() -> None:
        raise OSError(28, "No space left on device")

    engine, files = FakeEngine(checkpoint=broken), TrialFolder(tmp_path)
    engine.done = 3

    async def run() -> list[Any]:
        device = worker(engine)
        await device.admit(TRIAL, str(files.root))
        return [await device.leave(10), await asyncio.wait_for(device.next_event("t0000"), 10)]

    assert asyncio.run(run()) == [["t0000"], LEFT]
    assert engine.released == ["t0000"]


def test_trials_that_go_from_worker_to_worker_end_as_the_undisturbed_one(tmp_path: Path) -> None:
    async def stay(files: TrialFolder, seconds: float) -> tuple[Any, int]:
        """One worker's time. Gives the last event, and the steps that were made here."""
        device = worker(engine := simulated_engine(seconds))
        began = (await device.admit(simulated("t0000", 400, (100, 200, 400)), str(files.root))).step
        leaving = asyncio.ensure_future(leave_soon(device))
        proceed = False
        while isinstance(event := await device.next_event("t0000", proceed), RungResult):
            files.append_metrics(event.row)
            proceed = True
        await leaving
        reached = event.step if isinstance(event, Ended) else files.checkpoints()[-1]
        assert not engine.slots
        return event, reached - began

    async def leave_soon(device: Any) -> None:
        await asyncio.sleep(0.35)
        await device.leave(10)

    whole, moved = (TrialFolder(tmp_path / name / "t0000") for name in ("whole", "moved"))
    ended, _ = asyncio.run(stay(whole, 0))
    places, made, event = 0, 0, None
    while not isinstance(event, Ended):
        event, steps = asyncio.run(stay(moved, 0.5))
        places, made = places + 1, made + steps
    assert places > 2
    assert made == 400, "no step is made twice"
    assert event == ended
    assert moved.read_metrics() == whole.read_metrics()


def test_a_trial_that_took_over_weights_is_admitted_elsewhere_with_the_values_it_has_since_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    admitted: list[Any] = []

    def admit(trial: Any, path: str, alone: bool, heard: int) -> Any:
        admitted.append(trial.values)
        return Admitted()

    answers = iter(
        [RungResult("t0000", row(2)), Requeued("t0000", "its device worker left"), RungResult("t0000", row(3))]
    )
    remote = lambda inner: SimpleNamespace(remote=inner)  # noqa: E731
    actor = SimpleNamespace(admit=remote(admit), next_event=remote(lambda trial_id, proceed: next(answers)))
    monkeypatch.setattr(sweeps.driver.device_client.ray, "get", lambda answer, timeout=None: answer)
    config = SimpleNamespace(resources=SimpleNamespace(rung_timeout=None))

    def trial(trial_id: str, values: dict[str, Any]) -> Any:
        return SimpleNamespace(trial_id=trial_id, precision="fp32", train=SimpleNamespace(max_steps=4), values=values)

    template: Any = SimpleNamespace(trial=trial, config=config)
    objective = Objective("single", 0.05, (Term("quality", "accuracy", "max", None, 0.0, 1.0, 1.0),))
    proxy: Any = TrialProxy.__new__(TrialProxy)
    given = {"trial_id": "t0000", "values": {"optim.lr": 1e-3, "lora.rank": 4}}
    proxy.setup(given, template, objective, str(tmp_path), FakeDispatcher(DeviceClient(actor, "a", "a")))
    assert proxy.step()["step"] == 2
    record(proxy.placement.folder, Exchange("t0000", "t0001", 2, {"optim.lr": 1e-3}, {"optim.lr": 2e-3}))
    assert proxy.step()["step"] == 3
    assert admitted == [{"optim.lr": 1e-3, "lora.rank": 4}, {"optim.lr": 2e-3, "lora.rank": 4}]


def ends_with_device(
    monkeypatch: pytest.MonkeyPatch, engine: FakeEngine, tmp_path: Path, *trial_ids: str
) -> tuple[list[Any], list[int], Any]:
    """What trials hear of a worker on which an error of the GPU comes, how its process ends, and its last words."""
    statuses: list[int] = []
    monkeypatch.setattr(device_worker, "_LAST_SECONDS", 0.2)
    monkeypatch.setattr(device_worker.os, "_exit", statuses.append)

    async def run() -> tuple[list[Any], Any]:
        device = worker(engine)
        stays = asyncio.ensure_future(device.stay())
        engine.held = threading.Event()
        heard: list[Any] = []
        for trial_id in trial_ids:
            trial: Any = SimpleNamespace(trial_id=trial_id)
            heard.append(await device.admit(trial, str(tmp_path / trial_id)))
        engine.held.set()
        await device.proceed("nobody")  # wakes the engine's thread
        asked = [
            device.next_event(it) for it, admitted in zip(trial_ids, heard, strict=True) if admitted == Admitted(0)
        ]
        heard = [it for it in heard if it != Admitted(0)]
        heard += await asyncio.wait_for(asyncio.gather(*asked), timeout=30)
        assert await device.admit(TRIAL, str(tmp_path)) == Full(), "it takes none any more"
        with pytest.raises(HardwareError) as words:
            await asyncio.wait_for(stays, timeout=30)
        return heard, words.value

    heard, words = asyncio.run(run())
    until = time.monotonic() + 30
    while not statuses and time.monotonic() < until:
        time.sleep(0.01)
    return heard, statuses, words


LOST = "CUDA error: an illegal memory access was encountered"


@pytest.mark.parametrize("error", [DeviceFault(LOST), torch.AcceleratorError(f"{LOST}\nCUDA kernel errors might be …")])
@pytest.mark.parametrize("trial_ids", [["t0000"], ["t0000", "t0001"]])
def test_a_worker_whose_gpu_answers_no_more_gives_its_trials_back_says_why_and_ends(
    trial_ids: list[str], error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost() -> list[Event]:
        engine.held.wait()
        raise error

    engine: Any = FakeEngine(advance=lost)
    if len(trial_ids) > 1:  # the second one is admitted while the first trains
        engine = FakeEngine(advance=lambda: [] if not engine.held.is_set() else lost())
    heard, statuses, words = ends_with_device(monkeypatch, engine, tmp_path, *trial_ids)
    assert heard == [DeviceFailed(it, LOST, alone=len(trial_ids) == 1) for it in trial_ids]
    assert statuses == [1]
    assert str(words) == f"beta: a device worker ended itself, because its GPU failed: {LOST}"
    assert (engine.ended, engine.checkpoints) == ([], []), "nothing is asked of the device"


def test_a_gpu_that_fails_while_a_trial_is_set_up_or_its_rung_is_saved_is_no_trials_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*arguments: Any) -> Any:
        raise torch.AcceleratorError(LOST)

    engine: Any = FakeEngine(advance=lambda: [RungResult(it, row(2)) for it in ("t0000", "t0001")], checkpoint=lost)
    engine.advance = lambda until, leaving: [] if not engine.held.is_set() else engine._advance()
    heard, statuses, _ = ends_with_device(monkeypatch, engine, tmp_path, "t0000", "t0001")
    assert heard == [DeviceFailed(it, LOST, alone=False) for it in ("t0000", "t0001")]
    assert statuses == [1]

    engine = FakeEngine()
    engine.admit = lost
    heard, statuses, _ = ends_with_device(monkeypatch, engine, tmp_path, "t0000")
    assert heard == [DeviceFailed("t0000", LOST, alone=True)]
    assert statuses == [1]
