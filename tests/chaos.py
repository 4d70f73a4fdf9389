"""Random kills and stops of every process of a real sweep, which is to end as if nothing had happened.

    python tests/chaos.py [--seed 1] [--strikes 50] [--wandb offline|online] [--slots 1] [--folder DIR] [--keep]

It runs a sweep of a tiny model undisturbed, and then again under strikes. A strike meets, at a random moment, a random
process: the driver, the device worker, a trial's proxy, the dispatcher, Ray's control store, raylet or agents, the fork
server, a worker that is just starting, W&B's service; with ``--wandb online`` also the W&B server, on the loopback
address, which comes back at the same port. The blow is SIGKILL, SIGTERM, SIGSTOP with a SIGCONT up to 40 s later, and
for the driver SIGINT as well. Whenever the driver has ended, ``lorasweep status`` is asked and ``lorasweep resume``
goes on, as a user would; where it died before there was a sweep, the command is given again.

In the end both sweeps are compared (``tests/sweep_differences.py``), and nothing may be left: no process, no temporary
file. Strikes are printed, and written with their times to ``strikes.jsonl``: a seed draws the same numbers again, but
what they meet depends on the machine's pace, so this file says what happened. Exit status 0: no difference, 1: some.

What the product says that it does not bear is left out: a trial whose device worker died three times before its next
rung counts as the cause (``sweeps/driver/device_client.py``), and so does one whose proxy died three times
(``sweeps/driver/tune_run.py``); no trial meets more than two such blows.
"""

import argparse
import contextlib
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run by its path
    sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil

from analysis.errors import INTERRUPTED, ClusterError, HardwareError
from analysis.folder import ENDED, SweepFolder, append_line, read_lines
from sweeps.process.installation import package_root
from tests.conftest import save_tiny_model, write_rows
from tests.sweep_differences import differences, shown_offline, shown_online, tells, wandb_faults
from tests.wandb_server_process import ServerProcess

RUNGS = (60, 120, 180, 240)  # a second or two each, on a slow core
LONGEST_STOP = 40.0  # seconds; Ray counts a process as dead that hangs for 13
BEARABLE = 2  # deaths of a worker under a trial between two rungs, or of its proxy
PATIENCE = 300.0  # seconds without a rung, with nothing stopped, after which a sweep hangs
LEAVE_SECONDS = 30.0  # for the last processes and files to be gone
# A sweep may end as its own signals and Ray's death make it; Ray may also fail to start, where it is struck on the way.
STATUSES = {0, ClusterError.exit_code, HardwareError.exit_code, INTERRUPTED}
STATUSES |= {-number for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)}
SERVER = "W&B server"
FATAL = (signal.SIGKILL, signal.SIGTERM)


@dataclass(frozen=True)
class Settings:
    """What is done.

    Attributes:
        root: folder for both sweeps and the data.
        seed: of the strikes.
        strikes: how many.
        wandb: ``offline`` or ``online``.
        slots: trials side by side. With one, TPE and ASHA are used, and all must be equal bit by bit. With more, what a
            trial's neighbours are is chance: random suggestions without early stopping, equal within ``rel``.
        scratch: whether temporary files may be left.
    """

    root: Path
    seed: int = 1
    strikes: int = 50
    wandb: str = "offline"
    slots: int = 1
    scratch: bool = True

    @property
    def trials(self) -> int:
        return max(6, 2 * self.strikes)  # a quiet machine gives time for 0.7 to two strikes a trial

    @property
    def rel(self) -> float:
        return 0.0 if self.slots == 1 else 1e-3

    def overrides(self, folder: str) -> list[str]:
        data = self.root / "data"
        search = ["sampler=tpe", "scheduler=asha"] if self.slots == 1 else ["sampler=random", "scheduler=fifo"]
        return [
            "model=local", f"model.path={data / 'llama'}", "precision=fp32",
            "data=csv", f"data.train={data / 'train.csv'}", f"data.validation={data / 'validation.csv'}",
            f"train.max_steps={RUNGS[-1]}", f"train.rungs=[{','.join(map(str, RUNGS))}]", "train.batch_size=4",
            "eval.rung_items=12", "bias=none", "baselines=[majority]", *search, "search.start_from=[]",
            f"search.trials={self.trials}", f"resources.slots={self.slots}", "resources.threads=1",
            "tracking=wandb" if self.wandb == "online" else "tracking=wandb_offline",
            f"sweep.dir={folder}", "sweep.name=chaos",
        ]  # fmt: skip


@dataclass
class Command:
    """``lorasweep`` in a folder: its processes bear a mark in their environment, and have temporary files of their own.

    Args:
        settings: of it all.
        cwd: where it runs.
        server: of W&B, where it is to be online.
    """

    settings: Settings
    cwd: Path
    server: ServerProcess | None = None
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    lives: int = 0
    process: "subprocess.Popen[bytes] | None" = None

    def __post_init__(self) -> None:
        self.cwd.mkdir(parents=True)
        self.scratch = Path(tempfile.mkdtemp(prefix="c", dir="/tmp"))  # short: Ray has sockets below it

    @property
    def environment(self) -> dict[str, str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        environment |= {"PYTHONPATH": package_root(), "PYTHONUNBUFFERED": "1", "LORASWEEP_TEST": self.mark}
        environment |= {"TMPDIR": str(self.scratch), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        environment |= {"WANDB_CONFIG_DIR": str(self.cwd / "wandb-config"), "NETRC": str(self.cwd / "netrc")}
        environment["WANDB_ERROR_REPORTING"] = "false"
        if self.server is not None:
            environment |= {"WANDB_BASE_URL": self.server.url, "WANDB_API_KEY": "0123456789abcdef" * 3}
        return environment

    def start(self, *arguments: str) -> None:
        """Begin the driver's next life."""
        self.lives += 1
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", "sweeps.cli", *arguments]
            self.process = subprocess.Popen(
                command, cwd=self.cwd, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def log(self) -> Path:
        """What the driver says in its life."""
        return self.cwd / f"driver-{self.lives:02}.log"

    def asks(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """A command beside the sweep, which meets no strikes."""
        environment = self.environment | {"LORASWEEP_TEST": ""}
        command = [sys.executable, "-m", "sweeps.cli", *arguments]
        return subprocess.run(command, cwd=self.cwd, env=environment, capture_output=True, text=True, timeout=120)

    @property
    def ended(self) -> int | None:
        assert self.process is not None
        return self.process.poll()

    def processes(self) -> list[psutil.Process]:
        """All that live and come from this command, zombies left out."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                named = any(str(self.scratch) in word for word in process.cmdline())
                ours = named or process.environ().get("LORASWEEP_TEST") == self.mark
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def kill_all(self) -> None:
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()


@dataclass
class Stopped:
    """Something that goes on, or comes back, at a time of ``time.monotonic``."""

    until: float
    target: "psutil.Process | ServerProcess"
    dead: bool = False


class Chaos:
    """One sweep under strikes.

    Args:
        settings: of it all.
        command: of the sweep.
    """

    def __init__(self, settings: Settings, command: Command):
        self.settings, self.command = settings, command
        self.folder = SweepFolder(command.cwd / "runs" / "chaos")
        self.chance = random.Random(settings.seed)
        self.stopped: list[Stopped] = []
        self.faults: list[str] = []
        self.struck: Counter[str] = Counter()
        self.deaths: Counter[str] = Counter()  # of device workers since the last rung, of proxies since the last end
        self.ends: Counter[int] = Counter()  # exit status of a driver
        self.began = self.heard = time.monotonic()
        self.seen = self.over = 0  # rungs and ends, and ends alone

    def run(self) -> None:
        """Until the sweep is over, whatever it took. What should not have been is in ``faults``."""
        self.command.start("run", *self.settings.overrides("runs"))
        try:
            while not self.is_over():
                if self.command.ended is not None:
                    self._go_on()
                elif self.struck.total() < self.settings.strikes:
                    if self._wait_for_a_moment():
                        self._strike()
                else:
                    self._pass(1.0)
        except Hung as hung:
            self.faults.append(str(hung))
            self.command.kill_all()
        finally:
            for stopped in self.stopped:
                self._wake(stopped)
        if self.struck.total() < self.settings.strikes:
            self.faults.append(f"the sweep was over after {self.struck.total()} of {self.settings.strikes} strikes")

    def is_over(self) -> bool:
        """Whether a driver has ended well, and all trials have."""
        return self.command.ended == 0 and len(tells(self.folder)) == self.settings.trials and all(
            files.read_status().state in ENDED for files in self.folder.trials()
        )  # fmt: skip

    # --- time

    def _wait_for_a_moment(self) -> bool:
        """Let the sweep get on, mostly by a rung or two, sometimes not at all. False where its driver ended."""
        if self.chance.random() < 0.7:
            wanted = self._records() + self.chance.choice([1, 1, 2])
            while self._records() < wanted:
                if not self._pass(0.05):
                    return False
            return self._pass(self.chance.uniform(0, 1.5))
        return self._pass(self.chance.uniform(0, 12))

    def _pass(self, seconds: float) -> bool:
        """Let time pass, and wake up what is due. False where the driver has ended."""
        until = time.monotonic() + seconds
        while True:
            now = time.monotonic()
            for stopped in [it for it in self.stopped if it.until <= now]:
                self.stopped.remove(stopped)
                self._wake(stopped)
            self._watch(now)
            if self.command.ended is not None:
                return False
            if now >= until:
                return True
            time.sleep(0.05)

    def _watch(self, now: float) -> None:
        """Count what the sweep has recorded. Raises Hung where that was nothing for long."""
        records = self._records()
        if records != self.seen or self.stopped:
            if records != self.seen:
                self.deaths["device worker"] = 0
            if len(ends := tells(self.folder)) != self.over:
                self.over, self.deaths["proxy"] = len(ends), 0
            self.seen, self.heard = records, now
        if now - self.heard > PATIENCE:
            processes = [f"{kind} {process.pid}" for kind, process in self._targets()]
            raise Hung(f"nothing was recorded for {PATIENCE:.0f} s; there are {processes}; see {self.command.log}")

    def _records(self) -> int:
        return sum(line["event"] in ("rung", "tell") for line in read_lines(self.folder.asks_file))

    def _wake(self, stopped: Stopped) -> None:
        if stopped.dead and isinstance(stopped.target, ServerProcess):
            stopped.target.start()
        else:
            send = stopped.target.send if isinstance(stopped.target, ServerProcess) else stopped.target.send_signal
            with contextlib.suppress(psutil.Error, OSError):
                send(signal.SIGCONT)

    # --- strikes

    def _targets(self) -> list[tuple[str, psutil.Process]]:
        driver = self.command.process
        assert driver is not None
        found = []
        for process in self.command.processes():
            with contextlib.suppress(psutil.Error):
                found.append((kind_of(process, driver.pid), process))
        return found

    def _strike(self) -> None:
        """Choose a kind of process that is there, then one of that kind, then a blow."""
        there: dict[str, list[Any]] = {}
        for kind, process in self._targets():
            there.setdefault(kind, []).append(process)
        server = self.command.server
        if server is not None and not any(it.target is server for it in self.stopped):
            there[SERVER] = [server]
        if not there:
            return
        kind = self.chance.choice(sorted(there))
        target = self.chance.choice(there[kind])
        number, seconds = self._blow(kind)
        if number in FATAL and kind in ("device worker", "proxy"):
            if self.deaths[kind] >= BEARABLE:
                return
            self.deaths[kind] += 1
        self._note(kind, target, number, seconds)
        with contextlib.suppress(psutil.Error):
            if isinstance(target, ServerProcess) and number == signal.SIGKILL:
                target.end()
                self.stopped.append(Stopped(time.monotonic() + seconds, target, dead=True))
                return
            (target.send if isinstance(target, ServerProcess) else target.send_signal)(number)
            if number == signal.SIGSTOP:
                self.stopped.append(Stopped(time.monotonic() + seconds, target))

    def _blow(self, kind: str) -> tuple[int, float]:
        """A signal, and the seconds after which it is over."""
        seconds = math.exp(self.chance.uniform(0, math.log(LONGEST_STOP)))  # short ones as often as long ones
        if kind == SERVER:
            return self.chance.choice([signal.SIGKILL, signal.SIGSTOP]), seconds
        more = [signal.SIGINT] if kind == "driver" else []
        blows = [signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP, signal.SIGSTOP, *more]
        number = self.chance.choice(blows)
        return number, seconds if number == signal.SIGSTOP else 0.0

    def _note(self, kind: str, target: Any, number: int, seconds: float) -> None:
        self.struck[kind] += 1
        name = signal.Signals(number).name
        record = {
            "strike": self.struck.total(), "time": time.time(), "second": round(time.monotonic() - self.began, 1),
            "process": kind, "pid": (target.process if kind == SERVER else target).pid, "signal": name,
            "seconds": round(seconds, 1), "life": self.command.lives, "records": self._records(),
        }  # fmt: skip
        append_line(self.command.cwd / "strikes.jsonl", record)
        blow = f"{name} for {seconds:.0f} s" if seconds else name
        print(
            f"{record['strike']:3}  {record['second']:6.1f} s  {kind:14} {blow:18}"
            f" driver {self.command.lives}, {record['records']} rungs and ends",
            flush=True,
        )

    # --- as a user

    def _go_on(self) -> None:
        """The driver has ended: see how, ask for the status, and go on."""
        command, code = self.command, self.command.ended
        assert code is not None
        self.ends[code] += 1
        said = command.log.read_text(errors="replace")
        print(f"     {time.monotonic() - self.began:6.1f} s  driver {command.lives} ended with {code}", flush=True)
        if code not in STATUSES or "Traceback (most recent" in said:
            self.faults.append(f"driver {command.lives} ended with {code}: {' | '.join(said.splitlines()[-3:])}")
        if command.lives > 4 * self.settings.strikes + 10:
            raise Hung(f"the sweep was gone on with {command.lives} times, and is not over")
        self.deaths.clear()
        self.heard = time.monotonic()
        if not self.folder.sweep_file.exists():
            command.start("run", *self.settings.overrides("runs"))
            return
        status = command.asks("status", "runs/chaos")
        if status.returncode != 0 or "Traceback" in status.stderr:
            self.faults.append(f"status after driver {command.lives} ended with {status.returncode}: {status.stderr}")
        command.start("resume", "runs/chaos")


class Hung(Exception):
    """The sweep does not come to an end."""


def kind_of(process: psutil.Process, driver: int) -> str:
    """Which part of a sweep a process is.

    Raises:
        psutil.Error: where it has ended meanwhile.
    """
    title, name = " ".join(process.cmdline()), process.name()
    if process.pid == driver:
        return "driver"
    if name in ("gcs_server", "raylet"):
        return {"gcs_server": "control store", "raylet": "raylet"}[name]
    parts = {
        "ray::Dispatcher": "dispatcher",
        "ray::DeviceWorker": "device worker",
        "ray::ResourceTrainable": "proxy",
        "ray::TrialProxy": "proxy",
        "ray::": "other worker",
    }
    for beginning, part in parts.items():
        if title.startswith(beginning):
            return part
    if "sweeps.process.fork_server" in title:
        return "fork server" if process.ppid() == driver else "new worker"
    if "sweeps.process.scratch" in title:
        return "janitor"
    if "wandb-core" in title:
        return "W&B service"
    if "forked_worker" in title or "default_worker" in title:
        return "new worker"
    if "/ray/" in title:
        return "Ray's agent"
    return "another"


# --- before and after


def make_data(root: Path) -> None:
    """A tiny model and rows, the same each time."""
    data = root / "data"
    if not (data / "validation.csv").exists():
        save_tiny_model("llama", data / "llama")
        write_rows(data / "train.csv", 60, 0)
        write_rows(data / "validation.csv", 30, 1)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@contextlib.contextmanager
def wandb_server(settings: Settings, cwd: Path) -> Iterator[ServerProcess | None]:
    """A W&B server where one is wanted, for the length of the block."""
    if settings.wandb == "offline":
        yield None
        return
    server = ServerProcess(free_port(), cwd.with_name(f"{cwd.name}-server.pickle"))
    server.start()
    try:
        yield server
    finally:
        server.end()


def undisturbed(settings: Settings) -> SweepFolder:
    """The sweep that nobody disturbs; one that is there already is taken."""
    cwd = settings.root / f"whole-{settings.slots}-{settings.trials}"
    folder = SweepFolder(cwd / "runs" / "chaos")
    if not (folder.leaderboard_file.exists() and len(tells(folder)) == settings.trials):
        shutil.rmtree(cwd, ignore_errors=True)
        command = Command(Settings(settings.root, strikes=settings.strikes, slots=settings.slots), cwd)
        command.start("run", *command.settings.overrides("runs"))
        assert command.process is not None
        code = command.process.wait()
        shutil.rmtree(command.scratch, ignore_errors=True)
        if code != 0:
            raise RuntimeError(f"the undisturbed sweep ended with {code}: see {command.log}")
    return folder


def left_over(command: Command) -> Iterator[str]:
    """Processes, ports and temporary files that the sweep has left, once it has had the time to be gone."""
    until = time.monotonic() + LEAVE_SECONDS
    while (command.processes() or _files(command)) and time.monotonic() < until:
        time.sleep(0.2)
    for process in command.processes():
        with contextlib.suppress(psutil.Error):
            ports = [it.laddr.port for it in process.net_connections() if it.status == psutil.CONN_LISTEN]
            listens = f", listening at {ports}" if ports else ""
            yield f"left: process {process.pid}, {' '.join(process.cmdline())[:200]}{listens}"
    if command.settings.scratch and (files := _files(command)):
        yield f"left: {len(files)} temporary files and folders, such as {', '.join(files[:3])}"


def _files(command: Command) -> list[str]:
    if not command.settings.scratch:
        return []
    return sorted(str(path.relative_to(command.scratch)) for path in command.scratch.rglob("*"))


def upload(command: Command) -> Iterator[str]:
    """Do what the sweep says in the end is to be done for what is not uploaded yet."""
    named = re.search(r"[^\s`]*wandb sync [^#`\n]*", command.log.read_text(errors="replace"))
    if named is None:
        return
    print(f"     {named.group()}", flush=True)
    said = subprocess.run(
        named.group(), shell=True, cwd=command.cwd, env=command.environment, capture_output=True, text=True, timeout=300
    )
    if said.returncode:
        yield f"W&B: `{named.group()}` ended with {said.returncode}: {said.stdout}{said.stderr}"


def chaos(settings: Settings) -> list[str]:
    """Run both sweeps. Returns what is wrong, in sentences."""
    settings.root.mkdir(parents=True, exist_ok=True)
    make_data(settings.root)
    began = time.monotonic()
    whole = undisturbed(settings)
    print(f"undisturbed: {time.monotonic() - began:.0f} s", flush=True)
    cwd = settings.root / f"seed-{settings.seed}-{settings.wandb}-{settings.slots}"
    shutil.rmtree(cwd, ignore_errors=True)
    with wandb_server(settings, cwd) as server:
        command = Command(settings, cwd, server)
        cut = Chaos(settings, command)
        cut.run()
        faults = [*cut.faults, *left_over(command)]
        command.kill_all()
        faults += differences(cut.folder, whole, settings.rel)
        if server is not None:
            faults += upload(command)
        shown = shown_offline(cut.folder) if server is None else shown_online(server.kept().values())
        faults += wandb_faults(cut.folder, shown)
    shutil.rmtree(command.scratch, ignore_errors=True)
    result = {
        "seed": settings.seed, "strikes": cut.struck.total(), "struck": dict(cut.struck.most_common()),
        "drivers": command.lives, "ended with": {str(code): times for code, times in sorted(cut.ends.items())},
        "trials": settings.trials, "slots": settings.slots, "wandb": settings.wandb,
        "seconds": round(time.monotonic() - cut.began), "faults": len(faults),
    }  # fmt: skip
    print(json.dumps(result))
    return faults


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1, help="of the strikes (1)")
    parser.add_argument("--strikes", type=int, default=50, help="how many (50)")
    parser.add_argument("--wandb", choices=("offline", "online"), default="offline")
    parser.add_argument("--slots", type=int, default=1, help="trials side by side (1)")
    parser.add_argument("--folder", type=Path, help="for sweeps and logs; an undisturbed sweep that is there is taken")
    parser.add_argument("--keep", action="store_true", help="keep the folder where nothing is wrong, too")
    parser.add_argument("--no-scratch", dest="scratch", action="store_false", help="temporary files may be left")
    given = parser.parse_args(arguments)
    root = (given.folder or Path(tempfile.mkdtemp(prefix="chaos-"))).resolve()
    faults = chaos(Settings(root, given.seed, given.strikes, given.wandb, given.slots, given.scratch))
    for fault in faults:
        print(f"✗ {fault}")
    if faults or given.keep or given.folder:
        print(f"Sweeps, logs and strikes.jsonl: {root}")
    else:
        shutil.rmtree(root)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
