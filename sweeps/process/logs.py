"""Log messages of the libraries, and Python's warnings: in a file, not over the progress or above the leaderboard."""

import contextlib
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from analysis.files.plain_files import unshared

RAY_MESSAGES = "ray_messages"  # what Ray's own processes tell the driver: a node that is lost, a raylet's last lines
LIBRARIES = (
    "ray", RAY_MESSAGES, "transformers", "bitsandbytes", "wandb", "optuna", "accelerate", "peft", "datasets", "torch",
    "huggingface_hub", "mlflow", "alembic", "sqlalchemy", "urllib3", "sweeps.tracking", "sweeps.driver", "py.warnings",
)  # fmt: skip
_LONGEST = 1_000_000  # bytes of the commands' log; a longer one begins anew
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class LogFile(logging.FileHandler):
    """A log on a disk that may be full or gone: what cannot be written is lost, and nothing else fails because of it.

    Without this, whoever logs gets the error (where the file is not open yet), Python prints a traceback over the
    progress, and closing raises in the place of the error that says what to do about the disk.

    Args:
        path: made where there is something to write.
        form: of a line, as ``logging.Formatter`` takes it.
        folder_too: make its folder where that is not there. A sweep folder that is gone must not come back.
        mode: ``a``, or ``w`` to begin anew.
    """

    def __init__(self, path: Path, form: str = _FORMAT, folder_too: bool = False, mode: str = "a"):
        super().__init__(path, mode, encoding="utf-8", delay=True)
        self.folder_too = folder_too
        self.setFormatter(logging.Formatter(form))
        self.setLevel(logging.WARNING)  # below that, W&B alone logs hundreds of lines

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            if self.folder_too and self.stream is None:
                Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
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
    with contextlib.suppress(OSError):
        unshared(path)
    with _handled_by(LogFile(path), verbose):
        yield


@contextlib.contextmanager
def of_command(path: Path, debug: bool = False) -> Iterator[None]:
    """Keep what libraries have to say off the terminal while a command runs, from its first line to its last.

    A warning of numpy's is no part of a leaderboard, and its reader can do nothing about it. Whoever asks Python for
    warnings (``-W``, ``PYTHONWARNINGS``) gets them all the same, and other programs that import the packages too.

    Args:
        path: where they are written.
        debug: show them on the terminal too.
    """
    try:
        too_long = path.stat().st_size > _LONGEST
    except OSError:
        too_long = False
    with _handled_by(LogFile(path, folder_too=True, mode="w" if too_long else "a"), debug, not sys.warnoptions):
        yield


@contextlib.contextmanager
def _handled_by(file: LogFile, verbose: bool, warned: bool = True) -> Iterator[None]:
    """The libraries' loggers, Python's warnings where ``warned``, and all loggers without a handler write to a file."""
    handlers: list[logging.Handler] = [file]
    if verbose:
        handlers.append(logging.StreamHandler(sys.stderr))
        handlers[1].setLevel(logging.INFO)
        handlers[1].setFormatter(logging.Formatter(_FORMAT))
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    before = [(logger, logger.propagate, logger.handlers[:]) for logger in loggers]
    root, shown_by = logging.getLogger(), warnings.showwarning
    if warned:
        logging.captureWarnings(True)
    captured = warnings.showwarning is not shown_by  # and not by whoever is around this
    for logger in loggers:
        logger.handlers = handlers[:]  # some have a handler of their own, on standard error
        logger.propagate = False
    hook = threading.excepthook
    threading.excepthook = partial(_log_thread, hook)
    for handler in handlers:
        root.addHandler(handler)  # else Python itself writes to standard error what has no handler
    try:
        yield
    finally:
        threading.excepthook = hook
        if captured:
            logging.captureWarnings(False)
        for handler in handlers:
            root.removeHandler(handler)
        for logger, propagate, own in before:
            logger.propagate, logger.handlers = propagate, own
        for handler in handlers:
            handler.close()


def _log_thread(other: Callable[[threading.ExceptHookArgs], Any], failed: threading.ExceptHookArgs) -> None:
    """Log what ended a library's own thread, such as W&B's where its service was killed; it is no error of the sweep.

    Args:
        other: told of all other threads.
        failed: as Python tells ``threading.excepthook``.
    """
    place = failed.exc_traceback
    while place is not None:
        library = str(place.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        if library in LIBRARIES:
            known = failed.exc_value is not None
            what = (failed.exc_type, failed.exc_value, failed.exc_traceback) if known else None
            logging.getLogger(library).warning("a thread of %s ended", library, exc_info=what)  # type: ignore[arg-type]
            return
        place = place.tb_next
    other(failed)


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
