"""Environment variables of the processes that Ray starts for a sweep."""

import contextlib
import os
from collections.abc import Iterator, Mapping

from sweeps.process.threads import thread_counts, wait_policy

# glibc gives the memory of each large tensor back to the system at once, and faults it in again at the next step, which
# is a sixth of its time on a CPU. Up to this many bytes it keeps.
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 28), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}

# Only the driver talks to trackers, so only it has their keys.
_TRACKERS_KEYS = (
    "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE",
    "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN",
)  # fmt: skip


def without_trackers_keys(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what only the driver needs."""
    return {name: value for name, value in environment.items() if name not in _TRACKERS_KEYS}


@contextlib.contextmanager
def trackers_keys_hidden() -> Iterator[None]:
    """For the length of the block, processes that are started here do not get the keys of trackers."""
    kept = {name: os.environ.pop(name) for name in _TRACKERS_KEYS if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def worker_environment() -> dict[str, str]:
    """Of all processes of a sweep."""
    names = ("HF_HUB_OFFLINE", "HF_HOME", "LORASWEEP_CACHE", "TRANSFORMERS_OFFLINE")
    passed = {name: os.environ[name] for name in names if name in os.environ}
    return {"TOKENIZERS_PARALLELISM": "false", "RAY_TRAIN_V2_ENABLED": "1", **passed}


def training_environment(threads: int) -> dict[str, str]:
    """Of a device worker.

    Args:
        threads: of its arithmetic.
    """
    return {**worker_environment(), **_ALLOCATOR, **wait_policy(), **thread_counts(threads)}
