"""What a device worker does when its engine, the disk or the driver fails it."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import sweeps.driver.device_client
import sweeps.driver.trial_proxy
from analysis.folder import MetricsRow, State, Status, TrialFolder
from analysis.objective import Objective, Term
from sweeps.driver.device_client import DeviceClient
from sweeps.driver.device_worker import DeviceWorker
from sweeps.driver.trial_proxy import TrialProxy
from sweeps.process.installation import package_root
from tests.sweeps.driver.fakes import FakeDispatcher
from trainer.config import EngineConfig
from trainer.engine import Admitted, Ended, Event, Full, Halted, RungResult
from trainer.engines.checkpoints import seal

TRIAL: Any = SimpleNamespace(trial_id="t0000", precision="fp32", train=SimpleNamespace(max_steps=4))


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
        def admit(trial: Any, path: str, alone: bool) -> Any:
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


def checkpoint(folder: TrialFolder, step: int) -> Path:
    made = folder.checkpoint_dir(step)
    made.mkdir(parents=True)
    (made / "adapter_model.safetensors").write_bytes(bytes(range(200)))
    seal(made, {"step": step})
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


@pytest.mark.parametrize(("recorded", "expected"), [([], None), ([2], 2), ([2, 4], 4)])
def test_a_rung_that_was_not_recorded_is_done_again(recorded: list[int], expected: int | None, tmp_path: Path) -> None:
    folder, engine = TrialFolder(tmp_path), FakeEngine()
    for step in (2, 4):
        folder.checkpoint_dir(step).mkdir(parents=True)
        seal(folder.checkpoint_dir(step), {"step": step})
    for step in recorded:
        folder.append_metrics(row(step))
    worker(engine)._admit(TRIAL, folder)
    assert engine.admitted_from == [None if expected is None else folder.checkpoint_dir(expected)]
