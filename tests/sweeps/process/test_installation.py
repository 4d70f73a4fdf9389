"""Commands and paths as printed: they run as they stand, from where they are printed."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.process.installation import program, shell_path


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment at ``my project/.venv`` with a program in it; it is not on PATH, and we are in the project."""
    programs = tmp_path / "my project" / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "lorasweep").write_text("#!/bin/sh\necho started $1\n")
    (programs / "lorasweep").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.chdir(programs.parent.parent)
    return programs


def runs(command: str) -> bool:
    done = subprocess.run(f"{command} up", shell=True, capture_output=True, text=True, check=False)
    return done.stdout == "started up\n"


def test_a_program_on_the_path_is_called_by_its_name(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{environment}:/usr/bin:/bin")
    assert program() == "lorasweep"
    assert runs(program())


def test_a_program_is_called_as_it_was_started(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["./.venv/bin/lorasweep", "run"])
    assert program() == "./.venv/bin/lorasweep"
    assert runs(program())


def test_another_installation_on_the_path_is_not_taken_for_this_one(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "lorasweep").write_text("#!/bin/sh\necho another one\n")
    (other / "lorasweep").chmod(0o755)
    monkeypatch.setenv("PATH", f"{other}:/usr/bin:/bin")
    assert program() == ".venv/bin/lorasweep"
    assert runs(program())


@pytest.mark.parametrize("here", [".venv/bin", "/"])
def test_a_program_is_found_from_any_folder(environment: Path, here: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    assert runs(program())


def test_a_program_that_is_not_in_this_environment_is_called_by_its_name(environment: Path) -> None:
    assert program("wandb") == "wandb"


def test_paths_are_relative_where_that_is_shorter_and_quoted_where_needed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shell_path(tmp_path / "runs" / "quick") == "runs/quick"
    assert shlex.split(shell_path(tmp_path / "my runs" / "it's")) == ["my runs/it's"]
    assert shell_path("/etc") == "/etc"
