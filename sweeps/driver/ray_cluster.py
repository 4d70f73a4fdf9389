"""Ray for a sweep: a local one or a running cluster, and one device worker per device of it."""

import contextlib
import logging
import math
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psutil
import ray
from ray.exceptions import AuthenticationError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from analysis.errors import HardwareError, LorasweepError, first_line
from analysis.objective import Objective
from sweeps.checks.folder_probe import probing
from sweeps.config import SweepConfig
from sweeps.driver.device_client import DeviceClient
from sweeps.driver.device_facts import WorkerFacts
from sweeps.driver.device_worker import DeviceWorker
from sweeps.driver.start_check import clock_difference, clock_note, could_not_start, start_check, together
from sweeps.process.threads import thread_counts, wait_policy
from sweeps.process.visible_gpus import visible_gpus

NAMESPACE = "lorasweep"
_PROXY_CPUS = 0.5  # of a node; a proxy claims a thousandth
_CONNECT_SECONDS = 10
_START_ATTEMPTS = 3
# glibc gives the memory of each large tensor back to the system at once, and faults it in again at the next step, which
# is a sixth of its time on a CPU. Up to this many bytes it keeps.
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 28), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
_START_SECONDS = 60  # importing torch on a busy machine takes a part of it
_started: list[psutil.Process] = []  # of a Ray of our own: its raylet; like Ray's connection, of this process


@contextlib.contextmanager
def ray_running(config: SweepConfig) -> Iterator[Callable[[], None]]:
    """Connect to ``ray.address``, or start a Ray of our own and stop it afterwards.

    Yields what may be called once Ray is not needed any more: it ends, a second's work, beside what comes then.

    ``RAY_ADDRESS`` in the environment is not followed: a sweep joins a cluster only where its config says so.

    Raises:
        HardwareError: where there is no Ray at that address.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # Tune's CSV, JSON and TensorBoard copies of every result
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "86400")  # of its own state, which nobody reads, for all trials
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a Ray of our own reports to nobody
    # Ray prints a traceback for every trial that fails or is stopped by Ctrl-C; its reason is in the leaderboard.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    address = config.ray.address
    options: dict[str, Any] = {
        "namespace": NAMESPACE,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": _worker_environment()},
    }
    if address is None:
        cores = os.cpu_count() or 1
        # Ray would start processes beforehand that nobody can use: all of ours have an environment of their own.
        os.environ.setdefault("RAY_enable_worker_prestart", "0")
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
        # one CPU more than there is: proxies need a share of one, and the worker takes the others
        options |= {"address": "local", "num_cpus": cores + 1, "include_dashboard": False}
    else:
        options["address"] = address
    try:
        _check_listening(address)
        _start(options)
    except (AuthenticationError, OSError, OverflowError, ValueError, RuntimeError) as error:
        raise HardwareError(
            f"ray.address={address}: cannot connect ({first_line(error)}). Is the cluster running (`ray status`)? A"
            " cluster with token authentication needs RAY_AUTH_MODE=token and its token here too. Without ray.address a"
            " local Ray is started."
        ) from error
    ending = threading.Thread(target=end_ray, name="ending Ray")
    try:
        yield ending.start
    finally:
        if ending.ident is None:  # it was not called
            end_ray()
        else:
            ending.join()


def end_ray(seconds: float | None = None) -> None:
    """``ray.shutdown``, and an end to the processes of a local Ray that would outlive it.

    Its agents first report that their raylet is gone, to a control store that is gone as well: they try for a minute.

    Args:
        seconds: after which ``ray.shutdown`` is not waited for any more; None for as long as it takes.
    """
    # Kept until they are ended: a second Ctrl-C may come while this is at work in another thread.
    _started.extend([process for raylet in _started for process in _below(raylet)])
    shutdown = threading.Thread(target=ray.shutdown, name="ray.shutdown", daemon=True)
    shutdown.start()
    shutdown.join(seconds)
    for process in list(_started):
        with contextlib.suppress(psutil.Error):
            process.kill()
    _started.clear()


def _below(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _raylets() -> list[psutil.Process]:
    found = []
    for child in _below(psutil.Process()):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            if child.name() == "raylet":
                found.append(child)
    return found


def _start(options: dict[str, Any]) -> None:
    """``ray.init``, and again where a busy machine did not get a Ray of its own up within Ray's 30 seconds."""
    before = _raylets()
    for left in reversed(range(_START_ATTEMPTS)):
        try:
            ray.init(**options)
            _started.extend(raylet for raylet in _raylets() if raylet not in before)
            return
        except Exception as error:
            ray.shutdown()
            if "timed out during startup" not in str(error):
                raise
            if not left:
                raise HardwareError(
                    f"A local Ray did not start within 30 s, {_START_ATTEMPTS} times: this machine is overloaded or"
                    " short of memory. Run the command again when it is less busy, or use a running cluster:"
                    " ray.address=HOST:PORT"
                ) from error


def _check_listening(address: str | None) -> None:
    """Raises OSError where nothing listens at HOST:PORT: Ray itself would try for many minutes."""
    host, separator, port = (address or "").removeprefix("ray://").rpartition(":")
    if separator and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()


def _worker_environment() -> dict[str, str]:
    names = ("HF_HUB_OFFLINE", "HF_HOME", "LORASWEEP_CACHE", "TRANSFORMERS_OFFLINE")
    passed = {name: os.environ[name] for name in names if name in os.environ}
    return {"TOKENIZERS_PARALLELISM": "false", "RAY_TRAIN_V2_ENABLED": "1", **passed}


@dataclass(frozen=True)
class Seat:
    """What one device worker claims: on which node (id and name), how much of it, and its threads for arithmetic."""

    node_id: str
    node: str
    cpus: float
    gpus: float
    threads: int


def seats(nodes: Sequence[Mapping[str, Any]], config: SweepConfig) -> list[Seat]:
    """One seat for each GPU share; where no node has a GPU, or none is wanted, one for each node.

    Args:
        nodes: as ``ray.nodes()`` lists them.
        config: ``resources``, and whether the Ray is one of our own.

    Raises:
        HardwareError: where the nodes have not what ``resources`` asks for.
    """
    gpus_per_trial = config.resources.gpus_per_trial
    alive = [(node, node["Resources"]) for node in nodes if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
    gpus_there = sum(has.get("GPU", 0.0) for _, has in alive)
    share = gpus_per_trial if gpus_per_trial is not None else (1.0 if gpus_there else 0.0)
    seats_there = []
    for node, has in alive:
        count = math.floor(has.get("GPU", 0.0) / share + 1e-9) if share else 1
        if not count:
            continue
        cpus = has["CPU"]
        # Something of the node stays free for the proxies. Above 1, Ray takes whole CPUs only.
        claim = min((cpus - _PROXY_CPUS) / count, 1.0 if share else math.inf)
        claim = float(int(claim)) if claim >= 1 else claim
        threads = config.resources.threads or max(1, int(cpus if config.ray.address else cpus - 1) // count)
        seats_there += [Seat(node["NodeID"], node.get("NodeName") or "", claim, share, threads)] * count
    if not seats_there:
        raise HardwareError(
            f"resources.gpus_per_trial={gpus_per_trial}: no node has that many GPUs ({gpus_there:g} in the whole"
            " cluster). Lower it; 0 trains on CPUs."
        )
    return seats_there


def start_workers(
    config: SweepConfig, objective: Objective, kind: type[DeviceWorker] = DeviceWorker
) -> list[DeviceClient]:
    """A device worker, of the given class, for each of ``seats``. Raises HardwareError."""
    return [start_worker(seat, config, objective, kind) for seat in seats(ray.nodes(), config)]


def start_worker(
    seat: Seat, config: SweepConfig, objective: Objective, kind: type[DeviceWorker] = DeviceWorker
) -> DeviceClient:
    """A device worker, of the given class, that claims what a seat says."""
    threads = {**_ALLOCATOR, **wait_policy(), **thread_counts(seat.threads)}
    make = ray.remote(kind).options(
        num_cpus=seat.cpus,
        num_gpus=seat.gpus,
        max_restarts=-1,
        max_concurrency=64,
        scheduling_strategy=NodeAffinitySchedulingStrategy(seat.node_id, soft=False),
        runtime_env={"env_vars": {**_worker_environment(), **threads, **visible_gpus(seat.gpus)}},
        name=f"device-{uuid.uuid4().hex[:8]}",
    )
    slots = config.resources.slots if isinstance(config.resources.slots, int) else None
    return DeviceClient(
        make.remote(config.engine, slots, objective, seat.threads, seat.node, seat.gpus), where=seat.node
    )


def with_facts(
    devices: Sequence[DeviceClient],
    config: SweepConfig,
    folder: str,
    precisions: Sequence[str],
    note: Callable[[str], None],
) -> tuple[list[DeviceClient], list[WorkerFacts]]:
    """Wait until all workers have started. Returns them again, each knowing where it is, and what each has.

    Args:
        devices: as ``start_workers`` gives them.
        config: of the sweep.
        folder: of the sweep, which all must see.
        precisions: those of interest.
        note: called with a sentence where it takes long, or a node's clock is wrong.

    Raises:
        LorasweepError: where a worker cannot start, or anything is wrong with its node: of all of them, by name.
    """
    with probing(folder) as probe:
        check = start_check(config, probe, precisions)
        checks = [check.for_worker() for _ in devices]
        replies = [device.facts(own) for device, own in zip(devices, checks, strict=True)]
        _, waiting = ray.wait([it.reference for it in replies], num_returns=len(replies), timeout=_START_SECONDS)
        if waiting:
            note(
                f"{len(waiting)} of {len(devices)} device workers have not started in {_START_SECONDS} s. Waiting for"
                " them; `ray status` shows whether others use their CPUs or GPUs."
            )
        facts, refused = [], list[LorasweepError]()
        for device, own, reply in zip(devices, checks, replies, strict=True):
            try:
                facts.append(reply.get())
                probe.confirm(device.where, own.answer)
            except LorasweepError as error:
                refused.append(error)
            except RayError as error:
                refused.append(could_not_start(device.where, error, check.cluster))
    if refused:
        raise together(refused)
    for node, device in {device.where: device for device in devices}.items() if check.cluster else ():
        if said := clock_note(node, clock_difference(device)):
            note(said)
    return [replace(device, where=fact.where) for device, fact in zip(devices, facts, strict=True)], facts
