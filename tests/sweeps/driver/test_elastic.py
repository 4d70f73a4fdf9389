"""A sweep on a cluster whose nodes come and go: real Ray nodes, simulated trials.

Every outcome is compared with that of a sweep that nothing disturbed. A trial's figures come from a chain over all its
steps: one that went on from a wrong place would show it.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from analysis.folder import State, read_lines
from tests.sweeps.driver.ray_nodes import RayCluster, wait_until
from tests.sweeps.simulated_sweep import Simulated, result

pytestmark = pytest.mark.timeout(900)
SEEN = 30  # seconds within which a node that joined gets work


@pytest.fixture
def simulate(tmp_path: Path) -> Iterator[Callable[..., Simulated]]:
    """Makes simulated sweeps, on a cluster or on a Ray of their own, and ends them afterwards whatever happens."""
    with ExitStack() as stack:

        def make(name: str, cluster: RayCluster | None = None) -> Simulated:
            sweep = Simulated(tmp_path / name, cluster.environment if cluster else None)
            stack.callback(sweep.kill)
            return sweep

        yield make


def start(sweep: Simulated, cluster: RayCluster, *overrides: str, seconds: float) -> Simulated:
    return sweep.start(
        "run", f"ray.address={cluster.address}", *overrides, seconds=seconds, options=("--steps", "--plain")
    )


def left(sweep: Simulated) -> dict[str, Any]:
    """All that a sweep leaves and that no disturbance may change: suggestions, rows, adapters, leaderboard."""
    files = sweep.folder.trials()
    return {
        "asked": {
            line["trial_id"]: line["values"] for line in read_lines(sweep.folder.asks_file) if line["event"] == "ask"
        },
        "trials": result(sweep.folder),
        "adapters": {it.trial_id: {file.name: file.read_text() for file in it.adapter_dir.iterdir()} for it in files},
        "leaderboard": sweep.folder.leaderboard_file.read_text(),
    }


def undisturbed(sweep: Simulated, *overrides: str) -> dict[str, Any]:
    code, out, err = sweep.start("run", *overrides).ends()
    assert code == 0, out + err
    return left(sweep)


def ended_well(sweep: Simulated, seconds: float = 300) -> None:
    code, out, err = sweep.ends(seconds)
    assert code == 0, out + err
    assert "Traceback" not in out + err
    states = {trial.read_status().state for trial in sweep.folder.trials()}
    assert states <= {State.COMPLETED, State.STOPPED_EARLY}, out


def repeated(sweep: Simulated) -> Counter[str]:
    """Node → steps trained there that were trained again elsewhere, because they were lost with it."""
    first: dict[tuple[str, int], str] = {}
    lost: Counter[str] = Counter()
    for line in sweep.lines("steps"):
        key = line["trial_id"], line["step"]
        if key in first:
            lost[first[key]] += 1
        first[key] = line["node"]
    return lost


def admitted(sweep: Simulated, node: str) -> list[dict[str, Any]]:
    return [line for line in sweep.lines("admissions") if line["node"] == node]


@pytest.mark.heavy
@pytest.mark.parametrize("config", ["quick", "ray's own"])
def test_the_only_worker_node_is_replaced_and_nobody_can_tell(start_cluster, simulate, config):
    settings = ("search.trials=6", "scheduler=fifo", "sampler=random", "resources.slots=2")
    cluster = start_cluster(**({} if config == "quick" else {"system_config": {}}))
    cluster.join("first")
    sweep = start(simulate("disturbed", cluster), cluster, *settings, seconds=1)
    sweep.until(lambda: sweep.rungs() >= 4)
    cluster.lose("first")
    time.sleep(8)
    cluster.join("second")
    sweep.until(lambda: admitted(sweep, "second"))
    assert all(line["from"] > 0 for line in admitted(sweep, "second")[:2]), "a checkpoint was lost"
    ended_well(sweep)
    assert left(sweep) == undisturbed(simulate("undisturbed"), *settings)
    assert set(repeated(sweep)) <= {"first"}


def test_a_sweep_without_a_node_waits_shows_its_demand_and_begins_when_one_joins(start_cluster, simulate):
    cluster = start_cluster()
    settings = ("search.trials=2", "resources.slots=1", "scheduler=fifo", "sampler=random")
    sweep = start(simulate("sweep", cluster), cluster, *settings, seconds=0.5)
    sweep.until(lambda: "Waiting for a device: " in sweep.said())
    wait_until(lambda: "pending placement groups" in cluster.status())
    assert "{'CPU': 1.0} * 1 (PACK): 2+ pending placement groups" in cluster.status()
    assert not sweep.lines("admissions")
    cluster.join("late")
    seen = time.time()
    ended_well(sweep)
    assert admitted(sweep, "late")[0]["time"] - seen < SEEN
    assert len(sweep.folder.trials()) == 2
    wait_until(lambda: "(no resource demands)" in cluster.status())


@pytest.mark.heavy
def test_a_sweep_that_finds_no_node_in_time_ends_with_a_sentence(start_cluster, simulate):
    cluster = start_cluster()
    sweep = start(simulate("sweep", cluster), cluster, "search.trials=2", "resources.wait=3s", seconds=0)
    code, out, err = sweep.ends()
    assert code == 7, out + err
    assert "resources.wait=3s" in err
    assert "Traceback" not in out + err


@pytest.mark.heavy
def test_a_node_that_joins_gets_work_and_is_released_when_there_is_none(start_cluster, simulate):
    cluster = start_cluster()
    cluster.join("first")
    settings = ("search.trials=5", "resources.slots=1", "resources.idle_seconds=2", "scheduler=fifo", "sampler=random")
    sweep = start(simulate("sweep", cluster), cluster, *settings, seconds=5)
    sweep.until(lambda: admitted(sweep, "first"))
    cluster.join("second")
    seen = time.time()
    sweep.until(lambda: admitted(sweep, "second"))
    assert admitted(sweep, "second")[0]["time"] - seen < SEEN
    # The fifth trial is alone in the end: the other node's worker is of no use.
    sweep.until(lambda: len(sweep.lines("admissions")) == 5)
    sweep.until(lambda: cluster.signal_workers("first", 0) + cluster.signal_workers("second", 0) == 1)
    wait_until(lambda: cluster.free() == 2)
    assert sweep.process.poll() is None
    assert "has nothing left to do: released" in sweep.said()
    ended_well(sweep)
    wait_until(lambda: cluster.free() == 4)


@pytest.mark.heavy
def test_five_node_losses_between_two_rungs_fail_no_trial(start_cluster, simulate):
    settings = ("search.trials=1", "resources.slots=1", "train.max_steps=40", "train.rungs=[4,40]", "scheduler=fifo")
    cluster = start_cluster()
    cluster.join("n0", "n1")
    sweep = start(simulate("disturbed", cluster), cluster, *settings, seconds=4)
    sweep.until(lambda: sweep.rungs() == 1)
    lost = []
    for n in range(5):
        sweep.until(lambda: sweep.lines("admissions")[-1]["node"] not in lost)
        lost.append(sweep.lines("admissions")[-1]["node"])
        cluster.lose(lost[-1])
        cluster.join(f"n{n + 2}")
    ended_well(sweep)
    assert sweep.rungs() == 2 or sweep.rungs() == 1
    assert [line["from"] for line in sweep.lines("admissions")] == [0, 4, 4, 4, 4, 4]
    assert left(sweep) == undisturbed(simulate("undisturbed"), *settings)


@pytest.mark.heavy
def test_a_trial_under_which_three_workers_die_by_themselves_fails_and_the_others_go_on(start_cluster, simulate):
    settings = ("search.trials=2", "resources.slots=1", "train.max_steps=40", "train.rungs=[4,40]", "scheduler=fifo",
                "ray.max_concurrent_trials=1")  # fmt: skip
    cluster = start_cluster()
    cluster.join("only")
    sweep = start(simulate("sweep", cluster), cluster, *settings, seconds=3)
    sweep.until(lambda: sweep.rungs() == 1)
    for n in range(3):
        sweep.until(lambda: len(sweep.lines("admissions")) == n + 1)  # noqa: B023
        time.sleep(0.5)
        cluster.lose_worker("only")
    code, out, err = sweep.ends()
    assert code == 0, out + err
    failed, other = (trial.read_status() for trial in sweep.folder.trials())
    assert failed.state is State.FAILED
    assert "its device worker was lost 3 times before the next rung" in failed.reason
    assert other.state is State.COMPLETED
    assert cluster.alive() == ["head", "only"]


@pytest.mark.heavy
def test_baselines_move_from_a_node_that_dies(start_cluster, simulate):
    cluster = start_cluster()
    cluster.join("first", "second")
    settings = ("search.trials=1", "resources.slots=1", "baselines=[zero_shot,majority]")
    sweep = start(simulate("sweep", cluster), cluster, *settings, seconds=4)
    sweep.until(lambda: sweep.lines("baselines"))
    begun = sweep.lines("baselines")[0]
    cluster.lose(begun["node"])
    ended_well(sweep)
    elsewhere = [line["node"] for line in sweep.lines("baselines") if line["name"] == begun["name"]]
    assert len(elsewhere) == 2
    assert elsewhere[1] != begun["node"]
    assert all(sweep.folder.baseline(name).read_status().state is State.COMPLETED for name in ("zero_shot", "majority"))


@pytest.mark.heavy
def test_a_second_sweep_says_what_it_waits_for_and_begins_when_the_first_is_over(start_cluster, simulate):
    cluster = start_cluster()
    cluster.join("one")
    first = start(simulate("first", cluster), cluster, "sweep.name=long", "search.trials=3", seconds=3)
    first.until(lambda: cluster.signal_workers("one", 0) == 1)
    second = start(simulate("second", cluster), cluster, "search.trials=2", seconds=0)
    second.until(lambda: "Waiting for a device: what it needs of one is taken by" in second.said())
    assert "device workers of other sweeps: long (1)" in second.said()
    assert "resources.max_devices=1" in second.said()
    assert first.process.poll() is None
    ended_well(second)
    code, out, err = first.ends()
    assert (code, "Traceback" in out + err) == (0, False), out + err


@pytest.mark.heavy
def test_two_sweeps_share_a_cluster_of_two_nodes(start_cluster, simulate):
    cluster = start_cluster()
    cluster.join("one", "two")
    settings = ("search.trials=4", "resources.slots=1", "resources.max_devices=1")
    sweeps = [start(simulate(name, cluster), cluster, *settings, seconds=3) for name in ("a", "b")]
    sweeps[0].until(lambda: all(sweep.rungs() for sweep in sweeps))
    assert [cluster.signal_workers(name, 0) for name in ("one", "two")] == [1, 1]
    for sweep in sweeps:
        ended_well(sweep)
        assert len({line["pid"] for line in sweep.lines("admissions")}) == 1


class Weather:
    """Four nodes that join, three that are lost, and three that are lost after a notice, in random order.

    Mostly it is the node at work that goes. Where none is left, the next one that joins is brought forward.
    """

    def __init__(self, cluster: RayCluster, sweep: Simulated, seed: int):
        self.cluster, self.sweep, self.chance = cluster, sweep, random.Random(seed)
        self.changes = ["join"] * 4 + ["lose"] * 3 + ["drain"] * 3
        self.chance.shuffle(self.changes)
        self.there = ["n0", "n1"]
        self.gone: dict[str, list[str]] = {"lose": [], "drain": []}

    def change(self) -> None:
        """The next of the ten."""
        change = self.changes[0] if self.there else "join"
        self.changes.remove(change)
        if change == "join":
            name = f"n{2 + 3 - self.changes.count('join')}"
            self.cluster.join(name)
            self.there.append(name)
            return
        at_work = [line["node"] for line in self.sweep.lines("admissions") if line["node"] in self.there]
        goes = at_work[-1] if at_work and self.chance.random() < 0.8 else self.chance.choice(self.there)
        self.there.remove(goes)
        self.gone[change].append(goes)
        if change == "lose":
            self.cluster.lose(goes)
        else:
            self.cluster.drain(goes, 10)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "settings",
    [
        ("ray.max_concurrent_trials=1", "resources.slots=1"),
        ("ray.max_concurrent_trials=3", "resources.slots=2", "sampler=random", "scheduler=fifo"),
    ],
    ids=["one at a time", "three side by side"],
)
def test_ten_random_joins_and_losses_change_nothing(start_cluster, simulate, settings):
    settings = ("search.trials=12", "train.max_steps=24", "train.rungs=[4,8,16,24]", *settings)
    cluster = start_cluster()
    cluster.join("n0", "n1")
    sweep = start(simulate("disturbed", cluster), cluster, *settings, seconds=2)
    weather = Weather(cluster, sweep, seed=17)
    while weather.changes:
        steps = len(sweep.lines("steps"))
        sweep.until(lambda: len(sweep.lines("steps")) > steps + 3 or not weather.there)  # noqa: B023
        time.sleep(weather.chance.uniform(0, 1))
        weather.change()
    assert sweep.process.poll() is None, "all was over before the tenth"
    cluster.join("last")
    ended_well(sweep)
    assert left(sweep) == undisturbed(simulate("undisturbed"), *settings)
    again, slots = repeated(sweep), 1 if "resources.slots=1" in settings else 2
    lost, drained = weather.gone["lose"], weather.gone["drain"]
    assert sum(bool(admitted(sweep, node)) for node in lost) >= 2, "those that were lost had no trials"
    assert sum(bool(admitted(sweep, node)) for node in drained) >= 2, "those that were drained had no trials"
    notes = {trial.trial_id: trial.read_status().notes for trial in sweep.folder.trials()}
    assert set(again) <= set(lost), f"steps were trained twice after a notice: {again} {drained=} {notes=}"
    assert all(steps <= 8 * slots for steps in again.values()), f"more than a rung was lost: {again}"
