"""Ray for a sweep: a local one, or a running cluster."""

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import psutil
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray.exceptions import AuthenticationError

from analysis.errors import ConfigError, FolderError, HardwareError, first_line
from sweeps.config import SweepConfig
from sweeps.driver.ray_watch import Part, RayWatch
from sweeps.process import signals
from sweeps.process.fork_server import ForkServer
from sweeps.process.logs import RAY_MESSAGES
from sweeps.process.ray_node import few_processes
from sweeps.process.scratch import leave_to_janitor, private_scratch
from sweeps.process.termination import leave_nothing_to_libraries
from sweeps.process.worker_variables import trackers_keys_hidden, worker_environment

NAMESPACE = "lorasweep"
_CONNECT_SECONDS = 10
_START_ATTEMPTS = 3
_SHUTDOWN_SECONDS = 10.0  # it takes one
_INTERRUPTED_SECONDS = 3.0  # for a Ray that has not come up
_started: list[psutil.Process] = []  # of a Ray of our own: its raylet; like Ray's connection, of this process
_watches: list[RayWatch] = []  # of this process, as its connection: at most one
_JOB_FILES = "working_dir_files"  # Ray's folder for the working directories of jobs
# Seconds after which Ray gives a lost control store up, 60 by default. Set by who runs a cluster whose control store
# comes back, such as KubeRay: then the sweep waits nearly as long, and is gone before Ray aborts it.
_PATIENCE, _EARLIER = "RAY_gcs_rpc_server_reconnect_timeout_s", 20
_GO_ON = "Run the command again; `lorasweep resume RUN` goes on with a sweep."


@contextlib.contextmanager
def ray_running(
    config: SweepConfig, go_on: Callable[[], str] = lambda: _GO_ON, forks: ForkServer | None = None
) -> Iterator[Callable[[], None]]:
    """Connect to ``cluster_address``, or start a Ray of our own and stop it afterwards.

    Yields what may be called once Ray is not needed any more: it ends, a second's work, beside what comes then.

    Args:
        config: of the sweep.
        go_on: says what to do where Ray dies, as a sentence.
        forks: starts the workers of a Ray of our own.

    Raises:
        ConfigError: for ``resources.niceness`` where the Ray is not our own.
        HardwareError: where there is no Ray at that address, or none can be started.
        ClusterError: where Ray dies before the block is done. It is raised in the block, if this is the main thread.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    # Tune starts as many trials as the search gives it, which follows the cluster (sweeps/search/pacing.py).
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "1000000")
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # Tune's CSV, JSON and TensorBoard copies of every result
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "86400")  # of its own state, which nobody reads, for all trials
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a Ray of our own reports to nobody
    # Ray prints a traceback for every trial that fails or is stopped by Ctrl-C; its reason is in the leaderboard.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    ray._private.worker.print_to_stdstream = _log_message  # of Ray's processes, not of ours: pages on standard output
    ray._private.utils.set_sigterm_handler = lambda handler: None  # Ray's would end the driver; ours stops the sweep
    address = cluster_address(config)
    options: dict[str, Any] = {
        "namespace": NAMESPACE,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": _without_jobs_own(worker_environment())},
    }
    if address is None:
        cores = os.cpu_count() or 1
        # Ray would start processes beforehand that nobody can use: all of ours have an environment of their own.
        os.environ.setdefault("RAY_enable_worker_prestart", "0")
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
        options |= {"address": "local", "num_cpus": cores, "include_dashboard": False}
        # Ray's memory monitor is off: it ends the youngest of its processes, a proxy or the dispatcher, and spares the
        # device worker that has the memory. The kernel ends the largest.
        options["_system_config"] = {"worker_niceness": config.resources.niceness, "memory_monitor_refresh_ms": 0}
    else:
        if config.resources.niceness:
            raise ConfigError(
                f"resources.niceness={config.resources.niceness} with a cluster that is there already ({address}): its"
                " workers have the niceness that it was started with. Use resources.niceness=0, and start the cluster"
                f" with RAY_worker_niceness={config.resources.niceness} in its environment."
            )
        options["address"] = address
    with private_scratch(), _own_token() if address is None else contextlib.nullcontext(_nothing) as forget_token:
        with trackers_keys_hidden(), _own_processes(forks) if address is None else contextlib.nullcontext():
            _connect(address, options)
        forget_token()
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
            if watch.error is not None:
                leave_to_janitor()  # Ray's code ends this process, with a status of its own, if that takes seconds
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
def _own_processes(forks: ForkServer | None) -> Iterator[None]:
    """While this lasts, a Ray that is started has few processes, and workers that are forked where that is possible."""
    if forks is None:
        with few_processes():
            yield
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        _started.append(psutil.Process(forks.pid))  # forked workers are no children of the raylet
    with few_processes(forks.script, forks.variables):
        yield


@contextlib.contextmanager
def _own_token() -> Iterator[Callable[[], None]]:
    """A token for a Ray of our own, where the environment gives none.

    Ray would take that of the home folder, which it wrote there for all to come, and for all users to read.

    Yields what takes it out of the environment once Ray has started: this process keeps it in Ray's own memory, and
    what it starts later, such as W&B's service, does not get it.

    Raises:
        HardwareError: where the environment names a file with a token that is none.
    """
    tokens: Any = ray._raylet.AuthenticationTokenLoader.instance()  # type: ignore[attr-defined]
    given = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    try:
        known = os.environ.get("RAY_AUTH_MODE") == "disabled" or (given and tokens.has_token(ignore_auth_mode=True))
    except AuthenticationError as error:
        raise HardwareError(f"A local Ray could not be started ({first_line(error)}).") from error

    def forget() -> None:
        if not known:
            os.environ.pop("RAY_AUTH_TOKEN", None)

    if not known:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        tokens.reset_cache()
    try:
        yield forget
    finally:
        forget()
        if not known:
            tokens.reset_cache()


def _nothing() -> None:
    pass


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


def end_ray(seconds: float = _SHUTDOWN_SECONDS) -> None:
    """``ray.shutdown``, and an end to the processes of a local Ray that would outlive it.

    Its agents first report that their raylet is gone, to a control store that is gone as well: they try for a minute.
    Where a raylet hangs, ``ray.shutdown`` never ends, here and once more at the end of the interpreter.

    Args:
        seconds: after which ``ray.shutdown`` is not waited for any more.
    """
    for watch in _watches:
        watch.stop()
    # Kept until they are ended: a second Ctrl-C may come while this is at work in another thread.
    _started.extend([process for raylet in _started for process in _below(raylet)])
    try:
        shutdown = threading.Thread(target=ray.shutdown, name="ray.shutdown", daemon=True)
        shutdown.start()
        shutdown.join(seconds)
        if shutdown.is_alive():
            leave_nothing_to_libraries()
    finally:
        _kill_started()  # also where a signal comes just now


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
            with signals.hangups_kept_from_children():
                ray.init(**options)
            signals.take_again()
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
        except KeyboardInterrupt:  # Ray itself only ends what it has started where it has started all
            _started.extend(_below(psutil.Process()))
            end_ray(_INTERRUPTED_SECONDS)
            raise


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
