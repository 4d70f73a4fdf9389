"""A trial's slot: found, lost with its worker, found again; and when the trial itself is taken for the cause."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError, OutOfMemoryError, RayActorError, RayTaskError

from analysis.errors import ModelError
from analysis.folder import MetricsRow, State, TrialFolder
from sweeps.driver import device_client
from sweeps.driver.device_client import DeviceClient, Reply, TrialPlacement
from tests.sweeps.driver.fakes import FakeDispatcher
from trainer.engine import Admitted, DeviceFailed, Ended, Full, Halted, Refused, Requeued, RungResult

TRIAL: Any = SimpleNamespace(trial_id="t0000", precision="fp32")


def rung(step: int) -> RungResult:
    return RungResult("t0000", MetricsRow("t0000", step, 0, 0.0, False, 1, {"accuracy": 0.5}))


class Actor:
    """A device worker that answers with what a script says next; an exception is raised. Remembers each call."""

    def __init__(self, **script: list[Any]):
        self.script, self.calls = script, list[tuple[Any, ...]]()

    def __getattr__(self, name: str) -> Any:
        def remote(*arguments: Any) -> Callable[[], Any]:
            self.calls.append((name, *arguments))
            return lambda: self.script[name].pop(0) if self.script.get(name) else None

        return SimpleNamespace(remote=remote)


@pytest.fixture(autouse=True)
def _plain_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(reference: Callable[[], Any], timeout: float | None = None) -> Any:
        answer = reference()
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(device_client.ray, "get", get)


def placed(folder: Path, *actors: Actor, **settings: Any) -> tuple[TrialPlacement, FakeDispatcher]:
    devices = [DeviceClient(actor, f"node {i}: CPU", f"device {i}") for i, actor in enumerate(actors)]
    by_themselves = settings.pop("by_themselves", lambda name: True)
    dispatcher: Any = FakeDispatcher(*devices, by_themselves=by_themselves)
    return TrialPlacement(dispatcher, TRIAL, TrialFolder(folder), **settings), dispatcher


def alone(actor: Actor) -> list[bool]:
    """Of each admission: whether the device to itself was asked for."""
    return [call[3] for call in actor.calls if call[0] == "admit"]


def test_a_trial_under_which_three_workers_died_by_themselves_ends_and_had_the_last_to_itself(
    tmp_path: Path,
) -> None:
    actor = Actor(admit=[Admitted()] * 3, next_event=[RayActorError()] * 3)
    placement, dispatcher = placed(tmp_path, actor)
    event = placement.next_event()
    assert isinstance(event, Ended)
    assert event.state is State.FAILED
    assert event.reason == "its device worker was lost 3 times before the next rung, in the end alone: it died"
    assert alone(actor) == [asked[0] for asked in dispatcher.asked] == [False, False, True]
    assert dispatcher.released == 1


def test_workers_that_went_with_their_nodes_do_not_count(tmp_path: Path) -> None:
    actors = [Actor(admit=[Admitted()], next_event=[RayActorError()]) for _ in range(7)]
    last = Actor(admit=[Admitted()], next_event=[rung(2)])
    died = {"device 1", "device 4"}
    placement, _ = placed(tmp_path, *actors, last, by_themselves=died.__contains__)
    assert placement.next_event() == rung(2)
    assert placement.where == "node 7: CPU"
    assert len(placement.notes) == 7


def test_a_worker_that_dies_while_it_sets_the_trial_up_counts_too(tmp_path: Path) -> None:
    actors = [Actor(admit=[RayActorError()]) for _ in range(3)]
    placement, dispatcher = placed(tmp_path, *actors)
    assert isinstance(placement.next_event(), Ended)
    assert dispatcher.asked[-1] == (True, "", ["device 0", "device 1"])


def test_losses_count_until_the_rung_is_recorded(tmp_path: Path) -> None:
    """A worker that dies while it scores the last rung's trial gives that rung again, which must not begin anew."""
    events = [rung(4), RayActorError(), rung(4), RayActorError(), rung(4), RayActorError()]
    actor = Actor(admit=[Admitted()] * 3, next_event=list(events))
    placement, _ = placed(tmp_path, actor)
    assert [type(placement.next_event()) for _ in range(4)] == [RungResult, RungResult, RungResult, Ended]

    actor = Actor(admit=[Admitted()] * 4, next_event=[*events, rung(4)])
    placement, _ = placed(tmp_path, actor)
    for _ in range(4):
        assert isinstance(placement.next_event(), RungResult)
        placement.rung_recorded()
    assert placement.lost == []
    assert len(placement.notes) == 3


def test_memory_that_ran_out_on_the_node_is_told_as_such(tmp_path: Path) -> None:
    actor = Actor(admit=[Admitted()] * 3, next_event=[OutOfMemoryError("node running low on memory")] * 3)
    event = placed(tmp_path, actor)[0].next_event()
    assert isinstance(event, Ended)
    assert event.state is State.OUT_OF_MEMORY


def test_a_worker_that_the_system_killed_for_memory_is_told_from_one_that_crashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = iter([0, 1, 2, 3])
    monkeypatch.setattr("trainer.host_memory.kills", lambda: next(kills))
    actor = Actor(admit=[Admitted()] * 3, next_event=[ActorDiedError() for _ in range(3)])
    placement, _ = placed(tmp_path, actor)
    event = placement.next_event()
    assert isinstance(event, Ended)
    assert event.state is State.OUT_OF_MEMORY
    assert event.reason.endswith("in the end alone: the node's memory ran out")
    where = "its device worker (node 0: CPU) died, as memory ran out"
    assert placement.notes == [f"{where}: went on from its last checkpoint"] * 2

    monkeypatch.setattr("trainer.host_memory.kills", lambda: 3)
    actor = Actor(admit=[Admitted()] * 3, next_event=[ActorDiedError() for _ in range(3)])
    crashed = placed(tmp_path, actor)[0].next_event()
    assert isinstance(crashed, Ended)
    assert (crashed.state, crashed.reason[-7:]) == (State.FAILED, "it died")


def test_a_worker_that_hangs_is_ended(tmp_path: Path) -> None:
    actor = Actor(admit=[Admitted()] * 2, next_event=[GetTimeoutError(), rung(2)])
    placement, _ = placed(tmp_path, actor, rung_timeout=4.0)
    assert placement.next_event() == rung(2)
    assert ("die",) in actor.calls
    assert placement.notes == ["its device worker (node 0: CPU) hung for 4 s: went on from its last checkpoint"]


def test_a_worker_that_is_full_or_gone_is_told_to_the_dispatcher(tmp_path: Path) -> None:
    full, gone = Actor(admit=[Full()]), Actor(admit=[ActorDiedError()])
    free = Actor(admit=[Admitted()], next_event=[rung(2)])
    asked: list[str] = []
    placement, dispatcher = placed(tmp_path, full, gone, free, before_asking=lambda device: asked.append(device.name))
    assert placement.next_event() == rung(2)
    assert asked == ["device 0", "device 1", "device 2"]
    assert dispatcher.asked == [(False, "", []), (False, "device 0", []), (False, "", ["device 1"])]
    assert placement.where == "node 2: CPU"


def test_a_trial_that_lost_its_slot_asks_for_another_and_is_not_told_to_proceed(tmp_path: Path) -> None:
    actor = Actor(admit=[Admitted()] * 2, next_event=[rung(2), Requeued("t0000", "memory ran out"), rung(4)])
    placement, _ = placed(tmp_path, actor)
    assert [placement.next_event(), placement.next_event()] == [rung(2), rung(4)]
    assert [call[2] for call in actor.calls if call[0] == "next_event"] == [False, True, False]
    assert placement.lost == []


@pytest.mark.parametrize(
    ("answer", "event"),
    [
        (Refused("No DoRA here.", "Use engine=hf."), Ended("t0000", State.FAILED, "No DoRA here. Use engine=hf.", 0)),
        (Halted("t0000", "node 1: no space left"), Halted("t0000", "node 1: no space left")),
    ],
)
def test_a_trial_that_can_run_nowhere_ends_or_halts(answer: Any, event: Any, tmp_path: Path) -> None:
    placement, dispatcher = placed(tmp_path, Actor(admit=[answer]))
    assert placement.next_event() == event
    assert dispatcher.released == 1


def test_leaving_frees_the_slot_once(tmp_path: Path) -> None:
    actor = Actor(admit=[Admitted()], next_event=[rung(2)])
    placement, dispatcher = placed(tmp_path, actor)
    placement.next_event()
    placement.leave()
    placement.leave()
    assert dispatcher.released == 1
    assert [call for call in actor.calls if call[0] == "end"] == [("end", "t0000", "stopped_early")]


def test_a_workers_own_error_comes_without_rays_around_it() -> None:
    wrapped = RayTaskError("prepare", "Traceback …", ModelError("no such module"))
    with pytest.raises(ModelError, match="no such module"):
        Reply[None](lambda: wrapped).get()


def test_a_trial_moves_at_a_rung_where_another_device_is_better(tmp_path: Path) -> None:
    first = Actor(admit=[Admitted()], next_event=[rung(2), rung(4)])
    second = Actor(admit=[Admitted(4)], next_event=[rung(6)])
    placement, dispatcher = placed(tmp_path, first, second)
    dispatcher.moves = [False, True]
    assert [placement.next_event() for _ in range(3)] == [rung(2), rung(4), rung(6)]
    assert [call[0] for call in first.calls] == ["admit", "next_event", "next_event", "end"]
    assert [call[0] for call in second.calls] == ["admit", "next_event"]
    assert second.calls[1] == ("next_event", "t0000", False)


def test_a_trial_says_at_its_next_device_which_rung_it_has_heard_of(tmp_path: Path) -> None:
    """The last rung is reported with the end, so it is not recorded when a worker leaves between the two."""
    actor = Actor(admit=[Admitted(), Admitted(4)], next_event=[rung(4), Requeued("t0000", "its worker left"), rung(6)])
    placement, _ = placed(tmp_path, actor)
    assert [placement.next_event(), placement.next_event()] == [rung(4), rung(6)]
    assert [call[4] for call in actor.calls if call[0] == "admit"] == [0, 4]


LOST = "CUDA error: an illegal memory access was encountered"


def failed(alone: bool) -> DeviceFailed:
    return DeviceFailed("t0000", LOST, alone)


def test_a_trial_alone_under_which_its_gpu_failed_twice_has_failed_with_what_the_gpu_said(tmp_path: Path) -> None:
    actor = Actor(admit=[Admitted(), failed(alone=True)], next_event=[failed(alone=True)])
    placement, dispatcher = placed(tmp_path, actor)
    event = placement.next_event()
    assert event == Ended(
        "t0000", State.FAILED, f"its GPU failed 2 times before the next rung, with no other trial on it: {LOST}", 0
    )
    assert placement.notes == [f"its GPU (node 0: CPU) failed: {LOST}. Went on from its last checkpoint"]
    assert dispatcher.released == 1


def test_a_trial_among_others_is_not_blamed_for_their_gpu_until_it_was_alone(tmp_path: Path) -> None:
    among, by_itself = [failed(alone=False)] * 2, [failed(alone=True)] * 2
    actor = Actor(admit=[Admitted()] * 4, next_event=[*among, *by_itself])
    placement, dispatcher = placed(tmp_path, actor)
    assert isinstance(placement.next_event(), Ended)
    assert alone(actor) == [False, False, True, True]
    assert dispatcher.asked[-1][2] == ["device 0"] * 3, "the dispatcher gives it another worker"

    actor = Actor(admit=[Admitted()] * 4, next_event=[*among, by_itself[0], rung(4)])
    placement, _ = placed(tmp_path, actor)
    assert placement.next_event() == rung(4)


def test_failures_of_a_gpu_count_until_the_rung_is_recorded(tmp_path: Path) -> None:
    actor = Actor(admit=[Admitted()] * 3, next_event=[failed(alone=True), rung(4), failed(alone=True), rung(8)])
    placement, _ = placed(tmp_path, actor)
    assert placement.next_event() == rung(4)
    placement.rung_recorded()
    assert placement.next_event() == rung(8)
