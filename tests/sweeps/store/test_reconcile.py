"""A driver that is killed between any two of its writes: the sweep that goes on ends like an undisturbed one.

Tune is replaced by the order in which it calls search, scheduler and callbacks (``_process_trial_result`` and
``stop_trial`` of the TuneController of Ray 2.60), and Ray by plain calls. ``make test`` tries some of the points at
which a driver can die, ``make test-all`` every one.
"""

import contextlib
import importlib.util
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.search import Searcher

import sweeps.driver.device_client
from analysis.folder import ENDED, MetricsRow, State, Status, SweepFolder, append_line, read_lines
from analysis.objective import Objective
from sweeps.compose.compose import Composed, compose
from sweeps.compose.trial_template import TrialTemplate
from sweeps.driver.device_client import DeviceClient
from sweeps.driver.device_worker import DeviceWorker
from sweeps.driver.trial_proxy import TrialProxy
from sweeps.search.scheduler import build_sampler, build_scheduler, replay_scheduler
from sweeps.search.searcher import GuardedOptunaSearch, SearchPlan
from sweeps.space.dimensions import DefineByRun
from sweeps.store import reconcile
from sweeps.store.checkpoint_writer import complete
from sweeps.store.node_copy import NodeCopy
from sweeps.store.reconcile import update_files, update_study
from sweeps.store.recorder import Recorder, write_best_adapter
from tests.sweeps.driver.fakes import FakeDispatcher
from trainer.engine import RungResult

_spec = importlib.util.spec_from_file_location("simulated", Path(__file__).parents[2] / "benchmarks" / "simulated.py")
assert _spec
assert _spec.loader
simulated: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(simulated)


class Killed(BaseException):
    """The process is no more."""


class Worker:
    """A device worker without a thread; its methods are called as an actor's are."""

    def __init__(self, score: Callable[[dict[str, float]], float], copy: NodeCopy):
        self._copy = copy
        self.engine = simulated.SimulatedEngine(1, score, 0.0)
        self._folders: dict[str, Any] = {}
        self._events: dict[str, Any] = {}
        self._alone = ""
        self._resting: set[str] = set()
        self._saved: dict[str, int] = {}
        self._leaving = False

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        return SimpleNamespace(remote=found) if name in ("admit", "next_event", "end") else found

    def admit(self, trial: Any, path: str, alone: bool, heard: int) -> Any:
        unbound: Any = DeviceWorker._admit
        return unbound(self, trial, self._copy.folder(path), alone, heard)

    def next_event(self, trial_id: str, proceed: bool = False) -> Any:
        if proceed:
            self.engine.proceed(trial_id)
        [event] = self.engine.advance()
        if isinstance(event, RungResult):
            folder, step = self._folders[trial_id], event.row.step
            complete(self._copy, folder, step, self.engine.snapshot(trial_id, folder.checkpoint_dir(step)))
        else:
            self._copy.save(self._folders.pop(trial_id))
        return event

    def end(self, trial_id: str, state: str) -> None:
        if (folder := self._folders.pop(trial_id, None)) is not None:
            self.engine.end(trial_id, State(state))
            self._copy.save(folder)


class Sweep:
    """A driver, from its start to its end or death: one trial at a time."""

    def __init__(self, composed: Composed, folder: SweepFolder, copy: NodeCopy | None = None):
        self.copy = copy or NodeCopy()
        config = composed.config
        self.folder, self.composed = folder, composed
        self.objective = Objective.from_config(composed.resolved()["objective"])
        plan = SearchPlan(config.search.trials, config.sweep.seed, composed.start)
        sampler = build_sampler(config.sampler, config.sweep.seed, len(plan.start_from))
        self.search = GuardedOptunaSearch(DefineByRun(composed.space), sampler, folder, plan)
        self.scheduler = build_scheduler(config.scheduler, config.train.rungs)
        self.recorder = Recorder(folder, lambda *_: {}, lambda: False, lambda: None)
        self.started: list[str] = []

    def run(self) -> None:
        records = list(read_lines(self.folder.asks_file))
        if records:
            self.search.replay(records)
            update_files(self.folder, records)
            replay_scheduler(self.scheduler, records)
            update_study(self.folder, self.search, self.scheduler, self.objective.score)
        number = 0
        while (config := self.search.suggest(f"tune{number}")) != Searcher.FINISHED:
            self._trial(SimpleNamespace(trial_id=f"tune{number}", config=config, status="RUNNING"))
            number += 1

    def _trial(self, trial: Any) -> None:
        self.started.append(trial.config["trial_id"])
        self.scheduler.on_trial_add(None, trial)
        self.recorder.on_trial_start(0, [], trial)
        proxy: Any = TrialProxy.__new__(TrialProxy)
        proxy.setup(
            trial.config,
            self.composed.template,
            self.objective,
            str(self.folder.root),
            FakeDispatcher(DeviceClient(Worker(self.objective.score, self.copy), "here")),
        )
        decision = "CONTINUE"
        while decision != "STOP":
            result = proxy.step()
            decision = "STOP" if result["done"] else self.scheduler.on_trial_result(None, trial, result)
            if decision != "STOP":
                self.search.on_trial_result(trial.trial_id, result)
            self.recorder.on_trial_result(0, [], trial, result)
        self.scheduler.on_trial_complete(None, trial, result)
        self.search.on_trial_complete(trial.trial_id, result)
        self.recorder.on_trial_complete(0, [], trial)
        proxy.cleanup()


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Composed:
    few = ["search.trials=5", "scheduler.keep_best=2"]
    return compose([*simulated.overrides(tmp_path_factory.mktemp("simulated")), *few])


@pytest.fixture(autouse=True)
def _plain_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps.driver.device_client.ray, "get", lambda answer, timeout=None: answer)
    made, inner = {}, TrialTemplate.trial  # most of the time would go into composing the same trials again and again

    def trial(self: TrialTemplate, trial_id: str, values: dict[str, Any]) -> Any:
        key = trial_id + json.dumps(values)
        if key not in made:
            made[key] = inner(self, trial_id, values)
        return made[key]

    monkeypatch.setattr(TrialTemplate, "trial", trial)


def state(folder: SweepFolder) -> dict[str, Any]:
    """All that a sweep leaves, without its times."""
    tells: dict[str, Any] = {}
    for line in read_lines(folder.asks_file):
        if line["event"] == "tell":
            assert line["trial_id"] not in tells, "told twice"
            tells[line["trial_id"]] = {key: line[key] for key in ("values", "objective", "step", "state", "told")}
    trials = {}
    for files in folder.trials():
        status = files.read_status()
        rows = [(row.step, row.final, row.metrics) for row in files.read_metrics()]
        best = json.loads((files.adapter_dir / "adapter_model.safetensors").read_text())
        trials[files.trial_id] = (status.state, status.reason, status.step, rows, best, files.checkpoints_dir.exists())
    return {"tells": tells, "trials": trials}


@pytest.fixture(scope="module")
def undisturbed(composed: Composed, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = SweepFolder(tmp_path_factory.mktemp("undisturbed"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeps.driver.device_client.ray, "get", lambda answer, timeout=None: answer)
        Sweep(composed, folder).run()
    return state(folder)


class Writes:
    """Counts what is written or removed, and dies before, within or after the n-th time."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.n, self.die_at, self.how = 0, -1, "before"
        self.removals: list[int] = []  # where a folder is removed
        for module, name in ((os, "write"), (os, "replace"), (shutil, "rmtree")):
            inner = getattr(module, name)
            patch.setattr(module, name, lambda *args, inner=inner, **named: self._call(inner, *args, **named))

    def _call(self, inner: Callable[..., Any], *args: Any, **named: Any) -> Any:
        self.n += 1
        if removes := len(args) == 1:
            self.removals.append(self.n)
        if self.n != self.die_at:
            return inner(*args, **named)
        if self.how == "within" and removes:
            for file in list(Path(args[0]).rglob("*.json"))[:1]:
                file.unlink()
        elif self.how == "within" and isinstance(args[1], bytes):
            inner(args[0], args[1][: len(args[1]) // 2])
        elif self.how == "after":
            inner(*args, **named)
        raise Killed

    def dying(self, at: int, how: str) -> None:
        self.n, self.die_at, self.how, self.removals = 0, at, how, []


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Writes:
    return Writes(monkeypatch)


def test_the_undisturbed_sweep_stops_some_trials_and_completes_others(undisturbed: dict[str, Any]) -> None:
    states = [trial[0] for trial in undisturbed["trials"].values()]
    assert len(states) == 5
    assert {State.COMPLETED, State.STOPPED_EARLY} == set(states)


@pytest.mark.parametrize("step", [23, pytest.param(1, marks=pytest.mark.heavy)])
@pytest.mark.parametrize("how", ["before", "within", "after"])
def test_a_driver_killed_at_any_of_its_writes_leaves_a_sweep_that_ends_like_an_undisturbed_one(
    how: str, step: int, composed: Composed, undisturbed: dict[str, Any], writes: Writes, tmp_path: Path
) -> None:
    writes.dying(-1, how)
    Sweep(composed, SweepFolder(tmp_path / "whole")).run()
    points = sorted({*range(1, writes.n + 1, step), *writes.removals})
    assert writes.n > 100
    assert len(writes.removals) > 5
    for at in points:
        folder = SweepFolder(tmp_path / str(at))
        writes.dying(at, how)
        with pytest.raises(Killed):
            Sweep(composed, folder).run()
        ended = {files.trial_id for files in folder.trials() if files.read_status().state in ENDED}
        writes.dying(at % 7 + 1, how)  # and once more while it takes up what there is
        with contextlib.suppress(Killed):  # where so much is left to write
            Sweep(composed, folder).run()
        writes.dying(-1, how)
        last = Sweep(composed, folder)
        last.run()
        assert state(folder) == undisturbed, f"killed {how} write {at}"
        assert not ended & set(last.started), "a trial that had ended ran again"


def test_a_status_that_the_study_is_ahead_of_is_written_from_it(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    files = folder.trial("t0000")
    files.write_status(Status(State.RUNNING, "", 4, "here: CPU"))
    checkpoint = files.checkpoint_dir(4)
    checkpoint.mkdir(parents=True)
    for name in ("counters.json", "adapter_config.json", "best.safetensors"):
        (checkpoint / name).write_text(name)
    files.adapter_dir.mkdir()
    (files.adapter_dir / "adapter_model.safetensors").write_text("of an earlier pause")
    append_line(
        folder.asks_file, {"event": "tell", "trial_id": "t0000", "state": "stopped_early", "step": 4, "reason": ""}
    )
    update_files(folder, read_lines(folder.asks_file))
    expected = Status(State.STOPPED_EARLY, "scheduler: not among the best at step 4", 4, "here: CPU")
    assert files.read_status() == expected
    assert (files.adapter_dir / "adapter_model.safetensors").read_text() == "best.safetensors"
    assert not files.checkpoints_dir.exists()


def test_a_checkpoint_without_a_best_rung_leaves_the_adapter_alone(tmp_path: Path) -> None:
    files = SweepFolder(tmp_path).trial("t0000")
    files.checkpoint_dir(4).mkdir(parents=True)
    (files.checkpoint_dir(4) / "counters.json").write_text("{}")
    write_best_adapter(files)
    assert not files.adapter_dir.exists()


# Parts of it


@pytest.mark.parametrize(
    ("state", "objective"),
    [
        (State.COMPLETED, 0.9),  # its best rung
        (State.STOPPED_EARLY, 0.5),  # its last one, by which it was stopped
        (State.FAILED, None),
        (State.DIVERGED, None),
        (State.OUT_OF_MEMORY, None),
    ],
)
def test_an_end_is_told_again_by_the_rungs_in_its_files(state: State, objective: float | None) -> None:
    rows = [
        MetricsRow("t0000", step, 10 * step, 1.0, final, 8, {"accuracy": value})
        for step, final, value in ((2, False, 0.9), (4, False, 0.5), (6, False, math.nan), (6, True, 0.95))
    ]
    report = reconcile._last(rows, Status(state, "so", 6), lambda metrics: metrics["accuracy"])
    assert (report["state"], report["reason"], report["step"], report["done"]) == (str(state), "so", 6, True)
    assert report["objective"] == objective or (objective is None and math.isnan(report["objective"]))
    rung = reconcile._report(rows[0], Status(state, "so", 6), State.RUNNING, 0.9)
    assert (rung["done"], rung["reason"], rung["step"], rung["tokens"]) == (False, "", 2, 20)
    without = reconcile._last([], Status(state, "so", 0), lambda metrics: metrics["accuracy"])
    assert (without["step"], without["tokens"], without["n_items"]) == (0, 0, 0)
    assert math.isnan(without["objective"])


def test_every_trial_that_was_told_has_its_end_written_whatever_else_was_recorded(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    names = ["t0000", "t0001", "t0002"]
    for name in names:
        folder.trial(name).write_status(Status(State.RUNNING, "", 2))
        folder.trial(name).checkpoint_dir(2).mkdir(parents=True)
    folder.trial("t0002").write_status(Status(State.COMPLETED, "", 8))  # the driver died before it removed checkpoints
    told = {"event": "tell", "step": 4}
    update_files(
        folder,
        [
            *({"event": "ask", "trial_id": name} for name in names),
            {**told, "trial_id": "t0000", "state": "stopped_early"},
            {**told, "trial_id": "t0001", "state": "failed", "reason": "it broke"},
            {**told, "trial_id": "t0002", "state": "completed"},
        ],
    )
    first, second, third = (folder.trial(name).read_status() for name in names)
    assert (first.state, first.step) == (State.STOPPED_EARLY, 4)
    assert "step 4" in first.reason
    assert second == Status(State.FAILED, "it broke", 4)
    assert third == Status(State.COMPLETED, "", 8)
    assert [folder.trial(name).checkpoints() for name in names] == [[], [], []]


class Noted:
    """A search and a scheduler that write down what they are told; the scheduler stops trials at some steps."""

    def __init__(self, stops_at: tuple[int, ...] = ()):
        self.stops_at, self.told = stops_at, []

    def search(self) -> Any:
        def note(event: str) -> Callable[[str, dict[str, Any]], None]:
            def told(name: str, report: dict[str, Any]) -> None:
                assert report["rung_metrics"] == ({} if report["final"] else report["metrics"])
                assert report["metrics"] == report["rows"][0]["metrics"]
                self.told.append((event, report["step"], report["objective"], report["state"]))

            return told

        taken = [("taken up 0", {"trial_id": "t0000"})]
        return SimpleNamespace(
            take_up=lambda: taken, on_trial_result=note("rung"), on_trial_complete=note("end"),
        )  # fmt: skip

    def scheduler(self) -> Any:
        def decided(_: object, trial: Any, report: dict[str, Any]) -> str:
            self.told.append(("decided", report["step"], report["objective"], trial.trial_id))
            return "STOP" if report["step"] in self.stops_at else "CONTINUE"

        def ended(_: object, trial: Any, report: dict[str, Any]) -> None:
            self.told.append(("scheduler", report["step"], report["objective"], report["done"]))

        return SimpleNamespace(on_trial_result=decided, on_trial_complete=ended)


def half_told(root: Path, state: State) -> SweepFolder:
    """A trial with rungs at 4, 6 and 8 and, at its end, a final scoring, of which the study knows nothing."""
    folder = SweepFolder(root)
    files = folder.trial("t0000")
    for at, score, final in (
        (4, 0.75, False),
        (6, 0.625, False),
        (8, 0.5, False),
        *([(8, 0.25, True)] if state in ENDED else []),
    ):
        files.append_metrics(MetricsRow("t0000", at, 100 * at, 1.0, final, 12, {"accuracy": score}))
    files.write_status(Status(state, "why", 8))
    files.checkpoint_dir(4).mkdir(parents=True)
    return folder


def taken_in(folder: SweepFolder, noted: Noted) -> list[tuple[Any, ...]]:
    update_study(folder, noted.search(), noted.scheduler(), lambda metrics: metrics["accuracy"])
    return noted.told


def test_a_rung_at_which_the_scheduler_stops_a_trial_ends_it_though_the_driver_died_before_it_said_so(
    tmp_path: Path,
) -> None:
    folder = half_told(tmp_path, State.RUNNING)
    assert taken_in(folder, Noted(stops_at=(4,))) == [
        ("decided", 4, 0.75, "t0000"), ("end", 4, 0.75, "running"), ("scheduler", 4, 0.75, False),
    ]  # fmt: skip
    status = folder.trial("t0000").read_status()
    assert (status.state, status.step) == (State.STOPPED_EARLY, 4)
    assert status.reason == "scheduler: not among the best at step 4"
    assert folder.trial("t0000").checkpoints() == []


def test_rungs_of_a_trial_that_goes_on_are_told_and_nothing_else(tmp_path: Path) -> None:
    folder = half_told(tmp_path, State.RUNNING)
    assert [it[:3] for it in taken_in(folder, Noted())] == [
        ("decided", 4, 0.75), ("rung", 4, 0.75), ("decided", 6, 0.625), ("rung", 6, 0.625),
        ("decided", 8, 0.5), ("rung", 8, 0.5),
    ]  # fmt: skip
    assert folder.trial("t0000").read_status().state is State.RUNNING
    assert folder.trial("t0000").checkpoints_dir.exists()


@pytest.mark.parametrize(
    ("state", "stops_at", "objective", "rungs"),
    [
        (State.COMPLETED, (), 0.75, [4, 6]),  # of the best rung; the last one was told together with the end
        (State.COMPLETED, (4,), 0.75, [4, 6]),  # it has ended: what the scheduler says of it now changes nothing
        (State.STOPPED_EARLY, (8,), 0.5, [4, 6, 8]),  # of the rung at which it was stopped
        (State.DIVERGED, (), math.nan, [4, 6]),
        (State.FAILED, (), math.nan, [4, 6]),
    ],
)
def test_an_end_that_only_the_files_have_is_told_to_the_study(
    tmp_path: Path, state: State, stops_at: tuple[int, ...], objective: float, rungs: list[int]
) -> None:
    folder = half_told(tmp_path, state)
    told = taken_in(folder, Noted(stops_at))
    assert [step for event, step, *_ in told if event == "rung"] == rungs
    (end,), (scheduler,) = ([it for it in told if it[0] == name] for name in ("end", "scheduler"))
    assert end == ("end", 8, pytest.approx(objective, nan_ok=True), str(state))
    assert scheduler == ("scheduler", 8, pytest.approx(objective, nan_ok=True), True)
    assert told[-2:] == [end, scheduler]
    assert folder.trial("t0000").checkpoints() == []
    assert folder.trial("t0000").read_status() == Status(state, "why", 8)


@pytest.mark.parametrize(
    ("state", "given", "reason"),
    [
        ("stopped_early", "", "scheduler: not among the best at step 6"),
        ("stopped_early", "stopped by hand", "stopped by hand"),
        ("failed", "no room on the disk", "no room on the disk"),
        ("failed", "", ""),
    ],
)
def test_the_reason_of_an_end_is_the_records_or_the_schedulers(
    tmp_path: Path, state: str, given: str, reason: str
) -> None:
    folder = half_told(tmp_path, State.RUNNING)
    told = {"event": "tell", "trial_id": "t0000", "state": state, "reason": given, "step": 6}
    update_files(folder, [{"event": "ask", "trial_id": "t0000"}, told])
    status = folder.trial("t0000").read_status()
    assert (str(status.state), status.reason, status.step) == (state, reason, 6)
    assert folder.trial("t0000").checkpoints() == []
    update_files(folder, [told | {"state": "completed"}])
    assert folder.trial("t0000").read_status() == status, "an end that is written stays"
