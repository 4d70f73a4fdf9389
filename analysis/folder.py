"""The sweep folder: the only place that names its files, columns and states.

The folder is the interface between running a sweep and analysing it, and can be copied anywhere. Writes are atomic
(temporary file, fsync, rename); lines of a ``.jsonl`` file are appended whole, and a torn last line is dropped on
reading. Formats are JSON, YAML, Parquet, CSV and safetensors: nothing here is ever unpickled. Standard library only;
pyarrow is imported where item tables are read or written.
"""

import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from analysis.buckets.bucket import explained, is_uri
from analysis.buckets.local_copy import MARKER as BUCKET_MARKER
from analysis.buckets.local_copy import LocalCopy, copy_at, copy_of
from analysis.buckets.writes import observer_of
from analysis.errors import FolderError, parsed_json, refuse_uri
from analysis.files.file_system import flush
from analysis.files.plain_files import open_plain, require_plain, unshared

FORMAT_VERSION = 1


class State(StrEnum):
    """How far a trial is, or how it ended."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    STOPPED_EARLY = "stopped_early"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out_of_memory"
    FAILED = "failed"


ENDED = frozenset({State.COMPLETED, State.STOPPED_EARLY, State.DIVERGED, State.OUT_OF_MEMORY, State.FAILED})


@dataclass(frozen=True)
class Status:
    """The state of a trial: the content of its ``status.json``.

    Attributes:
        state: how far it is, or how it ended.
        reason: why, in a sentence; may be empty.
        step: the last optimiser step it reached.
        where: node and device that it ran on last; empty where that is not known.
        notes: faults that were overcome, such as a damaged checkpoint.
    """

    state: State
    reason: str = ""
    step: int = 0
    where: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class MetricsRow:
    """One evaluation of a trial or baseline: a line of its ``metrics.jsonl``.

    Attributes:
        trial_id: the trial, or the baseline's name.
        step: optimiser steps done when it was taken; for a final row, the step of the checkpoint that was scored.
        tokens: training tokens seen up to then, padding not counted.
        seconds: wall time since the trial was admitted.
        final: scored on all validation items rather than on the rung subset.
        n_items: items scored.
        metrics: name → value; a value that could not be computed is NaN.
        split: of the items: ``validation``, or, of a final scoring, ``test``.
        memory: peak bytes so far of the process that trained it, or of its GPU, other trials in it included. 0 where
            it is not known.
        missing: metric that could not be computed → why, a sentence.
        answer_seconds: that writing the answers took; of slots that wrote together, the first has all of it.
    """

    trial_id: str
    step: int
    tokens: int
    seconds: float
    final: bool
    n_items: int
    metrics: dict[str, float] = field(default_factory=dict)
    split: str = "validation"
    memory: int = 0
    missing: dict[str, str] = field(default_factory=dict)
    answer_seconds: float = 0.0


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part. Its folder is made.

    Args:
        path: of the file.
        content: all of it; text is written as UTF-8.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    data = content.encode() if isinstance(content, str) else content
    try:
        with open(temporary, "wb", opener=lambda name, flags: open_plain(Path(name), flags)) as file:
            file.write(data)
            file.flush()
            flush(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if observer := observer_of(path):
        observer.written(path, data, len(data))


def remove_tree(folder: Path) -> None:
    """Remove a folder with all that is in it; nothing happens where it is not there."""
    shutil.rmtree(folder, ignore_errors=True)
    if observer := observer_of(folder):
        observer.removed(folder)


def remove_file(path: Path) -> None:
    """Remove a file; nothing happens where it is not there."""
    path.unlink(missing_ok=True)
    if observer := observer_of(path):
        observer.removed(path)


def replace_tree(beside: Path, folder: Path) -> None:
    """Put a folder that was written beside it into the place of another one, which may not be there."""
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)
    if observer := observer_of(folder):
        observer.placed(folder)


def usual_modes(folder: Path) -> None:
    """Give every file below a folder the mode that a new file gets there.

    Some libraries make files that their owner alone may read, safetensors for one; a folder may be shared.
    """
    probe = folder / f".mode.{os.getpid()}.tmp"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(mode)


_DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EACCES)


def disk_fault(error: BaseException) -> bool:
    """Whether an error says that a disk is full, read-only or broken, rather than that the work went wrong."""
    if isinstance(error, OSError):
        return error.errno in _DISK_FAULTS
    os_error = re.search(r"\(os error (\d+)\)", str(error))  # as safetensors says it
    return os_error is not None and int(os_error[1]) in _DISK_FAULTS


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append one JSON line in a single write, so that a crash can tear only the last line.

    Args:
        path: of the file; its folder is made.
        record: plain values.

    Raises:
        OSError: where the line cannot be written whole; then nothing of it stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
    unshared(path)
    descriptor = open_plain(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line  # after a torn line, so that it does not swallow this one
        try:
            written = os.write(descriptor, line)
            if written < len(line):  # the disk is full
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            flush(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)  # nothing of a line that cannot be written whole
            raise
    finally:
        os.close(descriptor)
    if observer := observer_of(path):
        observer.written(path, None, size + len(line))


def read_lines(path: Path, having: bytes = b"") -> Iterator[dict[str, Any]]:
    """The records of a ``.jsonl`` file; torn lines are dropped, a missing file is empty.

    Args:
        path: of the file.
        having: read only lines with this in them: parsing takes most of the time.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return
    for line in content.splitlines():
        if having not in line:
            continue
        try:
            record = parsed_json(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record


class TrialFolder:
    """The files of one trial, or of one baseline."""

    def __init__(self, root: Path):
        self.root = root
        self.trial_id = root.name

    # Paths are made when one is asked for: a ranking opens three files of each of thousands of trials.

    @property
    def config_file(self) -> Path:
        """The trial's values, as config."""
        return self.root / "config.yaml"

    @property
    def status_file(self) -> Path:
        """Its ``Status``."""
        return self.root / "status.json"

    @property
    def metrics_file(self) -> Path:
        """A ``MetricsRow`` a line."""
        return self.root / "metrics.jsonl"

    @property
    def items_dir(self) -> Path:
        """Its item tables."""
        return self.root / "items"

    @property
    def checkpoints_dir(self) -> Path:
        """A folder for each checkpoint, named by its step."""
        return self.root / "checkpoint"

    @property
    def adapter_dir(self) -> Path:
        """The adapter of its best rung."""
        return self.root / "adapter"

    @property
    def adapter_size_file(self) -> Path:
        """The size of an adapter that search.keep_adapters removed."""
        return self.root / "adapter_size.json"

    @property
    def lineage_file(self) -> Path:
        """PBT: whose weights the trial took over, and when."""
        return self.root / "lineage.jsonl"

    def checkpoint_dir(self, step: int) -> Path:
        """The folder of the checkpoint at a step."""
        return self.checkpoints_dir / str(step)

    def checkpoints(self) -> list[int]:
        """Steps of the finished checkpoints, ascending (a checkpoint's ``counters.json`` is written last)."""
        if not self.checkpoints_dir.is_dir():
            return []
        done = (d for d in self.checkpoints_dir.iterdir() if d.name.isdigit() and (d / "counters.json").exists())
        return sorted(int(d.name) for d in done)

    def remove_checkpoints(self) -> None:
        """Remove all checkpoints of a trial whose end is on disk: nothing goes on from them any more."""
        remove_tree(self.checkpoints_dir)

    def items_file(self, dataset: str, split: str, step: int) -> Path:
        """The item table of one evaluation.

        Args:
            dataset: ``task``, or a bias set such as ``crows_pairs``.
            split: ``validation`` or ``test``.
            step: of the checkpoint that was scored.

        Raises:
            FolderError: for words, such as a damaged ``metrics.jsonl`` has, that make no name of a file.
        """
        return self.items_dir / _plain_name(f"{dataset}-{split}-{step}.parquet", "an item table")

    def write_status(self, status: Status) -> None:
        """Write ``status.json``."""
        atomic_write(self.status_file, json.dumps(asdict(status), ensure_ascii=False) + "\n")

    def read_status(self) -> Status:
        """Raises FolderError where the file is there but cannot be read; a missing file means pending."""
        try:
            raw = parsed_json(self.status_file.read_text())
            state = State(raw["state"])
            notes = tuple(map(str, raw.get("notes", ())))
            return Status(state, str(raw.get("reason", "")), int(raw.get("step", 0)), str(raw.get("where", "")), notes)
        except FileNotFoundError:
            return Status(State.PENDING)
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise FolderError(
                f"{self.status_file}: not a status file ({error}). Delete it to see the trial as pending."
            ) from None

    def append_metrics(self, row: MetricsRow) -> None:
        """Append an evaluation to ``metrics.jsonl``."""
        append_line(self.metrics_file, asdict(row))

    def read_metrics(self) -> list[MetricsRow]:
        """All evaluations, in the order in which they were written. Lines of another version are skipped."""
        rows = []
        for record in read_lines(self.metrics_file):
            try:
                row = MetricsRow(**record)
            except TypeError:
                continue  # written by another version: the rest is still of use
            if isinstance(row.metrics, dict):
                rows.append(row)
        return rows

    def write_items(self, dataset: str, split: str, step: int, columns: Mapping[str, list[Any]]) -> Path:
        """Write per-item scores as Parquet.

        Args:
            dataset, split, step: as of ``items_file``.
            columns: ``item_id``, and the columns of the set; all of one length.
        """
        import io

        import pyarrow as pa
        import pyarrow.parquet as pq

        buffer = io.BytesIO()
        pq.write_table(pa.table(dict(columns)), buffer)
        path = self.items_file(dataset, split, step)
        atomic_write(path, buffer.getvalue())
        return path

    def read_items(self, dataset: str, split: str, step: int) -> dict[str, list[Any]]:
        """The columns of one item table.

        Args:
            dataset, split, step: as of ``items_file``.

        Raises:
            FolderError: if the table is not there or cannot be read.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.items_file(dataset, split, step)
        fetch_missing([path])
        if not path.exists():
            raise FolderError(
                f"{path}: no such item table. The trial was not scored on {dataset} ({split}) at step {step}."
            )
        try:
            table: dict[str, list[Any]] = pq.ParquetFile(path).read(use_threads=False).to_pydict()
        except pa.ArrowException as error:
            raise FolderError(f"{path}: not an item table ({error}). Restore it from a copy.") from None
        return table


def fetch_missing(paths: Iterable[Path]) -> None:
    """Fetch those files of a sweep folder that are only in its bucket; nothing happens where it is no bucket's.

    Raises:
        FolderError: where the bucket cannot be read.
    """
    missing = [path for path in paths if not path.exists()]
    copy = copy_of(missing[0].parent) if missing else None
    if copy is not None:
        try:
            copy.fetch_missing(missing)
        except OSError as error:
            raise explained(copy.bucket, error) from None


def fetch_folder(folder: Path) -> None:
    """Fetch what only the bucket has of a folder of a sweep. Raises FolderError as ``fetch_missing``."""
    if (copy := copy_of(folder)) is not None:
        try:
            copy.fetch_folder(folder)
        except OSError as error:
            raise explained(copy.bucket, error) from None


class SweepFolder:
    """The files of one sweep: ``sweep.yaml``, the study, trials, baselines, leaderboard, control, W&B.

    Args:
        root: its folder; of a sweep in a bucket, a local copy of that.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root).absolute()
        self.name = self.root.name
        self.sweep_file = self.root / "sweep.yaml"
        self.asks_file = self.root / "study" / "asks.jsonl"
        self.journal_file = self.root / "study" / "journal.log"
        self.transfer_file = self.root / "study" / "transfer.jsonl"
        self.tracked_file = self.root / "study" / "tracked.jsonl"  # which runs of which tracker are complete
        self.trials_dir = self.root / "trials"
        self.baselines_dir = self.root / "baselines"
        self.finals_dir = self.root / "finals"
        self.looks_file = self.finals_dir / "looks.jsonl"  # who looked at the test split, when, with what command
        self.leaderboard_file = self.root / "leaderboard.csv"
        self.control_dir = self.root / "control"
        self.wandb_dir = self.root  # wandb itself appends "wandb/"
        self.log_file = self.root / "lorasweep.log"
        self.output_file = self.root / "output.log"  # what a detached sweep printed
        self.cluster_file = self.root / ".cluster.json"  # where the sweep's own Ray is, and its token, while it runs

    @classmethod
    def open(cls, root: str | Path, to_drive: bool = False) -> "SweepFolder":
        """A sweep that is there, by its folder or by the URI of a bucket, such as ``s3://bucket/sweeps/NAME``.

        Args:
            root: folder or URI.
            to_drive: give the copy of a bucket that a driver works in, rather than one to read.

        Raises:
            FolderError: where there is no sweep, its bucket cannot be read, or what is there is no plain sweep folder
                (``check_plain``).
            ConfigError: for a URI that cannot be opened.
        """
        if is_uri(root):
            return cls._open_uri(str(root), to_drive)
        refuse_uri("", root)
        folder = cls(root)
        if not folder.sweep_file.exists():
            near = (
                sorted(p.parent.name for p in folder.root.parent.glob("*/sweep.yaml"))
                if folder.root.parent.is_dir()
                else []
            )
            there = f" Sweeps beside it: {', '.join(near)}." if near else ""
            raise FolderError(
                f"{folder.root}: no sweep here (there is no sweep.yaml). Give the folder that `lorasweep run` printed,"
                f" such as runs/<name>.{there}"
            )
        folder.check_plain()
        return folder

    def check_plain(self) -> None:
        """Refuse a folder that could lead somewhere else: it may come from somebody else. One not there yet is fine.

        Raises:
            FolderError: for a link, pipe or device in it; and where it says that it is the copy of a bucket, and is not
                the one that lorasweep keeps on this machine.
        """
        require_plain(self.root)
        if self.copy is not None and not self.copy.is_kept_here():
            raise FolderError(
                f"{self.copy.root / BUCKET_MARKER} says that this is the copy of a bucket, and it is not the one that"
                " lorasweep keeps on this machine: what is written here would go there. Remove that file to use the"
                " folder as it is, or give the URI of the bucket."
            )

    @classmethod
    def _open_uri(cls, uri: str, to_drive: bool) -> "SweepFolder":
        copy = copy_at(uri, "staging" if to_drive else "view")
        try:
            there = copy.bucket.listing() if to_drive else copy.fetch_to_read()
        except OSError as error:
            raise explained(copy.bucket, error) from None
        if "sweep.yaml" not in there:
            raise FolderError(
                f"{uri}: no sweep here (there is no sweep.yaml). Give the place that `lorasweep run` printed, such as"
                f" {copy.bucket.scheme}://BUCKET/sweeps/<name>."
            )
        return cls(copy.root)

    @cached_property
    def copy(self) -> LocalCopy | None:
        """What ties it to its bucket; None for a folder that is no copy of a bucket's."""
        return copy_of(self.root)

    @property
    def where(self) -> str:
        """How the user names it: its path, or the URI of its bucket."""
        return self.copy.bucket.uri if self.copy else str(self.root)

    def where_is(self, path: Path) -> str:
        """How the user names a file or folder in it."""
        return self.copy.bucket.below(self.copy.name(path)).uri if self.copy else str(path)

    def write(self, path: Path, content: str | bytes) -> None:
        """Write a file of the folder; into its bucket too, where nobody else in this process does.

        Raises:
            FolderError: where the bucket does not take it.
        """
        atomic_write(path, content)
        if self.copy is not None and observer_of(path) is None:
            try:
                self.copy.bucket.write(self.copy.name(path), content.encode() if isinstance(content, str) else content)
            except OSError as error:
                raise explained(self.copy.bucket, error) from None

    def with_adapter(self) -> set[str]:
        """Ids of the trials that have an adapter."""
        marker = "adapter/adapter_config.json"
        if self.copy is not None and observer_of(self.root) is not None:
            names = self.copy.bucket.listing("trials")
            return {name.split("/")[1] for name in names if name.endswith(marker)}
        return {files.trial_id for files in self.trials() if files.adapter_dir.exists()}

    def trial(self, trial_id: str) -> TrialFolder:
        """Raises FolderError for an id that could leave the sweep folder."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", trial_id):
            raise FolderError(f"'{trial_id}' is not a trial id: expected letters, digits, '-', '_' and '.'.")
        return TrialFolder(self.trials_dir / trial_id)

    def final(self, name: str) -> TrialFolder:
        """A finalist trained with one seed, such as ``t0003-seed1``, or a baseline, scored on the test split.

        Raises:
            FolderError: for a name that could leave the sweep folder.
        """
        return TrialFolder(self.finals_dir / _plain_name(name, "a finalist or baseline"))

    def finals(self) -> list[TrialFolder]:
        """Everything in ``finals/``: finalists, one for each seed, and baselines."""
        return [TrialFolder(path) for path in _folders(self.finals_dir)]

    def baseline(self, name: str) -> TrialFolder:
        """The files of a baseline. Raises FolderError for a name that could leave the sweep folder."""
        return TrialFolder(self.baselines_dir / _plain_name(name, "a baseline"))

    def trials(self) -> list[TrialFolder]:
        """The files of all trials that have started."""
        return [TrialFolder(path) for path in _folders(self.trials_dir)]

    def baselines(self) -> list[TrialFolder]:
        """The files of all baselines that were begun."""
        return [TrialFolder(path) for path in _folders(self.baselines_dir)]


def _plain_name(name: str, what: str) -> str:
    """Raises FolderError for a name that is no single part of a path, or a hidden one."""
    if "/" in name or "\0" in name or not name or name.startswith("."):
        raise FolderError(f"{name!r} is not the name of {what}: expected letters, digits, '-', '_', '@' and '.'.")
    return name


def _folders(parent: Path) -> Iterable[Path]:
    try:
        with os.scandir(parent) as entries:
            return [parent / name for name in sorted(entry.name for entry in entries if entry.is_dir())]
    except (FileNotFoundError, NotADirectoryError):
        return []
