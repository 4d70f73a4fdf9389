"""What a checkpoint says of itself: ``counters.json``, written last, holds a digest of every other file.

It also says which rung was the last to be scored: the checkpoint's own step, or an earlier one where a device worker
left between two rungs, or before it had scored the rung.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.folder import atomic_write

COUNTERS = "counters.json"
SCORED = "scored"


def seal(checkpoint: Path, counters: Mapping[str, Any]) -> None:
    """Complete a checkpoint: flush its files to the disk, then write ``counters.json``, which makes it count.

    Args:
        checkpoint: folder that holds all other files.
        counters: step, tokens and the like.
    """
    files = sorted(path for path in checkpoint.iterdir() if path.is_file())
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    atomic_write(
        checkpoint / COUNTERS, json.dumps({**counters, "sha256": {path.name: _digest(path) for path in files}})
    )


def fault(checkpoint: Path) -> str:
    """What is wrong with a checkpoint, as a phrase; empty where it is whole. Files without a digest are not checked."""
    try:
        counters = json.loads((checkpoint / COUNTERS).read_text())
        digests = counters.get("sha256", {})
        int(counters["step"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{COUNTERS} cannot be read"
    for name, digest in digests.items():
        try:
            if _digest(checkpoint / name) != digest:
                return f"{name} is not what was written"
        except OSError:
            return f"{name} cannot be read"
    return ""


def scored_rung(checkpoint: Path) -> int:
    """The step of the last rung that was scored before a checkpoint, its own where that cannot be read; 0: none was."""
    try:
        return int(json.loads((checkpoint / COUNTERS).read_text())[SCORED])
    except (OSError, ValueError, KeyError, TypeError):  # damaged, or older: those were written at rungs alone
        return int(checkpoint.name)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
