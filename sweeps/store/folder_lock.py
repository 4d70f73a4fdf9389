"""Who may write a sweep folder: it must be new or a sweep's, and one driver at a time has it."""

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path

from analysis.errors import FolderError
from analysis.folder import SweepFolder
from sweeps.config import SweepSettings
from sweeps.process.installation import program, shell_path


def new_folder(settings: SweepSettings) -> SweepFolder:
    """The folder of a new sweep, not yet made. Raises FolderError where it cannot be used."""
    folder = SweepFolder(Path(settings.dir) / str(settings.name))
    if folder.sweep_file.exists():
        raise FolderError(
            f"{folder.root} already holds a sweep. Go on with it: {program()} resume {shell_path(folder.root)}"
            f" — or give this one another name: sweep.name={settings.name}-2"
        )
    if folder.root.is_file() or (folder.root.is_dir() and any(not _left_behind(p) for p in folder.root.iterdir())):
        raise FolderError(f"{folder.root} is there already and is no sweep. Give another name: sweep.name=…")
    return folder


def _left_behind(path: Path) -> bool:
    """Whether a file is what a driver leaves that was killed before it had begun."""
    return path.name.startswith(".") or path.name in ("control", "lorasweep.log")


@contextlib.contextmanager
def locked(folder: SweepFolder) -> Iterator[None]:
    """One driver a folder. Folders that were made here and stayed without a sweep are removed again."""
    made = [path for path in (folder.root, *folder.root.parents) if not path.exists()]
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
        lock = (folder.root / ".lock").open("w")
    except OSError as error:
        raise FolderError(
            f"{folder.root}: cannot be written ({error.strerror}). Choose another place: sweep.dir=…"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderError(
                f"{folder.root}: another lorasweep runs this sweep now. Wait for it, or stop it first."
            ) from None
        try:
            yield
        finally:
            if made and not folder.sweep_file.exists():
                shutil.rmtree(folder.root, ignore_errors=True)
                for parent in made[1:]:
                    with contextlib.suppress(OSError):  # something else is in it by now
                        parent.rmdir()
