"""Where a sweep's own Ray is, and the token for it: a file in the sweep folder, by which nodes find it.

The head's job writes it when its Ray runs and removes it when the sweep is over. Where the job is to run again, after
its time limit, the file stays: nodes wait then for the next address in it.
"""

import json
import os
import socket
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass, field

from analysis.errors import FolderError, HardwareError, parsed_json
from analysis.files.file_system import flush
from analysis.folder import SweepFolder

_CONNECT_SECONDS = 3.0


@dataclass(frozen=True)
class ClusterHead:
    """Where a Ray cluster is.

    Attributes:
        address: HOST:PORT.
        token: that it asks for.
    """

    address: str
    token: str = field(repr=False)


class NoHead(HardwareError):
    """There is no head now, but one may come: its file is absent, or nothing listens where it says."""


def write_head(folder: SweepFolder, head: ClusterHead) -> None:
    """Write it whole, readable and writable for this user alone from its first byte on. The folder is made.

    Raises:
        FolderError: where the folder cannot be written.
    """
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
        number, temporary = tempfile.mkstemp(prefix=".cluster.", dir=folder.root)  # mode 0600
        try:
            with open(number, "w") as file:
                json.dump(asdict(head), file)
                file.flush()
                flush(file.fileno())
            os.replace(temporary, folder.cluster_file)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise FolderError(
            f"{folder.root}: cannot be written ({error.strerror}). Choose another place: sweep.dir=…"
        ) from None


def read_head(folder: SweepFolder) -> ClusterHead:
    """Where the cluster is whose head runs now.

    Raises:
        NoHead: where there is none now.
        FolderError: where the file cannot be used, whatever comes.
    """
    file = folder.cluster_file
    try:
        content = parsed_json(file.read_text())
        head = ClusterHead(str(content["address"]), str(content["token"]))
        host, _, port = head.address.rpartition(":")
        number = int(port)
        if not host or not head.token:
            raise ValueError
    except (FileNotFoundError, NotADirectoryError):
        raise NoHead(
            f"{file}: no such file, so no head of this sweep runs. Start one (cluster/slurm/head.sbatch), and give the"
            " folder that it prints."
        ) from None
    except OSError as error:
        raise FolderError(
            f"{file}: cannot be read ({error.strerror}). It holds the token of the sweep's Ray, so only the user who"
            " started its head can: join as that one."
        ) from None
    except (ValueError, KeyError, TypeError):
        raise FolderError(
            f"{file}: no address and token in it, so there is no head to join. Remove it, and start the head again."
        ) from None
    try:
        socket.create_connection((host, number), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise NoHead(
            f"{file} names {head.address}, where nothing answers ({error}): the head that wrote it is gone, or cannot"
            " be reached from here. Start the head again; or, where the sweep is over, remove the file."
        ) from None
    return head


def is_announced(folder: SweepFolder, head: ClusterHead | None = None) -> bool:
    """Whether the file is there; and names this head, where one is given."""
    try:
        content = parsed_json(folder.cluster_file.read_text())
        return head is None or (content.get("address") == head.address and content.get("token") == head.token)
    except FileNotFoundError:
        return False
    except (OSError, ValueError):  # a file system that hangs for a moment says nothing
        return True
