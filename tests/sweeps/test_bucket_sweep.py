"""Whole sweeps whose folder is a bucket: an S3 server (moto's) on the loopback address, the real command.

The heavy one kills drivers and deletes their machine's copy: ``pytest -m heavy tests/sweeps/test_bucket_sweep.py``.
"""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from analysis.folder import SweepFolder
from tests.bucket_server import BUCKET, SECRET, BucketServer

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
    print(done.stdout)
    print(done.stderr)
    for line in server.journal():
        print(line)
