"""Ray itself dies under a running sweep: a sentence and a status of ours, nothing left behind, and a resume goes on."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from analysis.errors import INTERRUPTED, ClusterError
from analysis.folder import SweepFolder
from sweeps.driver import ray_watch
from sweeps.driver.ray_watch import Part, RayWatch
from tests.sweeps.driver.ray_nodes import wait_until

SECONDS = 20  # from a death to the end of the driver
LONG = ("search.trials=2", "scheduler=fifo", "sampler=random", "baselines=[]", "train.max_steps=400",
        "train.rungs=[2,400]", "resources.threads=1", "sweep.name=tiny")  # fmt: skip


class Sweep:
    """One that trains for long; its processes are found by the mark of the command that started it."""

    def __init__(self, command: Any, *arguments: str):
        self.command, self.folder = command, SweepFolder(command.cwd / "runs" / "tiny")
        self.process: subprocess.Popen[str] = command.start(*arguments)

    def until(self, word: str) -> str:
        seen = ""
        for line in self.process.stdout or ():
            seen += line
            if word in line:
                return seen
        pytest.fail(f"{word} never came:\n{seen}\n{self.process.stderr and self.process.stderr.read()}")

    def send(self, name: str, number: int) -> None:
        for process in psutil.process_iter():
            try:
                if process.name() == name and process.environ().get("LORASWEEP_TEST") == self.command.mark:
                    process.send_signal(number)
            except psutil.Error:
                continue

    def ends(self) -> tuple[float, str, str]:
        """Seconds until the driver has ended, and what it said."""
        began = time.monotonic()
        out, err = self.process.communicate(timeout=240)
        return time.monotonic() - began, out, err


def is_told(sweep: Sweep, err: str, what: str) -> None:
    assert sweep.process.returncode == ClusterError.exit_code, err
    assert err.startswith("lorasweep: Ray died: no answer from "), err
    assert what in err
    assert "Everything recorded so far is kept" in err
    assert f"resume {os.path.relpath(sweep.folder.root, sweep.command.cwd)}" in err
    assert err.count("\n") == 1, "nothing else, such as a dump of Ray's"


def all_end(sweep: Sweep) -> None:
    gives_up = time.monotonic() + 20
    while sweep.command.processes() and time.monotonic() < gives_up:
        time.sleep(0.1)
    assert sweep.command.processes() == []


@pytest.mark.parametrize(
    ("name", "number", "what"),
    [
        pytest.param("gcs_server", signal.SIGKILL, "control store", id="control store killed"),
        pytest.param("raylet", signal.SIGKILL, "raylet of this machine", id="raylet killed", marks=pytest.mark.heavy),
        pytest.param("raylet", signal.SIGTERM, "raylet of this machine", id="raylet ended", marks=pytest.mark.heavy),
        pytest.param("gcs_server", signal.SIGSTOP, "control store", id="control store hangs", marks=pytest.mark.heavy),
        pytest.param("raylet", signal.SIGSTOP, "raylet of this machine", id="raylet hangs", marks=pytest.mark.heavy),
    ],
)
def test_a_local_ray_that_dies_ends_the_sweep_with_a_sentence_and_it_can_be_gone_on_with(
    name: str, number: int, what: str, lorasweep: Any, tiny: Any, tmp_path: Path
) -> None:
    # What hangs is given up after 13 s; trials need nothing of it, and go on meanwhile.
    trials = 16 if number == signal.SIGSTOP else 2
    sweep = Sweep(lorasweep(tmp_path), "run", *tiny("llama", *LONG, f"search.trials={trials}"))
    sweep.until("step 2/400")
    sweep.send(name, number)
    seconds, out, err = sweep.ends()
    is_told(sweep, err, what)
    assert "state-dump" not in out
    assert seconds < SECONDS
    all_end(sweep)
    ended = json.loads((sweep.folder.control_dir / "driver.json").read_text())["ended"]
    assert ended.startswith("Ray died")
    steps = [row.step for row in sweep.folder.trial("t0000").read_metrics()]
    assert steps in ([2], [2, 400, 400] if number == signal.SIGSTOP else [2])

    again = Sweep(sweep.command, "resume", "runs/tiny")
    _, out, err = again.ends()
    assert (again.process.returncode, err) == (0, "")
    assert "t0000  step 2/" not in out, "it went on from its rung"
    assert {trial.read_status().state for trial in sweep.folder.trials()} == {"completed"}
    assert [row.step for row in sweep.folder.trial("t0000").read_metrics()] == [2, 400, 400]
    all_end(again)


@pytest.mark.heavy
def test_a_raylet_that_hangs_when_all_is_done_holds_up_no_ranking(lorasweep: Any, tiny: Any, tmp_path: Path) -> None:
    sweep = Sweep(lorasweep(tmp_path), "run", *tiny("llama", *LONG, "search.trials=1"))
    sweep.until("step 2/400")
    sweep.send("raylet", signal.SIGSTOP)
    _, out, err = sweep.ends()
    assert (sweep.process.returncode, err) == (0, "")
    assert sweep.folder.leaderboard_file.exists()
    assert "Next:" in out
    all_end(sweep)


def test_a_signal_to_the_whole_process_group_is_an_interruption_and_not_the_death_of_ray(
    lorasweep: Any, tiny: Any, tmp_path: Path
) -> None:
    """As `scancel` and systemd do: Ray's processes get it with the driver."""
    sweep = Sweep(lorasweep(tmp_path), "run", *tiny("llama", *LONG))
    sweep.until("step 2/400")
    for name in ("gcs_server", "raylet"):
        sweep.send(name, signal.SIGTERM)
    sweep.process.send_signal(signal.SIGTERM)
    seconds, out, err = sweep.ends()
    assert (sweep.process.returncode, err) == (130, ""), out
    assert "Everything scored so far is kept" in out
    assert seconds < 60
    all_end(sweep)


# --- the watch itself, with servers that only answer the health check


class Server:
    """A gRPC server with nothing but the health check, and a port of its own."""

    def __init__(self, port: int = 0) -> None:
        class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
            def service(self, call: Any) -> Any:
                return grpc.unary_unary_rpc_method_handler(lambda request, context: b"\x08\x01")

        self.server = grpc.server(futures.ThreadPoolExecutor(2), handlers=(Handler(),))
        self.port = self.server.add_insecure_port(f"127.0.0.1:{port}")
        self.server.start()

    def part(self, patience: float = 0) -> Part:
        return Part("the part", f"127.0.0.1:{self.port}", patience)

    def stop(self) -> None:
        self.server.stop(0).wait()


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Statuses with which the watch would have ended this process."""
    statuses: list[int] = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    monkeypatch.setattr(ray_watch, "only_python_speaks", lambda: sys.stderr)
    monkeypatch.setattr(ray_watch.atexit, "register", lambda function: statuses.append(-1))
    monkeypatch.setattr(ray_watch, "_EVERY", 0.05)
    monkeypatch.setattr(ray_watch, "_CLOSE_SECONDS", 20)  # however slow this machine is just now
    monkeypatch.setattr(ray_watch, "_SAY_SECONDS", 3)
    monkeypatch.setattr(psutil, "Process", lambda: type("Nobody", (), {"children": lambda self, recursive: []})())
    yield statuses
    for thread in threading.enumerate():
        if thread.name == "Ray watch":
            thread.join(10)


def watch_of(*parts: Part, clean: Callable[[], None] = lambda: None) -> RayWatch:
    return RayWatch(parts, lambda: "Go on.", clean)


def run(watch: RayWatch, then: Callable[[], object]) -> None:
    with watch.watching():
        time.sleep(0.5)  # the parts have answered once
        then()


def stop_and(server: Server, then: Callable[[], object]) -> Callable[[], object]:
    return lambda: (server.stop(), then())


def fail(error: Exception) -> Callable[[], object]:
    def raise_it() -> None:
        raise error

    return raise_it


def test_the_death_of_a_part_is_raised_in_the_main_thread_wherever_that_waits(
    ended: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, cleaned = Server(), []
    watch = watch_of(server.part(), clean=lambda: cleaned.append(True))
    # the watch gets ahead of the main thread, as on a busy machine
    monkeypatch.setattr(watch, "stop", lambda stop=watch.stop: (stop(), time.sleep(0.5)))
    with pytest.raises(ClusterError, match=r"no answer from the part \(127\.0\.0\.1:.*Go on\."):
        run(watch, stop_and(server, lambda: threading.Event().wait(30)))
    wait_until(lambda: cleaned, 30)
    assert cleaned == [True]
    assert ended[0] == -1, "and the end of the interpreter leaves Ray's own end out"


def test_an_error_that_comes_from_the_death_of_a_part_is_told_as_that_and_others_are_not(ended: list[int]) -> None:
    server = Server()
    with pytest.raises(KeyError):
        run(watch_of(server.part()), fail(KeyError("ours")))
    with pytest.raises(ClusterError):
        run(watch_of(server.part()), stop_and(server, fail(KeyError("Ray's"))))


def test_where_a_signal_has_stopped_the_sweep_the_death_of_a_part_is_no_error(ended: list[int]) -> None:
    server = Server()
    watch = watch_of(server.part())
    watch.leave()
    run(watch, stop_and(server, lambda: wait_until(lambda: watch.error, 30)))
    wait_until(lambda: INTERRUPTED in ended, 30)


def test_a_block_that_is_done_as_a_part_dies_is_done(ended: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    dying, done = threading.Event(), threading.Event()
    monkeypatch.setattr(ray_watch, "only_python_speaks", lambda: (dying.set(), done.wait(10)))
    server = Server()
    run(watch_of(server.part()), stop_and(server, lambda: dying.wait(10)))
    done.set()
    wait_until(lambda: "Ray watch" not in [thread.name for thread in threading.enumerate()], 30)
    assert dying.is_set()
    assert ended == []


def test_a_part_that_never_answered_or_comes_back_in_time_is_not_dead(ended: list[int]) -> None:
    server = Server()
    with watch_of(Part("nobody", "127.0.0.1:9"), server.part(patience=5)).watching():
        time.sleep(0.5)
        server.stop()
        time.sleep(1.0)
        server = Server(server.port)
        time.sleep(5)
    server.stop()
    assert ended == []


def test_it_is_said_once_where_the_main_thread_is_ready_while_the_watch_is_saying_it(
    ended: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, saying = Server(), threading.Event()

    def slowly(text: str, stream: object) -> str:
        saying.set()
        time.sleep(0.2)
        return text

    monkeypatch.setattr(ray_watch, "wrapped", slowly)
    monkeypatch.setattr(ray_watch, "_CLOSE_SECONDS", 0.5)

    def close_records() -> None:
        with contextlib.suppress(ClusterError):
            threading.Event().wait(30)
        assert saying.wait(10)

    with pytest.raises(ClusterError):
        run(watch_of(server.part()), stop_and(server, close_records))
    assert ended[0] == ClusterError.exit_code, "the process has ended before the block does"


def test_who_does_not_come_out_of_rays_code_is_ended_with_the_same_sentence(
    ended: list[int], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_watch, "_CLOSE_SECONDS", 0.5)
    server = Server()

    def stuck() -> None:  # nothing can be raised in a thread that is not the main one
        with contextlib.suppress(ClusterError), watch_of(server.part()).watching():
            time.sleep(0.5)
            server.stop()
            for _ in range(100):
                if ended:
                    break
                time.sleep(0.1)

    thread = threading.Thread(target=stuck)
    thread.start()
    thread.join()
    assert ended[0] == ClusterError.exit_code
    ours = [line for line in capfd.readouterr().err.splitlines() if "chttp2" not in line]  # gRPC is not silenced here
    assert ours[0].startswith("lorasweep: Ray died: no answer from the part")
