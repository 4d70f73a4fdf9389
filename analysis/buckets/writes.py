"""Who hears of writes to sweep folders: the upload of a sweep whose folder is a bucket."""

from pathlib import Path
from typing import Protocol


class Observer(Protocol):
    """Is told of each write below its folder, in the order of writing, once it is on the disk."""

    def written(self, path: Path, content: bytes | None, size: int) -> None:
        """A file was written.

        Args:
            path: of it.
            content: all of it; None where a line was appended.
            size: bytes that it has now.

        Raises:
            OSError: where nothing more can be saved, as a full disk does.
        """

    def placed(self, folder: Path) -> None:
        """A folder was put into place, whole."""

    def removed(self, path: Path) -> None:
        """A file was removed, or a folder with all that is in it."""


_observers: dict[Path, Observer] = {}  # of this process, as its disk: folder → who hears of what is written below it


def observe(folder: Path, observer: Observer | None) -> None:
    """From now on, tell an observer of what this process writes below a folder; None ends it."""
    _observers.pop(folder, None)
    if observer is not None:
        _observers[folder] = observer


def observer_of(path: Path) -> Observer | None:
    """Who is to hear of a write, if anybody."""
    for folder, observer in _observers.items():
        if path.is_relative_to(folder):
            return observer
    return None
