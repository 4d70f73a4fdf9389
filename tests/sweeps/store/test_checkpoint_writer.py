"""The thread that writes checkpoints: its order, its room, and what it lets go of."""

import gc
import os
import random
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from analysis.folder import TrialFolder
from sweeps.process.installation import package_root
from sweeps.store.checkpoint_writer import KEPT_CHECKPOINTS, MOST_SNAPSHOTS, CheckpointWriter, complete
from sweeps.store.node_copy import NodeCopy
from trainer.engines.checkpoints import fault, seal


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    opened = threading.Event()
    yield opened
    opened.set()


def test_one_after_the_other_in_the_order_given_with_what_was_raised(gate: threading.Event) -> None:
    told: list[tuple[str, str]] = []
    writer = CheckpointWriter(lambda: None)

    def put(trial_id: str, step: str, write: Callable[[], object]) -> None:
        def gated() -> None:
            assert gate.wait(30)
            write()

        writer.put(trial_id, gated, lambda error: told.append((step, str(error or ""))))

    put("a", "a's first", lambda: None)
    put("b", "b's first", lambda: 1 / 0)
    put("a", "a's second", lambda: None)
    assert told == []
    gate.set()
    writer.wait("a")
    assert told == [("a's first", ""), ("b's first", "division by zero"), ("a's second", "")]
    writer.wait("nobody")


def test_it_says_when_there_is_room_again(gate: threading.Event) -> None:
    seen: list[bool] = []
    writer = CheckpointWriter(lambda: seen.append(writer.full))
    for i in range(MOST_SNAPSHOTS):
        assert not writer.full
        writer.put(str(i), lambda: gate.wait(30), lambda error: None)
    assert writer.full
    gate.set()
    for i in range(MOST_SNAPSHOTS):
        writer.wait(str(i))
    assert not writer.full
    gives_up = threading.Event()
    while len(seen) < MOST_SNAPSHOTS and not gives_up.wait(0.01):
        pass
    assert seen == [False] * MOST_SNAPSHOTS


def test_one_that_cannot_be_told_of_does_not_stop_the_next(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []
    writer = CheckpointWriter(lambda: None)
    writer.put("a", lambda: None, lambda error: told.remove("nothing"))
    writer.put("b", lambda: None, lambda error: told.append("b"))
    writer.wait("a")
    writer.wait("b")
    assert told == ["b"]
    assert "ValueError" in capsys.readouterr().err


def test_a_snapshot_is_freed_when_it_is_written(gate: threading.Event) -> None:
    class Snapshot:
        def __call__(self) -> None:
            pass

    snapshot = Snapshot()
    held = weakref.ref(snapshot)
    freed: list[bool] = []

    def then(error: Exception | None) -> None:
        gc.collect()
        freed.append(held() is None)

    writer = CheckpointWriter(lambda: None)
    writer.put("other", lambda: gate.wait(30), lambda error: None)
    writer.put("a", snapshot, then)
    del snapshot
    gate.set()
    writer.wait("a")
    assert freed == [True]


def checkpoint(folder: TrialFolder, step: int, scored: int) -> None:
    folder.checkpoint_dir(step).mkdir(parents=True, exist_ok=True)
    seal(folder.checkpoint_dir(step), {"step": step, "scored": scored})


@pytest.mark.parametrize(
    ("before", "step", "scored", "kept"),
    [
        ({2: 2, 4: 4}, 5, 4, [2, 4, 5]),  # it pushes out no rung's
        ({2: 2, 4: 4, 5: 4}, 6, 4, [2, 4, 6]),  # but the one between the same rungs
        ({2: 2, 4: 4, 6: 4}, 8, 8, [4, 6, 8]),
        ({4: 4, 6: 4, 8: 8}, 10, 10, [8, 10]),
        ({2: 2, 3: 2}, 4, 2, [2, 4]),
        ({1: 0}, 2, 2, [1, 2]),
        ({2: 2, 4: 4, 6: 6}, 4, 4, [2, 4]),  # what came after it was damaged
    ],
)
def test_two_checkpoints_of_rungs_are_kept_and_one_between_them(
    before: dict[int, int], step: int, scored: int, kept: list[int], tmp_path: Path
) -> None:
    folder = TrialFolder(tmp_path)
    for at, rung in before.items():
        checkpoint(folder, at, rung)
    complete(NodeCopy(), folder, step, lambda: checkpoint(folder, step, scored))
    assert folder.checkpoints() == kept


def test_older_ones_go_only_when_the_new_one_is_sealed(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path)
    before = list(range(1, KEPT_CHECKPOINTS + 1))
    for step in before:
        checkpoint(folder, step, step)

    def full() -> None:
        assert folder.checkpoints() == before
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        complete(NodeCopy(), folder, 3, full)
    assert folder.checkpoints() == before


_ENDLESS = """
import sys
from pathlib import Path
from types import SimpleNamespace
import torch
from analysis.folder import TrialFolder
from sweeps.store.checkpoint_writer import CheckpointWriter, complete
from sweeps.store.node_copy import NodeCopy
from trainer.engines.checkpoints import write_tensors
from trainer.engines.trial_record import Best, TrialRecord

folder = TrialFolder(Path(sys.argv[1]))
record = TrialRecord(SimpleNamespace(trial_id="t0000"), folder, None, None)
writer = CheckpointWriter(lambda: None)
tensors = {str(i): torch.randn(1 << 18) for i in range(16)}  # 16 MiB
record.best = Best(1, 0.5, tensors, None)
while True:
    record.step = record.scored = step = record.step + 1
    to = folder.checkpoint_dir(step)
    files = lambda to=to: {name: write_tensors(to / name, tensors) for name in ("adapter", "optimizer")}
    write = record.checkpoint(to, files)
    tell = lambda error, step=step: print(error or step, flush=True)
    writer.put("t0000", lambda step=step, write=write: complete(NodeCopy(), folder, step, write), tell)
    writer.wait("t0000")
"""


@pytest.mark.heavy
def test_a_process_that_is_killed_at_any_moment_leaves_the_checkpoint_that_it_told_of(tmp_path: Path) -> None:
    """``kill -9``, eight times; every checkpoint that counts is whole."""
    chance = random.Random(5)
    environment = {**os.environ, "PYTHONPATH": package_root(), "OMP_NUM_THREADS": "1"}
    for kill in range(8):
        folder = TrialFolder(tmp_path / f"t{kill}")
        arguments = [sys.executable, "-c", _ENDLESS, str(folder.root)]
        with subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            told = [process.stdout.readline() for _ in range(chance.randint(1, 4))]
            time.sleep(chance.uniform(0, 0.2))
            process.kill()
            told += process.stdout.readlines()
        there = folder.checkpoints()
        assert int(told[-1]) in there, (told, there)
        assert [fault(folder.checkpoint_dir(step)) for step in there] == [""] * len(there)
