"""The RayJob's own command, settings and variables on Ray nodes of this machine, with files mounted as in its pods.

Only the text of its ConfigMap is changed, to a tiny model on CPUs. What takes minutes is marked heavy:

    pytest -m heavy tests/cluster/test_kuberay_run.py
"""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from analysis.folder import SweepFolder
from sweeps.compose import conf_tree
from tests.cluster.kubernetes_schemas import cluster_spec, document, groups
from tests.cluster.test_kuberay import sweep_of_the_configmap
from tests.sweeps.driver.ray_nodes import RayCluster, ray_cluster, wait_until


def may_mount() -> bool:
    return bool(shutil.which("unshare")) and not subprocess.run(["unshare", "--mount", "true"], check=False).returncode


pytestmark = [
    pytest.mark.skipif(not may_mount(), reason="mount namespaces are not permitted here"),
    pytest.mark.timeout(900),
]
JOB = document("rayjob.yaml", "RayJob")


class Pods:
    """The RayJob's cluster, as often as one is started: the volumes outlive it.

    Args:
        root: of the volumes.
        settings: overrides that make the ConfigMap's sweep a tiny one.
    """

    def __init__(self, root: Path, settings: list[str]):
        self.volumes = {
            "shared": root / "shared",
            "sweep": sweep_of_the_configmap(root / "sweep", tiny_sweep(settings)),
        }
        self.volumes["shared"].mkdir()
        self._jobs = 0
        named = yaml.safe_load(document("rayjob.yaml", "ConfigMap")["data"]["sweep.yaml"])["sweep"]
        of_pod = next(it for it in self._container(0)["volumeMounts"] if it["name"] == "shared")["mountPath"]
        self.folder = SweepFolder(self.volumes["shared"] / Path(named["dir"]).relative_to(of_pod) / named["name"])

    @staticmethod
    def _container(group: int) -> dict[str, Any]:
        container: dict[str, Any] = list(groups(JOB).values())[group]["template"]["spec"]["containers"][0]
        return container

    def _variables(self, group: int) -> dict[str, str]:
        binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # the image's PATH
        return {it["name"]: it["value"] for it in self._container(group)["env"]} | {"PATH": binaries}

    def _mounts(self, group: int) -> str:
        lines = ["mount -t tmpfs none /mnt"]
        for it in self._container(group)["volumeMounts"]:
            lines += [f"mkdir -p {it['mountPath']}", f"mount --bind {self.volumes[it['name']]} {it['mountPath']}"]
        return "; ".join(lines)

    def cluster(self) -> Any:
        """A head as the manifest has it; workers come by ``join``, as pods by the autoscaler."""
        head = cluster_spec(JOB)["headGroupSpec"]["rayStartParams"]
        return ray_cluster(
            cpus=float(head["num-cpus"]), dashboard=True, more=self._variables(0), mounts=self._mounts(0)
        )

    def join(self, nodes: RayCluster, *names: str) -> None:
        nodes.join(*names, cpus=1, environment=self._variables(1), mounts=self._mounts(1))

    def submit(self, nodes: RayCluster) -> "subprocess.Popen[str]":
        """As KubeRay's submitter in K8sJobMode does it: ``BuildJobSubmitCommand`` in its ``common/job.go``."""
        assert JOB["spec"]["submissionMode"] == "K8sJobMode"
        self._jobs += 1
        environment = json.dumps(yaml.safe_load(JOB["spec"]["runtimeEnvYAML"])).replace('"', r"\"")
        ray, at = str(Path(sys.executable).with_name("ray")), f"--address {nodes.dashboard}"
        line = (
            f'{ray} job submit {at} --no-wait --runtime-env-json "{environment}" --submission-id job-{self._jobs}'
            f" -- {JOB['spec']['entrypoint'].strip()} ; {ray} job logs {at} --follow job-{self._jobs}"
        )
        there = {**os.environ, **nodes.environment}
        return subprocess.Popen(
            ["/bin/bash", "-c", "--", line], env=there, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def status(self, nodes: RayCluster) -> str:
        command = [Path(sys.executable).with_name("ray"), "job", "status", "--address", nodes.dashboard]
        there = {**os.environ, **nodes.environment}
        return subprocess.run(
            [*command, f"job-{self._jobs}"], env=there, capture_output=True, text=True, check=False
        ).stdout


def tiny_sweep(settings: list[str]) -> str:
    """The ConfigMap's own sweep with other settings: groups are chosen in its defaults list, the rest below it."""
    sweep = yaml.safe_load(document("rayjob.yaml", "ConfigMap")["data"]["sweep.yaml"])
    given = dict(it.split("=", 1) for it in settings)
    chosen = {key: value for key, value in given.items() if key in conf_tree.groups()}
    chosen = {next(iter(it)).split("/")[1]: next(iter(it.values())) for it in sweep["defaults"][:-1]} | chosen
    sweep["defaults"] = [*({f"override /{group}": option} for group, option in chosen.items()), "_self_"]
    del sweep["task"]
    for key, value in ((key, value) for key, value in given.items() if key not in chosen):
        *way, last = key.split(".")
        part = sweep
        for word in way:
            part = part.setdefault(word, {})
        part[last] = yaml.safe_load(value)
    return f"# @package _global_\n{yaml.safe_dump(sweep)}"


SETTINGS = ("search.trials=4", "resources.gpus_per_trial=0", "resources.threads=1", "resources.slots=1",
            "tracking=none", "sampler=random", "scheduler=fifo", "task=auto")  # fmt: skip


def rows(folder: SweepFolder) -> list[dict[str, str]]:
    with folder.leaderboard_file.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["kind"] == "trial"]


@pytest.mark.heavy
def test_the_jobs_command_ends_in_a_leaderboard(tiny: Any, tmp_path: Path) -> None:
    pods = Pods(tmp_path, tiny("llama", *SETTINGS, "search.trials=2", "baselines=[]"))
    with pods.cluster() as nodes:
        submitted = pods.submit(nodes)
        pods.join(nodes, "gpu-spot-1")
        log, _ = submitted.communicate(timeout=240)
        assert "succeeded" in pods.status(nodes), log
    assert [row["status"] for row in rows(pods.folder)] == ["completed"] * 2
    where = {trial.read_status().where.split(":")[0] for trial in pods.folder.trials()}
    assert where == {"gpu-spot-1"}, "the head trains nothing"
    assert "Next:" in log


def test_the_signal_that_ends_a_pod_reaches_ray() -> None:
    """KubeRay starts a pod so: bash must not stand between Kubernetes and ``ray start --block``."""
    process = subprocess.Popen(["/bin/bash", "-c", "--", "ulimit -n ${RAY_START_ULIMIT_OPEN_FILES:-512}; sleep 60"])
    try:
        wait_until(lambda: psutil.Process(process.pid).name() == "sleep", 10)
    finally:
        process.kill()
        process.wait()


@pytest.mark.heavy
def test_a_job_whose_cluster_is_lost_goes_on_when_it_is_tried_again(
    tiny: Any, lorasweep: Any, reading: Any, tmp_path: Path
) -> None:
    settings = tiny("llama", *SETTINGS, "train.max_steps=120", "train.rungs=[4,8,12,60,120]")
    pods = Pods(tmp_path, settings)
    with pods.cluster() as nodes:
        submitted = pods.submit(nodes)
        wait_until(lambda: "pending placement groups" in nodes.status(), 90)
        assert "gpu-spot-1" not in nodes.alive()
        pods.join(nodes, "gpu-spot-1", "gpu-on-demand-1")
        wait_until(lambda: sum(len(trial.read_metrics()) for trial in pods.folder.trials()) >= 3, 180)
    submitted.communicate(timeout=60)
    assert {trial.read_status().state for trial in pods.folder.trials()} & {"running"}

    with pods.cluster() as nodes:
        pods.join(nodes, "gpu-spot-2")
        log, _ = pods.submit(nodes).communicate(timeout=300)
        assert "succeeded" in pods.status(nodes), log
        asked = pods.folder.asks_file.read_text()
        log, _ = pods.submit(nodes).communicate(timeout=240)  # one try too many
        assert "succeeded" in pods.status(nodes), log
        assert pods.folder.asks_file.read_text() == asked
    assert [row["status"] for row in rows(pods.folder)] == ["completed"] * 4
    whole = lorasweep(tmp_path)("run", *settings, "sweep.name=whole")
    assert whole.returncode == 0, whole.stderr
    reading.require_same_curves(pods.folder, SweepFolder(tmp_path / "runs" / "whole"), 1e-4)


@pytest.mark.heavy
def test_a_pod_that_is_told_to_go_leaves_in_time_and_no_step_is_trained_twice(tiny: Any, tmp_path: Path) -> None:
    pods = Pods(tmp_path, tiny("llama", *SETTINGS, "train.max_steps=4000", "train.rungs=[4,4000]", "search.trials=1"))
    grace = cluster_spec(JOB)["workerGroupSpecs"][0]["template"]["spec"]["terminationGracePeriodSeconds"]
    with pods.cluster() as nodes:
        submitted = pods.submit(nodes)
        pods.join(nodes, "gpu-spot-1")
        wait_until(lambda: any(trial.read_metrics() for trial in pods.folder.trials()), 180)
        nodes.process("gpu-spot-1").send_signal(signal.SIGTERM)
        nodes.process("gpu-spot-1").wait(grace)
        (trial,) = pods.folder.trials()
        kept = sorted(int(it.name.rpartition("-")[2]) for it in trial.checkpoints_dir.iterdir())
        assert kept[-1] > 4, "a checkpoint between two rungs"
        pods.join(nodes, "gpu-spot-2")
        log, _ = submitted.communicate(timeout=400)
        assert "succeeded" in pods.status(nodes), log
        assert "its node is about to go" in log
        assert trial.read_status().where.startswith("gpu-spot-2")
