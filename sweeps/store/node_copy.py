"""A device worker's part of a sweep in a bucket: what trials need is fetched, and what they yield is in the bucket
before anybody hears of it.

On the driver's machine the worker works in the driver's own copy, whose small files are always ahead of the bucket; on
another one in a copy of its own. Checkpoints, item tables and adapters are written by workers alone, and the bucket has
what is true of them. The file that makes a folder count is uploaded last, and removed first.
"""

import contextlib
import shutil
from pathlib import Path

from analysis.buckets.bucket import in_parallel
from analysis.buckets.local_copy import LocalCopy
from analysis.folder import TrialFolder
from sweeps.store.bucket_upload import MARKER, insist
from trainer.engines.checkpoints import COUNTERS

_HEADS = ("/counters.json", "/parent.json")  # what is known of a checkpoint without its weights
_OWNED = ("items", "adapter", "checkpoint")  # folders of a trial that workers write


class NodeCopy:
    """The copy of a sweep folder on a worker's machine. Without a bucket, the folder itself: nothing is to be done.

    Several threads may call it, each for another trial.

    Args:
        there: root of the sweep folder on the driver's machine.
        copy: here; None without a bucket.
        shared: whether it is the driver's own.
    """

    def __init__(self, there: str = "", copy: LocalCopy | None = None, shared: bool = True):
        self._there, self._copy, self._shared = there, copy, shared
        self._saved: dict[str, tuple[int, int] | None] = {}  # object → its file when it was uploaded or fetched

    def folder(self, path: str) -> TrialFolder:
        """The folder of a trial or baseline here, by its path on the driver's machine."""
        if self._copy is None or self._shared:
            return TrialFolder(Path(path))
        return TrialFolder(self._copy.root / Path(path).relative_to(self._there))

    def fetch(self, folder: TrialFolder) -> None:
        """Before a trial is admitted: what the bucket has of it, but for its item tables and the checkpoints' weights.

        Raises:
            OSError: where the bucket does not answer for long, as a disk that is broken.
        """
        if self._copy is not None:
            insist(lambda: self._fetch(folder))

    def fetch_checkpoint(self, folder: TrialFolder, step: int) -> None:
        """The rest of a checkpoint. Raises OSError as ``fetch``."""
        if self._copy is not None:
            insist(lambda: self._fetch_folder(folder.checkpoint_dir(step)))

    def fetch_adapter(self, folder: TrialFolder) -> None:
        """A trial's adapter. Raises OSError as ``fetch``."""
        if self._copy is not None:
            insist(lambda: self._fetch_folder(folder.adapter_dir))

    def save(self, folder: TrialFolder) -> None:
        """Upload what a trial has written since the last time. Raises OSError as ``fetch``."""
        if self._copy is not None:
            insist(lambda: self._save(folder))

    def save_scores(self, folder: TrialFolder) -> None:
        """Upload all files of a baseline, or what a scoring has added to a trial's; its status last."""
        if self._copy is not None:
            insist(lambda: self._save_scores(folder))

    def leave(self, folder: TrialFolder) -> None:
        """The trial is not here any more, and its files only if they are the driver's too."""
        if self._copy is not None and not self._shared:
            shutil.rmtree(folder.root, ignore_errors=True)
            self._forget(self._copy.name(folder.root))

    # --- one attempt

    def _fetch(self, folder: TrialFolder) -> None:
        copy = self._require()
        there = copy.bucket.listing(copy.name(folder.root))
        self._saved |= dict.fromkeys(name for name in there if _owner(name) in _OWNED and name not in self._saved)
        heads = [name for name in there if _owner(name) == "checkpoint" and name.endswith(_HEADS)]
        contents = dict(zip(heads, in_parallel(copy.bucket.read, heads), strict=True))
        steps = {str(Path(name).parent) for name in heads if name.endswith("/counters.json")}
        for checkpoint in [path for path in folder.checkpoints_dir.glob("*") if path.is_dir()]:
            name = copy.name(checkpoint)
            content = contents.get(f"{name}/counters.json")
            if name not in steps or not _holds(checkpoint / "counters.json", content):
                shutil.rmtree(checkpoint)  # not uploaded, or since replaced: it is not the trial's any more
        for name, content in contents.items():
            if not _holds(copy.root / name, content):
                self._put(name, content)
        if not self._shared:
            small = [name for name in there if _owner(name) not in _OWNED]
            for name, content in zip(small, in_parallel(copy.bucket.read, small), strict=True):
                self._put(name, content)

    def _fetch_folder(self, folder: Path) -> None:
        copy = self._require()
        there = copy.bucket.listing(copy.name(folder))
        missing = [name for name, entry in there.items() if _size(copy.root / name) != entry.size]
        for name, content in zip(missing, in_parallel(copy.bucket.read, missing), strict=True):
            self._put(name, content)

    def _save(self, folder: TrialFolder) -> None:
        copy = self._require()
        steps = [path for path in folder.checkpoints_dir.glob("*") if path.name.isdigit()]
        for place in (folder.items_dir, folder.adapter_dir, *sorted(steps, key=lambda it: int(it.name))):
            files = [path for path in place.glob("*") if path.is_file() and not path.name.startswith(".")]
            changed = [path for path in files if self._saved.get(copy.name(path)) != _signature(path)]
            if not changed:
                continue
            marker = place / (MARKER if place == folder.adapter_dir else COUNTERS)
            if copy.name(marker) in self._saved:
                copy.bucket.remove([copy.name(marker)])
            self._upload([path for path in changed if path != marker])
            self._upload([path for path in files if path == marker])
        above = Path(copy.name(folder.checkpoints_dir))
        known = {Path(name).parent for name in list(self._saved) if Path(name).parents[1] == above}
        for gone in [it for it in known if not (copy.root / it).exists()]:
            copy.bucket.remove_folder(gone.as_posix())
            self._forget(gone.as_posix())

    def _save_scores(self, folder: TrialFolder) -> None:
        copy = self._require()
        files = [path for path in folder.root.rglob("*") if path.is_file() and not path.name.startswith(".")]
        files = [path for path in files if _owner(copy.name(path)) not in ("adapter", "checkpoint")]
        self._upload([path for path in files if path != folder.status_file])
        self._upload([path for path in files if path == folder.status_file])

    def _upload(self, files: list[Path]) -> None:
        copy = self._require()

        def one(name: str) -> None:
            signature = _signature(copy.root / name)
            copy.bucket.write(name, (copy.root / name).read_bytes())
            self._saved[name] = signature

        in_parallel(one, [copy.name(path) for path in files])

    def _forget(self, folder: str) -> None:
        """Name by name: other threads note other trials' objects meanwhile."""
        for name in [it for it in list(self._saved) if it.startswith(f"{folder}/")]:
            del self._saved[name]

    def _put(self, name: str, content: bytes) -> None:
        copy = self._require()
        copy.put(name, content)
        self._saved[name] = _signature(copy.root / name)

    def _require(self) -> LocalCopy:
        assert self._copy is not None
        return self._copy


def _owner(name: str) -> str:
    """The folder of a trial that an object is in, such as ``items``; empty for its small files."""
    parts = name.split("/")  # trials/t0003/items/…
    return parts[2] if len(parts) > 3 else ""


def _holds(path: Path, content: bytes | None) -> bool:
    with contextlib.suppress(OSError):
        return path.read_bytes() == content
    return False


def _signature(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
