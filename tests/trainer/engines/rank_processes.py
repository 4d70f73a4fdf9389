"""Processes that train trials together, for tests: gloo on the CPU, started once, given one job after another."""

import multiprocessing
import os
import queue
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from trainer.config import TrialConfig
from trainer.engine import Event

_SECONDS = 300  # for a job


class RankProcesses:
    """``size`` processes in one process group.

    Args:
        size: how many.
        folder: for the file by which they find each other.
        timeout: seconds of a collective.
    """

    def __init__(self, size: int, folder: Path, timeout: float = 60.0):
        context = multiprocessing.get_context("spawn")
        self.jobs: list[Any] = [context.Queue() for _ in range(size)]
        self.answers: Any = context.Queue()
        meeting = f"file://{folder / 'meeting'}"
        self.processes = [
            context.Process(target=_serve, args=(rank, size, meeting, timeout, jobs, self.answers), daemon=True)
            for rank, jobs in enumerate(self.jobs)
        ]
        for process in self.processes:
            process.start()

    def __call__(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call ``work(ranks, *arguments)`` in all processes; what each returns, by rank. An error is its traceback."""
        for jobs in self.jobs:
            jobs.put((work, arguments))
        answers = dict(self.answers.get(timeout=_SECONDS) for _ in self.processes)
        return [answers[rank] for rank in range(len(self.processes))]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def _serve(rank: int, size: int, meeting: str, timeout: float, jobs: Any, answers: Any) -> None:
    parent = os.getppid()
    import torch
    import torch.distributed as dist

    from trainer.models.ranks import Ranks

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size, timeout=timedelta(seconds=timeout))
    ranks = Ranks.joined()
    while os.getppid() == parent:
        try:
            work, arguments = jobs.get(timeout=1)
        except queue.Empty:
            continue
        try:
            answer = work(ranks, *arguments)
        except BaseException:
            answer = traceback.format_exc()
        answers.put((rank, answer))


def trained(
    ranks: Any,
    trial: TrialConfig,
    root: Path,
    sharding: str = "ddp",
    checkpoint: Path | None = None,
    mutations: Mapping[str, Any] | None = None,
    checkpointing: bool = False,
) -> Sequence[Event]:
    """Drive a trial to its end, with a checkpoint at every rung. Returns its events.

    Args:
        mutations: dotted name → what is put there, to see that a claim's test fails.
    """
    import torch

    from tests.trainer.packs import drive, score
    from trainer.device_cache import DeviceCache
    from trainer.engines.hf_engine import HfEngine

    undo = [_put(name, value) for name, value in (mutations or {}).items()]
    try:
        engine = HfEngine(DeviceCache(torch.device("cpu"), ranks=ranks, sharding=sharding), score, checkpointing)
        checkpoints = {trial.trial_id: checkpoint} if checkpoint else None
        return drive(engine, [trial], root, checkpoints)[trial.trial_id]
    finally:
        for restore in undo:
            restore()


def _put(name: str, value: Any) -> Callable[[], None]:
    import importlib

    module, _, rest = name.partition(":")
    *path, attribute = rest.split(".")
    owner: Any = importlib.import_module(module)
    for part in path:
        owner = getattr(owner, part)
    before = owner.__dict__[attribute]
    setattr(owner, attribute, value)
    return lambda: setattr(owner, attribute, before)
