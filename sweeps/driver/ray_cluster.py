"""Ray for a sweep: a local one, or a running cluster."""

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import ray
from ray.exceptions import AuthenticationError

from analysis.errors import HardwareError, first_line
from sweeps.config import SweepConfig

NAMESPACE = "lorasweep"
_CONNECT_SECONDS = 10
_START_ATTEMPTS = 3
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
    # Tune starts as many trials as the search gives it, which follows the cluster (sweeps/search/pacing.py).
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "1000000")
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
        "runtime_env": {"env_vars": worker_environment()},
    }
    if address is None:
        cores = os.cpu_count() or 1
        # Ray would start processes beforehand that nobody can use: all of ours have an environment of their own.
        os.environ.setdefault("RAY_enable_worker_prestart", "0")
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
        options |= {"address": "local", "num_cpus": cores, "include_dashboard": False}
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


def worker_environment() -> dict[str, str]:
    """Environment variables of all processes of a sweep."""
    names = ("HF_HUB_OFFLINE", "HF_HOME", "LORASWEEP_CACHE", "TRANSFORMERS_OFFLINE")
    passed = {name: os.environ[name] for name in names if name in os.environ}
    return {"TOKENIZERS_PARALLELISM": "false", "RAY_TRAIN_V2_ENABLED": "1", **passed}
