"""`cluster/skypilot.yaml`. SkyPilot itself, in an environment that is thrown away, reads it in a heavy test:

pytest -m heavy tests/cluster/test_skypilot.py
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from analysis.folder import SweepFolder
from sweeps.compose.compose import compose
from tests.cluster.kubernetes_schemas import ROOT
from tests.cluster.test_dockerfile import LOCK, pins, run_line, tool
from tests.cluster.test_kuberay_run import may_mount

TASK = yaml.safe_load((ROOT / "cluster" / "skypilot.yaml").read_text())
SKYPILOT = "skypilot==0.14.1"


def test_its_sweep_is_understood_and_lies_in_the_bucket() -> None:
    *_, command = TASK["run"].splitlines()
    words = shlex.split(command.replace('"${words[@]}"', TASK["envs"]["SETTINGS"]))
    assert words[:2] == [".venv/bin/lorasweep", "run"]
    config = compose(words[2:]).config
    (mount,) = TASK["file_mounts"]
    assert config.sweep.dir.startswith(f"{mount}/")
    for kept in ("HF_HOME", "LORASWEEP_CACHE"):
        assert TASK["envs"][kept].startswith(f"{mount}/")
    assert TASK["file_mounts"][mount]["mode"] == "MOUNT_CACHED", "MOUNT cannot append"


def test_it_installs_what_the_image_has() -> None:
    lines = [line.strip() for line in TASK["setup"].splitlines()]
    for words in ("--require-hashes", "--no-deps"):
        assert run_line(words) in lines
    assert run_line("ensurepip").endswith(".venv/bin/python -m ensurepip"), "lorasweep fetches packages with pip"
    assert any(line.startswith(".venv/bin/python -m ensurepip") for line in lines)
    assert f"astral.sh/uv/{pins(ROOT / 'constraints.txt')['uv']}/" in TASK["setup"]
    assert LOCK.relative_to(ROOT).as_posix() in TASK["setup"]


@pytest.mark.parametrize("block", ["setup", "run"])
def test_its_scripts_are_clean(block: str) -> None:
    done = subprocess.run([tool("shellcheck"), "--shell=bash", "-"], input=TASK[block], text=True, check=False)
    assert done.returncode == 0


READ = """
import sys, yaml, sky
from sky.utils import common_utils, schemas
common_utils.validate_schema(yaml.safe_load(open(sys.argv[1])), schemas.get_task_schema(), "task: ")
task = sky.Task.from_yaml(sys.argv[1])
assert task.storage_mounts and all(it.use_spot and it.job_recovery for it in task.resources), task
print(len(task.resources))
"""


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_skypilot_takes_it_and_would_find_a_mistake(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "UV_CACHE_DIR": str(tmp_path / "cache")}
    environment.setdefault("SSL_CERT_FILE", os.environ.get("PIP_CERT", "/etc/ssl/certs/ca-certificates.crt"))
    environment.pop("PYTHONPATH", None)
    python = tmp_path / "sky" / "bin" / "python"
    for command in (["venv", "--python", sys.executable, str(tmp_path / "sky")],
                    ["pip", "install", "--quiet", "--python", str(python), SKYPILOT]):  # fmt: skip
        subprocess.run([tool("uv"), *command], env=environment, check=True)

    def read(task: Any) -> "subprocess.CompletedProcess[str]":
        (tmp_path / "task.yaml").write_text(yaml.safe_dump(task))
        command = [str(python), "-c", READ, "task.yaml"]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    good = read(TASK)
    assert (good.returncode, good.stdout.strip()[-1:]) == (0, "4"), good.stderr
    for wrong in ({"resources": {**TASK["resources"], "use_spots": True}}, {"setups": ""}, {"envs": ["A"]}):
        bad = read({**TASK, **wrong})
        assert bad.returncode != 0
        assert re.search(r"use_spots|setups|not of type", bad.stderr), bad.stderr


@pytest.mark.heavy
@pytest.mark.skipif(not may_mount(), reason="mount namespaces are not permitted here")
def test_its_command_goes_on_where_a_machine_before_it_stopped(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "bucket").mkdir()
    settings = tiny("llama", "search.trials=2", "tracking=none", "baselines=[]", "sweep.name=n", "resources.threads=1")
    (mount,) = TASK["file_mounts"]
    script = f'mount -t tmpfs none /mnt; mkdir {mount}; mount --bind bucket {mount}; exec bash -c "$1"'
    environment = {**os.environ, **TASK["envs"], "PYTHONPATH": str(ROOT)}
    folder = SweepFolder(tmp_path / "bucket" / "runs" / "n")
    for trials in (2, 3):  # the second machine
        there = {**environment, "SETTINGS": " ".join([*settings, f"search.trials={trials}"])}
        command = ["unshare", "--mount", "sh", "-ec", script, "sh", TASK["run"]]
        done = subprocess.run(command, cwd=tmp_path, env=there, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert [it.read_status().state for it in folder.trials()] == ["completed"] * trials
