"""What a sweep leaves on the machine, and tells its other users: nothing, however it ends."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.sweeps.command_line import left_behind

SETTINGS = ("scheduler=fifo", "sampler=random", "search.start_from=[]", "search.trials=3", "sweep.name=tiny")
SECRETS = {
    name: f"tell-nobody-{uuid.uuid4().hex}"
    for name in (
        "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN",
        "AZURE_STORAGE_KEY", "GOOGLE_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY",
        "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "OPENAI_API_KEY", "RAY_AUTH_TOKEN", "DATABASE_PASSWORD",
    )
}  # fmt: skip
DRIVERS_OWN = ("WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
NOBODY = 65534
# What another user can read below some folders, and of all processes: prints the paths in which the text stands.
LOOK = """
import os, sys
text, seen = sys.argv[1].encode(), set()
def look(path):
    try:
        with open(path, "rb") as file:
            if text in file.read(50_000_000):
                seen.add(path)
    except OSError:
        pass
for root in sys.argv[2:]:
    for folder, _, names in os.walk(root):
        for name in names:
            if os.path.isfile(os.path.join(folder, name)):
                look(os.path.join(folder, name))
for process in filter(str.isdigit, os.listdir("/proc")):
    if int(process) != os.getpid():
        look(f"/proc/{process}/cmdline")
        look(f"/proc/{process}/environ")
print("\\n".join(sorted(seen)))
"""


def seen(*folders: Path, user: int | None = None) -> set[str]:
    """Files, command lines and environments in which one of the secrets stands, as a user can see them."""
    interpreter = shutil.which("python3", path=os.defpath) or sys.executable  # one that everybody may run
    command = [interpreter, "-I", "-c", LOOK, "tell-nobody-", *map(str, folders)]
    as_other = {} if user is None else {"user": user, "group": user, "extra_groups": []}
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=True, **as_other)
    return set(done.stdout.split())


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that all users can read and write, as that for temporary files."""
    folder = Path(tempfile.mkdtemp(prefix="lp-", dir="/tmp"))
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(os.getuid() != 0, reason="looking as another user takes root")
def test_no_secret_of_the_environment_is_told(lorasweep, tiny, public):
    home, runs, temporary = public / "home", public / "runs", public / "tmp"
    for folder in (home, runs, temporary):
        folder.mkdir()
        folder.chmod(0o1777)
    variables = {**SECRETS, "HOME": str(home), "TMPDIR": str(temporary), "RAY_AUTH_MODE": "token"}
    del variables["RAY_AUTH_TOKEN"]  # else it is a cluster's; one of ours is made
    command = lorasweep(public, variables)
    (temporary / "decoy").write_text("tell-nobody-this")
    sweep = command.start("run", *tiny("llama", *SETTINGS))
    to_others, in_private = set(), set()
    while sweep.poll() is None:
        to_others |= seen(public, user=NOBODY)
        in_private |= {path for path in seen(temporary) if not path.startswith("/proc")}
        private = list(temporary.glob("lsw-*"))
        assert {folder.stat().st_mode & 0o777 for folder in private} <= {0o700}
        keys = _keys_of_workers(command.mark)
        assert not keys & set(DRIVERS_OWN), "only the driver talks to trackers"
    out, err = sweep.communicate()
    assert sweep.returncode == 0, err
    assert to_others == in_private == {str(temporary / "decoy")}
    (temporary / "decoy").unlink()
    assert left_behind(temporary) == []
    assert {path for path in seen(public) if not path.startswith("/proc")} == set()
    assert "tell-nobody-" not in out + err
    assert not (home / ".ray").exists(), "Ray would keep a token there that all users can read"
    assert not (home / ".cache" / "wandb").exists(), "W&B would leave a log there each time"


def _keys_of_workers(mark: str) -> set[str]:
    """The secrets in the environments of Ray's processes."""
    told = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            if environment.get("LORASWEEP_TEST") == mark and "RAY_RAYLET_PID" in environment:
                told |= SECRETS.keys() & environment.keys()
    return told


def _listening(mark: str) -> list[str]:
    """The ports at which processes of these commands listen."""
    ports = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("LORASWEEP_TEST") == mark:
                ports += [str(it.laddr) for it in process.net_connections("inet") if it.status == psutil.CONN_LISTEN]
    return ports


def _gone(command, temporary: Path) -> None:
    """Fails unless all of a command's processes, ports and temporary files are gone in 20 s."""
    gives_up = time.monotonic() + 20
    while time.monotonic() < gives_up and (command.processes() or any(temporary.iterdir())):
        time.sleep(0.1)
    assert (command.processes(), _listening(command.mark), sorted(temporary.iterdir())) == ([], [], [])


def _started(command, temporary: Path, *arguments: str) -> "subprocess.Popen[str]":
    """A sweep one of whose trials was at a rung."""
    before = _rungs(command)
    process = command.start(*arguments)
    gives_up = time.monotonic() + 240
    while _rungs(command) <= before and process.poll() is None:
        assert time.monotonic() < gives_up
        time.sleep(0.1)
    assert process.poll() is None, process.communicate()
    assert any(temporary.iterdir())
    assert _listening(command.mark)
    return process


def _rungs(command) -> int:
    return sum(len(file.read_text().splitlines()) for file in command.cwd.glob("runs/tiny/trials/*/metrics.jsonl"))


@pytest.mark.heavy
def test_nothing_is_left_however_a_sweep_ends(lorasweep, tiny, public, tmp_path):
    command = lorasweep(tmp_path, {"TMPDIR": str(public)})
    sweep = _started(command, public, "run", *tiny("llama", *SETTINGS, "train.max_steps=80", "train.rungs=[2,80]"))
    sweep.kill()
    sweep.wait()
    _gone(command, public)
    sweep = _started(command, public, "resume", "runs/tiny")
    for process in psutil.process_iter():  # as where the machine loses its power: nobody is left to clean up
        with contextlib.suppress(psutil.Error):
            if process.environ().get("LORASWEEP_TEST") == command.mark:
                process.kill()
    sweep.wait()
    assert any(public.iterdir())
    done = command("resume", "runs/tiny")
    assert done.returncode == 0, done.stderr
    _gone(command, public)


@pytest.mark.heavy
@pytest.mark.parametrize("how", ["int", "term", "twice", "early"])
def test_nothing_is_left_after_a_signal(lorasweep, tiny, public, tmp_path, how):
    command = lorasweep(tmp_path, {"TMPDIR": str(public)})
    overrides = tiny("llama", *SETTINGS, "train.max_steps=400", "train.rungs=[2,400]")
    if how == "early":
        sweep = command.start("run", *overrides)
        time.sleep(3)
    else:
        sweep = _started(command, public, "run", *overrides)
    sweep.send_signal(signal.SIGTERM if how == "term" else signal.SIGINT)
    if how == "twice":
        time.sleep(1)
        sweep.send_signal(signal.SIGINT)
    _, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 130
    assert "***" not in err, "Ray's code prints its stack"
    _gone(command, public)


@pytest.mark.heavy
def test_a_long_place_for_temporary_files_is_none_for_sockets(lorasweep, tiny, public, tmp_path):
    long = public / ("a-folder-with-a-long-name-" * 5)
    long.mkdir()
    command = lorasweep(tmp_path, {"TMPDIR": str(long)})
    sweep = command.start("run", *tiny("llama", *SETTINGS, "search.trials=1"))
    out, err = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, out + err
    assert list(long.iterdir()) == []
    refused = lorasweep(tmp_path, {"LORASWEEP_TMP": str(long)})("run", *tiny("llama", *SETTINGS))
    assert refused.returncode == 7
    assert "too long for the sockets of Ray, which take 20 bytes at most" in refused.stderr
