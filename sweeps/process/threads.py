"""How many threads a process uses, and how they wait: environment variables that libraries read when they start."""

import os

_POLICIES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def wait_policy() -> dict[str, str]:
    """How threads of a parallel region wait for each other: they spin for about half a millisecond, and then sleep.

    Where they spin on, as they do otherwise, one other busy process makes training on a CPU eight times slower instead
    of three times; where they sleep at once, it is a tenth slower on a quiet machine (BENCHMARKS.md). An environment
    that says something is left at that.
    """
    said = {name: os.environ[name] for name in _POLICIES if name in os.environ}
    return said or {"GOMP_SPINCOUNT": "10000"}


def thread_counts(threads: int) -> dict[str, str]:
    """For arithmetic, and for the tokenizer, which may use threads where nothing forks."""
    return {"OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"}
