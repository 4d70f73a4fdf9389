"""Log messages of the libraries: written to the sweep folder, not over the progress."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

RAY_MESSAGES = "ray_messages"  # what Ray's own processes tell the driver: a node that is lost, a raylet's last lines
LIBRARIES = (
    "ray", RAY_MESSAGES, "transformers", "bitsandbytes", "wandb", "optuna", "accelerate", "peft", "datasets", "torch",
    "huggingface_hub", "mlflow", "alembic", "sqlalchemy", "urllib3", "sweeps.tracking", "sweeps.driver", "py.warnings",
)  # fmt: skip
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class LogFile(logging.FileHandler):
    """A log on a disk that may be full or gone: what cannot be written is lost, and nothing else fails because of it.

    Without this, whoever logs gets the error (where the file is not open yet), Python prints a traceback over the
    progress, and closing raises in the place of the error that says what to do about the disk.

    Args:
        path: made where there is something to write.
        form: of a line, as ``logging.Formatter`` takes it.
    """

    def __init__(self, path: Path, form: str = _FORMAT):
        super().__init__(path, encoding="utf-8", delay=True)
        self.setFormatter(logging.Formatter(form))
        self.setLevel(logging.WARNING)  # below that, W&B alone logs hundreds of lines

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def to_file(path: Path, verbose: bool = False) -> Iterator[None]:
    """Append what libraries log, and Python's warnings, to a file; none of it reaches the terminal.

    Args:
        path: the log file; made where there is something to write.
        verbose: show it on the terminal too.
    """
    handlers: list[logging.Handler] = [LogFile(path)]
    if verbose:
        handlers.append(logging.StreamHandler(sys.stderr))
        handlers[1].setLevel(logging.INFO)
        handlers[1].setFormatter(logging.Formatter(_FORMAT))
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
    handler = LogFile(path, f"%(asctime)s %(levelname)s {node} %(name)s: %(message)s")
    logging.captureWarnings(True)
    logging.getLogger().addHandler(handler)
    for name in LIBRARIES:
        logger = logging.getLogger(name)
        if not logger.propagate:  # such as transformers, which has a handler of its own
            logger.addHandler(handler)
