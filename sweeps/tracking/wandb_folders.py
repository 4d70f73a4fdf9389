"""The folders of W&B's runs in a sweep folder: which are uploaded, which are not, which another one replaces.

W&B keeps one for each time that a run is begun: ``run-<time>-<id>``, or ``offline-run-<time>-<id>``, with a file
``.wandb``. Beside that ``.wandb.synced`` says that it is uploaded: ``wandb sync`` writes it, and passes over such runs;
here it is written for runs that were online too, so that ``wandb sync --include-online`` uploads what is missing only.
"""

import contextlib
import glob
from pathlib import Path

from analysis.folder import remove_tree

_POINTS = "lorasweep-points"  # how many points W&B has of the run once the folder is uploaded


class WandbFolders:
    """The folders below ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def of(self, run_id: str) -> list[Path]:
        """The folders of a run, the oldest first."""
        found = self.root.glob(f"*run-*-{glob.escape(run_id)}")
        return sorted((it for it in found if any(it.glob("*.wandb"))), key=lambda it: it.name.partition("run-")[2])

    def missing(self) -> tuple[bool, bool]:
        """Whether something written offline is not uploaded, and whether something of runs that were online is not."""
        lacking = [it for it in self.root.glob("*run-*") if any(it.glob("*.wandb")) and not is_uploaded(it)]
        offline = [it.name.startswith("offline-") for it in lacking]
        return any(offline), not all(offline)

    def points(self, run_id: str) -> int:
        """How many points of a run were uploaded from here, as far as that is known."""
        return max((_points(it) for it in self.of(run_id) if is_uploaded(it)), default=0)


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


def _points(folder: Path) -> int:
    try:
        return int((folder / _POINTS).read_text())
    except (OSError, ValueError):
        return 0
