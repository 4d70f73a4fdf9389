"""The fork server of a sweep: which sweeps have one, and what it imports (``sweeps/process/fork_server.py``)."""

import contextlib
import os
from collections.abc import Callable, Iterator

from sweeps.config import SweepConfig
from sweeps.process.fork_server import ForkServer, can_fork, forking
from sweeps.process.worker_variables import training_environment

# What device workers and proxies import before their first work: modules, and functions that import. Ray itself is not
# among them, but what it imports is: its own code reads what a worker is to be when it is loaded.
_IMPORTS = (
    "sweeps.driver.device_worker:import_torch", "trainer.preload:import_scorers",
    "google.protobuf.json_format", "google.protobuf.timestamp_pb2", "jsonschema", "requests", "pydantic", "omegaconf",
    "pandas", "pyarrow.parquet", "fsspec", "rich.console",
)  # fmt: skip


@contextlib.contextmanager
def workers_forked(config: SweepConfig) -> Iterator[ForkServer | None]:
    """A fork server for the length of the block; None for a sweep that can have none."""
    threads = _threads(config)
    with contextlib.ExitStack() as running:
        server = None
        if threads:
            with contextlib.suppress(OSError):
                server = running.enter_context(forking(_IMPORTS, training_environment(threads)))
        yield server


@contextlib.contextmanager
def forked_ahead() -> Iterator[Callable[[SweepConfig], ForkServer | None]]:
    """A fork server that is started before the config of its sweep is composed, which takes a second.

    Yields what gives it to the sweep: another one where that has other threads, None where it can have none.
    """
    with contextlib.ExitStack() as running:
        ahead = running.enter_context(workers_forked(SweepConfig()))

        def of_sweep(config: SweepConfig) -> ForkServer | None:
            if _threads(config) == _threads(SweepConfig()):
                return ahead
            running.close()
            return running.enter_context(workers_forked(config))

        yield of_sweep


def _threads(config: SweepConfig) -> int | None:
    """Threads of the device worker of a sweep whose workers can be forked, else None.

    That is one with a Ray of its own, on a machine without GPUs, whose trials train in one process each.
    """
    own = config.ray.address is None and "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ
    if not own or config.resources.ranks > 1 or config.resources.gpus_per_trial or not can_fork():
        return None
    return config.resources.threads or os.cpu_count() or 1
