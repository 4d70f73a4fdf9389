"""A sweep on a running Ray cluster: two nodes, both on this machine, that ask for a token."""

import csv
import time

import pytest

from analysis.folder import SweepFolder
from tests.sweeps.driver.ray_nodes import wait_until


def test_a_sweep_uses_all_nodes_of_a_cluster_and_leaves_it_running(cluster, lorasweep, tiny, tmp_path):
    command = lorasweep(tmp_path, cluster.environment)
    done = command(
        "run", *tiny("llama", "search.trials=6", "sweep.name=two", "resources.threads=1", "tracking=none"),
        "train.max_steps=100", "train.rungs=[100]", f"ray.address={cluster.address}",
    )  # fmt: skip  # they last until the slower node's worker is there, on a busy machine too
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    folder = SweepFolder(tmp_path / "runs" / "two")
    statuses = [trial.read_status() for trial in folder.trials()]
    assert {status.where for status in statuses} == {"alpha: CPU, 1 thread", "beta: CPU, 1 thread"}
    assert {status.state for status in statuses} <= {"completed", "stopped_early"}
    for trial in folder.trials():
        assert trial.read_items("task", "validation", trial.read_metrics()[-1].step)["item_id"]
        assert (trial.adapter_dir / "adapter_config.json").exists()
    with folder.leaderboard_file.open(newline="") as file:
        kinds = [row["kind"] for row in csv.DictReader(file)]
    assert kinds.count("trial") == 6
    assert "baseline" in kinds
    assert command.processes() == []
    wait_until(lambda: cluster.free() == 4, 30)  # Ray takes a moment to see that the driver is gone
    assert cluster.alive() == cluster.running() == ["alpha", "beta"]


@pytest.mark.heavy
def test_the_trials_of_a_node_that_is_lost_go_on_elsewhere(cluster, lorasweep, tiny, tmp_path, reading):
    settings = ("search.trials=4", "resources.threads=1", "resources.slots=1", "tracking=none", "baselines=[]",
                "scheduler=fifo", "sampler=random", "train.max_steps=120", "train.rungs=[4,8,12,60,120]")  # fmt: skip
    command = lorasweep(tmp_path, cluster.environment)
    process = command.start("run", *tiny("llama", *settings, "sweep.name=two"), f"ray.address={cluster.address}")
    folder = SweepFolder(tmp_path / "runs" / "two")
    gives_up = time.monotonic() + 120
    while not (there := [trial for trial in folder.trials() if lives_on(trial, "beta")]):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < gives_up
        time.sleep(0.05)
    cluster.lose("beta")
    out, err = process.communicate(timeout=240)
    assert (process.returncode, err) == (0, ""), out
    assert folder.trial(there[0].trial_id).read_status().where == "alpha: CPU, 1 thread"
    assert {trial.read_status().state for trial in folder.trials()} == {"completed"}
    assert sorted(reading.tells(folder)) == [f"t{n:04}" for n in range(4)]
    wait_until(lambda: cluster.alive() == ["alpha"])  # that its processes are gone is known before

    whole = lorasweep(tmp_path)("run", *tiny("llama", *settings, "sweep.name=whole"))
    assert whole.returncode == 0, whole.stderr
    reading.require_same_curves(folder, SweepFolder(tmp_path / "runs" / "whole"), 1e-4)


def lives_on(trial, node):
    status = trial.read_status() if trial.status_file.exists() else None
    return status and status.state == "running" and status.where.startswith(node) and len(trial.read_metrics()) == 2
