"""Environment variables of the processes that Ray starts for a sweep."""

import os

from sweeps.process.threads import thread_counts, wait_policy

# glibc gives the memory of each large tensor back to the system at once, and faults it in again at the next step, which
# is a sixth of its time on a CPU. Up to this many bytes it keeps.
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 28), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}


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
