"""The driver's side of what every device worker is checked for before trials begin: what is asked, and what is said.

A node's side is ``sweeps/driver/node_faults.py``, called by ``DeviceWorker.facts``.
"""

import time
from collections.abc import Iterable, Sequence

from ray.exceptions import GetTimeoutError, RayError

from analysis.errors import HardwareError, LorasweepError, last_line
from sweeps.checks.folder_probe import FolderProbe
from sweeps.checks.local_files import local_files
from sweeps.config import SweepConfig
from sweeps.driver.device_client import DeviceClient
from sweeps.driver.device_facts import StartCheck
from sweeps.process.fingerprint import fingerprint

_CLOCK_SECONDS = 5.0  # by which clocks may differ without a word, and for which one is waited for


def start_check(config: SweepConfig, probe: FolderProbe, precisions: Sequence[str]) -> StartCheck:
    """What workers are asked; each gets it by ``for_worker``.

    Args:
        config: of the sweep. Where its Ray is one of our own, all is on this machine, and its files are not compared.
        probe: of the sweep folder.
        precisions: to try.
    """
    cluster = config.ray.address is not None
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


def could_not_start(node: str, error: RayError, cluster: bool = True) -> HardwareError:
    """What to raise where a device worker did not start, or does not understand what it is asked.

    Args:
        node: its name.
        error: of Ray.
        cluster: whether the Ray is one with nodes of other machines.
    """
    if not cluster:
        return HardwareError(
            f"a device worker could not start ({last_line(error)}). Run the command again; `lorasweep doctor` says what"
            " this machine lacks."
        )
    return HardwareError(
        f"node {node}: a device worker could not start ({last_line(error)}). Every node needs this version of"
        " lorasweep, installed with `make install`, and `ray start` from its .venv."
    )


def together(errors: Iterable[LorasweepError]) -> LorasweepError:
    """Several nodes' errors as one, a line for each; what is said twice is said once.

    Args:
        errors: at least one. The kind is that of the one with the highest exit status: the machine's before the data's.
    """
    said = {str(error): error for error in errors}
    return type(max(said.values(), key=lambda error: error.exit_code))("\n".join(said))
