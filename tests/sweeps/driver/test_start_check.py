"""What a device worker finds wrong at its start, and how the driver says it."""

import asyncio
import pickle
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import RayActorError

from analysis.errors import DataError, FolderError, HardwareError, LorasweepError, ModelError
from analysis.objective import Objective
from sweeps.checks.folder_probe import FolderProbe, probing
from sweeps.checks.local_files import local_files
from sweeps.config import RayConfig, SweepConfig
from sweeps.driver import device_worker
from sweeps.driver.device_facts import NodeFaults, StartCheck
from sweeps.driver.device_worker import DeviceWorker
from sweeps.driver.node_faults import no_gpu
from sweeps.driver.start_check import clock_difference, clock_note, could_not_start, start_check, together
from trainer.config import DataConfig, EngineConfig


def worker(gpus: float = 0.0) -> Any:
    return DeviceWorker(EngineConfig(), None, Objective("single", 0.05, ()), 1, "beta", gpus)


def check(probe: FolderProbe, config: SweepConfig | None = None) -> StartCheck:
    return start_check(config or SweepConfig(ray=RayConfig(address="auto")), probe, ["fp32"]).for_worker()


def test_a_node_in_order_has_facts_and_no_faults(tmp_path: Path) -> None:
    with probing(str(tmp_path)) as probe:
        asked = check(probe)
        facts, faults = asyncio.run(worker().examine(asked))
        probe.confirm("beta", asked.answer)
    assert faults == NodeFaults()
    assert (facts.node, facts.device, facts.torch) == ("beta", "CPU, 1 thread", torch.__version__)
    assert type(facts.torch) is str, "it goes into sweep.yaml"
    assert facts.memory > 1e8
    assert list(tmp_path.iterdir()) == [], "no log of a sweep, where none is run"


def test_everything_that_is_wrong_is_in_one_error_that_can_be_sent(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\n")
    config = SweepConfig(ray=RayConfig(address="auto"), data=DataConfig("csv", train=str(tmp_path / "train.csv")))
    with probing(str(tmp_path)) as probe:
        asked = check(probe, config)
    (tmp_path / "train.csv").unlink()  # and the probe's files are gone as well
    other = replace(asked.code, files={**asked.code.files, "sweeps/cli.py": "0"})
    with pytest.raises(HardwareError) as raised:
        asyncio.run(worker().facts(replace(asked, code=other, probe=replace(asked.probe, folder=str(tmp_path / "x")))))
    error = pickle.loads(pickle.dumps(raised.value))
    for words in ("node beta runs other code", "sweeps/cli.py differs", "node beta does not see", "not there on node"):
        assert words in str(error)


def test_a_worker_of_which_no_gpu_is_seen_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with probing(str(tmp_path)) as probe, pytest.raises(HardwareError, match="node beta has a GPU for Ray, and torch"):
        asyncio.run(worker(gpus=0.5).facts(check(probe)))
    assert "CPU build" in no_gpu("beta", "2.13.0+cpu", None)
    assert "TORCH=cuda" in no_gpu("beta", "2.13.0+cpu", None)
    assert "nvidia-smi" in no_gpu("beta", "2.13.0+cu130", "13.0")


def test_a_worker_plans_with_the_share_of_a_gpu_that_it_claims() -> None:
    assert [worker(gpus).materials.gpu_share for gpus in (0.25, 1.0, 0.0)] == [0.25, 1.0, 1.0]


def test_a_broken_torch_names_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: DeviceWorker, precisions: object) -> None:
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(DeviceWorker, "_facts", broken)
    with probing(str(tmp_path)) as probe, pytest.raises(HardwareError, match=r"node beta: torch does not .*libcudart"):
        asyncio.run(worker().facts(check(probe)))


def test_a_disk_that_does_not_answer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_worker, "_DISK_SECONDS", 0.2)
    monkeypatch.setattr(device_worker, "node_faults", lambda node, check: time.sleep(3))
    with probing(str(tmp_path)) as probe, pytest.raises(FolderError, match=r"node beta: reading .* does not end"):
        asyncio.run(worker().facts(check(probe)))


@pytest.mark.parametrize("kind", [DataError, ModelError])
@pytest.mark.parametrize(("address", "said"), [("auto", "node beta: no such file"), (None, "no such file")])
def test_an_error_of_data_or_model_names_the_node_where_there_may_be_several(
    kind: type[LorasweepError], address: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: DeviceWorker, trial: object, timed: bool = False) -> None:
        raise kind("no such file")

    monkeypatch.setattr(DeviceWorker, "_prepare", fails)
    monkeypatch.setattr(DeviceWorker, "_sizes", fails)

    async def run() -> None:
        device = worker()
        await device.facts(check(probe, SweepConfig(ray=RayConfig(address=address))))
        for asked in (device.prepare(None), device.sizes(None, False)):
            with pytest.raises(kind) as raised:
                await asked
            assert str(raised.value) == said

    with probing(str(tmp_path)) as probe:
        asyncio.run(run())


def test_a_file_that_is_gone_names_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeviceWorker, "_prepare", lambda self, trial: Path("/no/such/file").read_text())

    async def run() -> None:
        device = worker()
        await device.facts(check(probe))
        with pytest.raises(DataError, match=r"node beta: /no/such/file: cannot be read \(No such file"):
            await device.prepare(None)

    with probing(str(tmp_path)) as probe:
        asyncio.run(run())


def test_files_are_compared_on_a_cluster_alone(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\n")
    config = SweepConfig(data=DataConfig("csv", train=str(tmp_path / "train.csv")))
    assert len(local_files(config)) == 1
    with probing(str(tmp_path)) as probe:
        local, cluster = check(probe, config), check(probe, replace(config, ray=RayConfig(address="auto")))
    assert (local.files, local.cluster) == ((), False)
    assert (len(cluster.files), cluster.cluster) == (1, True)


class Clock:
    """A worker whose clock is off by some seconds, and whose answer takes some."""

    def __init__(self, off: float, takes: float):
        self.off, self.takes = off, takes

    def now(self) -> Any:
        def get(timeout: float) -> float:
            time.sleep(self.takes / 2)
            there = time.time() + self.off
            time.sleep(self.takes / 2)
            return there

        return SimpleNamespace(get=get)


@pytest.mark.parametrize(("off", "takes"), [(0, 0), (0, 0.4), (90, 0.1), (-90, 0.1)])
def test_a_clock_is_wrong_by_what_the_way_of_question_and_answer_does_not_explain(off: float, takes: float) -> None:
    device: Any = Clock(off, takes)
    found = clock_difference(device)
    assert abs(found - off) <= takes + 0.05
    assert (found == 0) is (off == 0)


def test_a_wrong_clock_is_noted_with_the_node() -> None:
    assert clock_note("beta", 4.0) == clock_note("beta", -4.0) == ""
    assert "node beta: its clock is 90 s ahead of this machine's" in clock_note("beta", 90.2)
    assert "61 s behind" in clock_note("beta", -61.0)


def test_the_errors_of_several_nodes_are_one() -> None:
    errors = [DataError("data on beta"), HardwareError("code on gamma"), DataError("data on beta")]
    assert str(together(errors)) == "data on beta\ncode on gamma"
    assert isinstance(together(errors), HardwareError)


def test_a_worker_that_does_not_start_names_the_node() -> None:
    error = could_not_start("beta", RayActorError(error_msg="died:\nNo module named 'sweeps'"))
    assert isinstance(error, HardwareError)
    assert str(error).startswith("node beta: there is no lorasweep in the Python that its Ray runs in")
    assert "sweeps" in str(error)
    other = str(could_not_start("beta", RayActorError(error_msg="died:\nNo module named 'numpy'")))
    assert other.startswith("node beta: a device worker could not start (No module named 'numpy')")
    local = could_not_start("10.1.2.3", RayActorError(error_msg="out of memory"), cluster=False)
    assert "out of memory" in str(local)
    assert "node" not in str(local), "there is only this one"


def test_a_worker_for_which_there_is_no_memory_says_how_much_there_is() -> None:
    error = RayActorError(error_msg="died: Refer to the documentation on how to address the out of memory issue")
    here = str(could_not_start("10.1.2.3", error, cluster=False, no_memory=True))
    assert here.startswith("memory ran out while a device worker started")
    assert " GB may be used here" in here
    assert "documentation" not in here
    there = str(could_not_start("beta", error, no_memory=True))
    assert there.startswith("node beta: memory ran out while a device worker started")
    assert " GB" not in there, "this machine's memory says nothing about that one's"
