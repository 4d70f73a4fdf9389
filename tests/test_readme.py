"""What the README tells a newcomer to type, typed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.M | re.S)


def test_there_are_commands_to_run() -> None:
    commands = "".join(text for _, text in BLOCKS)
    for command in ("make sweep", "make check", "make test", "lorasweep run", "lorasweep rank", "lorasweep export"):
        assert command in commands


@pytest.mark.timeout(1500)
def test_every_command_of_the_readme_works_in_the_order_given(tmp_path: Path) -> None:
    """In an empty folder. ``make`` targets are only resolved here: the gate itself runs them."""
    scripts = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    for language, text in BLOCKS:
        if language == "bash" and text.startswith("make "):
            for line in text.splitlines():
                subprocess.run(["make", "--dry-run", *line.split()[1:]], cwd=ROOT, check=True, capture_output=True)
            continue
        shell = ["bash", "-euo", "pipefail", "-c", text] if language == "bash" else [sys.executable, "-c", text]
        done = subprocess.run(shell, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, f"{text}\n{done.stderr}"
    assert (tmp_path / "runs" / "tickets" / "leaderboard.csv").read_text().count("completed") >= 2


@pytest.mark.parametrize("folder", ["conf", "sweeps", "trainer", "analysis", "cluster", "tests"])
def test_the_annotated_tree_is_there(folder: str) -> None:
    assert re.search(rf"^{folder}/ ", (ROOT / "README.md").read_text(), re.M)
    assert (ROOT / folder).is_dir()


def test_modules_named_in_the_readme_exist() -> None:
    names = set(re.findall(r"\b(?:analysis|conf|sweeps|trainer)/[\w/]+\.py\b", (ROOT / "README.md").read_text()))
    assert len(names) > 2
    assert all((ROOT / name).is_file() for name in names), names
