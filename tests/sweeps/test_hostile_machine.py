"""Machines that lack what others have, by stand-ins for what the system does."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.process.installation import package_root

_DRIVE = """
import sys
from pathlib import Path
from analysis.errors import FolderError
from analysis.folder import SweepFolder, append_line, atomic_write
from sweeps.store.control import driver
from sweeps.store.folder_lock import locked

folder = SweepFolder(Path(sys.argv[1]))
try:
    with locked(folder):
        atomic_write(folder.sweep_file, "whole")
        append_line(folder.asks_file, {"event": "ask"})
        print("drives", driver(folder).alive, flush=True)
        sys.stdin.read()
except FolderError as error:
    print(error, flush=True)
"""


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library for LD_PRELOAD, of ``hostile_files.c``."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("there is no compiler, or no LD_PRELOAD")
    library = tmp_path_factory.mktemp("stand-in") / "hostile_files.so"
    source = Path(__file__).with_name("hostile_files.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return library


def drive(folder: Path, stand_in: Path, **numbers: int) -> "subprocess.Popen[str]":
    hostile = {name: str(number) for name, number in numbers.items()}
    environment = {**os.environ, **hostile, "LD_PRELOAD": str(stand_in), "HOSTILE_FOLDER": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-c", _DRIVE, str(folder)],
        env={**environment, "PYTHONPATH": package_root()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("no_locks", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_and_flushes_has_one_driver_at_a_time(
    tmp_path: Path, stand_in: Path, no_locks: int
) -> None:
    folder, lacks = tmp_path / "sweep", {"HOSTILE_FLOCK": no_locks, "HOSTILE_FSYNC": errno.EINVAL}
    first = drive(folder, stand_in, **lacks)
    assert first.stdout is not None
    assert first.stdout.readline() == "drives True\n"
    second = drive(folder, stand_in, **lacks).communicate("")
    assert f"another lorasweep runs this sweep now: process {first.pid} on" in second[0], second[1]
    assert first.communicate("")[1] == ""
    assert drive(folder, stand_in, **lacks).communicate("")[0] == "drives True\n"
    assert not (folder / ".driver").exists()


def test_a_disk_that_fails_to_flush_is_not_taken_for_one_that_cannot(tmp_path: Path, stand_in: Path) -> None:
    said = drive(tmp_path / "sweep", stand_in, HOSTILE_FSYNC=errno.EIO).communicate("")
    assert said[0] == ""
    assert "Input/output error" in said[1]
