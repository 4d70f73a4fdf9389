"""The folders of W&B's runs in a sweep folder: which are uploaded, which are not, which another one replaces.

W&B keeps one for each time that a run is begun: ``run-<time>-<id>``, or ``offline-run-<time>-<id>``, with a file
``run-<id>.wandb``; where there is one of that second, with a number at the end. Beside the file ``.wandb.synced`` says
that it is uploaded: ``wandb sync`` writes it, and passes over such runs; here it is written for runs that were online
too, so that ``wandb sync --include-online`` uploads what is missing only.
"""

import contextlib
import glob
from collections.abc import Iterator
from pathlib import Path

from analysis.folder import remove_tree

_POINTS = "lorasweep-points"  # how many points W&B has of the run once the folder is uploaded
# W&B's files are LevelDB's log format after a head of its own: https://github.com/google/leveldb, doc/log_format.md
_HEAD, _BLOCK, _RECORD_HEAD = 7, 1 << 15, 7
_WHOLE, _LAST = 1, 4


class WandbFolders:
    """The folders below ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def of(self, run_id: str) -> list[Path]:
        """The folders of a run, the oldest first."""
        file = glob.escape(f"{run_id}.wandb")  # the folder's name may have a number after it: of two in one second
        found = {it.parent for it in self.root.glob(f"*run-*/run-{file}")}
        return sorted(found, key=_begun)

    def missing(self) -> tuple[bool, bool]:
        """Whether something written offline is not uploaded, and whether something of runs that were online is not."""
        lacking = [it for it in self.root.glob("*run-*") if any(it.glob("*.wandb")) and not is_uploaded(it)]
        offline = [it.name.startswith("offline-") for it in lacking]
        return any(offline), not all(offline)

    def points(self, run_id: str) -> int:
        """How many points of a run were uploaded from here, also out of what a driver wrote that was then killed."""
        points = 0
        for folder in filter(is_uploaded, self.of(run_id)):
            noted = _noted(folder)
            points = max(points, points + _written(folder) if noted is None else noted)
        return points


def is_uploaded(folder: Path) -> bool:
    return all(file.with_name(f"{file.name}.synced").exists() for file in folder.glob("*.wandb"))


def mark_uploaded(folder: Path) -> None:
    for file in folder.glob("*.wandb"):
        with contextlib.suppress(OSError):
            file.with_name(f"{file.name}.synced").touch()


def note_points(folder: Path, points: int) -> None:
    with contextlib.suppress(OSError):
        (folder / _POINTS).write_text(f"{points}\n")


def discard(folders: list[Path]) -> None:
    """Remove folders of a run that another one replaces, unless they are uploaded."""
    for folder in folders:
        if not is_uploaded(folder):
            remove_tree(folder)


def upload_failed(log: Path) -> bool:
    """Whether W&B's service gave up uploading a run, or its files, though it ended the run without an error.

    It does where a server answers such as 401, and says so in the run's own log only.

    Args:
        log: of the service, for the run (``debug-internal.log``).
    """
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return False
    lines = [line for line in text.splitlines() if '"level":"ERROR' in line]
    if any(f'"msg":"{part}: ' in line for line in lines for part in ("filestream", "runfiles", "fileTransfer")):
        return True
    _, ending, answered = text.rpartition('"complete":true')
    return bool(ending) and '"msg":"filestream: request sent"' not in answered


def _begun(folder: Path) -> tuple[str, int, str]:
    """Sorts folders of one run: by their second, and those of one second by W&B's number."""
    time, _, name = folder.name.partition("run-")[2].partition("-")
    return time, len(name), name


def _noted(folder: Path) -> int | None:
    try:
        return int((folder / _POINTS).read_text())
    except (OSError, ValueError):
        return None


def _written(folder: Path) -> int:
    """How many points there are in a folder's files; tables, which have no step, are none."""
    from wandb.proto import wandb_internal_pb2

    points = 0
    for file in folder.glob("*.wandb"):
        with contextlib.suppress(Exception):  # of reading, or protobuf's: what is no record holds no point
            for content in _records(file.read_bytes()):
                record = wandb_internal_pb2.Record.FromString(content)  # type: ignore[attr-defined]  # made at import
                points += any("step" in (item.key, *item.nested_key) for item in record.history.item)
    return points


def _records(log: bytes) -> Iterator[bytes]:
    """The records of a file that are whole."""
    at, parts = _HEAD, b""
    while at + _RECORD_HEAD <= len(log):
        if _BLOCK - at % _BLOCK < _RECORD_HEAD:  # no head fits into what is left of the block
            at += _BLOCK - at % _BLOCK
            continue
        length, kind = int.from_bytes(log[at + 4 : at + 6], "little"), log[at + 6]
        at += _RECORD_HEAD
        if not kind or at + length > len(log):
            return
        parts += log[at : at + length]
        at += length
        if kind in (_WHOLE, _LAST):
            yield parts
            parts = b""
