"""Ray for a sweep: a local one or a running cluster, and one device worker per device of it."""

import contextlib
import json
import logging
import math
import os
import secrets
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import psutil
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray.exceptions import AuthenticationError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from analysis.errors import FolderError, HardwareError, first_line
from analysis.objective import Objective
from sweeps.config import SweepConfig
from sweeps.driver.device_client import LOST, DeviceClient
from sweeps.driver.device_facts import WorkerFacts
from sweeps.driver.device_worker import DeviceWorker
from sweeps.driver.ray_watch import Part, RayWatch
from sweeps.process.installation import package_root
from sweeps.process.logs import RAY_MESSAGES
from sweeps.process.threads import thread_counts, wait_policy

NAMESPACE = "lorasweep"
_PROXY_CPUS = 0.5  # of a node; a proxy claims a thousandth
_CONNECT_SECONDS = 10
_START_ATTEMPTS = 3
# glibc gives the memory of each large tensor back to the system at once, and faults it in again at the next step, which
# is a sixth of its time on a CPU. Up to this many bytes it keeps.
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 28), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
_START_SECONDS = 60  # importing torch on a busy machine takes a part of it
_started: list[psutil.Process] = []  # of a Ray of our own: its raylet; like Ray's connection, of this process
_watches: list[RayWatch] = []  # of this process, as its connection: at most one
_JOB_FILES = "working_dir_files"  # Ray's folder for the working directories of jobs
# Seconds after which Ray gives a lost control store up, 60 by default. Set by who runs a cluster whose control store
# comes back, such as KubeRay: then the sweep waits nearly as long, and is gone before Ray aborts it.
_PATIENCE, _EARLIER = "RAY_gcs_rpc_server_reconnect_timeout_s", 20
_GO_ON = "Run the command again; `lorasweep resume RUN` goes on with a sweep."


@contextlib.contextmanager
def ray_running(config: SweepConfig, go_on: Callable[[], str] = lambda: _GO_ON) -> Iterator[Callable[[], None]]:
    """Connect to ``cluster_address``, or start a Ray of our own and stop it afterwards.

    Yields what may be called once Ray is not needed any more: it ends, a second's work, beside what comes then.

    Args:
        config: of the sweep.
        go_on: says what to do where Ray dies, as a sentence.

    Raises:
        HardwareError: where there is no Ray at that address, or none can be started.
        ClusterError: where Ray dies before the block is done. It is raised in the block, if this is the main thread.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # Tune's CSV, JSON and TensorBoard copies of every result
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "86400")  # of its own state, which nobody reads, for all trials
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a Ray of our own reports to nobody
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # else it tells the terminal that a server is being ended
    # Ray prints a traceback for every trial that fails or is stopped by Ctrl-C; its reason is in the leaderboard.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    ray._private.worker.print_to_stdstream = _log_message  # of Ray's processes, not of ours: pages on standard output
    address = cluster_address(config)
    options: dict[str, Any] = {
        "namespace": NAMESPACE,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": _without_jobs_own(_worker_environment())},
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
    with _own_token() if address is None else contextlib.nullcontext():
        _connect(address, options)
        watch = RayWatch(_parts(), go_on, _local_processes())
        _watches.append(watch)
        ending = threading.Thread(target=end_ray, name="ending Ray")
        try:
            with watch.watching():
                yield ending.start
        finally:
            if ending.ident is not None:
                ending.join()
            elif watch.error is None:
                end_ray()
            _watches.remove(watch)


def cluster_address(config: SweepConfig) -> str | None:
    """The cluster that a sweep joins: that of ``ray.address``, or of the Ray job that it is part of; None: a new Ray.

    ``RAY_ADDRESS`` in the environment is not followed elsewhere: a sweep joins a cluster only where its config says so.
    """
    if config.ray.address is not None or not _job():
        return config.ray.address
    return os.environ.get("RAY_ADDRESS") or "auto"


def ignored_address(config: SweepConfig) -> str:
    """A sentence where the environment names a cluster that the sweep does not join, else nothing."""
    named = os.environ.get("RAY_ADDRESS")
    if not named or cluster_address(config) is not None:
        return ""
    return f"RAY_ADDRESS={named} is not followed: the sweep starts a Ray of its own. To join that one: ray.address=auto"


def check_kept(root: Path) -> None:
    """Raises FolderError for a sweep folder in a Ray job's working directory, which Ray deletes after the job."""
    if _job() and _JOB_FILES in root.resolve().parts:
        raise FolderError(
            f"{root}: this is in the working_dir of a Ray job, which Ray deletes after it. Name a folder that is kept,"
            " on a file system that all nodes share: sweep.dir=/…"
        )


def _job() -> dict[str, Any]:
    """What Ray says of the job whose command this process is, or part of: runtime_env and metadata; else nothing.

    Ray's supervisor of jobs sets it for a job's command alone (``ray/dashboard/modules/job/job_supervisor.py``).
    """
    try:
        told = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", ""))
        return dict(told) if "job_submission_id" in told["metadata"] else {}
    except (ValueError, KeyError, TypeError):
        return {}


def _without_jobs_own(environment: Mapping[str, str]) -> dict[str, str]:
    """Those variables that the job's own runtime environment does not set: Ray refuses one that both set."""
    its = (_job().get("runtime_env") or {}).get("env_vars") or {}
    return {name: value for name, value in environment.items() if name not in its}


def _connect(address: str | None, options: dict[str, Any]) -> None:
    """Raises HardwareError."""
    try:
        _check_listening(address)
        _start(options)
    except (AuthenticationError, OSError, OverflowError, ValueError, RuntimeError) as error:
        if address is None:
            raise HardwareError(f"A local Ray could not be started ({first_line(error)}).") from error
        raise HardwareError(
            f"ray.address={address}: cannot connect ({first_line(error)}). Is the cluster running (`ray status`)? A"
            " cluster with token authentication needs RAY_AUTH_MODE=token and its token here too. Without ray.address a"
            " local Ray is started."
        ) from error


@contextlib.contextmanager
def _own_token() -> Iterator[None]:
    """A token for a Ray of our own, where this user has none: Ray would write one into the home folder for all to come.

    Raises:
        HardwareError: where the environment names a file with a token that is none.
    """
    tokens: Any = ray._raylet.AuthenticationTokenLoader.instance()  # type: ignore[attr-defined]
    try:
        known = os.environ.get("RAY_AUTH_MODE") == "disabled" or tokens.has_token(ignore_auth_mode=True)
    except AuthenticationError as error:
        raise HardwareError(f"A local Ray could not be started ({first_line(error)}).") from error
    if not known:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        tokens.reset_cache()
    try:
        yield
    finally:
        if not known:
            del os.environ["RAY_AUTH_TOKEN"]
            tokens.reset_cache()


def _parts() -> list[Part]:
    """The processes without which the driver cannot go on; none where it is connected by a proxy (``ray://``)."""
    worker: Any = ray._private.worker.global_worker
    if not worker.connected:
        return []
    here = ray.get_runtime_context().get_node_id()
    patience = float(os.environ.get(_PATIENCE) or 0) - _EARLIER
    return [
        Part("its control store", worker.gcs_client.address, patience),
        *(
            Part("the raylet of this machine", f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}")
            for node in ray.nodes()
            if node["NodeID"] == here
        ),
    ]


def _local_processes() -> Callable[[], None]:
    """What ends the processes on this machine that Ray started for this driver, and a Ray of our own."""
    worker: Any = ray._private.worker.global_worker
    if not worker.connected:
        return lambda: None
    socket_name, job = worker.node.raylet_socket_name, ray.get_runtime_context().get_job_id()
    raylets = [str(it.pid) for it in psutil.process_iter() if _has_argument(it, "raylet", socket_name)]
    own = bool(_started)

    def end() -> None:
        _started.extend([process for raylet in _started for process in _below(raylet)])
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                environment = process.environ() if process.pid != os.getpid() else {}
                if environment.get("RAY_RAYLET_PID") in raylets and (own or environment.get("RAY_JOB_ID") == job):
                    _started.append(process)
        _kill_started()

    return end


def _log_message(data: Mapping[str, Any], ignore_prefix: bool = True) -> None:
    logger = logging.getLogger(RAY_MESSAGES)
    for line in data["lines"] if logger.handlers else ():  # else there is no log to write it to
        logger.warning("%s", line)


def end_ray(seconds: float | None = None) -> None:
    """``ray.shutdown``, and an end to the processes of a local Ray that would outlive it.

    Its agents first report that their raylet is gone, to a control store that is gone as well: they try for a minute.

    Args:
        seconds: after which ``ray.shutdown`` is not waited for any more; None for as long as it takes.
    """
    for watch in _watches:
        watch.stop()
    # Kept until they are ended: a second Ctrl-C may come while this is at work in another thread.
    _started.extend([process for raylet in _started for process in _below(raylet)])
    shutdown = threading.Thread(target=ray.shutdown, name="ray.shutdown", daemon=True)
    shutdown.start()
    shutdown.join(seconds)
    _kill_started()


def expect_end() -> None:
    """The sweep is being stopped by a signal: Ray may have got it too, and its end is then no news."""
    for watch in _watches:
        watch.leave()


def _kill_started() -> None:
    for process in list(_started):
        with contextlib.suppress(psutil.Error):
            process.kill()
    _started.clear()


def _below(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _has_argument(process: psutil.Process, name: str, argument: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.name() == name and argument in " ".join(process.cmdline())
    return False  # it has ended meanwhile


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
    """Raises OSError where nothing listens at HOST:PORT, or our token is not the cluster's.

    Ray itself would try for many minutes, and for half of one.
    """
    host, separator, port = (address or "").removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        return
    socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    with init_grpc_channel(str(address).removeprefix("ray://"), [("grpc.enable_http_proxy", 0)]) as channel:
        question = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId").future(b"", timeout=_CONNECT_SECONDS)
        if question.code() is grpc.StatusCode.UNAUTHENTICATED:
            raise PermissionError(question.details())


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
        threads = config.resources.threads or max(1, int(cpus if cluster_address(config) else cpus - 1) // count)
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
    devices = []
    for seat in seats(ray.nodes(), config):
        make = ray.remote(kind).options(
            num_cpus=seat.cpus,
            num_gpus=seat.gpus,
            max_restarts=-1,
            max_concurrency=64,
            scheduling_strategy=NodeAffinitySchedulingStrategy(seat.node_id, soft=False),
            runtime_env={
                "env_vars": {**_worker_environment(), **_ALLOCATOR, **wait_policy(), **thread_counts(seat.threads)}
            },
            name=f"device-{uuid.uuid4().hex[:8]}",
        )
        slots = config.resources.slots if isinstance(config.resources.slots, int) else None
        arguments = (config.engine, slots, objective, seat.threads, seat.node, package_root())
        devices.append(DeviceClient(make.remote(*arguments)))
    return devices


def with_facts(
    devices: Sequence[DeviceClient], folder: str, precisions: Sequence[str], note: Callable[[str], None]
) -> tuple[list[DeviceClient], list[WorkerFacts]]:
    """Wait until all workers have started. Returns them again, each knowing where it is, and what each has.

    Args:
        folder: of the sweep, which all must see.
        precisions: those of interest.
        note: called with a sentence where it takes long.

    Raises:
        HardwareError: where a worker cannot start.
        LorasweepError: a worker's own, such as for a folder that it does not see.
    """
    replies = [device.facts(folder, precisions) for device in devices]
    _, waiting = ray.wait([it.reference for it in replies], num_returns=len(replies), timeout=_START_SECONDS)
    if waiting:
        note(
            f"{len(waiting)} of {len(devices)} device workers have not started in {_START_SECONDS} s. Waiting for them;"
            " `ray status` shows whether others use their CPUs or GPUs."
        )
    try:
        facts = [reply.get() for reply in replies]
    except LOST as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise HardwareError(
            f"a device worker could not start ({lines[-1] if lines else type(error).__name__}). Every node of a cluster"
            " needs the same checkout, installed at the same place with `make install`, and its .venv for `ray start`."
        ) from error
    return [replace(device, where=fact.where) for device, fact in zip(devices, facts, strict=True)], facts
