"""``lorasweep cluster check``: every node of a running cluster, checked as a sweep checks it when it starts."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from analysis.buckets.bucket import is_uri
from analysis.buckets.local_copy import copy_at
from analysis.errors import FolderError
from sweeps.checks.folder_probe import probing
from sweeps.compose.compose import Composed
from sweeps.driver.cluster_nodes import Cluster, Node, gpu_share, seats
from sweeps.driver.device_client import DeviceClient, Reply
from sweeps.driver.device_facts import NodeFaults, StartCheck, WorkerFacts
from sweeps.driver.ray_cluster import ray_running
from sweeps.driver.start_check import clock_difference, clock_note, could_not_start, start_check

_BUSY_SECONDS = 12.0  # after which a node without room for a worker counts as busy
_CHECK_SECONDS = 60.0  # for all checks, from the start
_SAY_SECONDS = 5.0  # between lines on what is waited for

Say = Callable[[str], None]


@dataclass(frozen=True)
class CheckedNode:
    """What is known of one node.

    Attributes:
        name: of the node; its address unless ``ray start --node-name`` gave another.
        address: IP address.
        cpus, gpus: that Ray counts there.
        state: ``ok``, ``wrong``, ``busy`` (others use it; not checked), or ``unused`` (no sweep would use it).
        said: sentences on what is wrong, why it is not used, or on its clock.
        facts: of a worker there; None where none could tell.
        faults: by what is wrong.
        clock: seconds by which its clock is ahead of this machine's; None where it was not asked.
    """

    name: str
    address: str
    cpus: float
    gpus: float
    state: str = "ok"
    said: tuple[str, ...] = ()
    facts: WorkerFacts | None = None
    faults: NodeFaults = field(default_factory=NodeFaults)
    clock: float | None = None


def check_cluster(composed: Composed, say: Say) -> list[CheckedNode]:
    """Connect, start a worker on every node that a sweep would use, ask each, and end them.

    Args:
        composed: ``ray.address``, ``sweep.dir``, ``resources``, precisions, and the data and the model in files.
        say: called with a line where it takes long.

    Raises:
        HardwareError: where there is no Ray at that address.
        FolderError: where this machine cannot write to ``sweep.dir``.
    """
    config = composed.config
    folder = Path(config.sweep.dir)
    if is_uri(config.sweep.dir):
        folder = copy_at(config.sweep.dir, "staging").root
    with ray_running(config), _folder_made(folder), probing(str(folder)) as probe:
        cluster = Cluster(config, composed.objective)
        nodes = cluster.nodes()
        share = gpu_share(nodes, config)
        wanted = {node.node_id: there[0] for node in nodes if (there := seats(node, share, config))}
        check = start_check(config, probe, composed.precisions)
        # before our own workers claim anything
        taken = {node.node_id for node in nodes if node.node_id in wanted and not wanted[node.node_id].fits(node.free)}
        workers = {key: cluster.start(seat) for key, seat in wanted.items()}
        try:
            return _all_checked(nodes, taken, workers, check, say)
        finally:
            for worker in workers.values():
                worker.kill()


def _all_checked(
    nodes: Sequence[Node],
    taken: Set[str],
    workers: Mapping[str, DeviceClient],
    check: StartCheck,
    say: Say,
) -> list[CheckedNode]:
    began = time.monotonic()
    names = {node.node_id: node.name for node in nodes}
    checks = {key: check.for_worker() for key in workers}
    started = _answers({key: worker.now() for key, worker in workers.items()}, names, began + _BUSY_SECONDS, say)
    busy = taken - started.keys()
    replies = {key: worker.examine(checks[key]) for key, worker in workers.items() if key not in busy}
    answers = _answers(replies, names, began + _CHECK_SECONDS, say)
    found = []
    for node in sorted(nodes, key=lambda node: node.name):
        key = node.node_id
        one = CheckedNode(node.name, node.address, node.has.get("CPU", 0.0), node.has.get("GPU", 0.0))
        if key not in workers:
            lacks = "no CPUs" if not one.cpus else "no GPU (resources.gpus_per_trial=0 trains on CPUs)"
            one = replace(one, state="unused", said=(f"node {one.name} is not used: it has {lacks}.",))
        elif key in busy:
            said = f"node {one.name} is busy: others use its CPUs or GPUs, see `ray status`. It was not checked."
            one = replace(one, state="busy", said=(said,))
        else:
            one = _checked(one, workers[key], checks[key], answers.get(key))
        found.append(one)
    return found


def _checked(
    node: CheckedNode,
    worker: DeviceClient,
    check: StartCheck,
    answer: tuple[WorkerFacts | None, NodeFaults] | RayError | None,
) -> CheckedNode:
    """A node with what its worker answered; None: nothing within the time."""
    if answer is None:
        said = f"node {node.name}: its worker does not answer within {_CHECK_SECONDS:g} s. Look at `ray status`."
        return replace(node, state="wrong", said=(said,))
    if isinstance(answer, RayError):
        return replace(node, state="wrong", said=(str(could_not_start(node.name, answer)),))
    facts, faults = answer
    if not faults.folder:
        try:
            check.probe.confirm(node.name, check.answer)
        except FolderError as error:
            faults = replace(faults, folder=str(error))
    try:
        clock = clock_difference(worker)
    except RayError as error:
        return replace(node, state="wrong", said=(str(could_not_start(node.name, error)),))
    wrong = [it for it in (faults.code, faults.device, faults.folder, *faults.files.values()) if it]
    sentences = tuple(it for it in (*wrong, clock_note(node.name, clock)) if it)
    return replace(node, state="wrong" if wrong else "ok", said=sentences, facts=facts, faults=faults, clock=clock)


def _answers(replies: Mapping[str, Reply[Any]], names: Mapping[str, str], until: float, say: Say) -> dict[str, Any]:
    """What has come by a time, errors of Ray as they are; says from time to time what is waited for."""
    key_of = {reply.reference: key for key, reply in replies.items()}
    waiting = list(key_of)
    while waiting and (left := until - time.monotonic()) > 0:
        _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=min(left, _SAY_SECONDS))
        if waiting:
            say(f"waiting for {', '.join(sorted(names[key_of[it]] for it in waiting))}")
    answers: dict[str, Any] = {}
    for key, reply in replies.items():
        if reply.reference not in waiting:
            try:
                answers[key] = reply.get(0)
            except GetTimeoutError:
                pass
            except RayError as error:
                answers[key] = error
    return answers


@contextlib.contextmanager
def _folder_made(folder: Path) -> Iterator[None]:
    """The folder for sweeps, made where it is not there, and removed again then."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FolderError(
            f"{folder}: cannot be written ({error.strerror}). Choose another place: sweep.dir=…"
        ) from None
    try:
        yield
    finally:
        for path in made:
            with contextlib.suppress(OSError):  # something else is in it by now
                path.rmdir()
