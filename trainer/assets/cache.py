"""The cache folder. Standard library only: every command asks for it at its start."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where fetched packages are kept: ``LORASWEEP_CACHE``, or ``~/.cache/lorasweep`` where that is not set."""
    return Path(os.environ.get("LORASWEEP_CACHE") or "~/.cache/lorasweep").expanduser().absolute()
