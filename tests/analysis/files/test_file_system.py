"""File systems without locks or flushes are no fault; a broken disk is one."""

import errno
import os
from pathlib import Path

import pytest

from analysis.files.file_system import flush, lock_now
from analysis.folder import append_line, atomic_write, disk_fault, read_lines


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_that_cannot_flush_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    atomic_write(tmp_path / "a.json", "text")
    append_line(tmp_path / "b.jsonl", {"step": 1})
    assert (tmp_path / "a.json").read_text() == "text"
    assert list(read_lines(tmp_path / "b.jsonl")) == [{"step": 1}]


def test_a_disk_that_fails_to_flush_is_at_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError) as failed:
        flush(0)
    assert disk_fault(failed.value)


def test_a_lock_is_had_by_one(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("w") as first, path.open("w") as second:
        assert lock_now(first)
        with pytest.raises(BlockingIOError):
            lock_now(second)
        with pytest.raises(BlockingIOError):
            lock_now(second, shared=True)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_told_from_a_broken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    answers = [number, errno.EIO]

    def refuse(*_: object) -> None:
        answer = answers.pop(0)
        raise OSError(answer, os.strerror(answer))

    monkeypatch.setattr("fcntl.flock", refuse)
    with (tmp_path / "lock").open("w") as file:
        assert lock_now(file) is False
        with pytest.raises(OSError):
            lock_now(file)
