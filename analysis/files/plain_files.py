"""What may lie in a sweep folder: files and folders. It may be somebody else's, and a link in it may lead anywhere.

A link to a file of the reader's would be read into tables, truncated or written; of one to a folder, what is in it
would be deleted with a trial's checkpoints. A pipe in place of a file would be waited for. So a folder is looked
through once, by whoever opens it, and is refused as a whole. A link *to* a sweep folder, or above it, is one's own.
"""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from analysis.errors import FolderError

_MARKER = ".bucket"  # of a local copy of a bucket: analysis/buckets/local_copy.py, which looks at that of the root
_WANDB = "wandb"  # W&B makes links of its own in it, which nobody reads or writes through
_LINKS_OF_WANDB, _RUNS_OF_WANDB = re.compile(r"latest-run|debug[\w-]*\.log"), re.compile(r"(offline-)?run-.*")
_SETTINGS_OF_WANDB = (os.path.join("wandb", "settings"), os.path.join(".wandb", "settings"))
_JOURNAL_LOCK = os.path.join("study", "journal.log.lock")  # Optuna's lock is a link; it is made and removed, never read


def require_plain(root: Path) -> None:
    """Refuse a sweep folder in which something is neither a file nor a folder; nothing happens where it is not there.

    Args:
        root: the sweep folder, which may be reached by links.

    Raises:
        FolderError: with the path of the first such thing, and where a link leads.
    """
    for entry, name in _entries(root):
        if entry.is_symlink():
            raise FolderError(_refused(root, name, f"is a link to {_target(entry.path)}"))
        if not (entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False)):
            raise FolderError(_refused(root, name, "is neither a file nor a folder (a pipe, a socket or a device)"))
        if entry.name == _MARKER and name != _MARKER:
            raise FolderError(_refused(root, name, "says that this is the copy of a bucket, and only a whole sweep is"))
        if name in _SETTINGS_OF_WANDB:
            raise FolderError(_refused(root, name, "would tell W&B to which server it sends runs"))


def open_plain(path: Path, flags: int) -> int:
    """``os.open`` of a file that is no link, and no pipe to wait for; made with mode 0666 where ``flags`` say so.

    Raises:
        OSError: for a link, and as ``os.open``.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is no file")
    return descriptor


def open_lock(path: Path) -> BinaryIO:
    """A file to lock, made where it is not there; what is in it stays. Raises OSError as ``open_plain``."""
    return os.fdopen(open_plain(path, os.O_RDWR | os.O_CREAT), "r+b")


def unshared(path: Path) -> None:
    """Make a file that has several names (hard links) a copy of its own, before something is appended to it."""
    try:
        known = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(known.st_mode) or known.st_nlink < 2:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.own")
    try:
        temporary.write_bytes(path.read_bytes())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _entries(root: Path) -> Iterator[tuple[os.DirEntry[str], str]]:
    """Everything below a folder, with its name from there, but for links of W&B's and what is in its runs."""
    waiting = [("", str(root))]
    while waiting:
        above, folder = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = os.path.join(above, entry.name)
                    if name == _JOURNAL_LOCK or (above == _WANDB and _LINKS_OF_WANDB.fullmatch(entry.name)):
                        continue
                    yield entry, name
                    run = above == _WANDB and _RUNS_OF_WANDB.fullmatch(entry.name)
                    if entry.is_dir(follow_symlinks=False) and not run:
                        waiting.append((name, entry.path))
        except (FileNotFoundError, NotADirectoryError):
            continue  # removed meanwhile by the sweep's driver; or no folder is there
        except OSError as error:
            raise FolderError(f"{folder}: cannot be looked through ({error.strerror}).") from None


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return "somewhere"


def _refused(root: Path, name: str, what: str) -> str:
    return (
        f"{root / name} {what}. A sweep folder holds files and folders alone: one that somebody else made could lead"
        " into yours by it. If the sweep is yours, put the files themselves there; else remove it."
    )
