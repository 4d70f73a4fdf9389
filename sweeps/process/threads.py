"""How many threads a process uses, and how they wait: environment variables that libraries read when they start."""

import os

_POLICIES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def wait_policy() -> dict[str, str]:
    """How the threads of a parallel region wait for each other: they spin for half a millisecond, then sleep.

    By default they spin for longer: then one other busy process makes training on a CPU eight times slower instead of
    three times. Where they sleep at once, training is a tenth slower on a quiet machine (BENCHMARKS.md).

    Returns:
        Environment variables. Where the environment sets one of them already, those that it sets, unchanged.
    """
    chosen = {name: os.environ[name] for name in _POLICIES if name in os.environ}
    return chosen or {"GOMP_SPINCOUNT": "10000"}


def thread_counts(threads: int) -> dict[str, str]:
    """Environment variables for a number of threads: of arithmetic, and of the tokenizer, where nothing forks.

    Args:
        threads: at least 1.
    """
    return {"OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"}
