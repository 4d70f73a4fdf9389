"""Log messages of the libraries: written to the sweep folder, not over the progress."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

LIBRARIES = (
    "ray", "transformers", "bitsandbytes", "wandb", "optuna", "accelerate", "peft", "datasets", "torch",
    "huggingface_hub", "mlflow", "alembic", "sqlalchemy", "urllib3", "sweeps.tracking", "py.warnings",
)  # fmt: skip
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@contextlib.contextmanager
def to_file(path: Path, verbose: bool = False) -> Iterator[None]:
    """Append what libraries log, and Python's warnings, to a file; none of it reaches the terminal.

    Args:
        path: the log file; made where there is something to write.
        verbose: show it on the terminal too.
    """
    handlers: list[logging.Handler] = [logging.FileHandler(path, encoding="utf-8", delay=True)]
    handlers[0].setLevel(logging.WARNING)  # below that, W&B alone logs hundreds of lines
    if verbose:
        handlers.append(logging.StreamHandler(sys.stderr))
        handlers[1].setLevel(logging.INFO)
    for handler in handlers:
        handler.setFormatter(logging.Formatter(_FORMAT))
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    before = [(logger, logger.propagate, logger.handlers[:]) for logger in loggers]
    logging.captureWarnings(True)
    for logger in loggers:
        logger.handlers = handlers[:]  # some have a handler of their own, on standard error
        logger.propagate = False
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger, propagate, own in before:
            logger.propagate, logger.handlers = propagate, own
        for handler in handlers:
            handler.close()


def of_worker(path: Path, node: str) -> None:
    """From now on, append what this worker process's libraries log to the sweep's log.

    Args:
        path: the sweep's log file.
        node: name of the worker's node; stands in every line.
    """
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {node} %(name)s: %(message)s"))
    handler.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    logging.getLogger().addHandler(handler)
    for name in LIBRARIES:
        logger = logging.getLogger(name)
        if not logger.propagate:  # such as transformers, which has a handler of its own
            logger.addHandler(handler)
