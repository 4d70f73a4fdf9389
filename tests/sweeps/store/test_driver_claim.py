"""Two drivers do not share a folder whose file system has no locks."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from analysis.errors import FolderError
from analysis.folder import SweepFolder
from sweeps.store import driver_claim
from sweeps.store.control import driver
from sweeps.store.driver_claim import claimed, is_claimed
from sweeps.store.folder_lock import locked


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    (tmp_path / "sweep.yaml").touch()
    return SweepFolder(tmp_path)


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_claim, "SILENT", 1.0)
    monkeypatch.setattr(driver_claim, "BEAT", 0.2)


def claim_of(folder: SweepFolder) -> Path:
    return folder.root / ".driver"


def of_another_machine(folder: SweepFolder, **more: Any) -> dict[str, Any]:
    content = {"pid": 1, "host": "elsewhere", "machine": "other", "started": 0.0, "id": "theirs", "count": 0, **more}
    claim_of(folder).write_text(json.dumps(content))
    return content


def test_without_locks_the_second_driver_is_refused_and_told_who_has_it(folder: SweepFolder, no_locks: None) -> None:
    with locked(folder):
        assert driver(folder).alive
        with pytest.raises(FolderError, match=f"runs this sweep now: process {os.getpid()} on"), locked(folder):
            pass
        assert driver(folder).alive, "the refused one has not taken the claim away"
    assert not driver(folder).alive
    assert not claim_of(folder).exists()


def test_a_driver_with_locks_sees_one_without(folder: SweepFolder) -> None:
    with claimed(folder), pytest.raises(FolderError, match="another lorasweep runs this sweep now"), locked(folder):
        pass


def test_of_two_that_begin_at_once_one_drives(folder: SweepFolder, no_locks: None) -> None:
    begin, got, leave = threading.Barrier(8), list[str](), threading.Event()

    def drive() -> None:
        begin.wait()
        try:
            with locked(folder):
                got.append("drives")
                leave.wait()
        except FolderError:
            got.append("refused")
            if got.count("refused") == 7:
                leave.set()

    threads = [threading.Thread(target=drive) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == ["drives"] + ["refused"] * 7


def test_a_killed_driver_of_this_machine_is_no_hindrance(folder: SweepFolder, no_locks: None) -> None:
    code = (
        "import os, sys; from pathlib import Path; from analysis.folder import SweepFolder;"
        "from sweeps.store.driver_claim import claimed\n"
        "with claimed(SweepFolder(Path(sys.argv[1]))): os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(folder.root)]).returncode == 9
    assert claim_of(folder).exists()
    assert not driver(folder).alive
    with locked(folder):
        assert driver(folder).alive


def test_a_driver_of_another_machine_is_dead_when_it_has_not_counted_for_long(
    folder: SweepFolder, no_locks: None, capsys: pytest.CaptureFixture[str]
) -> None:
    of_another_machine(folder)
    assert not is_claimed(folder)
    with locked(folder):
        assert json.loads(claim_of(folder).read_text())["pid"] == os.getpid()
    assert "process 1 on elsewhere" in capsys.readouterr().err


def test_a_driver_of_another_machine_that_counts_lives(
    folder: SweepFolder, no_locks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = of_another_machine(folder)

    def counts(seconds: float) -> None:
        counted["count"] += 1
        claim_of(folder).write_text(json.dumps(counted))

    monkeypatch.setattr("time.sleep", counts)
    assert is_claimed(folder)
    with pytest.raises(FolderError, match="process 1 on elsewhere"), locked(folder):
        pass
    assert json.loads(claim_of(folder).read_text())["id"] == "theirs"


def test_a_driver_counts_and_leaves_a_claim_that_is_not_its_own(folder: SweepFolder, no_locks: None) -> None:
    stopped = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    try:
        with locked(folder):
            waited = threading.Event()
            while not json.loads(claim_of(folder).read_text() or "{}").get("count"):
                waited.wait(0.05)
            claim_of(folder).unlink()
            of_another_machine(folder)
            while not stopped.is_set():
                waited.wait(0.05)
        assert json.loads(claim_of(folder).read_text())["id"] == "theirs"
    finally:
        signal.signal(signal.SIGTERM, before)
