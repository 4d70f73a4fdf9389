"""Ray for a sweep: a local one or a running cluster, and one device worker per device of it."""

import contextlib
import logging
import math
import os
import uuid
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from analysis.errors import HardwareError, LorasweepError
from analysis.objective import Objective
from sweeps.config import SweepConfig
from sweeps.place import package_root
from sweeps.worker import DeviceWorker

NAMESPACE = "lorasweep"
_CPU_WORKERS = 8  # more proxies than this take longer to start than they save


@contextlib.contextmanager
def ray_running(config: SweepConfig) -> Iterator[None]:
    """Connect to ``ray.address``, or start a Ray of our own and stop it afterwards.

    ``RAY_ADDRESS`` in the environment is not followed: a sweep joins a cluster only where its config says so.

    Raises:
        HardwareError: where there is no Ray at that address.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # Tune's CSV, JSON and TensorBoard copies of every result
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    address = config.ray.address
    options: dict[str, Any] = {
        "namespace": NAMESPACE,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": _worker_environment()},
    }
    if address is None:
        cores = os.cpu_count() or 1
        # one CPU more than there is: proxies need a share of one, and the worker takes the others
        options |= {"address": "local", "num_cpus": cores + 1, "include_dashboard": False}
    else:
        options["address"] = address
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise HardwareError(
            f"ray.address={address}: cannot connect ({first}). Is the cluster running (`ray status`)? A cluster with"
            " token authentication needs RAY_AUTH_MODE=token and its token here too. Without ray.address a local Ray is"
            " started."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _worker_environment() -> dict[str, str]:
    names = ("HF_HUB_OFFLINE", "HF_HOME", "LORASWEEP_CACHE", "LORASWEEP_ANY_CODE", "TRANSFORMERS_OFFLINE")
    passed = {name: os.environ[name] for name in names if name in os.environ}
    return {"TOKENIZERS_PARALLELISM": "false", "RAY_TRAIN_V2_ENABLED": "1", **passed}


def start_workers(config: SweepConfig, objective: Objective) -> list[Any]:
    """One device worker for each GPU share, or one for each node without a GPU.

    Raises:
        HardwareError: where the nodes have not what ``resources`` asks for.
    """
    asked = config.resources.gpus_per_trial
    nodes = [node for node in ray.nodes() if node["Alive"]]
    workers = []
    for node in nodes:
        gpus, cpus = node["Resources"].get("GPU", 0.0), node["Resources"].get("CPU", 0.0)
        share = asked if asked is not None else (1.0 if gpus else 0.0)
        count = math.floor(gpus / share + 1e-9) if share else 1
        if not cpus or not count:
            continue
        threads = config.resources.threads or max(1, int(cpus if config.ray.address else cpus - 1) // count)
        options: dict[str, Any] = {
            # Ray takes whole CPUs only; what is left over is for the proxies
            "num_cpus": max(1, (int(cpus) - 1) // count) if share == 0 else 1,
            "num_gpus": share,
            "max_restarts": -1,
            "max_concurrency": 64,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            "runtime_env": {"env_vars": {**_worker_environment(), "OMP_NUM_THREADS": str(threads)}},
            "name": f"device-{uuid.uuid4().hex[:8]}",
        }
        make = ray.remote(DeviceWorker).options(**options)
        workers += [make.remote(config.engine.name, objective, threads, package_root()) for _ in range(count)]
    if not workers:
        gpus_there = sum(node["Resources"].get("GPU", 0.0) for node in nodes)
        raise HardwareError(
            f"resources.gpus_per_trial={asked}: no node has that many GPUs ({gpus_there:g} in the whole cluster)."
            " Lower it; 0 trains on CPUs."
        )
    return workers


def max_concurrent(config: SweepConfig, workers: int) -> int:
    """Trials that run at a time: a slot each, unless the config says fewer."""
    most = config.ray.max_concurrent_trials or _CPU_WORKERS
    slots = config.resources.slots
    return max(1, min(most, workers * (slots if isinstance(slots, int) else 1)))


def answer(reference: Any) -> Any:
    """``ray.get`` that raises a worker's LorasweepError as itself, not wrapped in Ray's."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, LorasweepError):
            raise cause from None
        raise
