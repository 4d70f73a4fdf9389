"""Sweeps on real SLURM: a controller and three hosts on this machine (``tests/cluster/slurm_site.py``).

Heavy: minutes each. On Debian, as root::

    apt-get install slurmctld slurmd slurm-client munge
    pytest -m heavy tests/cluster/test_slurm.py

Whatever happens to a job, its sweep ends with the leaderboard of one that ran undisturbed, without SLURM.
"""

import csv
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from analysis.folder import SweepFolder
from sweeps.process.installation import package_root
from tests.cluster.slurm_site import Site, missing, slurm_site

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(missing()), reason=missing() or "there is SLURM"),
]
SLURM = Path(package_root()) / "cluster" / "slurm"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
# One slot and one thread: with whom a row is padded decides the last bits, which grow in so many steps.
SETTINGS = ("search.trials=6", "resources.threads=1", "resources.slots=1", "tracking=none", "baselines=[]",
            "scheduler=fifo", "sampler=random", "train.max_steps=1200", "train.rungs=[400,800,1200]")  # fmt: skip
RUNGS = {400, 800, 1200}


class Sweeps:
    """Sweeps of one config as jobs of a cluster."""

    def __init__(self, site: Site, root: Path, overrides: list[str]):
        self.site, self.root, self.overrides = site, root, overrides
        self.environment = {
            "PYTHONPATH": package_root(),
            "LORASWEEP_VENV": str(Path(sys.executable).parents[1]),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }

    def folder(self, name: str) -> SweepFolder:
        return SweepFolder(self.root / "runs" / name)

    def submit(self, script: str, name: str, *options: str) -> int:
        arguments = ["run", *self.overrides, f"sweep.name={name}", f"sweep.dir={self.root / 'runs'}"]
        return self.site.sbatch(*options, str(SLURM / script), *arguments, environment=self.environment, cwd=self.root)

    def workers(self, name: str, array: str, *options: str) -> int:
        arguments = [f"--array={array}", *options, str(SLURM / "workers.sbatch"), str(self.folder(name).root)]
        return self.site.sbatch(*arguments, environment=self.environment, cwd=self.root)

    def said(self) -> str:
        """What all jobs printed."""
        return "\n".join(f"--- {file.name}\n{file.read_text()}" for file in sorted(self.root.glob("lorasweep*.out")))

    def until(self, what: Callable[[], object], seconds: float = 600) -> None:
        gives_up = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < gives_up, f"{self.said()}\n{self.site.slurm('squeue')}\n{self.site.logs()}"
            time.sleep(0.2)

    def ended(self, job: "int | str", state: str = "COMPLETED") -> None:
        """Wait for the end of a job, which must be this one."""
        self.until(lambda: self.site.job(job)["JobState"] in ENDED)
        assert self.site.job(job)["JobState"] == state, self.said()

    def running(self, name: str) -> dict[str, set[int]]:
        """Host → the rungs that the trial has behind it that trains there."""
        found = {}
        for trial in self.folder(name).trials():
            status = trial.read_status()
            if status.state == "running" and status.where:
                found[re.split(r"\W", status.where)[0]] = {row.step for row in trial.read_metrics()}
        return found

    def at_work(self, name: str) -> set[str]:
        """Hosts whose trial is past its first rung and before its last."""
        return {host for host, rungs in self.running(name).items() if rungs and max(RUNGS) not in rungs}


@pytest.fixture
def sweeps(tmp_path, tmp_path_factory, tiny) -> Iterator[Sweeps]:
    (tmp_path / "site").mkdir()
    with slurm_site(tmp_path / "site", tmp_path_factory.getbasetemp()) as site:
        yield Sweeps(site, tmp_path, tiny("llama", *SETTINGS))


@pytest.fixture(scope="module")
def undisturbed(lorasweep, tiny, tmp_path_factory) -> SweepFolder:
    """The sweep on this machine, without SLURM."""
    root = tmp_path_factory.mktemp("undisturbed")
    process = lorasweep(root, {"OMP_NUM_THREADS": "1"}).start("run", *tiny("llama", *SETTINGS, "sweep.name=whole"))
    _, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    return SweepFolder(root / "runs" / "whole")


@pytest.fixture
def same(reading, undisturbed) -> Callable[[SweepFolder], None]:
    """Fails unless a sweep left what the undisturbed one left: suggestions, rungs, metrics, leaderboard."""

    def table(folder: SweepFolder) -> list[tuple[str, str, float]]:
        with folder.leaderboard_file.open() as file:
            return [(row["trial_id"], row["status"], float(row["objective"])) for row in csv.DictReader(file)]

    def compare(folder: SweepFolder) -> None:
        assert reading.asked(folder) == reading.asked(undisturbed)
        assert sorted(reading.tells(folder)) == sorted(reading.tells(undisturbed))
        reading.require_same_curves(folder, undisturbed, 1e-6)
        mine, whole = table(folder), table(undisturbed)
        assert [row[:2] for row in mine] == [row[:2] for row in whole]
        assert [row[2] for row in mine] == pytest.approx([row[2] for row in whole], rel=1e-6)

    return compare


def between_rungs(folder: SweepFolder) -> list[int]:
    """Steps of checkpoints that are no rung's."""
    return [step for trial in folder.trials() for step in trial.checkpoints() if step not in RUNGS]


def nothing_left(site: Site, *hosts: str) -> None:
    """No Ray on these hosts, and no folder of one."""
    for host in hosts:
        assert not [line for line in site.processes(host) if re.search("ray::|raylet|gcs_server|ray start", line)], host
        names = site.on(host, "ls", "/tmp").stdout.split()
        assert not [name for name in names if name.startswith(("ls-", "lsw-"))], host


def test_a_job_that_loses_a_host_ends_as_if_nothing_had_happened(sweeps, same):
    site = sweeps.site
    job = sweeps.submit("lorasweep.sbatch", "lost", "--nodes=3", "--cpus-per-task=2")
    sweeps.until(lambda: sweeps.at_work("lost") == {"n1", "n2", "n3"})

    tokens = {site.on(host, "sh", "-c", "cat /tmp/ls-*/token").stdout[:64] for host in ("n1", "n2", "n3")}
    assert len(tokens) == 1
    token = tokens.pop()
    assert re.fullmatch("[0-9a-f]{64}", token)
    for host in ("n1", "n2", "n3"):
        modes = site.on(host, "sh", "-c", "stat -c %a /tmp/ls-* /tmp/ls-*/token").stdout.split()
        assert set(modes) == {"700", "600"}
        assert not site.processes(host, token)
        assert site.on(host, "sh", "-c", f"grep -rl {token} /tmp/ls-* | grep -v /token$").stdout == ""
        assert site.on(host, "sh", "-c", f"grep -lz {token} /proc/[0-9]*/environ").stdout == ""
    assert token not in sweeps.said() + site.slurm("scontrol", "show", "job", str(job)) + site.logs()

    site.kill("n3")
    sweeps.ended(job)
    assert site.job(job)["Restarts"] == "0"
    same(sweeps.folder("lost"))
    nothing_left(site, "n1", "n2")


def test_before_its_time_limit_a_job_is_queued_again_and_goes_on(sweeps, same):
    # SLURM looks twice a minute, and may send the signal half a minute early: 50 s or more are left.
    options = ("--nodes=1", "--nodelist=n2", "--cpus-per-task=2", "--time=3", "--signal=B:USR1@100")
    job = sweeps.submit("lorasweep.sbatch", "limited", *options)
    sweeps.until(lambda: "the time limit is near" in sweeps.said())
    assert between_rungs(sweeps.folder("limited")), "the trial at work was not saved where it was"
    sweeps.until(lambda: sweeps.site.job(job)["Restarts"] != "0")
    sweeps.ended(job)
    assert "going on with it" in sweeps.said()
    same(sweeps.folder("limited"))
    nothing_left(sweeps.site, "n2")


def test_a_job_whose_first_host_dies_is_queued_again_and_goes_on(sweeps, same):
    job = sweeps.submit("lorasweep.sbatch", "headless", "--nodes=2", "--nodelist=n1,n2", "--cpus-per-task=2")
    sweeps.until(lambda: "n1" in sweeps.at_work("headless"))
    sweeps.site.kill("n1")
    began = time.monotonic()
    sweeps.until(lambda: sweeps.site.job(job)["Restarts"] != "0")
    print(f"queued again after {time.monotonic() - began:.0f} s")
    sweeps.site.boot("n1")
    sweeps.ended(job)
    same(sweeps.folder("headless"))
    nothing_left(sweeps.site, "n1", "n2")


def test_jobs_that_share_hosts_do_not_see_each_other(sweeps, same):
    options = ("--nodes=2", "--nodelist=n1,n2", "--cpus-per-task=2")
    one, two = (sweeps.submit("lorasweep.sbatch", name, *options) for name in ("one", "two"))
    sweeps.until(lambda: all(set(sweeps.running(name)) == {"n1", "n2"} for name in ("one", "two")))
    sweeps.until(lambda: sweeps.at_work("one"))
    addresses = re.findall(r"Ray on 2 nodes, its head at (\S+)", sweeps.said())
    assert len(set(addresses)) == 2
    sweeps.site.slurm("scancel", str(one))
    sweeps.until(lambda: sweeps.site.job(one)["JobState"] == "CANCELLED")
    sweeps.ended(two)
    same(sweeps.folder("two"))
    nothing_left(sweeps.site, "n1", "n2")
    # SLURM sent SIGTERM to all processes of the one that was cancelled: its trials were saved between two steps
    assert between_rungs(sweeps.folder("one"))
    sweeps.ended(sweeps.submit("lorasweep.sbatch", "one", *options))
    same(sweeps.folder("one"))


def test_workers_of_an_array_join_and_leave_and_nobody_can_tell(sweeps, same):
    site, folder = sweeps.site, sweeps.folder("array")
    head = sweeps.submit("head.sbatch", "array", "--nodelist=n1", "--cpus-per-task=1")
    workers = sweeps.workers("array", "0-1", "--nodelist=n2", "--cpus-per-task=2")
    sweeps.until(lambda: folder.cluster_file.exists())
    assert stat.S_IMODE(folder.cluster_file.stat().st_mode) == 0o600
    sweeps.until(lambda: len({trial.read_status().where for trial in folder.trials()} - {""}) == 2)
    sweeps.until(lambda: sweeps.at_work("array"))

    more = sweeps.workers("array", "7", "--nodelist=n3", "--cpus-per-task=2")
    site.slurm("scancel", f"{workers}_0")
    sweeps.until(lambda: site.job(f"{workers}_0")["JobState"] == "CANCELLED")
    left = (sweeps.root / f"lorasweep-worker-{workers}_0.out").read_text()
    assert "trials here are saved and go on elsewhere" in left
    sweeps.until(lambda: any("n3" in trial.read_status().where for trial in folder.trials()))

    sweeps.ended(head)
    same(folder)
    assert not folder.cluster_file.exists()
    for task in (f"{workers}_1", f"{more}_7"):
        sweeps.ended(task)
    assert sweeps.said().count("the sweep is over") == 2
    nothing_left(site, "n1", "n2", "n3")
    notes = " ".join(note for trial in folder.trials() for note in trial.read_status().notes)
    assert "lost" not in notes, notes
    assert os.listdir(folder.root).count("trials") == 1
