"""The driver's side of what every device worker is checked for before trials begin: what is asked, and what is said.

A node's side is ``sweeps/driver/node_faults.py``, called by ``DeviceWorker.facts``.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace

from ray.exceptions import GetTimeoutError, RayError

from analysis.errors import HardwareError, LorasweepError, last_line
from sweeps.checks.folder_probe import FolderProbe, probing
from sweeps.checks.local_files import local_files
from sweeps.config import SweepConfig
from sweeps.driver.device_client import DeviceClient
from sweeps.driver.device_facts import StartCheck, WorkerFacts
from sweeps.driver.ray_cluster import cluster_address
from sweeps.process.fingerprint import fingerprint
from sweeps.process.installation import PACKAGES
from sweeps.process.memory_deaths import memory_there

_CLOCK_SECONDS = 5.0  # by which clocks may differ without a word, and for which one is waited for


def start_check(config: SweepConfig, probe: FolderProbe, precisions: Sequence[str]) -> StartCheck:
    """What workers are asked; each gets it by ``for_worker``.

    Args:
        config: of the sweep. Where its Ray is one of our own, all is on this machine, and its files are not compared.
        probe: of the sweep folder.
        precisions: to try.
    """
    cluster = cluster_address(config) is not None
    files = local_files(config) if cluster else ()
    return StartCheck(probe, tuple(precisions), fingerprint(), files, cluster)


def clock_difference(device: DeviceClient) -> float:
    """Seconds by which the clock of a worker's node is at least ahead of this machine's; negative where it is behind.

    The worker answered at some time between question and answer: 0 where that time explains the difference.

    Raises:
        RayActorError: where the worker is gone.
    """
    asked = time.time()
    try:
        there = device.now().get(_CLOCK_SECONDS)
    except GetTimeoutError:
        return 0.0
    answered = time.time()
    return there - min(max(there, asked), answered)


def clock_note(node: str, difference: float) -> str:
    """A sentence on a clock that differs by seconds; empty where it does not.

    Args:
        node: its name.
        difference: see ``clock_difference``.
    """
    if abs(difference) <= _CLOCK_SECONDS:
        return ""
    way = "ahead of" if difference > 0 else "behind"
    return (
        f"node {node}: its clock is {abs(difference):.0f} s {way} this machine's. The times of its lines in"
        " lorasweep.log are wrong by that, and what `lorasweep status` says there. Set both clocks by NTP."
    )


def could_not_start(node: str, error: RayError, cluster: bool = True, no_memory: bool = False) -> HardwareError:
    """What to raise where a device worker did not start, or does not understand what it is asked.

    Args:
        node: its name.
        error: of Ray.
        cluster: whether the Ray is one with nodes of other machines.
        no_memory: whether it was ended for want of memory.
    """
    if no_memory:
        where = f"node {node}: " if cluster else ""
        there = "" if cluster else f": {memory_there()}"
        return HardwareError(
            f"{where}memory ran out while a device worker started, which loads torch, model and data{there}. Give it"
            " more memory, end other programs there, or use a smaller model."
        )
    if not cluster:
        return HardwareError(
            f"a device worker could not start ({last_line(error)}). Run the command again; `lorasweep doctor` says what"
            " this machine lacks."
        )
    why = last_line(error)
    absent = any(f"No module named '{package}" in why for package in PACKAGES)
    what = "there is no lorasweep in the Python that its Ray runs in" if absent else "a device worker could not start"
    return HardwareError(
        f"node {node}: {what} ({why}). Every node needs this version of lorasweep: an image made from"
        " cluster/Dockerfile, or `make install` there and `ray start` from its .venv."
    )


def together(errors: Iterable[LorasweepError]) -> LorasweepError:
    """Several nodes' errors as one, a line for each; what is said twice is said once.

    Args:
        errors: at least one. The kind is that of the one with the highest exit status: the machine's before the data's.
    """
    said = {str(error): error for error in errors}
    return type(max(said.values(), key=lambda error: error.exit_code))("\n".join(said))


class Examination:
    """A device worker's start check, from the question to its answer; asked like a ``Reply``.

    Args:
        device: the worker.
        check: what it is asked.
        folder: of the sweep.
        note: told where the clock of its node is wrong.

    Raises:
        FolderError: where this machine cannot write to the folder.
    """

    def __init__(self, device: DeviceClient, check: StartCheck, folder: str, note: Callable[[str], None]):
        self._device, self._note = device, note
        self._until_answered = ExitStack()
        probe = self._until_answered.enter_context(probing(folder))
        self._check = replace(check, probe=probe).for_worker()
        self._reply = device.facts(self._check)

    @property
    def done(self) -> bool:
        return self._reply.done

    def get(self, timeout: float | None = None) -> WorkerFacts:
        """What the worker has.

        Raises:
            LorasweepError: where anything is wrong with its node.
            RayError: one of ``LOST``, where the worker is gone.
        """
        with self._until_answered:
            facts = self._reply.get(timeout)
            self._check.probe.confirm(self._device.where, self._check.answer)
            if self._check.cluster and (said := clock_note(facts.node, clock_difference(self._device))):
                self._note(said)
            return facts

    def drop(self) -> None:
        """Nobody waits for the answer any more."""
        self._until_answered.close()
