"""Whether a node reads and writes the sweep folder that the driver does: each writes a file that the other reads.

That a folder of this path is there says little: it may be another disk, or a read-only or one-way copy. Of a sweep in a
bucket, the files are objects in it.
"""

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from analysis.buckets.bucket import Bucket, explained
from analysis.buckets.local_copy import copy_at, copy_of
from analysis.errors import FolderError
from analysis.files.file_system import flush
from sweeps.store.node_copy import NodeCopy

_LAG = 5.0  # seconds that a network file system may take to show a file of another machine
_SHARED = "The sweep folder must lie on a file system that all nodes share, at the same path: sweep.dir=…"


@dataclass(frozen=True)
class FolderProbe:
    """Files in the sweep folder, known to the driver and to the nodes that it asks.

    Attributes:
        folder: of the sweep, absolute.
        nonce: in the name of the files' folder, and in each of them.
        uri: of the sweep folder's bucket, whose copy on the driver's machine ``folder`` is; empty where it is in none.
    """

    folder: str
    nonce: str
    uri: str = ""

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
        if self.uri:
            self._answer_in_bucket(node, name)
            return
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
                flush(file.fileno())
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
        if self.uri:
            self._confirm_in_bucket(node, name)
        elif not _appears(self.place / name, self.nonce):
            raise FolderError(
                f"what node {node} writes to {self.folder} does not appear on this machine within {_LAG:g} s: it has a"
                f" copy of that folder. {_SHARED}"
            )

    def copy_here(self) -> NodeCopy:
        """What a worker on this node works in; made where it is not there yet.

        Raises:
            FolderError: where it cannot be written.
        """
        if not self.uri:
            return NodeCopy()
        try:
            copy = copy_at(self.uri, "staging")
            with contextlib.suppress(OSError):
                if (copy.root / self.place.name / "driver").read_text() == self.nonce:
                    return NodeCopy(self.folder, copy, shared=True)
        except OSError as error:
            raise FolderError(
                f"{error.filename}: cannot be written ({error.strerror}). A sweep in a bucket has its copy there."
                " Choose another place on this node: LORASWEEP_STAGING"
            ) from None
        return NodeCopy(self.folder, copy, shared=False)

    def _answer_in_bucket(self, node: str, name: str) -> None:
        bucket, place = Bucket(self.uri), self.place.name
        try:
            if bucket.read(f"{place}/driver").decode() != self.nonce:
                raise FileNotFoundError
            bucket.write(f"{place}/{name}", self.nonce.encode())
        except FileNotFoundError:
            raise FolderError(
                f"node {node} sees another bucket at {self.uri}: the object that this machine wrote there is not in it."
                " Is its endpoint another one (AWS_ENDPOINT_URL)? Name it in the URI: ?endpoint_override=HOST:PORT"
            ) from None
        except OSError as error:
            raise FolderError(
                f"node {node} cannot read and write {self.uri}: {error.strerror}. Every node needs keys or a role of"
                " its own: start Ray there with them in the environment."
            ) from None
        try:
            self.copy_here()
        except FolderError as error:
            raise FolderError(f"node {node}: {error}") from None

    def _confirm_in_bucket(self, node: str, name: str) -> None:
        try:
            same = Bucket(self.uri).read(f"{self.place.name}/{name}").decode() == self.nonce
        except FileNotFoundError:
            same = False
        except OSError as error:
            raise explained(Bucket(self.uri), error) from None
        if not same:
            raise FolderError(
                f"what node {node} writes to {self.uri} does not appear on this machine: it is another bucket."
            )


@contextlib.contextmanager
def probing(folder: str) -> Iterator[FolderProbe]:
    """The driver's file in the sweep folder; it and all answers are removed in the end.

    Raises:
        FolderError: where this machine cannot write there.
    """
    copy = copy_of(Path(folder))
    probe = FolderProbe(folder, uuid.uuid4().hex, copy.bucket.uri if copy else "")
    try:
        if copy is not None:
            try:
                copy.bucket.write(f"{probe.place.name}/driver", probe.nonce.encode())
            except OSError as error:
                raise explained(copy.bucket, error) from None
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
        if copy is not None:
            with contextlib.suppress(OSError):
                copy.bucket.remove(copy.bucket.listing(probe.place.name))


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
