"""Trials over several processes, through the real command: the same leaderboard as with one, whatever dies.

The heavy ones take some minutes: ``pytest -m heavy tests/sweeps/driver/test_trial_ranks.py``.
"""

import os
import queue
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from analysis.folder import State, SweepFolder, TrialFolder
from analysis.objective import Objective
from sweeps.config import ResourcesConfig, SweepConfig
from sweeps.driver.cluster_nodes import Node, seats
from sweeps.driver.trial_ranks import RanksWorker, _Answer, _EngineOnRanks, _plain
from trainer.config import EngineConfig
from trainer.engine import Admitted, Ended, Halted, RankLost, Requeued

SETTINGS = (
    "engine=hf", "resources.gpus_per_trial=0", "resources.threads=1", "tracking=none", "scheduler=fifo",
    "sampler=random", "precision=fp32", "train.max_steps=60", "train.rungs=[4,8,60]", "train.batch_size=6",
    "train.accumulation=2", "lora.dropout=0.1",
)  # fmt: skip
CLOSE = 1e-5


# --- without Ray


def config(**resources: Any) -> SweepConfig:
    return SweepConfig(engine=EngineConfig(name="hf"), resources=ResourcesConfig(**resources))


def test_a_seat_is_so_many_gpus_of_one_node() -> None:
    node = Node("id", "alpha", {"CPU": 16.0, "GPU": 8.0}, {})
    found = seats(node, 4.0, config(gpus_per_trial=4.0))
    assert [(seat.index, seat.gpus, seat.cpus, seat.ranks, seat.threads) for seat in found] == [
        (0, 4.0, 4.0, 4, 2),
        (1, 4.0, 4.0, 4, 2),
    ]
    assert not found[0].fits({"CPU": 16.0, "GPU": 3.0})
    assert seats(node, 16.0, config(gpus_per_trial=16.0)) == []


def test_a_seat_on_cpus_is_shared_out_among_the_processes_of_a_trial() -> None:
    (seat,) = seats(Node("id", "alpha", {"CPU": 2.0}, {}), 0.0, config(gpus_per_trial=0, workers_per_trial=2))
    assert (seat.gpus, seat.cpus, seat.ranks, seat.threads) == (0.0, 2.0, 2, 1)
    (seat,) = seats(Node("id", "alpha", {"CPU": 1.0}, {}), 0.0, config(gpus_per_trial=0, workers_per_trial=2))
    assert (seat.cpus, seat.ranks, seat.threads) == (1.0, 2, 1), "half a CPU each"


class Ranks:
    """In place of a worker with ranks: what each call gives, or raises."""

    def __init__(self, *answers: Any):
        self.answers = list(answers)
        self.calls: list[tuple[Any, ...]] = []

    def on_ranks(self, *call: Any, **asked: Any) -> list[Any]:
        self.calls.append(call)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return [answer, answer]


TRIAL: Any = SimpleNamespace(trial_id="t0000")


def test_a_trial_whose_process_dies_is_given_back_and_goes_on_with_a_note(tmp_path: Path) -> None:
    ranks: Any = Ranks(Admitted(0), RankLost("gone"), Admitted(8), ([], 9))
    engine = _EngineOnRanks(ranks)
    engine.admit(TRIAL, TrialFolder(tmp_path), None)
    (event,) = engine.advance()
    assert isinstance(event, Requeued)
    assert engine.advance() == [], "no trial is here any more"
    admission = engine.admit(TRIAL, TrialFolder(tmp_path), None)
    assert admission == Admitted(8, "a process of it died: went on from step 8")
    assert engine.advance() == []
    assert engine.steps("t0000") == 9


def test_a_trial_under_which_processes_die_three_times_between_two_rungs_has_failed(tmp_path: Path) -> None:
    engine = _EngineOnRanks(Ranks(*[Admitted(4), RankLost("gone")] * 3))  # type: ignore[arg-type]
    events = []
    for _ in range(3):
        engine.admit(TRIAL, TrialFolder(tmp_path), None)
        events += engine.advance()
    assert [type(event) for event in events] == [Requeued, Requeued, Ended]
    assert events[2].state is State.FAILED
    assert "lost 3 times before the next rung: gone" in events[2].reason


class Fit:
    """In place of a run of TorchTrainer."""

    group = "g"

    def __init__(self) -> None:
        self.lives, self.killed = True, False

    def alive(self) -> bool:
        return self.lives

    def kill(self) -> None:
        self.killed = True


def worker(*answers: _Answer, lives: bool = True) -> tuple[Any, Fit]:
    made: Any = RanksWorker.__new__(RanksWorker)
    fit = Fit()
    fit.lives = lives
    made.ranks, made._fit, made._number, made._call, made._answers = 2, fit, 0, None, queue.SimpleQueue()
    made._unsaved = {}
    for answer in answers:
        made._answers.put(answer)
    return made, fit


def test_a_rank_whose_gpu_answers_no_more_counts_as_lost_and_says_why() -> None:
    error = _plain(torch.AcceleratorError("CUDA error: unspecified launch failure\nCUDA kernel errors might be …"))
    assert isinstance(error, RankLost)
    made, fit = worker(_Answer(1, 0, error=error))
    with pytest.raises(RankLost, match="its GPU failed: CUDA error: unspecified launch failure"):
        made.on_ranks("advance")
    assert fit.killed
    assert isinstance(_plain(RuntimeError("NCCL error …\nCuda failure 'out of memory'")), MemoryError)


OUT: Any = ([Ended("t0000", State.OUT_OF_MEMORY, "no room", 4)], 4)


def test_a_call_gives_what_each_rank_gave() -> None:
    made, fit = worker(_Answer(1, 1, "b"), _Answer(0, 1, "late"), _Answer(1, 0, "a"))
    assert made.on_ranks("facts") == ["a", "b"]
    assert not fit.killed


def test_a_fault_of_all_ranks_is_the_call_s_and_the_group_lives_on() -> None:
    made, fit = worker(_Answer(1, 0, error=ValueError("wrong")), _Answer(1, 1, error=ValueError("wrong")))
    with pytest.raises(ValueError, match="wrong"):
        made.on_ranks("prepare")
    assert not fit.killed
    made, fit = worker(_Answer(1, 0, OUT), _Answer(1, 1, OUT))
    assert made.on_ranks("advance") == [OUT, OUT]
    assert not fit.killed


def test_a_fault_of_one_rank_is_the_outcome_where_the_others_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.driver.trial_ranks._AGREE_SECONDS", 0.3)
    made, fit = worker(_Answer(1, 1, OUT))  # the other hangs in a pass of a sharded model
    assert made.on_ranks("advance") == [OUT, OUT]
    assert fit.killed
    made, fit = worker(_Answer(1, 1, OUT), _Answer(1, 0, error=RankLost("closed by peer")))
    assert made.on_ranks("advance") == [OUT, OUT]
    assert fit.killed
    assert made._fit is None, "the next call starts another group"


def test_a_rank_that_dies_or_hangs_is_no_outcome_of_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.driver.trial_ranks._AGREE_SECONDS", 0.3)
    for made, fit in (worker(lives=False), worker(_Answer(1, 0, error=RankLost("timed out")))):
        with pytest.raises(RankLost):
            made.on_ranks("advance")
        assert fit.killed


def test_where_an_engine_breaks_the_ranks_start_anew(tmp_path: Path) -> None:
    made, fit = worker()
    made._folders, made.node = {"t0000": TrialFolder(tmp_path)}, "beta"
    (event,) = made._broken(OSError(28, "No space left on device"))
    assert isinstance(event, Halted)
    assert fit.killed
    assert made._fit is None


def test_a_worker_of_ranks_shows_itself_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    RanksWorker(EngineConfig(name="hf"), None, Objective("single", 0.05, ()), 1, "beta", 2.0, 2, 1.0)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    for name in [name for name in os.environ if name.startswith("RAY_TRAIN_") or name == "RAY_CHDIR_TO_TRIAL_DIR"]:
        monkeypatch.delenv(name)


# --- the real command


@pytest.fixture(scope="module")
def undisturbed(lorasweep: Any, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    """A sweep whose trials train in one process each."""
    here = tmp_path_factory.mktemp("one")
    done = lorasweep(here)("run", *tiny("llama", *SETTINGS, "search.trials=2", "sweep.name=one"))
    assert done.returncode == 0, done.stderr
    return SweepFolder(here / "runs" / "one")


def ranks_of(command: Any) -> list[int]:
    """Processes of the trials of a sweep."""
    found = []
    for process in psutil.process_iter():
        try:
            mine = process.environ().get("LORASWEEP_TEST") == command.mark
            if mine and "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def require_same(folder: SweepFolder, undisturbed: SweepFolder, reading: Any) -> None:
    reading.require_same_curves(folder, undisturbed, CLOSE)
    assert {trial.read_status().state for trial in folder.trials()} == {"completed"}
    assert sorted(reading.tells(folder)) == ["t0000", "t0001"]


@pytest.mark.heavy
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_two_workers_a_trial_give_the_leaderboard_of_one(
    sharding: str, undisturbed: SweepFolder, lorasweep: Any, tiny: Any, tmp_path: Path, reading: Any
) -> None:
    command = lorasweep(tmp_path)
    more = ("resources.workers_per_trial=2", f"engine.sharding={sharding}", "search.trials=2", "sweep.name=two")
    done = command("run", *tiny("llama", *SETTINGS, *more))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    folder = SweepFolder(tmp_path / "runs" / "two")
    require_same(folder, undisturbed, reading)
    assert {trial.read_status().where.partition(": ")[2] for trial in folder.trials()} == {"2 × CPU, 1 thread"}
    assert "Traceback" not in folder.log_file.read_text()
    assert command.processes() == []


@pytest.mark.heavy
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_of_a_trial_that_is_killed_costs_no_result(
    number: int, undisturbed: SweepFolder, lorasweep: Any, tiny: Any, tmp_path: Path, reading: Any
) -> None:
    command = lorasweep(tmp_path)
    more = ("resources.workers_per_trial=2", "search.trials=2", "sweep.name=two")
    process = command.start("run", *tiny("llama", *SETTINGS, *more))
    folder = SweepFolder(tmp_path / "runs" / "two")
    gives_up = time.monotonic() + 200
    while not (there := [trial for trial in folder.trials() if len(trial.read_metrics()) == 2]):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < gives_up
        time.sleep(0.02)
    both = ranks_of(command)
    assert len(both) == 2
    os.kill(both[1], number)
    out, err = process.communicate(timeout=280)
    assert (process.returncode, err) == (0, ""), out
    require_same(folder, undisturbed, reading)
    assert there[0].read_status().notes == ("a process of it died: went on from step 8",)


@pytest.mark.heavy
def test_a_sweep_goes_on_with_another_number_of_processes(
    undisturbed: SweepFolder, lorasweep: Any, tiny: Any, tmp_path: Path, reading: Any
) -> None:
    """Stopped by Ctrl-C between two rungs, with two processes a trial; resumed with one."""
    command = lorasweep(tmp_path)
    more = ("resources.workers_per_trial=2", "search.trials=2", "sweep.name=two")
    process = command.start("run", *tiny("llama", *SETTINGS, *more))
    folder = SweepFolder(tmp_path / "runs" / "two")
    gives_up = time.monotonic() + 200
    while not [trial for trial in folder.trials() if len(trial.read_metrics()) == 2]:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < gives_up
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert command.processes() == []
    done = command("resume", "runs/two", "resources.workers_per_trial=null")
    assert done.returncode == 0, done.stderr
    require_same(folder, undisturbed, reading)


@pytest.mark.heavy
def test_two_nodes_each_train_a_trial_with_two_processes_and_one_is_lost(
    undisturbed: SweepFolder, start_cluster: Any, lorasweep: Any, tiny: Any, tmp_path: Path, reading: Any
) -> None:
    cluster = start_cluster()
    cluster.join("alpha", "beta", cpus=2)
    command = lorasweep(tmp_path, cluster.environment)
    more = ("resources.workers_per_trial=2", "search.trials=2", "sweep.name=two", f"ray.address={cluster.address}")
    process = command.start("run", *tiny("llama", *SETTINGS, *more))
    folder = SweepFolder(tmp_path / "runs" / "two")

    def on(node: str) -> bool:
        trials = [trial for trial in folder.trials() if trial.status_file.exists()]
        return any(it.read_status().where.startswith(node) and len(it.read_metrics()) >= 1 for it in trials)

    said: list[tuple[str, str]] = []
    waiting = threading.Thread(target=lambda: said.append(process.communicate(timeout=400)))
    waiting.start()
    gives_up = time.monotonic() + 250
    while not (on("alpha") and on("beta")):
        assert process.poll() is None, said
        assert time.monotonic() < gives_up
        time.sleep(0.05)
    cluster.lose("beta")
    waiting.join()
    assert process.returncode == 0, said
    require_same(folder, undisturbed, reading)
    assert {trial.read_status().where for trial in folder.trials()} == {"alpha: 2 × CPU, 1 thread"}
