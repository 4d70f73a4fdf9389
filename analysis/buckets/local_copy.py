"""The local copy of a sweep folder that lies in a bucket: an ordinary sweep folder, with a file that names the bucket.

The driver and device workers work in the *staging* copy of their machine; commands that only read have a *view* of
their own. Both are found by a hash of the URI. Files that are large and rarely needed (adapters, checkpoints, item
tables) are fetched when somebody opens them.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterable
from functools import cached_property
from pathlib import Path

from analysis.buckets.bucket import Bucket, Entry, in_parallel
from analysis.errors import ConfigError, parsed_json

MARKER = ".bucket"  # holds the URI
_INDEX = ".objects.json"  # name → size and time of the object that was fetched, and of the file it became
_DEPTH = 6  # folders between a file and the sweep folder at most
_SETTLED = 2.0  # seconds after which an object of the same size and time is the same: S3 counts whole seconds
KINDS = ("staging", "view")
DIGEST = "study/ended.parquet"
_DIGESTED = re.compile(r"(trials|baselines)/[^/]+/(config\.yaml|status\.json|metrics\.jsonl)")
_WHEN_OPENED = re.compile(
    r"(trials|baselines|finals)/[^/]+/(items|adapter|checkpoint)/.*|(wandb|mlflow)/.*|report\.html|(lorasweep|output)\.log"
    r"|study/journal\.log|study/ended\.parquet|leaderboard\.csv"
)
_NEEDED_TO_DRIVE = re.compile(
    r"trials/[^/]+/checkpoint/[^/]+/(counters|parent)\.json|(wandb|mlflow)/.*|(lorasweep|output)\.log"
)


def place(uri: str, kind: str) -> Path:
    """Where the copy of a sweep folder lies on this machine: below ``LORASWEEP_STAGING``, or the cache folder.

    Args:
        uri: of the sweep folder.
        kind: ``staging``, or ``view``.
    """
    bucket = Bucket(uri)
    cache = os.environ.get("LORASWEEP_CACHE") or "~/.cache/lorasweep"
    above = Path(os.environ.get("LORASWEEP_STAGING") or f"{cache}/buckets").expanduser().absolute()
    return above / f"{hashlib.sha256(bucket.uri.encode()).hexdigest()[:16]}-{kind}" / bucket.name


def copy_at(uri: str, kind: str) -> "LocalCopy":
    """The copy of a sweep folder, begun where there is none. Arguments as of ``place``."""
    root = place(uri, kind)
    root.mkdir(parents=True, exist_ok=True)
    if not (root / MARKER).exists():
        (root / MARKER).write_text(Bucket(uri).uri)
    return LocalCopy(root)


def copy_of(path: Path) -> "LocalCopy | None":
    """The copy that a file or folder is in; None where its sweep folder is no copy of a bucket's."""
    for folder in (path, *list(path.parents)[:_DEPTH]):
        if (folder / MARKER).exists():
            return LocalCopy(folder)
    return None


class LocalCopy:
    """A local copy of a sweep folder.

    Args:
        root: of the copy; it holds the file with the URI.
    """

    def __init__(self, root: Path):
        self.root = root

    @cached_property
    def bucket(self) -> Bucket:
        return Bucket((self.root / MARKER).read_text().strip())

    def is_kept_here(self) -> bool:
        """Whether it lies where lorasweep keeps the copies of that bucket: a file of that name alone says nothing."""
        try:
            uri = (self.root / MARKER).read_text().strip()
            return any(os.path.samefile(self.root, place(uri, kind)) for kind in KINDS if place(uri, kind).exists())
        except (OSError, ValueError, ConfigError):
            return False

    def name(self, path: Path) -> str:
        """The object of a file."""
        return path.relative_to(self.root).as_posix()

    def fetch_to_read(self) -> dict[str, Entry]:
        """Bring the copy up to date, but for what is fetched when it is opened. Returns the bucket's listing."""
        return self._update(lambda name: not _WHEN_OPENED.fullmatch(name))

    def fetch_to_drive(self) -> dict[str, Entry]:
        """Make the copy what the bucket holds, so that a driver can go on from it. Returns the bucket's listing."""
        return self._update(lambda name: not _WHEN_OPENED.fullmatch(name) or bool(_NEEDED_TO_DRIVE.fullmatch(name)))

    def fetch_folder(self, folder: Path, unless: Callable[[str], bool] = lambda name: False) -> None:
        """Fetch what the bucket has below a folder and this copy has not, or has otherwise.

        Args:
            folder: in the copy.
            unless: true for names that are not to be fetched.
        """
        there = self.bucket.listing(self.name(folder))
        index = self._index()
        self._fetch({name: entry for name, entry in there.items() if not unless(name)}, index)

    def fetch_missing(self, paths: Iterable[Path]) -> None:
        """Fetch those files that are not here, where the bucket has them."""

        def fetch(name: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                self.put(name, self.bucket.read(name))

        in_parallel(fetch, [self.name(path) for path in paths if not path.exists()])

    def fetch_missing_below(self, folder: Path, names: Collection[str]) -> None:
        """Fetch those files of these names that the bucket has below a folder and this copy has not.

        Args:
            folder: in the copy.
            names: without their folders.
        """
        there = [self.root / name for name in self.bucket.listing(self.name(folder))]
        self.fetch_missing([path for path in there if path.name in names])

    def put(self, name: str, content: bytes) -> None:
        """Make an object a file of the copy, so that a reader sees all of it or none."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.fetched")
        temporary.write_bytes(content)
        os.replace(temporary, path)

    # --- one after the other

    def _update(self, wanted: Callable[[str], bool]) -> dict[str, Entry]:
        there, index = self.bucket.listing(), self._index()
        for file in [path for path in self.root.rglob("*") if path.is_file()]:
            name = self.name(file)
            if any(part.startswith(".") for part in Path(name).parts):
                continue
            if name not in there or (not wanted(name) and not _is_same(file, there[name], index.get(name))):
                file.unlink(missing_ok=True)  # of a driver that died before it had uploaded it, or out of date
        self._remove_empty()
        self._fetch({name: entry for name, entry in there.items() if wanted(name)}, index, there)
        return there

    def _fetch(
        self, entries: dict[str, Entry], index: dict[str, list[float]], listing: dict[str, Entry] | None = None
    ) -> None:
        missing = [name for name, entry in entries.items() if not _is_same(self.root / name, entry, index.get(name))]
        if listing and DIGEST in listing and sum(bool(_DIGESTED.fullmatch(name)) for name in missing) > 8:
            missing = self._from_digest(missing, listing)

        def fetch(name: str) -> None:
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                self.put(name, self.bucket.read(name))

        in_parallel(fetch, missing)
        latest = max((entry.modified for entry in entries.values()), default=0.0)
        for name, entry in entries.items():
            if entry.modified < latest - _SETTLED:
                with contextlib.suppress(OSError):
                    index[name] = [entry.size, entry.modified, (self.root / name).stat().st_mtime_ns]
            else:
                index.pop(name, None)
        self.put(_INDEX, json.dumps(index).encode())

    def _from_digest(self, missing: list[str], listing: dict[str, Entry]) -> list[str]:
        """Write those files that the digest of ended trials has as they are now. Returns the others."""
        import pyarrow.parquet as pq

        digest = listing[DIGEST]
        try:
            import io

            table = pq.ParquetFile(io.BytesIO(self.bucket.read(DIGEST))).read(use_threads=False).to_pydict()
            known = dict(zip(table["name"], table["content"], strict=True))
        except Exception:  # it is only a shortcut
            return missing
        left = []
        for name in missing:
            content, entry = known.get(name), listing[name]
            if content is None or len(content) != entry.size or entry.modified >= digest.modified - 1.0:
                left.append(name)  # written after the digest, or in the same second
            else:
                self.put(name, content)
        return left

    def _index(self) -> dict[str, list[float]]:
        try:
            return dict(parsed_json((self.root / _INDEX).read_text()))
        except (OSError, ValueError, TypeError):
            return {}

    def _remove_empty(self) -> None:
        for folder in sorted((path for path in self.root.rglob("*") if path.is_dir()), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()


def _is_same(file: Path, entry: Entry, fetched: list[float] | None) -> bool:
    """Whether a file is still what was fetched, and the object too."""
    if fetched is None or fetched[:2] != [entry.size, entry.modified]:
        return False
    try:
        return file.stat().st_mtime_ns == fetched[2]
    except OSError:
        return False
