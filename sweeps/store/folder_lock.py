"""Who may write a sweep folder: it must be new or a sweep's, and one driver at a time has it."""

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from analysis.buckets.bucket import check_writable, explained, is_uri, joined
from analysis.buckets.local_copy import LocalCopy, copy_at
from analysis.errors import FolderError
from analysis.files.file_system import lock_now
from analysis.files.plain_files import open_lock
from analysis.folder import SweepFolder
from sweeps.config import SweepSettings
from sweeps.process import signals
from sweeps.process.installation import program, shell_path
from sweeps.store.driver_claim import claimed, refuse_living


def sweep_folder(settings: SweepSettings) -> SweepFolder:
    """The folder of a sweep of this config, whether it is there or not; of one in a bucket, an up to date copy.

    Raises:
        FolderError: where the bucket cannot be read and written, or the folder is no plain one.
    """
    if not is_uri(settings.dir):
        folder = SweepFolder(Path(settings.dir) / str(settings.name))
        folder.check_plain()
        return folder
    copy = copy_at(joined(settings.dir, str(settings.name)), "staging")
    check_writable(copy.bucket, uuid.uuid4().hex)
    _fetch(copy)
    return SweepFolder(copy.root)


def open_to_drive(run: str) -> SweepFolder:
    """A sweep that is to go on, by its folder or the URI of its bucket. Raises FolderError where there is none."""
    folder = SweepFolder.open(run, to_drive=True)
    if folder.copy is not None:
        _fetch(folder.copy)
    return folder


def _fetch(copy: LocalCopy) -> None:
    """Bring the driver's copy up to date, unless a driver is at work in it."""
    try:
        with open_lock(copy.root / ".lock") as lock:
            lock_now(lock)
            copy.fetch_to_drive()
    except BlockingIOError:
        return
    except OSError as error:
        raise explained(copy.bucket, error) from None


def new_folder(folder: SweepFolder, settings: SweepSettings) -> SweepFolder:
    """The folder of a new sweep, not yet made. Raises FolderError where it cannot be used."""
    if folder.sweep_file.exists():
        raise FolderError(
            f"{folder.where} already holds a sweep. Go on with it: {program()} resume {shell_path(folder.where)}"
            f" — or give this one another name: sweep.name={settings.name}-2"
        )
    if folder.root.is_file() or (folder.root.is_dir() and any(not _left_behind(p) for p in folder.root.iterdir())):
        raise FolderError(f"{folder.where} is there already and is no sweep. Give another name: sweep.name=…")
    return folder


def _left_behind(path: Path) -> bool:
    """Whether a file is what a driver leaves that was killed before it had begun."""
    return path.name.startswith(".") or path.name in ("control", "lorasweep.log", "output.log")


@contextlib.contextmanager
def locked(folder: SweepFolder) -> Iterator[None]:
    """One driver a folder. Folders that were made here and stayed without a sweep are removed again."""
    made = [path for path in (folder.root, *folder.root.parents) if not path.exists()]
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
        lock = open_lock(folder.root / ".lock")
    except OSError as error:
        raise FolderError(
            f"{folder.where}: cannot be written ({error.strerror}). Choose another place: sweep.dir=…"
        ) from None
    with lock:
        from sweeps.store.bucket_upload import uploading

        def remove_where_not_begun() -> None:
            if made and not folder.sweep_file.exists():
                shutil.rmtree(folder.root, ignore_errors=True)
                for parent in made[1:]:
                    with contextlib.suppress(OSError):  # something else is in it by now
                        parent.rmdir()

        with _alone(folder, lock), signals.left_behind(remove_where_not_begun), contextlib.ExitStack() as work:
            work.callback(remove_where_not_begun)
            if folder.copy:
                work.enter_context(signals.patient())
                work.enter_context(uploading(folder.copy))
            yield


@contextlib.contextmanager
def _alone(folder: SweepFolder, lock: IO[Any]) -> Iterator[None]:
    """Be the folder's only driver: by its lock, or by a claim where the file system has no locks.

    Raises:
        FolderError: where another driver has it, or it cannot be written.
    """
    try:
        has_locks = lock_now(lock)
    except BlockingIOError:
        raise FolderError(
            f"{folder.where}: another lorasweep runs this sweep now. Wait for it, or stop it first."
        ) from None
    refuse_living(folder)
    with contextlib.nullcontext() if has_locks else claimed(folder):
        yield
