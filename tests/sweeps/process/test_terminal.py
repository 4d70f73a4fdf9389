"""A terminal that lacks characters is shown the nearest ones, and ends no command."""

import os
import subprocess
import sys

import pytest

from sweeps.process.installation import package_root


def said(encoding: str, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": package_root()}
    return subprocess.run([sys.executable, "-m", "sweeps.cli", *arguments], env=environment, capture_output=True)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_help_is_printed_whole_on_a_terminal_without_an_ellipsis(encoding: str) -> None:
    done = said(encoding, "--help")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"enqueue RUN KEY=VALUE ..." in done.stdout


def test_an_error_is_printed_there_too() -> None:
    done = said("ascii", "rank", "runs/\u0434\u043e\u043c-\u2026")
    assert done.returncode == 5
    assert rb"runs/\u0434\u043e\u043c-\u2026: no sweep here" in done.stderr
    assert b"defect" not in done.stderr


def test_a_terminal_that_has_all_characters_gets_them() -> None:
    assert "enqueue RUN KEY=VALUE …".encode() in said("utf-8", "--help").stdout
