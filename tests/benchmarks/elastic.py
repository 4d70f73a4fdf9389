"""A sweep of 1,000 trials on 64 devices that come and go, in a fraction of the time.

    make bench-elastic        or: python -m tests.benchmarks.elastic [--devices 64] [--trials 1000] [--speed 10] …

Real: the driver, Ray Tune, Optuna, the dispatcher, a proxy process for each running trial, the sweep folder, the code
of device workers. Simulated: the devices, which all live in one Ray actor because their processes would not fit a small
machine; what a trial computes (``tests/benchmarks/simulated.py``); and the cluster that the fleet looks at. ``--speed``
seconds of the simulation pass in one: so each delay of the real parts counts that many times as long.

A device lives for 20 minutes in the mean (exponential, a fixed seed), half of them are told two minutes before their
end; another one takes the place after one to five minutes. A device worker takes 40 seconds to be ready. A trial has
four rungs of 90 seconds. Nodes are known to be lost after 15 seconds, as by Ray's health checks.

Prints which share of the slots' time was used while there were trials to begin, what the rest was, and the processor
time of each part.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ray.exceptions import ActorDiedError

from analysis.folder import SweepFolder, append_line, read_lines
from sweeps.driver import device_worker
from sweeps.driver.cluster_nodes import Cluster, Node, Seat
from sweeps.driver.device_client import DeviceClient
from sweeps.driver.device_facts import DataFacts, WorkerFacts
from sweeps.process.installation import package_root
from tests.benchmarks.simulated import SimulatedEngine, SimulatedWorker, overrides
from tests.sweeps.driver.ray_nodes import ray_cluster
from trainer.config import TrialConfig
from trainer.engine import Event, never

# Seconds of the simulation.
LIFE, GAP, NOTICE = 1200.0, (60.0, 300.0), 120.0
STARTS, LOADS, RUNG = 20.0, 20.0, 90.0
NOTICED = 15.0


@dataclass(frozen=True)
class Life:
    """One node: from when to when it is there, and when it is said that it goes; seconds of the simulation."""

    node_id: str
    begins: float
    ends: float
    told: float | None


def lives(devices: int, seed: int, until: float) -> list[Life]:
    """The nodes of so many places, one after the other in each."""
    chance = random.Random(seed)
    found = []
    for place in range(devices):
        now, number = 0.0, 0
        while now < until:
            ends = now + chance.expovariate(1 / LIFE)
            told = max(now, ends - NOTICE) if chance.random() < 0.5 else None
            found.append(Life(f"node-{place:03}-{number:03}", now, ends, told))
            now, number = ends + chance.uniform(*GAP), number + 1
    return found


class TimedEngine(SimulatedEngine):
    """Notes when it trains, and stops where its device is gone."""

    def __init__(self, *arguments: Any, note: Callable[[dict[str, Any]], None]):
        super().__init__(*arguments)
        self.note, self.dead = note, False

    def advance(self, until: Callable[[], bool] = never, *more: Any) -> list[Event]:
        going = [slot for slot in self.slots.values() if not slot.resting]
        before, began = {slot.trial.trial_id: slot.step for slot in going}, time.time()
        events = super().advance(lambda: self.dead or until(), *more)
        for slot in going:
            step = before[slot.trial.trial_id]
            if slot.step > step:
                trained = {"trial_id": slot.trial.trial_id, "after": step, "step": slot.step}
                self.note({"event": "trained", "from": began, **trained})
        if self.dead:
            raise SystemExit  # of this thread
        return events


class TimedWorker(SimulatedWorker):
    """One of many device workers in a process."""

    def __init__(self, speed: float, note: Callable[[dict[str, Any]], None], *arguments: Any):
        self.speed, self.note = speed, note
        super().__init__(*arguments)

    def _make_engine(self) -> Any:
        return TimedEngine(self.slots, self.objective.score, RUNG / self.speed, self.node, note=self.note)

    def _facts(self, wanted: Sequence[str]) -> WorkerFacts:
        time.sleep(STARTS / self.speed)
        return super()._facts(wanted)

    def _prepare(self, trial: TrialConfig) -> DataFacts:
        time.sleep(LOADS / self.speed)
        self.note({"event": "ready"})
        return super()._prepare(trial)


@dataclass
class Hosted:
    worker: TimedWorker
    gone: "asyncio.Future[None]"


class DeviceHost:
    """The Ray actor in which all devices live."""

    def __init__(self, record: str, speed: float):
        self.record, self.speed = Path(record), speed
        self.devices: dict[str, Hosted] = {}
        self.ever: set[str] = set()
        device_worker._in_actor = lambda: False  # type: ignore[attr-defined]  # SIGTERM is not for one device

    async def start(self, device: str, ends: float, arguments: Sequence[Any]) -> None:
        """``ends``: when its node goes, in Unix time."""

        def note(line: dict[str, Any]) -> None:
            append_line(self.record, {"device": device, "time": time.time(), **line})

        loop = asyncio.get_running_loop()
        if time.time() < ends:
            self.ever.add(device)
            self.devices[device] = Hosted(TimedWorker(self.speed, note, *arguments), loop.create_future())
            note({"event": "started"})
            loop.call_later(ends - time.time(), self._end, device, note)

    async def end(self, device: str) -> None:
        self._end(device, lambda line: append_line(self.record, {"device": device, "time": time.time(), **line}))

    def _end(self, device: str, note: Callable[[dict[str, Any]], None]) -> None:
        hosted = self.devices.pop(device, None)
        if hosted is not None:
            hosted.gone.set_result(None)
            note({"event": "gone"})
            if hosted.worker._engine is not None:
                hosted.worker._engine.dead = True  # type: ignore[attr-defined]
            hosted.worker._commands.put(sys.exit)  # ends its thread

    async def call(self, device: str, method: str, arguments: Sequence[Any]) -> Any:
        hosted = self.devices.get(device)
        if hosted is None:
            if device not in self.ever:  # what is to start on a dead node waits until Ray knows that it is dead
                await asyncio.sleep(NOTICED / self.speed)
            raise ActorDiedError
        work = asyncio.ensure_future(getattr(hosted.worker, method)(*arguments))
        await asyncio.wait({work, hosted.gone}, return_when=asyncio.FIRST_COMPLETED)
        if hosted.gone.done():
            work.cancel()
            raise ActorDiedError
        return work.result()


@dataclass(frozen=True)
class HostedMethod:
    host: Any
    device: str
    method: str

    def remote(self, *arguments: Any) -> Any:
        return self.host.call.remote(self.device, self.method, arguments)


@dataclass(frozen=True)
class HostedActor:
    """Stands where Ray's handle of a device worker stands."""

    host: Any
    device: str

    def __getattr__(self, method: str) -> HostedMethod:
        if method.startswith("_"):
            raise AttributeError(method)
        return HostedMethod(self.host, self.device, method)


@dataclass(frozen=True)
class HostedClient(DeviceClient):
    def kill(self) -> None:
        with contextlib.suppress(Exception):
            self.actor.host.end.remote(self.name)


class SimulatedCluster(Cluster):
    """The fleet's view of nodes that come and go as ``lives`` has them; the clock starts with the first look."""

    lives: Sequence[Life] = ()
    speed = 1.0
    record = ""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        import ray

        self.began = time.time()
        self.host = ray.remote(DeviceHost).options(num_cpus=0, max_concurrency=100_000).remote(self.record, self.speed)
        self.started = 0
        self.most_announced = 0
        self.known: dict[str, Life] = {life.node_id: life for life in self.lives}

    def nodes(self) -> list[Node]:
        now = (time.time() - self.began) * self.speed
        there = [life for life in self.lives if life.begins <= now < life.ends + (NOTICED if life.told is None else 0)]
        has = {"CPU": 1.0}
        return [
            Node(
                life.node_id, life.node_id, has, has,
                self._wall(life.ends) if life.told is not None and life.told <= now else None,
            )
            for life in there
        ]  # fmt: skip

    def start(self, seat: Seat) -> DeviceClient:
        self.started += 1
        name = f"{seat.node}/{self.started}"
        arguments = (self.config.engine, 1, self.objective, 1, seat.node, package_root())
        self.host.start.remote(name, self._wall(self.known[seat.node_id].ends), arguments)
        return HostedClient(HostedActor(self.host, name), seat.node, name)

    def is_pending(self, device: DeviceClient) -> bool:
        return False

    def announce(self, seats_wanted: int, share: float) -> None:
        self.most_announced = max(self.most_announced, seats_wanted)

    def _wall(self, simulated: float) -> float:
        return self.began + simulated / self.speed


PARTS = {
    "gcs_server": "Ray's control store (GCS)",
    "raylet": "raylet",
    "ray::Dispatcher": "dispatcher",
    "ray::DeviceHost": "simulated devices",
    "ray::ResourceTrainable": "proxies",
    "ray::TrialProxy": "proxies",
}


class ProcessorTime(threading.Thread):
    """Notes how many seconds of a processor each part of the sweep has used, and a proxy's memory."""

    def __init__(self, mark: str, every: float = 2.0):
        super().__init__(name="processor time", daemon=True)
        self.mark, self.every = mark.encode(), every
        self.seen: list[tuple[float, dict[str, float]]] = []
        self.proxies, self.proxy_memory = 0, 0.0
        self.threads: dict[int, str] = {}

    def run(self) -> None:
        while True:
            self.seen.append((time.time(), self.look()))
            time.sleep(self.every)

    def look(self) -> dict[str, float]:
        used: dict[str, float] = defaultdict(float)
        proxies = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                part = self._part(process)
                if part:
                    times = process.cpu_times()
                    used[part] += times.user + times.system
                    proxies += [process] if part == "proxies" else []
        if len(proxies) > self.proxies:
            self.proxies = len(proxies)
            with contextlib.suppress(psutil.Error):
                self.proxy_memory = sum(it.memory_full_info().pss for it in proxies) / len(proxies)
        own = psutil.Process().cpu_times()
        used["driver"] = own.user + own.system
        self.threads |= {it.native_id: it.name for it in threading.enumerate() if it.native_id}
        for thread in psutil.Process().threads():
            name = self.threads.get(thread.id, "Ray's own")
            used[f"driver: {name}"] += thread.user_time + thread.system_time
        return dict(used)

    def _part(self, process: psutil.Process) -> str:
        title = (process.cmdline() or [""])[0]
        part = next((part for name, part in PARTS.items() if name in title.rpartition("/")[2]), "")
        return part if part and self.mark in Path(f"/proc/{process.pid}/environ").read_bytes() else ""

    def between(self, begins: float, ends: float) -> tuple[dict[str, float], float]:
        """Part → processors that it kept busy between two times, and the seconds of it."""
        (first, before), *_ = [it for it in self.seen if it[0] >= begins]
        *_, (last, after) = [it for it in self.seen if it[0] <= ends]
        return {name: (it - before.get(name, 0.0)) / (last - first) for name, it in after.items()}, last - first


@dataclass(frozen=True)
class Use:
    """What became of the slots' time between two times, in seconds of a slot.

    Attributes:
        available: while a device was ready.
        joined: from when its node was there.
        trained: spent on steps.
        twice: of it on steps that were lost with their device, and trained again.
        rested: between two rungs of a trial that stayed.
        changed: from one trial to the next.
        last: from a device's last step to its end.
    """

    available: float
    joined: float
    trained: float
    twice: float
    rested: float
    changed: float
    last: float


def use(record: Sequence[dict[str, Any]], begins: float, ends: float) -> Use:
    """Add up what devices noted."""

    def within(start: float, end: float) -> float:
        return max(0.0, min(end, ends) - max(start, begins))

    by_device: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in record:
        by_device[line["device"]].append(line)
    times: Counter[tuple[str, int]] = Counter()
    total: dict[str, float] = defaultdict(float)
    trained = sorted((line for line in record if line["event"] == "trained"), key=lambda line: line["time"])
    for line in trained:
        steps = range(line["after"] + 1, line["step"] + 1)
        again = sum(times[line["trial_id"], step] > 0 for step in steps) / len(steps)
        times.update((line["trial_id"], step) for step in steps)
        total["twice"] += again * within(line["from"], line["time"])
    for lines in by_device.values():
        at = {line["event"]: line["time"] for line in lines}
        gone = at.get("gone", ends)
        total["joined"] += within(at["started"], gone)
        if "ready" not in at:
            continue
        total["available"] += within(at["ready"], gone)
        now, trial = at["ready"], ""
        for line in sorted((it for it in lines if it["event"] == "trained"), key=lambda it: it["time"]):
            total["trained"] += within(line["from"], min(line["time"], gone))
            total["rested" if line["trial_id"] == trial else "changed"] += within(now, line["from"])
            now, trial = line["time"], line["trial_id"]
        total["last"] += within(now, gone)
    return Use(**{name: total[name] for name in Use.__annotations__})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=64)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--speed", type=float, default=10.0, help="seconds of the simulation in one")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--profile", type=Path, help="folded stacks of the driver's Tune thread")
    parser.add_argument("--at", help="address of a cluster that runs already")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    if options.at:
        with tempfile.TemporaryDirectory(prefix="bench-elastic-") as name:
            simulate(options, Path(name))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the cluster too
    with ray_cluster() as cluster:  # in another process, as Ray reads its token when it is imported
        command = [sys.executable, "-m", "tests.benchmarks.elastic", "--at", cluster.address, *sys.argv[1:]]
        subprocess.run(command, env={**os.environ, **cluster.environment}, check=True)


def simulate(options: argparse.Namespace, folder: Path) -> None:
    from sweeps.compose.compose import compose
    from sweeps.driver import device_fleet
    from sweeps.run import run_sweep
    from tests.benchmarks.simulated import sample_stacks

    if options.profile:
        sample_stacks(options.profile)
    clusters: list[SimulatedCluster] = []

    class ThisCluster(SimulatedCluster):
        lives = lives(options.devices, options.seed, 100 * 3600)
        speed = options.speed
        record = str(folder / "record.jsonl")

        def __init__(self, *arguments: Any):
            super().__init__(*arguments)
            clusters.append(self)

    device_fleet.Cluster = ThisCluster  # type: ignore[misc]
    given = [f"ray.address={options.at}", f"search.trials={options.trials}", "resources.slots=1", "scheduler=fifo"]
    given += ["train.max_steps=16", "train.rungs=[4,8,12,16]", *options.overrides]
    clock = ProcessorTime(os.environ["RAY_AUTH_TOKEN_PATH"])  # a mark of all processes of this cluster
    clock.start()
    with contextlib.redirect_stdout((folder / "out").open("w")):
        status = run_sweep(compose([*overrides(folder), *given]), view="plain", worker=SimulatedWorker)
    sweep = SweepFolder(folder / "runs" / "simulated")
    report(options, sweep, list(read_lines(folder / "record.jsonl")), clock, clusters[0], status)


def report(
    options: argparse.Namespace,
    sweep: SweepFolder,
    record: Sequence[dict[str, Any]],
    clock: ProcessorTime,
    cluster: SimulatedCluster,
    status: int,
) -> None:
    lines = list(read_lines(sweep.asks_file))
    asked = [line["time"] for line in lines if line["event"] == "ask"]
    states = Counter(str(trial.read_status().state) for trial in sweep.trials())
    # While there are trials to begin, and once there has been a process for each.
    begins, ends = asked[min(options.devices, len(asked) - 1)], asked[-1]
    found, speed = use(record, begins, ends), options.speed
    gone = [line for line in record if line["event"] == "gone" and begins <= line["time"] <= ends]
    untold = sum(cluster.known[line["device"].partition("/")[0]].told is None for line in gone)
    minutes = (ends - begins) * speed / 60
    print(f"exit status {status}, {len(asked)} trials: {dict(states)}")
    print(
        f"{minutes:.0f} simulated minutes in {ends - begins:.0f} s; {found.available / (ends - begins):.1f} devices"
        f" ready in the mean; {len(gone)} ended, {untold} of them without notice"
    )
    print(f"used while trials remained: {found.trained / found.available:.1%} of the time of devices that were ready")
    print(f"                            {found.trained / found.joined:.1%} from when their workers were started")
    for what in ("twice", "rested", "changed", "last"):
        print(f"  {what:8} {getattr(found, what) / found.available:6.2%}")
    used, seconds = clock.between(begins, ends)
    print(f"processors kept busy, over {seconds:.0f} s:")
    for part, share in sorted(used.items(), key=lambda it: -it[1]):
        if share > 0.002:
            print(f"  {part:32} {share:.3f}")
    rungs = sum(line["event"] in ("rung", "tell") and begins <= line["time"] <= ends for line in lines)
    print(f"{rungs / seconds:.1f} rungs and ends a second")
    print(f"{clock.proxies} proxies of {clock.proxy_memory / 2**20:.0f} MiB each")
    print(json.dumps({"used": found.trained / found.available, "driver": used["driver"], "rungs": rungs / seconds}))


if __name__ == "__main__":
    main()
