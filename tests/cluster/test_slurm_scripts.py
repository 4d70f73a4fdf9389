"""The batch scripts of ``cluster/slurm/`` where ``srun``, ``scontrol``, ``ray`` and ``lorasweep`` are stand-ins.

``tests/cluster/test_slurm.py`` runs them on real SLURM.
"""

import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from sweeps.process.installation import package_root

ROOT = Path(package_root())
SLURM = ROOT / "cluster" / "slurm"
SCRIPTS = ("lorasweep.sbatch", "head.sbatch", "workers.sbatch")
SECONDS = 30  # within which a mistake is told
# Each notes how it was called in $RECORD.
STAND_INS = {
    "bin/srun": """
        echo "$*" >>"$RECORD/srun"
        while [[ $1 == --* ]]; do shift; done
        export SLURM_STEP_ID=0
        exec "$@"
    """,
    "bin/scontrol": """
        echo "$*" >>"$RECORD/scontrol"
        case "$1 $2 $3" in
        "show job "*)
            printf '   Command=%s run\n   BatchHost=n1\n' "$SCRIPT"
            # the number of an array's last task is that of the array
            [[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || printf '   Command=%s run\n' "$SCRIPT" ;;
        "show node "*) echo "   NodeAddr=127.0.0.1 NodeHostName=$3 State=${STATE:-IDLE}" ;;
        "show hostnames "*) echo "$3" | tr , '\\n' ;;
        requeue*) [[ -z ${REFUSED:-} ]] || { echo "Requested operation is presently disabled" >&2; exit 1; } ;;
        esac
    """,
    # The second process is like a worker of Ray: no child of `ray start`, known by its environment alone.
    "venv/bin/ray": """
        [[ ${RAY_FAILS:-} == yes ]] && { echo "ray: no luck"; exit 1; }
        echo "$*" >>"$RECORD/ray"
        cp "$RAY_AUTH_TOKEN_PATH" "$RECORD/token-of-a-node"
        stat -c '%a %n' "$RAY_AUTH_TOKEN_PATH" "$(dirname "$RAY_AUTH_TOKEN_PATH")" >"$RECORD/modes"
        env >"$RECORD/environment"
        grep SigBlk /proc/self/status >"$RECORD/blocked"
        setsid sleep 300 &
        echo $! >"$RECORD/worker"
        echo "Ray runtime started."
        sleep 300
    """,
    "venv/bin/lorasweep": """
        if [[ "$1 $2" == "cluster announce" ]]; then
            echo "$*" >"$RECORD/announce"
            touch "$RECORD/.cluster.json"
            echo "$RECORD/.cluster.json"
            exit
        fi
        echo "$*" >"$RECORD/lorasweep"
        echo "$RAY_AUTH_MODE $RAY_AUTH_TOKEN_PATH" >"$RECORD/token-of-the-driver"
        [[ ${LASTS:-} == python ]] || trap 'exit 130' TERM USR1
        [[ -n ${LASTS:-} ]] || exit "${STATUS:-0}"
        sleep 300 >/dev/null 2>&1 &
        touch "$RECORD/begun"
        wait
    """,
    "venv/bin/python": f'exec {sys.executable} "$@"',
}


class Job:
    """What a batch script finds in a job on one host, and what it does there."""

    def __init__(self, root: Path):
        self.root, self.record = root, root / "record"
        self.record.mkdir()
        for name, text in STAND_INS.items():
            file = root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"#!/bin/bash\n{text}")
            file.chmod(0o755)
        self.tmp = Path(tempfile.mkdtemp(prefix="s", dir="/tmp"))
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "RAY", "LORASWEEP"))},
            "PATH": f"{root / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "RECORD": str(self.record),
            "LORASWEEP_VENV": str(root / "venv"),
            "LORASWEEP_TMP": str(self.tmp),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "n1",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURMD_NODENAME": "n1",
            "SLURM_CPUS_ON_NODE": "3",
        }
        self.started: list[subprocess.Popen[str]] = []

    def start(
        self, script: str, *arguments: str, without: tuple[str, ...] = (), **more: str
    ) -> "subprocess.Popen[str]":
        environment = {**self.environment, "SCRIPT": str(SLURM / script), **more}
        for name in without:
            environment.pop(name, None)
        copy = SLURM / script
        if "SLURM_JOB_ID" in environment:  # which runs a copy
            copy = self.root / "slurm_script"
            copy.write_text((SLURM / script).read_text())
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(["bash", str(copy), *arguments], env=environment, cwd=self.root, **pipes)
        self.started.append(process)
        return process

    def run(self, script: str, *arguments: str, without: tuple[str, ...] = (), **more: str) -> tuple[int, str]:
        process = self.start(script, *arguments, without=without, **more)
        out, err = process.communicate(timeout=SECONDS)
        return process.returncode, out + err

    def noted(self, name: str) -> str:
        file = self.record / name
        return file.read_text() if file.exists() else ""

    def until(self, name: str) -> None:
        gives_up = time.monotonic() + SECONDS
        while not (self.record / name).exists():
            assert time.monotonic() < gives_up, list(self.record.iterdir())
            time.sleep(0.05)


@pytest.fixture
def job(tmp_path) -> Iterator[Job]:
    made = Job(tmp_path)
    yield made
    for process in made.started:
        process.kill()
        process.wait()
    for process in psutil.process_iter():
        if str(made.record) in str(_environment(process)):
            process.kill()
    left = list(made.tmp.iterdir())
    shutil.rmtree(made.tmp)
    assert left == [], "a job leaves nothing on its host"


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


def test_shellcheck_finds_nothing():
    beside = Path(sys.executable).with_name("shellcheck")
    shellcheck = str(beside) if beside.exists() else shutil.which("shellcheck")
    assert shellcheck, "shellcheck is not installed (make dev)"
    files = sorted(str(file.relative_to(ROOT)) for kind in ("sh", "sbatch") for file in SLURM.glob(f"*.{kind}"))
    assert len(files) >= 5
    done = subprocess.run([shellcheck, "-x", *files], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_outside_of_slurm_a_script_says_how_it_is_used(script, job):
    status, said = job.run(script, "run", without=("SLURM_JOB_ID",))
    assert status == 2
    assert "no SLURM" in said
    assert re.search(rf"sbatch \S* ?cluster/slurm/{script}", said)
    (job.root / "bin" / "srun").unlink()
    job.environment["PATH"] = f"{job.root / 'bin'}:/usr/bin:/bin"
    if shutil.which("srun", path=job.environment["PATH"]) is None:
        status, said = job.run(script, "run")
        assert (status, "no SLURM: `srun` is not on this host's PATH" in said) == (2, True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_environment_without_lorasweep_is_named(script, job):
    status, said = job.run(script, "run", LORASWEEP_VENV=str(job.root / "nowhere"))
    assert status == 2
    assert "nowhere: lorasweep is not installed there" in said
    assert "LORASWEEP_VENV=" in said
    (job.root / "venv" / "bin" / "python").write_text("#!/bin/bash\nexit 1\n")
    status, said = job.run(script, "run")
    assert (status, "Python does not find its packages" in said) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing is not what this script can do: run, resume or finalize"),
        (("experiment=quickstart",), "experiment=quickstart is not what this script can do"),
        (("run", "ray.address=auto"), "ray.address=auto: the job starts a Ray of its own"),
    ],
)
@pytest.mark.parametrize("script", SCRIPTS[:2])
def test_a_command_that_cannot_run_in_a_job_is_refused(script, arguments, said, job):
    status, printed = job.run(script, *arguments)
    assert (status, said in printed) == (2, True), printed


def test_a_copy_of_a_script_elsewhere_says_what_it_misses(job):
    elsewhere = job.root / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(SLURM / "lorasweep.sbatch", elsewhere)
    script = str(elsewhere / "lorasweep.sbatch")
    assert "Name its checkout: LORASWEEP_HOME=DIR" in job.run("lorasweep.sbatch", "run", SCRIPT=script)[1]
    assert job.run("lorasweep.sbatch", "run", SCRIPT=script, LORASWEEP_HOME=str(ROOT))[0] == 0


def test_a_port_in_use_is_named_and_one_of_the_job_s_own_is_passed_over(job):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, said = job.run("lorasweep.sbatch", "run", LORASWEEP_PORT=str(port))
    assert status == 7
    assert f"port {port} or {port + 1} in use" in said
    with socket.socket() as taken:
        taken.bind(("", 20056))  # 20000 + 8 × 7
        taken.listen()
        assert job.run("lorasweep.sbatch", "run")[0] == 0
    assert "--port=20058 --ray-client-server-port=20059" in job.noted("ray")


def test_jobs_have_ports_and_folders_of_their_own_and_short_ones(job):
    for number in ("7", "8", "1507", "99999999"):
        assert job.run("lorasweep.sbatch", "run", SLURM_JOB_ID=number)[0] == 0
    ports = [int(port) for port in re.findall(r"--port=(\d+)", job.noted("ray"))]
    assert ports[:2] == [20056, 20064]
    assert all(20000 <= port < 32500 for port in ports)
    folders = re.findall(r"--temp-dir=(\S+)", job.noted("ray"))
    assert len(set(folders)) == 4
    longest = "/session_2026-11-27_15-40-10_123456_4194304/sockets/plasma_store.10"
    assert max(len(folder) + len(longest) for folder in folders) + 20 - len(str(job.tmp)) <= 107
    status, said = job.run("lorasweep.sbatch", "run", LORASWEEP_TMP="/a/folder/with/a/long/path")
    assert (status, "too long for the sockets of Ray" in said) == (2, True)
    status, said = job.run("lorasweep.sbatch", "run", LORASWEEP_TMP="/proc")
    assert (status, "no folder can be made there" in said) == (2, True)


def test_the_token_goes_to_the_nodes_and_nowhere_else(job):
    process = job.start("lorasweep.sbatch", "run", LASTS="yes", SLURM_JOB_NODELIST="n1,n2")
    job.until("begun")
    mode, file = job.noted("token-of-the-driver").split()
    token = Path(file).read_text()
    assert mode == "token"
    assert re.fullmatch("[0-9a-f]{64}", token)
    assert stat.S_IMODE(Path(file).stat().st_mode) == 0o600
    assert job.noted("token-of-a-node") == token
    assert [line.split()[0] for line in job.noted("modes").splitlines()] == ["600", "700"]
    assert re.findall(r"--nodelist=(\S+)", job.noted("srun")) == ["n1", "n2"]
    for line in psutil.process_iter():
        assert token not in str(_environment(line).values())
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=SECONDS)
    for name in ("srun", "scontrol", "ray", "environment", "lorasweep"):
        assert token not in job.noted(name)
    assert token not in out + err


def test_a_node_without_a_token_does_not_start(job):
    done = subprocess.run(
        ["bash", str(SLURM / "ray_node.sh"), str(job.root / "venv"), str(job.tmp), "ray", "start", "--block"],
        env=job.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert (done.returncode, "no token on standard input" in done.stderr) == (2, True)
    assert not job.noted("ray")


def test_the_command_gets_the_address_and_its_status_is_the_job_s(job):
    status, said = job.run("lorasweep.sbatch", "run", "a=b c", "x=[1,2]", STATUS="4")
    assert status == 4
    assert job.noted("lorasweep") == "run a=b c x=[1,2] ray.address=127.0.0.1:20056\n"
    assert "its head at 127.0.0.1:20056" in said
    assert "requeue" not in job.noted("scontrol")
    assert "--num-cpus=3" in job.noted("ray")


@pytest.mark.parametrize("lasts", ["yes", "python"])  # with handlers of its own, or still starting
@pytest.mark.parametrize("script", ["lorasweep.sbatch", "workers.sbatch"])
@pytest.mark.parametrize(("number", "again"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_before_its_time_limit_a_job_stops_its_sweep_and_is_queued_again(script, number, again, lasts, job):
    process = job.start(script, "run", LASTS=lasts, SLURM_ARRAY_JOB_ID="5", SLURM_ARRAY_TASK_ID="2")
    job.until("begun")
    process.send_signal(number)
    if again:  # it waits for SLURM to end it
        lines = iter(process.stdout.readline, "")
        assert any("is queued again, and goes on from here" in line for line in lines)
        assert f"requeue {'7' if script == 'lorasweep.sbatch' else '5_2'}\n" in job.noted("scontrol")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=SECONDS)
        assert err == ""
        assert not list(job.tmp.iterdir())
    else:
        assert process.wait(SECONDS) in (130, 143)
        assert "requeue" not in job.noted("scontrol")


def test_where_slurm_does_not_queue_it_again_a_job_says_so(job):
    process = job.start("lorasweep.sbatch", "run", LASTS="yes", REFUSED="yes")
    job.until("begun")
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert "SLURM does not queue job 7 again" in err


def test_a_sweep_that_ends_at_the_notice_is_not_queued_again(job):
    process = job.start("lorasweep.sbatch", "run", LASTS="yes")
    job.until("begun")
    (job.record / "begun").unlink()
    driver = next(it for it in psutil.Process(process.pid).children() if "lorasweep" in " ".join(it.cmdline()))
    driver.kill()
    assert process.wait(SECONDS) == 137
    assert "requeue" not in job.noted("scontrol")


def test_a_job_ends_its_own_ray_and_no_other(job):
    other = subprocess.Popen(["sleep", "300"], env={**os.environ, "RAY_AUTH_TOKEN_PATH": "/tmp/ls-8-abcd/token"})
    try:
        process = job.start("lorasweep.sbatch", "run", LASTS="yes")
        job.until("begun")
        own = int(job.noted("worker"))
        assert psutil.pid_exists(own)
        assert int(job.noted("blocked").split()[1], 16) & 1 << signal.SIGTERM - 1, (
            "SLURM's SIGTERM would end Ray at once"
        )
        process.terminate()
        assert process.wait(SECONDS) == 130
        assert not psutil.pid_exists(own) or psutil.Process(own).status() == psutil.STATUS_ZOMBIE
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_head_that_does_not_start_is_tried_at_other_ports_and_then_told(job):
    status, said = job.run("lorasweep.sbatch", "run", RAY_FAILS="yes")
    assert status == 7
    assert said.count("ray: no luck") == 3
    assert "Ray's head did not start" in said
    assert "n1: no Ray ran there. ray: no luck" in said
    assert not job.noted("lorasweep")


@pytest.mark.parametrize(
    ("host", "state", "again"), [("n2", "DOWN*", True), ("n2", "MIXED", False), ("n1", "DOWN", False)]
)
def test_a_node_whose_head_s_host_is_down_queues_the_job_again(host, state, again, job):
    """With --no-kill nobody else would: SLURM ends the batch script with its host, and keeps the job."""
    environment = {**job.environment, "SLURMD_NODENAME": host, "STATE": state, "RAY_FAILS": "yes", "SCRIPT": "x"}
    command = ["bash", str(SLURM / "ray_node.sh"), str(job.root / "venv"), str(job.tmp), "ray", "start", "--block"]
    node = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    node.stdin.write("token")
    node.stdin.close()
    gives_up = time.monotonic() + SECONDS
    while job.noted("scontrol").count("show job") < 1:
        assert time.monotonic() < gives_up
        time.sleep(0.1)
    time.sleep(0.5)
    assert ("requeue 7" in job.noted("scontrol")) is again
    node.send_signal(signal.SIGUSR1)
    assert node.wait(SECONDS) == 0


def test_the_head_of_an_array_trains_nothing_and_says_where_it_is(job):
    status, said = job.run("head.sbatch", "run", "sweep.name=x")
    assert status == 0
    assert job.noted("announce") == "cluster announce 127.0.0.1:20056 run sweep.name=x\n"
    assert re.search(r"--num-cpus=3 .* --num-cpus=0 --num-gpus=0", job.noted("ray"))
    assert f"workers.sbatch {job.record}" in said
    assert not (job.record / ".cluster.json").exists()


def test_workers_find_the_file_of_a_head_that_comes_again(job):
    process = job.start("head.sbatch", "run", LASTS="yes")
    job.until("begun")
    process.send_signal(signal.SIGUSR1)
    gives_up = time.monotonic() + SECONDS
    while "requeue 7" not in job.noted("scontrol"):
        assert time.monotonic() < gives_up
        time.sleep(0.05)
    process.kill()
    assert (job.record / ".cluster.json").exists()


def test_a_worker_joins_the_sweep_in_the_folder(job):
    assert job.run("workers.sbatch", "/shared/runs/x")[0] == 0
    assert job.noted("lorasweep") == "cluster join /shared/runs/x --wait 15m --cpus 3 --name n1-7\n"
    status, said = job.run("workers.sbatch")
    assert (status, "which sweep? Give its folder" in said) == (2, True)
