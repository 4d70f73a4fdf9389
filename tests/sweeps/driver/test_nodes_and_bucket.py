"""Nodes that share nothing but a bucket: each has a staging folder and keys of its own, and the driver trains nothing.

``pytest -m heavy tests/sweeps/driver/test_nodes_and_bucket.py`` adds the node that is lost.
"""

import time

import pytest

from analysis.buckets.bucket import Bucket
from analysis.folder import SweepFolder, fetch_folder
from tests.bucket_server import BUCKET, BucketServer

URI = f"s3://{BUCKET}/runs"


@pytest.fixture
def server(tmp_path, monkeypatch):
    (tmp_path / "server").mkdir()
    server = BucketServer(tmp_path / "server")
    for name, value in {**server.environment, "LORASWEEP_STAGING": str(tmp_path / "view")}.items():
        monkeypatch.setenv(name, value)
    yield server
    server.stop()


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_a_node_that_is_lost_leaves_its_trials_to_another_by_the_bucket_alone(
    start_cluster, server, lorasweep, tiny, tmp_path, reading
):
    cluster = start_cluster(cpus=0)
    for name in ("beta", "gamma"):
        cluster.join(name, environment={**server.environment, "LORASWEEP_STAGING": str(tmp_path / name)})
    settings = ("search.trials=4", "resources.threads=1", "resources.slots=1", "tracking=none", "scheduler=fifo",
                "baselines=[zero_shot]", "sampler=random", "train.max_steps=120", "train.rungs=[4,8,12,60,120]",
                "precision=fp32", "search.keep_adapters=2")  # fmt: skip
    environment = {**cluster.environment, **server.environment, "LORASWEEP_STAGING": str(tmp_path / "head")}
    command = lorasweep(tmp_path, environment)
    process = command.start(
        "run", *tiny("llama", *settings, "sweep.name=two"), f"sweep.dir={URI}", f"ray.address={cluster.address}"
    )
    there = Bucket(f"{URI}/two")
    gives_up = time.monotonic() + 300
    while not on_node(there, "beta"):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < gives_up
        time.sleep(0.3)
    cluster.lose("beta")
    out, err = process.communicate(timeout=500)
    assert (process.returncode, err) == (0, ""), out
    folder = SweepFolder.open(f"{URI}/two")
    assert {trial.read_status().state for trial in folder.trials()} == {"completed"}
    assert folder.baseline("zero_shot").read_status().state == "completed"
    for trial in folder.trials():
        assert trial.read_items("task", "validation", trial.read_metrics()[-1].step)["item_id"]
        fetch_folder(trial.adapter_dir)
    assert len(folder.with_adapter()) == 2
    assert not list((tmp_path / "head").glob("*/two/trials/*/checkpoint/*/optimizer.safetensors"))

    whole = lorasweep(tmp_path)("run", *tiny("llama", *settings, "sweep.name=whole"))
    assert whole.returncode == 0, whole.stderr
    reading.require_same_curves(folder, SweepFolder(tmp_path / "runs" / "whole"), 1e-4)


def on_node(bucket, node):
    """Whether a trial has passed its first rung on a node."""
    folder = SweepFolder.open(bucket.uri) if "sweep.yaml" in bucket.listing() else None
    trials = folder.trials() if folder else []
    return any(it.read_status().where.startswith(node) and len(it.read_metrics()) >= 2 for it in trials)


@pytest.mark.heavy
@pytest.mark.timeout(300)
def test_a_node_without_keys_or_with_another_store_is_named(start_cluster, server, lorasweep, tiny, tmp_path):
    cluster = start_cluster(cpus=0)
    elsewhere = {**server.environment, "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    cluster.join("beta", environment={**elsewhere, "LORASWEEP_STAGING": str(tmp_path / "beta")})
    environment = {**cluster.environment, **server.environment, "LORASWEEP_STAGING": str(tmp_path / "head")}
    done = lorasweep(tmp_path, environment)(
        "run", *tiny("llama", "sweep.name=two"), f"sweep.dir={URI}", f"ray.address={cluster.address}"
    )
    assert done.returncode == 5, done.stdout
    said = " ".join(done.stderr.split())
    assert f"node beta cannot read and write {URI}/two" in said
    assert "the store does not answer" in said
    assert "sweep.yaml" not in Bucket(f"{URI}/two").listing()
