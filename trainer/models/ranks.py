"""The processes that train a trial together, each on a device of its own, and what they tell each other.

All of them run the same code on the same trial: each trains on its share of every batch's rows and scores its share of
the scoring batches, and all know the whole of what comes out. ``torch.distributed`` is set up by whoever starts them.
Texts and numbers go from one to another, never pickled objects.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from trainer.engine import RankLost, never
from trainer.outcomes import device_fault, out_of_memory

# By which accelerate and Trainer would take over: they must see one process, since gradients are summed here.
_LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK")
_OF_PEERS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "c10d", "ProcessGroup")


def by_lost_rank(error: BaseException) -> bool:
    """Whether an error comes of another process that is gone or hangs, not of this one's memory or device."""
    if out_of_memory(error) or device_fault(error) is not None:
        return False
    if isinstance(error, (RankLost, dist.DistError)):
        return True
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in _OF_PEERS)


class Interrupted(BaseException):
    """A scoring was broken off: nobody's error, so that ``except Exception`` lets it through."""


class Ranks:
    """This process among those that train a trial together.

    Attributes:
        rank: its number, from 0. Only 0 writes.
        size: how many there are; 1: this one alone, without ``torch.distributed``.
        leaving: asked between two batches of a scoring: whether all processes are to break it off.
    """

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size
        self.leaving: Callable[[], bool] = never

    @classmethod
    def joined(cls) -> "Ranks":
        """This process in the process group that it has joined. Needs gloo for the CPU's tensors."""
        for name in _LAUNCHED:
            os.environ.pop(name, None)
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def alone(self) -> bool:
        return self.size == 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, n: int) -> list[int]:
        """Which of ``n`` rows are this process's; of a batch with fewer rows than processes some get none."""
        return list(range(self.rank, n, self.size))

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in place."""
        if not self.alone:
            with _naming_the_lost():
                dist.all_reduce(tensor)
        return tensor

    def sum_array(self, values: np.ndarray) -> np.ndarray:
        """The same of an array on the CPU; exact where all but one hold a zero."""
        return values if self.alone else self.sum(torch.from_numpy(values)).numpy()

    def any(self, mine: bool) -> bool:
        """Whether something holds in any of the processes."""
        return bool(self.sum(torch.tensor([int(mine)])).item()) if not self.alone else mine

    def any_failed(self, mine: bool) -> bool:
        """Whether a batch of a scoring failed in any of the processes.

        Raises:
            Interrupted: in all of them, where one is ``leaving``.
        """
        if self.alone:
            return mine
        failures, leaving = self.sum(torch.tensor([int(mine), int(self.leaving())])).tolist()
        if leaving:
            raise Interrupted
        return bool(failures)

    @contextmanager
    def interruptible(self, asked: Callable[[], bool]) -> Iterator[None]:
        """Break scorings off where ``asked`` is true."""
        self.leaving = asked
        try:
            yield
        finally:
            self.leaving = never

    def texts(self, mine: str) -> list[str]:
        """Each process's text."""
        if self.alone:
            return [mine]
        content = mine.encode()
        longest = torch.tensor([len(content)])
        with _naming_the_lost():
            dist.all_reduce(longest, op=dist.ReduceOp.MAX)
            padded = torch.frombuffer(bytearray(content.ljust(int(longest), b"\0") or b"\0"), dtype=torch.uint8)
            gathered = [torch.empty_like(padded) for _ in range(self.size)]
            dist.all_gather(gathered, padded)
        return [bytes(one.tolist()).rstrip(b"\0").decode(errors="replace") for one in gathered]

    def in_turn(self, work: Callable[[], Any]) -> Any:
        """Do something after the processes before this one have done it; all return, or raise, when all have."""
        result, error = None, None
        for rank in range(self.size):
            if rank == self.rank:
                try:
                    result = work()
                except Exception as raised:
                    error = raised
            failed = self.any(error is not None)
        if failed:
            raise error or RuntimeError("it failed in another process of the trial")
        return result

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sum the gradients of all processes, in one message. One that nobody has stays None."""
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        if self.alone or not trained:
            return
        has = torch.tensor([float(p.grad is not None) for p in trained], device=trained[0].device)
        parts = [(torch.zeros_like(p) if p.grad is None else p.grad).float().flatten() for p in trained]
        summed = self.sum(torch.cat([has, *parts]))
        there, *gradients = summed.split([len(trained), *(p.numel() for p in trained)])
        for parameter, gradient, count in zip(trained, gradients, there.tolist(), strict=True):
            parameter.grad = gradient.view_as(parameter).to(parameter.dtype) if count else None


@contextmanager
def _naming_the_lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RankLost(
            f"another process of the trial does not answer ({str(error).strip().splitlines()[0]})"
        ) from error


ALONE = Ranks()
