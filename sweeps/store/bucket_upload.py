"""Uploads what a driver writes to its copy of a sweep folder in a bucket, in the order of writing.

So what a machine leaves in the bucket when it dies is a state that a driver that is killed leaves on a disk, and
``sweeps/store/reconcile.py`` makes a sweep of it. An object is a whole file, with the content that the file had at that
moment: of a file that lines are appended to, its beginning.
"""

import contextlib
import errno
import io
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from analysis.buckets.bucket import explained
from analysis.buckets.local_copy import DIGEST, LocalCopy, copy_of
from analysis.buckets.writes import observe
from analysis.errors import FolderError
from analysis.folder import ENDED, SweepFolder, TrialFolder
from sweeps.store.bucket_lease import Lease

MARKER = "adapter_config.json"  # an adapter counts where it is there
_PATIENCE = 300.0  # seconds for which a bucket may not answer
_AT_LAST = 20.0  # seconds for logs and trackers' files in the end
_SLOWEST = 10.0  # seconds between two attempts
_LOGS_EVERY, _TRACKERS_EVERY, _DIGEST_EVERY = 30.0, 300.0, 30.0  # seconds
_LOGS, _TRACKERS = ("lorasweep.log", "output.log", "study/journal.log"), ("wandb", "mlflow")
_LATEST = re.compile(
    r"leaderboard\.csv|report\.html|study/spent\.json"
)  # made again from the rest: the last one counts
_NOT = re.compile(
    r"control/driver\.json|(.*/)?\..*|(wandb|mlflow)/.*|study/journal\.log(\..*)?|(lorasweep|output)\.log"
)
_SAY_EVERY = 2.0


@dataclass(frozen=True)
class _Write:
    """One write to the folder.

    Attributes:
        name: of the object, or of the folder.
        kind: ``file``, ``folder`` (put into place whole) or ``removal``.
        content: of a file; None: the first ``size`` bytes of it.
        size: bytes.
    """

    name: str
    kind: str
    content: bytes | None = None
    size: int = 0


class Upload:
    """An observer of the writes to a copy of a sweep folder (``analysis/buckets/writes.py``).

    Args:
        copy: of the folder.
        lease: this process's right to write.
        patience: seconds for which the bucket may fail until the sweep ends as it does where a disk is full.
    """

    def __init__(self, copy: LocalCopy, lease: Lease, patience: float = _PATIENCE):
        self.copy, self.bucket, self.lease, self.patience = copy, copy.bucket, lease, patience
        self._waiting: deque[_Write] = deque()
        self._changed = threading.Condition()
        self._busy = False
        self._closed = False
        self._error: OSError | None = None
        self._spooled: dict[str, tuple[int, int]] = {}
        self._due = dict.fromkeys(("logs", "trackers", "digest"), time.monotonic() + _LOGS_EVERY)
        self._digested = -1
        self._thread = threading.Thread(target=self._run, name="upload", daemon=True)

    def start(self) -> None:
        self._thread.start()

    # --- told of writes

    def written(self, path: Path, content: bytes | None, size: int) -> None:
        self._add(_Write(self.copy.name(path), "file", content, size))

    def placed(self, folder: Path) -> None:
        self._add(_Write(self.copy.name(folder), "folder"))

    def removed(self, path: Path) -> None:
        self._add(_Write(self.copy.name(path), "removal"))

    def _add(self, write: _Write) -> None:
        if _NOT.fullmatch(write.name):
            return
        with self._changed:
            if self._error is not None:
                raise self._error
            last = self._waiting[-1] if self._waiting else None
            if _LATEST.fullmatch(write.name):
                for earlier in [it for it in self._waiting if it.name == write.name]:
                    self._waiting.remove(earlier)
            elif last is not None and last.name == write.name and last.kind == write.kind == "file":
                self._waiting.pop()  # nothing was written in between
            self._waiting.append(write)
            self._changed.notify_all()

    # --- the thread that uploads

    def flush(self, say: Callable[[str], None] = lambda line: None) -> None:
        """Wait until everything is in the bucket.

        Args:
            say: told every few seconds how much is left.

        Raises:
            FolderError: where the bucket does not take it.
        """
        said = time.monotonic()
        with self._changed:
            while (self._waiting or self._busy) and self._error is None and self._thread.is_alive():
                self._changed.wait(0.5)
                if time.monotonic() - said > _SAY_EVERY:
                    said = time.monotonic()
                    say(f"uploading to {self.bucket.uri}: {len(self._waiting) + self._busy} writes left")
            if self._error is not None:
                raise explained(self.bucket, self._error)

    def close(self) -> None:
        """Upload the rest, logs and trackers' files included, and end. Raises FolderError as ``flush``."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        if self._error is not None:
            raise explained(self.bucket, self._error)

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    if not self._waiting and not self._closed:
                        self._changed.wait(1.0)
                    write = self._waiting.popleft() if self._waiting else None
                    self._busy = write is not None
                    closed = self._closed
                if write is not None:
                    self._insist(lambda write=write: self._upload(write))  # type: ignore[misc]
                else:
                    self._now_and_then(closed)
                    if closed:
                        return
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()
        except Exception as error:  # whatever it is, nothing more is saved
            with self._changed:
                wrong = f"{type(error).__name__}: {error}"
                self._error = error if isinstance(error, OSError) else OSError(errno.EIO, wrong, self.bucket.uri)
                self._busy = False
                self._changed.notify_all()

    def _insist(self, work: Callable[[], None]) -> None:
        insist(work, self.patience, self.lease.check)

    def _upload(self, write: _Write) -> None:
        if write.kind == "removal":
            if write.name.endswith(".json"):
                self.bucket.remove([write.name])
            else:
                self.bucket.remove_folder(write.name)
        elif write.kind == "folder":
            folder = self.copy.root / write.name
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile, which comes next
                files = [path for path in folder.rglob("*") if path.is_file()]
                for path in sorted(files, key=lambda it: it.name == MARKER):
                    self.bucket.write(self.copy.name(path), path.read_bytes())
        elif write.content is not None:
            self.bucket.write(write.name, write.content)
        else:
            with contextlib.suppress(FileNotFoundError), (self.copy.root / write.name).open("rb") as file:
                self.bucket.write(write.name, file.read(write.size))

    # --- beside the order of writing

    def _now_and_then(self, at_last: bool) -> None:
        now = time.monotonic()
        for what, every in (("logs", _LOGS_EVERY), ("trackers", _TRACKERS_EVERY), ("digest", _DIGEST_EVERY)):
            if at_last or now >= self._due[what]:
                self._due[what] = now + every
                work = {"logs": self._spool_logs, "trackers": self._spool_trackers, "digest": self._write_digest}[what]
                patience = min(self.patience, _AT_LAST) if at_last else 0.0
                with contextlib.suppress(OSError):  # again later; what the sweep yields is in the bucket
                    insist(work, patience, self.lease.check)

    def _spool_logs(self) -> None:
        self._spool([self.copy.root / name for name in _LOGS])

    def _spool_trackers(self) -> None:
        self._spool([path for name in _TRACKERS for path in (self.copy.root / name).rglob("*")])

    def _spool(self, paths: list[Path]) -> None:
        for path in paths:
            name = self.copy.name(path)
            if not path.is_file() or path.is_symlink() or name.startswith("wandb/staging/"):  # what W&B works with
                continue
            stat = path.stat()
            if self._spooled.get(name) != (stat.st_size, stat.st_mtime_ns):
                self.bucket.write(name, path.read_bytes())
                self._spooled[name] = (stat.st_size, stat.st_mtime_ns)

    def _write_digest(self) -> None:
        """The small files of all trials that have ended as one object, so that ranking need not fetch each."""
        folder = SweepFolder(self.copy.root)
        ended = []
        for files in [*folder.baselines(), *folder.trials()]:
            with contextlib.suppress(FolderError):
                if files.read_status().state in ENDED:
                    ended.append(files)
        if len(ended) == self._digested:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        paths = [path for it in ended for path in (it.config_file, it.status_file, it.metrics_file) if path.exists()]
        columns = {"name": [self.copy.name(path) for path in paths], "content": [path.read_bytes() for path in paths]}
        buffer = io.BytesIO()
        pq.write_table(
            pa.table(columns, pa.schema([("name", pa.string()), ("content", pa.binary())])),
            buffer,
            version="2.6",
            compression="zstd",
        )
        self.bucket.write(DIGEST, buffer.getvalue())
        self._digested = len(ended)


def insist(work: Callable[[], None], patience: float = _PATIENCE, before: Callable[[], None] = lambda: None) -> None:
    """Do a piece of work, again and again where the bucket fails. Raises its OSError where it fails for long.

    Args:
        work: may be done twice.
        patience: seconds.
        before: called before each attempt; where it says that nothing may be written (EROFS), that is raised at once.
    """
    until, pause = time.monotonic() + patience, 0.5
    while True:
        try:
            before()
            work()
            return
        except OSError as error:
            if error.errno == errno.EROFS or time.monotonic() + pause > until:
                raise
        time.sleep(pause)
        pause = min(2 * pause, _SLOWEST)


_uploads: dict[Path, Upload] = {}  # of this process, as its disk: copy → its upload


@contextlib.contextmanager
def uploading(copy: LocalCopy) -> Iterator[None]:
    """This process drives a sweep in a bucket: what it writes to its copy is uploaded, all of it when this ends.

    Raises:
        FolderError: where another driver lives, or the bucket cannot be written.
    """
    lease = Lease(copy)
    try:
        lease.acquire()
        copy.fetch_to_drive()  # what another driver has written meanwhile
    except OSError as error:
        raise explained(copy.bucket, error) from None
    upload = Upload(copy, lease)
    observe(copy.root, upload)
    _uploads[copy.root] = upload
    lease.start()
    upload.start()
    try:
        yield
    finally:
        observe(copy.root, None)
        del _uploads[copy.root]
        try:
            upload.close()
        finally:
            with contextlib.suppress(OSError):
                lease.end()


def saved(folder: SweepFolder, say: Callable[[str], None] = lambda line: None) -> None:
    """Wait until what was written to a sweep folder is where it stays: nothing to wait for but in a bucket.

    Args:
        folder: of the sweep.
        say: told every few seconds how much is left.

    Raises:
        FolderError: where the bucket does not take it.
    """
    if upload := _uploads.get(folder.root):
        upload.flush(say)


def fetched_back(files: TrialFolder) -> None:
    """Fetch what a device worker has written to the folder of a trial or baseline, where that is on another machine.

    Args:
        files: whose own writes are uploaded.

    Raises:
        OSError: where the bucket cannot be read, as a disk that is broken.
    """
    if (copy := copy_of(files.root)) is not None:
        insist(lambda: copy.fetch_folder(files.root, lambda name: "/checkpoint/" in name or "/adapter/" in name))
