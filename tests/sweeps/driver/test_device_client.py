"""A trial's slot: found, lost with its worker, found again; and when the trial itself is taken for the cause."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError, RayTaskError

from analysis.errors import DataError, ModelError
from analysis.folder import MetricsRow, State, TrialFolder
from sweeps.driver import device_client
from sweeps.driver.device_client import DeviceClient, Reply, TrialPlacement
from sweeps.driver.device_facts import DataFacts
from sweeps.run import _same_everywhere
from trainer.engine import Admitted, Ended, Full, Halted, Refused, Requeued, RungResult

TRIAL: Any = SimpleNamespace(trial_id="t0000")


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
    monkeypatch.setattr(device_client, "_ASK_AGAIN", 0.0)


def placed(folder: Path, *actors: Actor, **settings: Any) -> TrialPlacement:
    devices = [DeviceClient(actor, f"node {i}: CPU") for i, actor in enumerate(actors)]
    return TrialPlacement(devices, TRIAL, TrialFolder(folder), **settings)


def alone(actor: Actor) -> list[bool]:
    """Of each admission: whether the device to itself was asked for."""
    return [call[3] for call in actor.calls if call[0] == "admit"]


def test_a_trial_that_loses_three_workers_between_two_rungs_ends_and_the_last_it_had_to_itself(tmp_path: Path) -> None:
    actor = Actor(admit=[Admitted()] * 3, next_event=[RayActorError()] * 3)
    event = placed(tmp_path, actor).next_event()
    assert isinstance(event, Ended)
    assert event.state is State.FAILED
    assert event.reason == "its device worker was lost 3 times before the next rung, in the end alone: it died"
    assert alone(actor) == [False, False, True]


def test_losses_count_until_the_rung_is_recorded(tmp_path: Path) -> None:
    """A worker that dies while it scores the last rung's trial gives that rung again, which must not begin anew."""
    events = [rung(4), RayActorError(), rung(4), RayActorError(), rung(4), RayActorError()]
    actor = Actor(admit=[Admitted()] * 3, next_event=list(events))
    placement = placed(tmp_path, actor)
    assert [type(placement.next_event()) for _ in range(4)] == [RungResult, RungResult, RungResult, Ended]

    actor = Actor(admit=[Admitted()] * 4, next_event=[*events, rung(4)])
    placement = placed(tmp_path, actor)
    for _ in range(4):
        assert isinstance(placement.next_event(), RungResult)
        placement.rung_recorded()
    assert placement.losses == 0
    assert len(placement.notes) == 3


def test_a_worker_that_hangs_is_replaced(tmp_path: Path) -> None:
    actor = Actor(admit=[Admitted()] * 2, next_event=[GetTimeoutError(), rung(2)])
    placement = placed(tmp_path, actor, rung_timeout=4.0)
    assert placement.next_event() == rung(2)
    assert ("die", "t0000") in actor.calls
    assert placement.notes == ["its device worker (node 0: CPU) hung for 4 s: went on from its last rung"]


def test_a_full_worker_is_passed_over_and_one_that_is_gone_too(tmp_path: Path) -> None:
    full, gone = Actor(admit=[Full()]), Actor(admit=[ActorDiedError()])
    free = Actor(admit=[Admitted()], next_event=[rung(2)])
    asked: list[int] = []
    placement = placed(tmp_path, free, full, gone, first=1, before_asking=asked.append)
    assert placement.next_event() == rung(2)
    assert asked == [1, 2, 0]
    assert placement.where == "node 0: CPU"


def test_where_every_worker_is_gone_for_good_the_error_goes_on(tmp_path: Path) -> None:
    with pytest.raises(ActorDiedError):
        placed(tmp_path, *[Actor(admit=[ActorDiedError()]) for _ in range(2)]).next_event()


def test_a_trial_that_lost_its_slot_asks_for_another_and_is_not_told_to_proceed(tmp_path: Path) -> None:
    actor = Actor(admit=[Admitted()] * 2, next_event=[rung(2), Requeued("t0000", "memory ran out"), rung(4)])
    placement = placed(tmp_path, actor)
    assert [placement.next_event(), placement.next_event()] == [rung(2), rung(4)]
    assert [call[2] for call in actor.calls if call[0] == "next_event"] == [False, True, False]
    assert placement.losses == 0


@pytest.mark.parametrize(
    ("answer", "event"),
    [
        (Refused("No DoRA here.", "Use engine=hf."), Ended("t0000", State.FAILED, "No DoRA here. Use engine=hf.", 0)),
        (Halted("t0000", "node 1: no space left"), Halted("t0000", "node 1: no space left")),
    ],
)
def test_a_trial_that_can_run_nowhere_ends_or_halts(answer: Any, event: Any, tmp_path: Path) -> None:
    assert placed(tmp_path, Actor(admit=[answer])).next_event() == event


def test_leaving_frees_the_slot_once(tmp_path: Path) -> None:
    actor = Actor(admit=[Admitted()], next_event=[rung(2)])
    placement = placed(tmp_path, actor)
    placement.next_event()
    placement.leave()
    placement.leave()
    assert [call for call in actor.calls if call[0] == "end"] == [("end", "t0000", "stopped_early")]


def test_a_workers_own_error_comes_without_rays_around_it() -> None:
    wrapped = RayTaskError("prepare", "Traceback …", ModelError("no such module"))
    with pytest.raises(ModelError, match="no such module"):
        Reply[None](lambda: wrapped).get()


def test_nodes_that_read_other_data_are_named() -> None:
    def facts(fingerprint: str) -> DataFacts:
        return DataFacts({}, (), fingerprint * 64, 1, 1, "label", {}, {}, None)

    devices = [DeviceClient(None, "alpha: CPU"), DeviceClient(None, "beta: CPU")]
    assert _same_everywhere(devices, [facts("a"), facts("a")]) == facts("a")
    with pytest.raises(DataError, match=r"beta: CPU reads other data than alpha: CPU \(fingerprint bbbbbbbbbbbb…"):
        _same_everywhere(devices, [facts("a"), facts("b")])
