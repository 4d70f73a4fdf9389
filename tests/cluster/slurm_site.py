"""A real SLURM cluster on this one machine: a controller and three hosts, each with its own address, name, PIDs, /tmp.

A host is a network, UTS, mount and PID namespace with an init that reaps; a bridge connects them. ``slurmctld``,
``slurmd`` and ``munged`` are Debian's (``apt-get install slurmctld slurmd slurm-client munge``), started by hand, as
root. Nothing of it is seen outside of the namespaces, and all of it ends with this process.

The hosts share the machine's files but for /tmp, /run, /etc/hosts and what lies in them; ``shared`` folders are seen by
all at the same place.

Run as a script, this is a host's init.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TOOLS = ("slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "munged", "unshare", "nsenter", "ip")
CPUS = 4  # that SLURM is told a host has
_START_SECONDS = 60

_CONFIG = """\
ClusterName=lorasweep
SlurmctldHost=ctl(10.77.0.1)
SlurmUser=root
SlurmctldPort=6817
SlurmdPort=6818
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
StateSaveLocation=/tmp/state
SlurmdSpoolDir=/tmp/spool
SlurmctldLogFile={logs}/slurmctld.log
SlurmdLogFile={logs}/slurmd-%n.log
AuthInfo=cred_expire=10
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=5,batch_sched_delay=1
MpiDefault=none
ReturnToService=2
JobRequeue=1
SlurmdTimeout=15
KillWait=30
MailProg=/bin/true
NodeName=n[1-3] CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def missing() -> str:
    """Why there can be no such cluster here, in a sentence; empty where there can."""
    absent = [tool for tool in TOOLS if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    if absent:
        return f"no SLURM here ({', '.join(absent)}): apt-get install slurmctld slurmd slurm-client munge iproute2"
    return "" if os.geteuid() == 0 else "hosts of their own need root"


@dataclass
class Host:
    """A host that runs: its name, address, the process that holds it, and its init."""

    name: str
    address: str
    holder: "subprocess.Popen[bytes]"
    init: int


@dataclass
class Site:
    """The cluster.

    Args:
        scratch: an empty folder, for logs and what the hosts need.
        shared: folders below /tmp that all hosts see.
    """

    scratch: Path
    shared: Sequence[Path]
    hosts: dict[str, Host] = field(default_factory=dict)

    def start(self) -> None:
        for name in ("etc", "logs"):
            (self.scratch / name).mkdir(parents=True)
        (self.scratch / "etc" / "slurm.conf").write_text(_CONFIG.format(logs=self.scratch / "logs", cpus=CPUS))
        (self.scratch / "etc" / "munge.key").write_bytes(os.urandom(1024))
        (self.scratch / "etc" / "munge.key").chmod(0o400)
        names = {"ctl": "10.77.0.1", **{f"n{k}": f"10.77.0.{10 + k}" for k in (1, 2, 3)}}
        hosts = "".join(f"{address} {name}\n" for name, address in names.items())
        (self.scratch / "etc" / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
        for name, address in names.items():
            self.boot(name, address)
        self.wait_for("sinfo", lambda out: out.count("idle") == 3, "-h", "-N", "-o", "%N %t")

    def boot(self, name: str, address: str = "") -> None:
        """Start a host; again, with the same address, after ``kill``."""
        address = address or self.hosts[name].address
        roots = ":".join(str(path) for path in (self.scratch, *self.shared))
        command = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", sys.executable, "-S"]
        with (self.scratch / "logs" / f"{name}.log").open("ab") as log:
            holder = subprocess.Popen(
                [*command, __file__, name, str(self.scratch), roots], stdin=subprocess.PIPE, stdout=log, stderr=log
            )
        init = _child(holder)
        self.hosts[name] = Host(name, address, holder, init)
        if name == "ctl":
            _ip(init, "link add br0 type bridge", f"addr add {address}/24 dev br0", "link set br0 up")
        else:
            ctl = self.hosts["ctl"].init
            _ip(ctl, f"link add {name} type veth peer name eth0 netns {init}", f"link set {name} master br0 up")
            _ip(init, f"addr add {address}/24 dev eth0", "link set eth0 up")
        _ip(init, "link set lo up")
        assert holder.stdin is not None
        holder.stdin.write(b"go\n")
        holder.stdin.flush()

    def kill(self, name: str) -> None:
        """End all that runs on a host at once, as when its power goes."""
        host = self.hosts[name]
        os.kill(host.init, signal.SIGKILL)
        host.holder.wait()

    def close(self) -> None:
        for host in self.hosts.values():
            with contextlib.suppress(OSError):
                os.kill(host.init, signal.SIGKILL)
            host.holder.kill()
            host.holder.wait()

    def on(self, name: str, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command on a host."""
        target = str(self.hosts[name].init)
        inside = ["nsenter", "--target", target, "--net", "--uts", "--mount", "--pid", *command]
        environment = {**os.environ, "SLURM_CONF": str(self.scratch / "etc" / "slurm.conf")}
        return subprocess.run(inside, env=environment, capture_output=True, text=True, timeout=120)

    def slurm(self, *command: str) -> str:
        """What a command of SLURM prints, run on the controller."""
        done = self.on("ctl", *command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def sbatch(self, *arguments: str, environment: "dict[str, str] | None" = None, cwd: Path) -> int:
        """Submit a job from a folder. Returns its number."""
        given = [f"{key}={value}" for key, value in (environment or {}).items()]
        done = self.on("ctl", "env", f"--chdir={cwd}", *given, "sbatch", "--parsable", *arguments)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    def job(self, number: "int | str") -> dict[str, str]:
        """What ``scontrol show job`` says, by key."""
        words = self.slurm("scontrol", "--oneliner", "show", "job", str(number)).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, tool: str, holds, *arguments: str, seconds: float = _START_SECONDS) -> str:  # type: ignore[no-untyped-def]
        """Wait until what a tool prints is as it should be."""
        gives_up = time.monotonic() + seconds
        while True:
            done = self.on("ctl", tool, *arguments)
            if done.returncode == 0 and holds(done.stdout):
                return done.stdout
            assert time.monotonic() < gives_up, f"{tool}: {done.stdout}{done.stderr}\n{self.logs()}"
            time.sleep(0.3)

    def processes(self, name: str, word: str = "") -> list[str]:
        """Command lines that run on a host and hold a word."""
        lines = self.on(name, "ps", "-eo", "args", "--no-headers").stdout.splitlines()
        return [line for line in lines if word in line and not line.startswith("ps ")]

    def logs(self) -> str:
        files = sorted((self.scratch / "logs").iterdir())
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-1500:]}" for file in files)


@contextlib.contextmanager
def slurm_site(scratch: Path, *shared: Path) -> Iterator[Site]:
    """A cluster that is ended whatever happens."""
    site = Site(scratch, shared)
    try:
        site.start()
        yield site
    finally:
        site.close()


def _child(holder: "subprocess.Popen[bytes]") -> int:
    gives_up = time.monotonic() + _START_SECONDS
    while time.monotonic() < gives_up:
        children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
        if children:
            return int(children[0])
        assert holder.poll() is None, "no namespaces here"
        time.sleep(0.01)
    raise TimeoutError("unshare")


def _ip(target: int, *commands: str) -> None:
    for command in commands:
        subprocess.run(["nsenter", "--target", str(target), "--net", "ip", *command.split()], check=True)


# --- the init of a host


def _init(name: str, scratch: Path, roots: Sequence[str]) -> None:
    sys.stdin.readline()  # until the network is there
    socket.sethostname(name)
    run = subprocess.check_call
    run(["mount", "--make-rprivate", "/"])
    run(["mount", "-t", "proc", "proc", "/proc"])
    run(["mount", "-t", "tmpfs", "tmpfs", "/run"])
    Path("/run/shared").mkdir()
    for number, root in enumerate(roots):
        Path(f"/run/shared/{number}").mkdir()
        run(["mount", "--bind", root, f"/run/shared/{number}"])
    run(["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/tmp"])
    for number, root in enumerate(roots):
        Path(root).mkdir(parents=True, exist_ok=True)
        run(["mount", "--bind", f"/run/shared/{number}", root])
    run(["mount", "--bind", str(scratch / "etc" / "hosts"), "/etc/hosts"])
    for folder in ("/run/munge", "/tmp/state", "/tmp/spool"):
        Path(folder).mkdir()
    key = Path("/run/munge.key")
    key.write_bytes((scratch / "etc" / "munge.key").read_bytes())
    key.chmod(0o400)
    munge = ["--key-file=/run/munge.key", "--socket=/run/munge/munge.socket.2", "--pid-file=/run/munge/munged.pid"]
    run(["munged", "--force", *munge, "--log-file=/run/munge/munged.log", "--seed-file=/run/munge/munged.seed"])
    environment = {**os.environ, "SLURM_CONF": str(scratch / "etc" / "slurm.conf")}
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    daemon = ["slurmctld", "-D"] if name == "ctl" else ["slurmd", "-D", "-N", name]
    subprocess.Popen(daemon, env=environment, stdin=subprocess.DEVNULL)
    while True:  # reaps whatever has lost its parent
        with contextlib.suppress(ChildProcessError):
            os.wait()
            continue
        time.sleep(1)


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: not without the test
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    _init(sys.argv[1], Path(sys.argv[2]), sys.argv[3].split(":"))
