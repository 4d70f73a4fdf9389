"""Whether a node reads and writes the sweep folder that the driver does: each writes a file that the other reads.

That a folder of this path is there says little: it may be another disk, or a read-only or one-way copy.
"""

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from analysis.errors import FolderError

_LAG = 5.0  # seconds that a network file system may take to show a file of another machine
_SHARED = "The sweep folder must lie on a file system that all nodes share, at the same path: sweep.dir=…"


@dataclass(frozen=True)
class FolderProbe:
    """Files in the sweep folder, known to the driver and to the nodes that it asks.

    Attributes:
        folder: of the sweep, absolute.
        nonce: in the name of the files' folder, and in each of them.
    """

    folder: str
    nonce: str

    @property
    def place(self) -> Path:
        """The folder with the files."""
        return Path(self.folder) / f".probe-{self.nonce}"

    def answer(self, node: str, name: str) -> None:
        """On a node: read the driver's file, and write one of its own.

        Args:
            node: its name, for messages.
            name: of the file that is written.

        Raises:
            FolderError: where that cannot be done.
        """
        if not Path(self.folder).is_dir():
            raise FolderError(f"node {node} does not see {self.folder}, which this machine writes to. {_SHARED}")
        if not _appears(self.place / "driver", self.nonce):
            raise FolderError(
                f"node {node} has another folder at {self.folder}: the file that this machine wrote there is not in it."
                f" {_SHARED}"
            )
        try:
            with (self.place / name).open("w") as file:
                file.write(self.nonce)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise FolderError(
                f"node {node} cannot write to {self.folder} ({error.strerror}). Mount it there with the right to write"
                " for the user that Ray runs as, or choose another place: sweep.dir=…"
            ) from None

    def confirm(self, node: str, name: str) -> None:
        """On the driver: read the file that a node wrote. Raises FolderError where it does not appear.

        Args:
            node: its name, for messages.
            name: of the file.
        """
        if not _appears(self.place / name, self.nonce):
            raise FolderError(
                f"what node {node} writes to {self.folder} does not appear on this machine within {_LAG:g} s: it has a"
                f" copy of that folder. {_SHARED}"
            )


@contextlib.contextmanager
def probing(folder: str) -> Iterator[FolderProbe]:
    """The driver's file in the sweep folder; it and all answers are removed in the end.

    Raises:
        FolderError: where this machine cannot write there.
    """
    probe = FolderProbe(folder, uuid.uuid4().hex)
    try:
        try:
            probe.place.mkdir()
            (probe.place / "driver").write_text(probe.nonce)
        except OSError as error:
            raise FolderError(
                f"{folder}: cannot be written ({error.strerror}). Choose another place: sweep.dir=…"
            ) from None
        yield probe
    finally:
        shutil.rmtree(probe.place, ignore_errors=True)


def _appears(file: Path, content: str, clock: Callable[[], float] = time.monotonic) -> bool:
    """Whether a file of another machine has this content, now or after a while."""
    gives_up = clock() + _LAG
    while True:
        with contextlib.suppress(OSError):
            os.listdir(file.parent)  # NFS asks its server again
            if file.read_text() == content:
                return True
        if clock() > gives_up:
            return False
        time.sleep(0.1)
