"""Whole sweeps whose folder is a bucket: an S3 server (moto's) on the loopback address, the real command.

The heavy one kills drivers and deletes their machine's copy: ``pytest -m heavy tests/sweeps/test_bucket_sweep.py``.
"""

import time

import pytest

from tests.bucket_server import BUCKET, BucketServer

URI = f"s3://{BUCKET}/runs"
SETTINGS = ["resources.slots=1", "search.trials=4", "sweep.name=tiny", "precision=fp32", "search.keep_adapters=2"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = BucketServer(tmp_path_factory.mktemp("server"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def finished(lorasweep, tiny, server, tmp_path_factory):
    """A sweep in a bucket that ran undisturbed, and the same one in a folder."""
    folder = tmp_path_factory.mktemp("finished")
    command = lorasweep(folder, {**server.environment, "LORASWEEP_STAGING": str(folder / "staging")})
    done = command("run", *tiny("llama", *SETTINGS, f"sweep.dir={URI}"))
    assert done.returncode == 0, done.stderr
    return command, done


def test_it(finished, server):
    command, done = finished
    for words in (
        ["rank"],
        ["status"],
        ["report"],
        ["breakdown"],
        ["export", "--to", "ad"],
        ["stop"],
        ["enqueue", "lora.rank=8"],
        ["finalize", "--top", "1", "--seeds", "1", "data.test=" + str(command.cwd / "test.csv")],
        ["status"],
        ["rank"],
        ["resume"],
        ["resume", "search.trials=6"],
        ["run"],
    ):
        began = time.monotonic()
        if words[0] == "finalize":
            from tests.conftest import write_rows

            write_rows(command.cwd / "test.csv", 20, 5)
        uri = f"{URI}/tiny"
        args = [words[0], uri, *words[1:]]
        done = command(*args)
        print("=====", args, done.returncode, round(time.monotonic() - began, 1))
        print(done.stdout[-2500:])
        print(done.stderr[-2500:])
