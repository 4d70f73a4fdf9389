"""What is wrong with a node is said when a sweep starts, and by ``lorasweep cluster check``: on real Ray nodes."""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import ray

from analysis.folder import SweepFolder
from sweeps.process.installation import PACKAGES, package_root

OK, DATA, FOLDER, HARDWARE = 0, 3, 5, 7  # exit statuses


def may_mount() -> bool:
    return bool(shutil.which("unshare")) and not subprocess.run(["unshare", "--mount", "true"], check=False).returncode


@pytest.fixture
def bed(start_cluster):
    """A head without CPUs, ``head``; tests let others join."""
    return start_cluster()


def older_version(folder: Path) -> Path:
    """A copy of the packages without the class that a worker is asked by."""
    for name in PACKAGES:
        shutil.copytree(Path(package_root()) / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (folder / "sweeps" / "driver").glob("*.py"):
        file.write_text(file.read_text().replace("StartCheck", "Question"))
    return folder


def nodes(out: str) -> dict[str, dict]:
    return {node["name"]: node for node in json.loads(out)}


@pytest.mark.heavy
@pytest.mark.skipif(not may_mount(), reason="mount namespaces are not permitted here")
def test_what_is_wrong_with_each_node_is_told_by_name_and_nothing_is_left(bed, lorasweep, tiny, tmp_path):
    code, runs, data = bed.scratch / "trainer", tmp_path / "runs", tmp_path / "data"
    shutil.copytree(Path(package_root()) / "trainer", code)
    with (code / "engine.py").open("a") as file:
        file.write("# another line\n")
    overrides = tiny("llama", "search.trials=1", "tracking=none", "baselines=[]", "resources.threads=1", "sweep.name=n")
    for folder in (runs, data, tmp_path / "other"):
        folder.mkdir()
    for index, word in enumerate(overrides):
        if word.startswith("data.train="):
            train = data / "train.csv"
            shutil.copy(word.removeprefix("data.train="), train)
            overrides[index] = f"data.train={train}"
    changed = bed.scratch / "changed.csv"
    changed.write_bytes(train.read_bytes().replace(b"the", b"one", 1))
    assert changed.read_bytes() != train.read_bytes()

    bed.join("good")
    bed.join("code", mounts=f"mount --bind {code} {package_root()}/trainer")
    bed.join("readonly", mounts=f"mount --bind {runs} {runs}; mount -o remount,ro,bind {runs}")
    bed.join("elsewhere", mounts=f"mount --bind {tmp_path / 'other'} {runs}")
    bed.join("absent", mounts=f"mount -t tmpfs none {tmp_path}")
    bed.join("data", mounts=f"mount --bind {changed} {train}")
    bed.join("older", environment={"PYTHONPATH": str(older_version(bed.scratch / "older"))})

    command = lorasweep(tmp_path, bed.environment)
    done = command("cluster", "check", bed.address, *overrides, "--json")
    assert done.returncode == HARDWARE, done.stderr
    found = nodes(done.stdout)
    wrong = {name: " ".join(node["said"]) for name, node in found.items()}
    assert {name: node["state"] for name, node in found.items()} == {
        "head": "unused", "good": "ok", "code": "wrong", "readonly": "wrong", "elsewhere": "wrong", "absent": "wrong",
        "data": "wrong", "older": "wrong",
    }  # fmt: skip
    assert "node code runs other code than this machine: trainer/engine.py differs" in wrong["code"]
    assert "node readonly cannot write to" in wrong["readonly"]
    assert "node elsewhere has another folder at" in wrong["elsewhere"]
    assert f"node absent does not see {runs}" in wrong["absent"]
    assert f"data.train={train}: not there on node absent" in wrong["absent"]
    assert f"data.train={train}: node data has another content there" in wrong["data"]
    assert "node older: a device worker could not start" in wrong["older"]
    assert "this version of lorasweep" in wrong["older"]
    assert "no CPUs" in wrong["head"]
    assert list(runs.iterdir()) == []

    done = command("run", *overrides, f"ray.address={bed.address}")
    assert done.returncode == HARDWARE, done.stdout + done.stderr
    for name in ("code", "readonly", "elsewhere", "absent", "data"):
        assert f"node {name} " in done.stderr
    assert "node older: a device worker could not start" in done.stderr
    assert "node good" not in done.stderr
    assert list(runs.iterdir()) == []
    assert command.processes() == []


@pytest.mark.heavy
def test_the_same_code_at_another_place_is_as_good(bed, lorasweep, tiny, tmp_path):
    copy = bed.scratch / "copy"
    for name in PACKAGES:
        shutil.copytree(Path(package_root()) / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    bed.join("beta", environment={"PYTHONPATH": str(copy)})
    command = lorasweep(tmp_path, bed.environment)
    checked = command("cluster", "check", bed.address)
    assert checked.returncode == OK, checked.stdout + checked.stderr
    assert "1 of 2 nodes can run a sweep now" in checked.stdout
    assert list(tmp_path.iterdir()) == []
    overrides = ("search.trials=1", "tracking=none", "baselines=[]", "resources.threads=1", "sweep.name=n")
    done = command("run", *tiny("llama", *overrides), f"ray.address={bed.address}")
    assert (done.returncode, done.stderr) == (OK, ""), done.stdout + done.stderr
    folder = SweepFolder(tmp_path / "runs" / "n")
    assert folder.trial("t0000").read_status().where == "beta: CPU, 1 thread"
    assert list(folder.root.glob(".probe-*")) == []


def test_a_node_or_image_without_lorasweep_is_told_in_a_sentence(bed, lorasweep, tiny, tmp_path):
    venv.create(bed.scratch / "bare")  # the libraries alone: an editable installation is found through a .pth file
    site = str(Path(ray.__file__).parents[1])
    bed.join("bare", python=str(bed.scratch / "bare" / "bin" / "python"), environment={"PYTHONPATH": site})
    command = lorasweep(tmp_path, bed.environment)
    done = command("run", *tiny("llama", "tracking=none", "sweep.name=n"), f"ray.address={bed.address}")
    assert done.returncode == HARDWARE, done.stdout + done.stderr
    assert done.stderr.startswith("lorasweep: node bare: there is no lorasweep in the Python that its Ray runs in (")
    assert "an image made from cluster/Dockerfile" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


ASK = """
import json, os, ray, sys, time
from analysis.objective import Objective
from sweeps.config import EngineConfig, RayConfig, ResourcesConfig, SweepConfig
from sweeps.driver.cluster_nodes import Cluster, gpu_share, seats
from sweeps.driver.ray_cluster import ray_running
from sweeps.driver.trial_proxy import TrialProxy

class Proxy(TrialProxy):
    def setup(self, config): pass

    def shown(self): return os.environ.get("CUDA_VISIBLE_DEVICES")

def shown(actor):
    return ray.get(actor.__ray_call__.remote(lambda self: os.environ.get("CUDA_VISIBLE_DEVICES")))

def of_ranks(worker):  # the processes that a worker starts for one trial, by what the system says of them
    call = lambda work: ray.get(worker.__ray_call__.remote(work))
    call(lambda self: self._commands.put(self._start_group))
    while len(processes := call(lambda self: dict(self._fit.processes) if self._fit else {})) < 2:
        time.sleep(0.2)
    found = [open(f"/proc/{pid}/environ").read() for pid in processes.values()]
    call(lambda self: self._commands.put(self._end_group))
    return [dict(it.partition("=")[::2] for it in one.split("\\0")).get("CUDA_VISIBLE_DEVICES") for one in found]

found = {}
cases = {"none": (0.0, None), "half": (0.5, None), "ranks": (0.0, 2)}
for name in sys.argv[2:]:
    share, processes = cases[name]
    resources = ResourcesConfig(gpus_per_trial=share, workers_per_trial=processes)
    engine = EngineConfig(name="hf" if processes else "packed")
    config = SweepConfig(ray=RayConfig(address=sys.argv[1]), resources=resources, engine=engine)
    with ray_running(config):
        cluster = Cluster(config, Objective("single", 0.05, ()))
        nodes = cluster.nodes()
        claimed = [seat for node in nodes for seat in seats(node, gpu_share(nodes, config), config)]
        devices = [cluster.start(seat).actor for seat in claimed]
        found[name] = [shown(it) for it in devices]
        if processes:
            found[name] += of_ranks(devices[0])
        if name == "none":
            found["dispatcher"] = shown(cluster.dispatcher().actor)
            found["proxy"] = ray.get(ray.remote(num_cpus=0)(Proxy).remote().shown.remote())
print(json.dumps(found))
"""


def shown(bed, *cases: str) -> dict:
    """Case → the CUDA_VISIBLE_DEVICES of its device workers, or ranks; and of what else the driver starts."""
    asked = subprocess.run(
        [sys.executable, "-c", ASK, bed.address, *cases], env={**os.environ, **bed.environment}, capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    return json.loads(asked.stdout.splitlines()[-1])


def test_a_gpu_that_torch_does_not_see_is_refused_and_one_that_is_not_wanted_is_hidden(bed, lorasweep, tiny, tmp_path):
    of_the_node = {"CUDA_VISIBLE_DEVICES": "0", "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}
    bed.join("graphics", gpus=1, environment=of_the_node)
    command = lorasweep(tmp_path, bed.environment)
    overrides = tiny("llama", "search.trials=1", "tracking=none", "baselines=[]", "sweep.name=n")
    done = command("run", *overrides, f"ray.address={bed.address}")
    assert done.returncode == HARDWARE, done.stdout + done.stderr
    assert "node graphics has a GPU for Ray, and torch" in done.stderr
    assert "TORCH=cuda" in done.stderr or "nvidia-smi" in done.stderr
    assert not (tmp_path / "runs").exists()
    checked = nodes(command("cluster", "check", bed.address, "--json").stdout)
    assert checked["graphics"]["state"] == "wrong"
    assert "has a GPU for Ray" in checked["graphics"]["faults"]["device"]

    assert shown(bed, "none", "half") == {"none": [""], "half": ["0", "0"], "dispatcher": "", "proxy": ""}


@pytest.mark.heavy
def test_processes_that_train_a_trial_together_on_cpus_see_no_gpu(bed):
    bed.join("graphics", gpus=1, environment={"CUDA_VISIBLE_DEVICES": "0"})
    assert shown(bed, "ranks") == {"ranks": ["", "", ""]}


def test_a_node_that_others_use_is_told_as_busy(bed, lorasweep, tmp_path):
    bed.join("beta")
    script = (
        "import ray, sys, time; ray.init(address=sys.argv[1], log_to_driver=False)\n"
        "hold = ray.remote(lambda: time.sleep(600)).options(num_cpus=2).remote(); time.sleep(3)\n"
        "print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, bed.address], env={**os.environ, **bed.environment}, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        while b"held" not in holder.stdout.readline():
            assert holder.poll() is None
        done = lorasweep(tmp_path, bed.environment)("cluster", "check", bed.address)
    finally:
        holder.kill()
        holder.communicate()
    assert done.returncode == HARDWARE, done.stdout + done.stderr
    assert "node beta is busy" in done.stdout
    assert "waiting for beta" in done.stderr
    assert "0 of 2 nodes" in done.stdout
