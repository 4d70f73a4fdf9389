"""Device workers that follow nodes that come and go."""

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from analysis.errors import DataError, FolderError, HardwareError
from sweeps.config import RayConfig, ResourcesConfig, SweepConfig
from sweeps.driver.device_client import Trials
from sweeps.driver.device_fleet import DeviceFleet
from tests.sweeps.driver.fakes import DATA, FakeCluster

TRIAL: Any = SimpleNamespace(trial_id="t0000")


class Following:
    """A fleet over a fake cluster, whose clock and looks are the test's."""

    def __init__(self, *nodes: str, wanted: int = 20, address: str | None = "head:6379", **resources: Any):
        self.cluster, self.now, self.notes = FakeCluster(), 0.0, list[str]()
        for name in nodes:
            self.cluster.join(name, CPU=2)
        config = SweepConfig(ray=RayConfig(address=address), resources=ResourcesConfig(**resources))
        cluster: Any = self.cluster
        ask: Any = self.cluster.ask_facts
        self.fleet = DeviceFleet(cluster, config, ask, self.notes.append, wanted, lambda: self.now)

    def look(self, times: int = 1, seconds: float = 0.5) -> None:
        for _ in range(times):
            self.now += seconds
            self.fleet.tick()

    def begin(self) -> "Following":
        """Until all nodes take trials."""
        self.fleet._first = TRIAL
        self.look(6)
        self.fleet._began_work = True
        return self

    @property
    def taking(self) -> list[str]:
        """Nodes that take trials."""
        return sorted(device.client.where.split(":")[0] for device in self.fleet.devices)


def test_a_joiner_takes_trials_and_a_node_that_is_gone_none() -> None:
    sweep = Following("a").begin()
    assert sweep.taking == ["a"]
    sweep.cluster.join("b", CPU=2)
    sweep.look(6)
    assert sweep.taking == ["a", "b"]
    assert sweep.cluster.known == ["a/0", "b/1"]
    del sweep.cluster.there["id-a"]
    sweep.look(2)
    assert (sweep.taking, sweep.cluster.known) == (["b"], ["b/1"])
    assert sweep.cluster.started[0].killed


def test_a_worker_that_dies_is_started_again_and_did_so_by_itself_if_its_node_lives_on() -> None:
    sweep = Following("a", "b").begin()
    for worker in sweep.cluster.started:
        worker.die()
    sweep.look(6)
    assert [worker.name for worker in sweep.cluster.started] == ["a/0", "b/1", "a/2", "b/3"]
    assert sweep.cluster.verdicts == {}, "nobody knows yet whether the nodes went"
    del sweep.cluster.there["id-a"]
    sweep.look(60)
    assert sweep.cluster.verdicts == {"a/0": False, "b/1": True, "a/2": False}


def test_a_worker_that_trials_found_dead_is_replaced() -> None:
    sweep = Following("a").begin()
    sweep.cluster.trials = Trials({}, frozenset(["a/0"]))
    sweep.look(4)
    assert sweep.cluster.started[0].killed
    assert len(sweep.cluster.started) == 2
    sweep.look(30, 2.0)
    assert sweep.cluster.verdicts == {}, "perhaps a cable was cut, which Ray's health checks find out after a minute"
    sweep.look(20, 2.0)
    assert sweep.cluster.verdicts == {"a/0": True}


def test_the_worker_of_a_node_that_is_about_to_go_leaves_in_time_and_nothing_starts_there() -> None:
    sweep = Following("a").begin()
    sweep.cluster.change("a", leaves_at=time.time() + 30)
    sweep.look(2)
    (worker,) = sweep.cluster.started
    assert 20 < worker.left < 28
    assert (worker.killed, sweep.taking) == (False, []), "a trial may not have heard of its last rung yet"
    sweep.look(6)
    assert (worker.killed, sweep.taking, sweep.cluster.verdicts) == (True, [], {"a/0": False})
    assert any("about to go" in note for note in sweep.notes)


def test_demand_is_announced_for_what_there_is_no_node_for() -> None:
    sweep = Following(wanted=5, slots=2)
    sweep.look(4)
    assert sweep.cluster.announced == 3
    assert "none of the cluster" in sweep.notes[0]
    sweep.cluster.join("a", CPU=2)
    sweep.begin()
    assert sweep.cluster.announced == 2
    sweep.fleet.want(2)
    sweep.look()
    assert sweep.cluster.announced == 0


def test_no_more_devices_than_asked_for_and_than_there_is_work_for() -> None:
    limited = Following("a", "b", "c", max_devices=2).begin()
    assert (limited.taking, limited.cluster.announced) == (["a", "b"], 0)
    sweep = Following("a", "b", wanted=2, slots=2).begin()
    assert sweep.taking == ["a", "b"], "at first all nodes are looked at"
    sweep.cluster.join("c", CPU=2)
    sweep.look(6)
    assert sweep.taking == ["a", "b"]


def test_what_others_claim_is_waited_for_and_it_is_said_at_once_and_every_minute() -> None:
    sweep = Following("a", "b")
    for name in "ab":
        sweep.cluster.change(name, free={"CPU": 1})
    sweep.look(130, 1.0)
    assert sweep.cluster.started == []
    assert len(sweep.notes) == 3
    assert "taken by device workers of other sweeps: first (2)" in sweep.notes[0]
    sweep.cluster.change("b", free={"CPU": 2})
    assert sweep.begin().taking == ["b"]


def test_waiting_ends_where_that_is_asked_for() -> None:
    sweep = Following(wait="1m")
    sweep.look(59, 1.0)
    assert not sweep.fleet.expired
    sweep.look(5, 1.0)
    with pytest.raises(HardwareError, match=r"resources.wait=1m is over: there is no device"):
        sweep.fleet.assemble()


def test_a_worker_with_nothing_to_do_is_released_and_started_again_for_more() -> None:
    sweep = Following("a", "b", wanted=4, slots=2, idle_seconds=30.0).begin()
    sweep.cluster.trials = Trials({"a/0": ["t0000"]}, frozenset())
    sweep.look(70)
    assert sweep.taking == ["a", "b"], "there is more to come"
    sweep.fleet.want(1)
    sweep.look(4)
    assert sweep.taking == ["a"]
    assert "b: CPU has nothing left to do: released" in sweep.notes
    sweep.fleet.want(4)
    sweep.look(6)
    assert sweep.taking == ["a", "b"]


def test_a_ray_of_our_own_is_not_given_back_and_announces_nothing() -> None:
    sweep = Following("a", address=None, idle_seconds=1.0).begin()
    sweep.fleet.want(0)
    sweep.look(20)
    assert (sweep.taking, sweep.cluster.announced) == (["a"], 0)


def test_a_node_that_cannot_be_used_is_an_error_at_the_start_and_a_note_later() -> None:
    sweep = Following("a", "b")
    sweep.cluster.facts["b"] = FolderError("node b does not see /runs")
    sweep.look(4)
    with pytest.raises(FolderError, match="node b does not see"):
        sweep.fleet.assemble()

    sweep = Following("a").begin()
    sweep.cluster.facts["b"] = FolderError("node b does not see /runs")
    sweep.cluster.join("b", CPU=2)
    sweep.look(10)
    assert sweep.taking == ["a"]
    assert sweep.notes.count("b is not used: node b does not see /runs") == 1
    assert len(sweep.cluster.started) == 2


def test_a_joiner_that_reads_other_data_is_not_used() -> None:
    other = replace(DATA, fingerprint="0" * 64)
    sweep = Following("a").begin()
    sweep.cluster.data["b"] = other
    sweep.cluster.join("b", CPU=2)
    sweep.look(10)
    assert sweep.taking == ["a"]
    assert any("b: CPU reads other data than a: CPU (fingerprint 000000000000…" in note for note in sweep.notes)

    sweep = Following("a", "b")
    sweep.cluster.data["b"] = other
    sweep.fleet._first = TRIAL
    sweep.look(6)
    with pytest.raises(DataError, match="b: CPU reads other data than a: CPU"):
        sweep.fleet.begin(TRIAL)


def test_a_worker_that_dies_while_it_starts_is_started_again_a_few_times() -> None:
    sweep = Following("a", address=None)
    sweep.cluster.facts["a"] = None
    for _ in range(3):
        sweep.look()
        sweep.cluster.started[-1].die(ActorDiedError())
        sweep.look()
    assert len(sweep.cluster.started) == 3
    assert sum("is started again" in note for note in sweep.notes) == 2
    with pytest.raises(HardwareError, match="a device worker could not start"):
        sweep.fleet.assemble()


def test_a_worker_that_is_killed_for_memory_while_it_starts_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    kills = [0]
    monkeypatch.setattr("trainer.host_memory.kills", lambda: kills[0])
    sweep = Following("a", address=None)
    sweep.cluster.facts["a"] = None
    for _ in range(3):
        sweep.look()
        kills[0] += 1
        sweep.cluster.started[-1].die(ActorDiedError())
        sweep.look()
    assert sum("died while it started (memory ran out). It is started again" in note for note in sweep.notes) == 2
    with pytest.raises(HardwareError, match="memory ran out while a device worker started"):
        sweep.fleet.assemble()


def test_a_call_goes_on_elsewhere_when_its_worker_is_lost() -> None:
    sweep = Following("a", "b").begin()
    asked: list[str] = []

    def work(device: Any) -> Any:
        asked.append(device.name)
        lost = device.name == "a/0"

        def get() -> str:
            if lost:
                raise ActorDiedError
            return "done"

        return SimpleNamespace(get=get)

    assert sweep.fleet.call(work) == "done"
    assert asked == ["a/0", "b/1"]
    assert sweep.cluster.started[0].killed


def test_more_gpus_than_any_node_has_are_refused_and_the_largest_node_is_named() -> None:
    for address in (None, "head:6379"):
        sweep = Following("a", address=address, gpus_per_trial=4.0)
        sweep.cluster.join("b", CPU=8, GPU=2)
        sweep.cluster.join("c", CPU=8, GPU=1)
        sweep.look(40)  # within 20 s
        with pytest.raises(
            HardwareError, match=r"gpus_per_trial=4: no node has so many.* largest, b, has 2: use"
        ) as told:
            sweep.fleet.assemble()
        assert ("resources.wait=30m" in str(told.value)) == (address is not None)
    waits = Following("a", gpus_per_trial=4.0, wait="30m")
    waits.cluster.join("b", CPU=8, GPU=2)
    waits.look(40)
    assert "Demand for a node with 4 GPUs is announced" in waits.notes[0]
    waits.cluster.join("d", CPU=8, GPU=8)
    assert waits.begin().taking == ["d", "d"], "two seats of four GPUs"


def test_a_gpu_that_this_machine_has_not_is_not_waited_for() -> None:
    sweep = Following("a", address=None, gpus_per_trial=1.0)
    sweep.look(3)
    with pytest.raises(HardwareError, match=r"gpus_per_trial=1: Ray sees no GPU on this machine"):
        sweep.fleet.assemble()
    joins = Following("a", gpus_per_trial=1.0)
    joins.look(5)
    assert "Demand for a node with 1 GPU is announced" in joins.notes[0]
    joins.cluster.join("b", CPU=4, GPU=1)
    assert joins.begin().taking == ["b"]


def test_a_worker_that_ended_itself_as_its_gpu_failed_is_replaced_and_says_so_and_nobody_waits_for_a_verdict() -> None:
    words = HardwareError("a: a device worker ended itself, because its GPU failed: CUDA error: unspecified …")
    sweep = Following("a").begin()
    sweep.cluster.started[0].die(words)
    sweep.look(6)
    assert sweep.cluster.verdicts == {"a/0": True}
    assert sweep.notes[-2:] == [f"{words}. Another one takes its place", "a: CPU takes trials"]
    assert sweep.taking == ["a"]


def test_a_gpu_that_fails_whenever_a_worker_starts_is_given_up_with_what_it_said() -> None:
    words = HardwareError("a: a device worker ended itself, because its GPU failed: CUDA error: unspecified …")
    sweep = Following("a")
    sweep.cluster.facts["a"] = None  # no answer
    for number in range(3):
        sweep.look()
        sweep.cluster.started[number].die(words)
        sweep.look()
    assert len(sweep.cluster.started) == 3
    with pytest.raises(HardwareError, match="unspecified"):
        sweep.fleet.assemble()


def test_workers_that_measured_a_pass_at_the_same_time_all_use_what_was_heard_first_and_joiners_measure_nothing() -> (
    None
):
    sweep = Following("a", "b")
    sweep.cluster.data = {"a": replace(DATA, pass_cost=512.0), "b": replace(DATA, pass_cost=1024.0)}
    sweep.begin()
    assert sweep.taking == ["a", "b"]
    assert [worker.agreed for worker in sweep.cluster.started] == [[None], [None, 512.0]]
    assert {member.data.pass_cost for member in sweep.fleet._members} == {512.0}
    sweep.cluster.join("c", CPU=2)
    sweep.cluster.data["c"] = replace(DATA, pass_cost=256.0)
    sweep.look(6)
    assert sweep.taking == ["a", "b", "c"]
    assert sweep.cluster.started[-1].agreed == [512.0]
