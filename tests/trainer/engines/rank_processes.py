"""Processes that train trials together, for tests: gloo on the CPU, started once, given one job after another."""

import multiprocessing
import os
import queue
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from trainer.config import TrialConfig
from trainer.engine import Event

_SECONDS = 60  # for a job


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
    change: Callable[[Any, Any], None] | None = None,
    checkpointing: bool = False,
) -> Sequence[Event]:
    """Drive a trial to its end, with a checkpoint at every rung. Returns its events.

    Args:
        ranks: the processes.
        trial: its config.
        root: its folder's parent.
        sharding: of the base model.
        checkpoint: to go on from.
        change: called with pytest's MonkeyPatch and the processes, to make something wrong.
        checkpointing: recompute activations.
    """
    import pytest
    import torch

    from tests.trainer.packs import drive, score
    from trainer.device_cache import DeviceCache
    from trainer.engines.hf_engine import HfEngine

    with pytest.MonkeyPatch.context() as patch:
        if change is not None:
            change(patch, ranks)
        engine = HfEngine(DeviceCache(torch.device("cpu"), ranks=ranks, sharding=sharding), score, checkpointing)
        checkpoints = {trial.trial_id: checkpoint} if checkpoint else None
        return drive(engine, [trial], root, checkpoints)[trial.trial_id]


# --- what a test makes wrong, by name, since it runs in other processes


def means_instead_of_sums(patch: Any, ranks: Any) -> None:
    from trainer.models.ranks import Ranks

    right = Ranks.sum_gradients

    def wrong(self: Any, parameters: Any) -> None:
        trained = list(parameters)
        right(self, trained)
        for parameter in trained:
            parameter.grad /= self.size

    patch.setattr(Ranks, "sum_gradients", wrong)


def own_denominators(patch: Any, ranks: Any) -> None:
    from trainer.engines import batches

    right = batches.part_of

    def wrong(batch: Any, ranks: Any) -> Any:
        part = right(batch, ranks)
        own = int((part.labels != -100).sum()) if part.labels.ndim == 2 else len(part.labels)
        return replace(part, denominator=max(own, 1) * ranks.size)

    patch.setattr(batches, "part_of", wrong)


def dropout_by_place_in_the_process(patch: Any, ranks: Any) -> None:
    from trainer.engines import batches

    right = batches.part_of

    def wrong(batch: Any, ranks: Any) -> Any:
        import numpy as np

        part = right(batch, ranks)
        return replace(part, samples=np.arange(len(part.samples)))

    patch.setattr(batches, "part_of", wrong)


def clipped_before_they_are_summed(patch: Any, ranks: Any) -> None:
    import torch

    from trainer.engines.hf_trainer import StepTrainer

    right = StepTrainer._join_step

    def wrong(self: Any) -> None:
        torch.nn.utils.clip_grad_norm_([p for _, p in self._trained()], self.trial.train.clip)
        right(self)

    patch.setattr(StepTrainer, "_join_step", wrong)


def no_sum_at_all(patch: Any, ranks: Any) -> None:
    from trainer.models.ranks import Ranks

    patch.setattr(Ranks, "sum_gradients", lambda self, parameters: None)


def scores_of_its_own(patch: Any, ranks: Any) -> None:
    """Each process keeps the scores of its batches, and zeros of the others'."""
    from trainer.models.ranks import Ranks

    patch.setattr(Ranks, "sum_array", lambda self, values: values)


def memory_runs_out_in_the_second(patch: Any, ranks: Any) -> None:
    from trainer.engines.hf_trainer import StepTrainer

    right = StepTrainer.compute_loss

    def wrong(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if ranks.rank == 1 and inputs["step"] == 2:
            raise MemoryError("no room for 9 bytes")
        return right(self, model, inputs, *args, **kwargs)

    patch.setattr(StepTrainer, "compute_loss", wrong)


def infinite_in_the_second(patch: Any, ranks: Any) -> None:
    from trainer.engines.hf_trainer import StepTrainer

    right = StepTrainer.compute_loss

    def wrong(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = right(self, model, inputs, *args, **kwargs)
        if ranks.rank == 1 and inputs["step"] == 2:
            self._losses[-1] = self._losses[-1] * float("nan")
        return loss

    patch.setattr(StepTrainer, "compute_loss", wrong)


def large_batches_do_not_fit_the_second(patch: Any, ranks: Any) -> None:
    """Of scoring: more than two rows do not."""
    from trainer.likelihood import log_likelihood

    right = log_likelihood._score_batch

    def wrong(base: Any, output: Any, rows: Any, *args: Any) -> Any:
        if ranks.rank == 1 and len(rows) > 2:
            raise MemoryError("no room")
        return right(base, output, rows, *args)

    patch.setattr(log_likelihood, "_score_batch", wrong)


def the_second_hangs(patch: Any, ranks: Any) -> None:
    import time

    from trainer.engines.hf_trainer import StepTrainer

    right = StepTrainer._join_step

    def wrong(self: Any) -> None:
        if ranks.rank == 1 and self.state.global_step == 2:
            time.sleep(600)
        right(self)

    patch.setattr(StepTrainer, "_join_step", wrong)


def sharded_bytes(ranks: Any, trial: TrialConfig) -> tuple[int, int]:
    """Numbers of the base model's linear layers: held by this process, and in all."""
    import torch

    from trainer.device_cache import DeviceCache

    base = DeviceCache(torch.device("cpu"), ranks=ranks, sharding="fsdp").base(trial)
    weights: list[Any] = [p for name, p in base.model.named_parameters() if "proj" in name]
    return sum(p.to_local().numel() for p in weights), sum(p.numel() for p in weights)


def written(ranks: Any, trial: TrialConfig, sharding: str, prompts: Any, settings: Any, batch_size: int) -> Any:
    """What the base model writes after prompts, and how many passes this process takes."""
    import torch

    from trainer.device_cache import DeviceCache
    from trainer.generation.decode import write

    base = DeviceCache(torch.device("cpu"), ranks=ranks, sharding=sharding).base(trial)
    base.model.generation_config.eos_token_id = [1, 25]
    passes: list[int] = []
    hook = base.model.register_forward_pre_hook(lambda *_: passes.append(1))
    answers = write(base, base.model, prompts, [str(i) for i in range(len(prompts))], settings, batch_size)
    hook.remove()
    return answers, len(passes)
