"""How a trial ends other than by completing: diverged, out of memory, or failed."""

import torch

from analysis.errors import LorasweepError, first_line
from analysis.folder import State, disk_fault
from trainer.engine import Ended


class Diverged(Exception):
    """The loss, the gradient norm or a metric is no longer finite."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's or the host's memory is used up."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return "not enough memory" in str(error) or "out of memory" in str(error).lower()


def ended_by(error: BaseException, trial_id: str, step: int) -> Ended:
    """The end of a trial that raised an error.

    Args:
        error: that was raised.
        trial_id: of the trial.
        step: optimiser steps that it had done.

    Raises:
        BaseException: the error itself where it is a fault of the disk, which is no trial's fault and ends none.
    """
    if disk_fault(error):
        raise error
    first = first_line(error)[:500]
    if isinstance(error, Diverged):
        return Ended(trial_id, State.DIVERGED, str(error), step)
    if isinstance(error, (MemoryError, RuntimeError)) and out_of_memory(error):
        return Ended(trial_id, State.OUT_OF_MEMORY, first, step)
    name = "" if isinstance(error, LorasweepError) else f"{type(error).__name__}: "
    return Ended(trial_id, State.FAILED, name + first, step)
