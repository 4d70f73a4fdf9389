"""SIGTERM to a device worker's process, and to the dispatcher's, on a real Ray."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.exceptions import ActorDiedError, GetTimeoutError

from analysis.folder import MetricsRow, TrialFolder
from analysis.objective import Objective, Term
from sweeps.config import SweepConfig
from sweeps.driver.cluster_nodes import Cluster
from sweeps.driver.device_client import Device, DeviceClient, Reply
from sweeps.process.installation import package_root
from tests.benchmarks.simulated import SimulatedEngine, SimulatedWorker
from trainer.config import EngineConfig, LoraSettings, OptimConfig, TrainConfig, TrialConfig
from trainer.engine import Admitted, Full, Requeued, RungResult

LEFT = "its device worker on alpha left"
OBJECTIVE = Objective("single", 0.05, (Term("quality", "accuracy", "max", None, 0.0, 1.0, 1.0),))


class Worker(SimulatedWorker):
    """Of a rung of a thousand steps a trial makes some hundred a second."""

    seconds = 10.0


class SlowDisk(SimulatedEngine):
    def snapshot(self, trial_id: str, to: Path) -> Callable[[], None]:
        write = super().snapshot(trial_id, to)

        def slowly() -> None:
            time.sleep(2)
            write()

        return slowly


class SlowWorker(Worker):
    def _make_engine(self) -> Any:
        return SlowDisk(4, self.objective.score, self.seconds, self.node)


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    env = {"PYTHONPATH": str(Path(__file__).parents[3])}
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False,
        runtime_env={"env_vars": env},
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture(params=[Worker])
def device(_ray: None, request: pytest.FixtureRequest) -> Iterator[DeviceClient]:
    make = ray.remote(request.param).options(num_cpus=0.5, max_concurrency=64)
    client = DeviceClient(make.remote(EngineConfig(), 4, OBJECTIVE, 1, "alpha", package_root()))
    yield client
    client.kill()


def trial(trial_id: str, rungs: list[int]) -> TrialConfig:
    return TrialConfig(
        trial_id=trial_id, lora=LoraSettings(), optim=OptimConfig(), train=TrainConfig(max_steps=rungs[-1], rungs=rungs)
    )


def send(number: int, actor: Any) -> psutil.Process:
    process = psutil.Process(ray.get(actor.__ray_call__.remote(lambda self: os.getpid())))
    process.send_signal(number)
    return process


def terminate(device: DeviceClient) -> psutil.Process:
    return send(signal.SIGTERM, device.actor)


def test_on_sigterm_a_worker_gives_its_trials_back_before_it_ends(device: DeviceClient, tmp_path: Path) -> None:
    folders = [TrialFolder(tmp_path / "trials" / name) for name in ("t0000", "t0001", "t0002")]
    short, long = trial("t0000", [1, 1000]), trial("t0001", [1000])
    assert device.admit(short, folders[0]).get() == Admitted(0)
    rung: Any = device.next_event("t0000", proceed=False).get(60)
    assert isinstance(rung, RungResult)
    folders[0].append_metrics(rung.row)
    assert device.admit(long, folders[1]).get() == Admitted(0)
    waiting = device.next_event("t0001", proceed=False)
    time.sleep(0.5)  # it trains
    process = terminate(device)

    assert waiting.get(20) == Requeued("t0001", LEFT)
    assert device.admit(trial("t0002", [4]), folders[2]).get(10) == Full()
    time.sleep(1)  # it waits for a decision
    assert device.next_event("t0000", proceed=True).get(10) == Requeued("t0000", LEFT), "it rested"
    assert psutil.wait_procs([process], timeout=20)[1] == [], "the process ends by itself"
    with pytest.raises(ActorDiedError, match="SIGTERM"):
        device.next_event("t0000", proceed=True).get(20)
    assert folders[0].checkpoints() == [1]
    [step] = folders[1].checkpoints()
    assert 1 < step < 1000


@pytest.mark.parametrize("device", [SlowWorker], indirect=True)
def test_on_sigterm_a_checkpoint_that_is_being_written_is_completed_and_told(
    device: DeviceClient, tmp_path: Path
) -> None:
    folders = [TrialFolder(tmp_path / "trials" / name) for name in ("t0000", "t0001")]
    device.admit(trial("t0000", [1, 1000]), folders[0]).get()
    device.admit(trial("t0001", [1000]), folders[1]).get()
    waiting = [device.next_event(name, proceed=False) for name in ("t0000", "t0001")]
    time.sleep(1)  # the first one's rung is being written, the second one trains
    assert folders[0].checkpoints() == []
    process = terminate(device)
    rung: Any = waiting[0].get(20)
    assert (rung.row.step, folders[0].checkpoints()) == (1, [1])
    assert device.next_event("t0000", proceed=True).get(10) == Requeued("t0000", LEFT)
    assert waiting[1].get(20) == Requeued("t0001", LEFT)
    assert len(folders[1].checkpoints()) == 1
    assert psutil.wait_procs([process], timeout=20)[1] == []


def test_a_worker_that_nobody_has_asked_for_anything_ends_at_once(device: DeviceClient) -> None:
    process = terminate(device)
    assert psutil.wait_procs([process], timeout=15)[1] == []


def test_a_proxy_that_does_not_ask_is_not_waited_for_for_ever(device: DeviceClient, tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path / "trials" / "t0000")
    device.admit(trial("t0000", [1, 1000]), folder).get()
    rung: Any = device.next_event("t0000", proceed=False).get(60)
    folder.append_metrics(MetricsRow("t0000", rung.row.step, 0, 0.0, False, 1, {}))
    process = terminate(device)
    assert psutil.wait_procs([process], timeout=20)[1] == []


def test_it_can_be_asked_to_leave_and_lives_on(device: DeviceClient, tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path / "trials" / "t0000")
    device.admit(trial("t0000", [1000]), folder).get()
    waiting = device.next_event("t0000", proceed=False)
    with pytest.raises(GetTimeoutError):
        waiting.get(0.5)
    assert device.leave(10.0).get(15) == ["t0000"]
    assert waiting.get(10) == Requeued("t0000", LEFT)
    assert device.admit(trial("t0001", [4]), folder).get(10) == Full()


@pytest.mark.usefixtures("_ray")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_trials_that_wait_for_a_device_get_one_where_the_dispatcher_is_ended(number: int) -> None:
    dispatcher = Cluster(SweepConfig(), OBJECTIVE).dispatcher()
    try:
        dispatcher.update([], {}, None).get(60)
        waiting: Reply[DeviceClient] = Reply(dispatcher.actor.acquire.remote("t0000", "fp32"))
        judged: Reply[list[str]] = Reply(dispatcher.actor.died_by_themselves.remote(["gone"]))
        with pytest.raises(GetTimeoutError):
            waiting.get(0.5)
        send(number, dispatcher.actor)
        time.sleep(1)  # Ray's own handler has begun
        devices = [Device(DeviceClient(None, "alpha", "alpha 1"), 1)]
        assert dispatcher.update(devices, {"gone": True}, None).get(30) is not None
        assert (waiting.get(30).name, judged.get(30)) == ("alpha 1", ["gone"])
    finally:
        dispatcher.kill()
