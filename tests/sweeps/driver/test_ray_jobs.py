"""`ray job submit -- lorasweep run …`: the sweep joins the job's cluster, and the job ends and speaks as the sweep."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from analysis.errors import ClusterError, FolderError
from analysis.folder import SweepFolder
from sweeps.config import RayConfig, SweepConfig
from sweeps.driver.ray_cluster import check_kept, cluster_address, ignored_address
from tests.sweeps.driver.ray_nodes import RayCluster, ray_cluster, wait_until

JOB = {"runtime_env": {"env_vars": {"A": "b"}}, "metadata": {"job_submission_id": "raysubmit_1"}}


# --- what is a job, and what is not


def config(address: str | None = None) -> SweepConfig:
    return SweepConfig(ray=RayConfig(address=address))


@pytest.mark.parametrize(
    ("told", "address", "joined"),
    [
        (None, None, None),
        (json.dumps(JOB), None, "10.0.0.1:6379"),
        (json.dumps(JOB), "auto", "auto"),
        ("{}", None, None),
        ("nonsense", None, None),
        ('{"metadata": {}}', None, None),
    ],
    ids=["no job", "job", "job, and an address", "nothing told", "no JSON", "not submitted"],
)
def test_only_what_ray_itself_tells_a_jobs_command_makes_a_sweep_join(
    told: str | None, address: str | None, joined: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    if told is not None:
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", told)
    assert cluster_address(config(address)) == joined
    assert ("RAY_ADDRESS=10.0.0.1:6379 is not followed" in ignored_address(config(address))) == (joined is None)


def test_an_address_in_the_environment_is_only_told_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert ignored_address(config()) == ""


def test_a_sweep_folder_that_ray_would_delete_after_the_job_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1" / "runs" / "x"
    check_kept(scratch)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(JOB))
    check_kept(tmp_path / "runs" / "x")
    with pytest.raises(FolderError, match=r"Ray deletes after it.*sweep\.dir=/"):
        check_kept(scratch)


# --- real jobs on two nodes that ask for a token


@dataclass(frozen=True)
class JobCluster:
    """Nodes ``alpha``, the head, and ``beta``, which ask for a token; jobs are submitted at its dashboard."""

    nodes: RayCluster

    def job(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [str(Path(sys.executable).with_name("ray")), "job", *arguments]
        there = {**os.environ, **self.nodes.environment, "RAY_ADDRESS": self.nodes.dashboard}
        return subprocess.run(command, env=there, capture_output=True, text=True, timeout=1200, check=False)

    def submit(self, name: str, arguments: list[str], *options: str) -> "subprocess.CompletedProcess[str]":
        """``ray job submit``, which waits for the job's end unless ``options`` say otherwise."""
        return self.job(
            "submit", f"--submission-id={name}", *options, "--", sys.executable, "-m", "sweeps.cli", *arguments
        )


@pytest.fixture(scope="module")
def jobs() -> Iterator[JobCluster]:
    with ray_cluster(cpus=2, head="alpha", dashboard=True, system_config={}) as nodes:
        nodes.join("beta")
        yield JobCluster(nodes)


def settings(folder: Path, name: str, *more: str) -> list[str]:
    return [f"sweep.dir={folder}", f"sweep.name={name}", "search.trials=2", "resources.threads=1", "tracking=none",
            "baselines=[]", "resources.slots=1", *more]  # fmt: skip


@pytest.mark.heavy
def test_a_job_is_a_sweep_on_all_of_its_cluster_with_the_jobs_own_environment(
    jobs: JobCluster, tiny: Any, tmp_path: Path
) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "notes.txt").write_text("what somebody works on")
    own = {"working_dir": str(tmp_path / "code"), "env_vars": {"TOKENIZERS_PARALLELISM": "true", "OF_THE_JOB": "1"}}
    long = ("train.max_steps=400", "train.rungs=[2,400]")  # else the first trial may end before the second asks
    arguments = ["run", *tiny("bert", "task=classification", *long), *settings(tmp_path, "ours", "scheduler=fifo")]
    done = jobs.submit("ours", arguments, f"--runtime-env-json={json.dumps(own)}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'ours' succeeded" in done.stdout
    folder = SweepFolder(tmp_path / "ours")
    assert {trial.read_status().state for trial in folder.trials()} == {"completed"}
    assert {trial.read_status().where for trial in folder.trials()} == {"alpha: CPU, 1 thread", "beta: CPU, 1 thread"}

    log = jobs.job("logs", "ours").stdout
    assert "t0000  started" in log
    assert "Next:" in log
    assert "\x1b[" not in log.split("Running entrypoint")[1].rsplit("Next:", 1)[0], "plain lines"
    assert "is not followed" not in log

    resumed = jobs.submit("resumed", ["resume", str(folder.root), "search.trials=3"])
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert [trial.read_status().state for trial in folder.trials()] == ["completed"] * 3
    assert folder.trial("t0002").read_status().where.startswith(("alpha", "beta"))


def test_a_job_whose_sweep_fails_has_failed_with_its_sentence(jobs: JobCluster, tiny: Any, tmp_path: Path) -> None:
    wanted = ("resources.gpus_per_trial=1", "resources.wait=5s")
    done = jobs.submit("fails", ["run", *tiny("llama"), *settings(tmp_path, "fails", *wanted)])
    assert done.returncode != 0
    assert "'fails' failed" in done.stdout + done.stderr
    log = jobs.job("logs", "fails").stdout
    assert "Waiting for a device: none of the cluster's 2 nodes can take one. Demand for a node with 1 GPU" in log
    assert "resources.wait=5s is over" in log
    assert not (tmp_path / "fails").exists()


@pytest.mark.heavy
@pytest.mark.timeout(1500)
def test_the_quickstarts_classifier_as_a_job_ends_in_a_model_that_has_learnt_it(
    jobs: JobCluster, tmp_path: Path
) -> None:
    done = jobs.submit("quickstart", ["run", "experiment=quickstart_classifier", f"sweep.dir={tmp_path}"])
    assert done.returncode == 0, done.stdout + done.stderr
    folder = SweepFolder(tmp_path / "quickstart_classifier")
    assert {trial.read_status().where.split(":")[0] for trial in folder.trials()} == {"alpha", "beta"}
    best = next(row for row in csv.DictReader(folder.leaderboard_file.open()) if row["kind"] == "trial")
    assert (best["status"], best["n_items"]) == ("completed", "160")
    assert float(best["accuracy"]) >= 0.85
    assert best["trial_id"] in jobs.job("logs", "quickstart").stdout.rsplit("Next:", 1)[0]


@pytest.mark.heavy
def test_a_job_that_is_stopped_leaves_a_sweep_that_can_be_gone_on_with(
    jobs: JobCluster, tiny: Any, lorasweep: Any, tmp_path: Path
) -> None:
    patient = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}  # 3 s, by default: then it is killed
    arguments = ["run", *tiny("llama", "train.max_steps=4000", "train.rungs=[2,4000]"), *settings(tmp_path, "stopped")]
    jobs.submit("stopped", arguments, "--no-wait", f"--runtime-env-json={json.dumps(patient)}")
    folder = SweepFolder(tmp_path / "stopped")
    wait_until(lambda: any(trial.read_metrics() for trial in folder.trials()), 120)
    jobs.job("stop", "stopped")
    wait_until(lambda: "was stopped" in jobs.job("status", "stopped").stdout, 60)
    assert "Everything scored so far is kept" in jobs.job("logs", "stopped").stdout
    assert json.loads((folder.control_dir / "driver.json").read_text())["ended"].startswith("Stopping")
    assert {trial.read_status().state for trial in folder.trials()} == {"running"}


@pytest.mark.parametrize("token", [None, "another-token-0123456789abcdef0123456789"], ids=["no token", "wrong token"])
def test_a_driver_without_the_clusters_token_is_told_what_it_needs(
    token: str | None, jobs: JobCluster, tiny: Any, lorasweep: Any, tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    environment = {"HOME": str(tmp_path / "home"), "RAY_AUTH_MODE": "token"} | (
        {"RAY_AUTH_TOKEN": token} if token else {}
    )
    done = lorasweep(tmp_path, environment)(
        "run", *tiny("llama"), *settings(tmp_path, "refused"), f"ray.address={jobs.nodes.address}"
    )
    assert done.returncode == 7, done.stderr
    assert done.stderr.startswith("lorasweep: ray.address=127.0.0.1:")
    assert "needs RAY_AUTH_MODE=token and its token here too" in done.stderr
    assert "\n" not in done.stderr.strip()


@pytest.mark.parametrize(
    "mode", [pytest.param("token", marks=pytest.mark.heavy), None], ids=["asked for", "Ray's default"]
)
def test_a_ray_of_our_own_needs_no_token_file_and_writes_none(
    mode: str | None, tiny: Any, lorasweep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    environment = {"HOME": str(home), "HF_HOME": str(tmp_path / "hf")} | ({"RAY_AUTH_MODE": mode} if mode else {})
    done = lorasweep(tmp_path, environment)("run", *tiny("llama", "search.trials=1"), *settings(tmp_path, "own"))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert not (home / ".ray").exists()


@pytest.mark.heavy
def test_the_head_of_a_cluster_dies_under_a_sweep(jobs: JobCluster, tiny: Any, lorasweep: Any, tmp_path: Path) -> None:
    """The last one: it costs the cluster. The driver stands on the other node, whose raylet lives on."""
    arguments = tiny("llama", "train.max_steps=4000", "train.rungs=[2,4000]")
    sweep = lorasweep(tmp_path, jobs.nodes.environment)
    process = sweep.start("run", *arguments, *settings(tmp_path, "dies"), f"ray.address={jobs.nodes.address}")
    folder = SweepFolder(tmp_path / "dies")
    wait_until(lambda: any(trial.read_metrics() for trial in folder.trials()) or process.poll() is not None, 120)
    (head,) = [it for it in psutil.Process(jobs.nodes.process("alpha").pid).children() if it.name() == "gcs_server"]
    head.kill()
    began = time.monotonic()
    _, err = process.communicate(timeout=120)
    assert process.returncode == ClusterError.exit_code, err
    assert time.monotonic() - began < 20
    assert err.startswith("lorasweep: Ray died: no answer from its control store"), err
    assert err.count("\n") == 1, err
    wait_until(lambda: sweep.processes() == [], 20)

    local = sweep.start("resume", str(folder.root), "ray.address=null")
    for line in local.stdout:
        if "started" in line:
            break
    local.send_signal(signal.SIGINT)
    assert local.wait(120) == 130
