"""Completion at the cursor, and the scripts in real shells."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sweeps import cli
from sweeps.commands.shell_completion import BASH, completions


@pytest.mark.parametrize(
    ("line", "there", "absent"),
    [
        ("lorasweep ", ["run", "rank", "doctor", "--help"], ["model="]),
        ("lorasweep ra", ["rank"], ["run"]),
        ("lorasweep run mo", ["model=", "model."], ["lora."]),
        ("lorasweep run model=", ["model=minilm", "model=smollm2"], []),
        ("lorasweep run experiment=quick", ["experiment=quickstart"], []),
        ("lorasweep run tracking=", ["tracking=mlflow", "tracking=wandb"], []),
        ("lorasweep resume runs/x tracking=[wandb_offline,m", ["tracking=[wandb_offline,mlflow"], ["tracking=mlflow"]),
        ("lorasweep run tracking=[wandb,", ["tracking=[wandb,none"], ["tracking=[wandb,wandb"]),
        ("lorasweep run data=[csv,", [], ["data=[csv,tsv"]),
        ("lorasweep run lora.", ["lora.rank=", "lora.targets="], ["lora.", "optim.lr="]),
        ("lorasweep run lora.rank=8 precision=", ["precision=nf4", "precision=fp32"], []),
        ("lorasweep run lora.dora=", ["lora.dora=true", "lora.dora=false"], []),
        ("lorasweep check task=classification --", ["--samples", "--no-probe", "--json", "--debug"], ["--merge"]),
        ("lorasweep run --view ", ["table", "line", "plain"], ["model="]),
        ("lorasweep export --", ["--merge", "--to"], []),
        ("lorasweep fetch smo", ["smollm2"], []),
        ("lorasweep nonsense ", [], ["run"]),
    ],
)
def test_what_can_stand_at_the_cursor(line: str, there: list[str], absent: list[str]) -> None:
    found = completions(line)
    assert set(there) <= set(found)
    assert not set(absent) & set(found)


def test_sweeps_and_their_trials_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine" / "trials" / "t0003").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "sweep.yaml").touch()
    (tmp_path / "runs" / "other").mkdir()
    assert completions("lorasweep rank ") == ["runs/mine"]
    assert completions("lorasweep export runs/mine ") == ["t0003"]


def test_every_command_says_its_options() -> None:
    for command in cli.COMMANDS:
        assert "--help" in completions(f"lorasweep {command} --"), command


def test_completing_imports_nothing_heavy() -> None:
    program = (
        "import sys; from sweeps.commands.shell_completion import completions\n"
        "assert completions('lorasweep run lora.ra') == ['lora.rank=']; completions('lorasweep run --')\n"
        "print([m for m in ('torch', 'ray', 'transformers', 'pandas', 'optuna', 'wandb', 'hydra') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def scripts(tmp_path: Path) -> dict[str, str]:
    """An environment in which `lorasweep` is this checkout's."""
    program = tmp_path / "bin" / "lorasweep"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m sweeps.cli "$@"\n')
    program.chmod(0o755)
    root = str(Path(cli.__file__).parent.parent)
    return {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": root, "TERM": "dumb"}


def typed(shell: list[str], keys: list[str], environment: dict[str, str], until: str) -> str:
    """What a shell on a terminal shows after some keys."""
    process, terminal = pty.fork()
    if process == 0:
        os.execvpe(shell[0], shell, environment)
    shown, left = "", list(keys)
    end = time.monotonic() + 60
    quiet = time.monotonic() + 1.5
    try:
        while time.monotonic() < end and until not in shown:
            if select.select([terminal], [], [], 0.1)[0]:
                try:
                    shown += os.read(terminal, 4096).decode(errors="replace")
                except OSError:
                    break
                quiet = time.monotonic() + 1.5
            elif left and time.monotonic() > quiet:
                os.write(terminal, left.pop(0).encode())
                quiet = time.monotonic() + 1.5
    finally:
        os.kill(process, 9)
        os.waitpid(process, 0)
        os.close(terminal)
    return shown


def test_tab_in_a_real_bash(scripts: dict[str, str]) -> None:
    keys = ['eval "$(lorasweep completion bash)"\n', "echo lorasweep\n\x15lorasweep run lora.ra\t8 prec\tnf\t"]
    shown = typed(["bash", "--norc", "--noprofile", "-i"], keys, scripts, "precision=nf4")
    assert "lorasweep run lora.rank=8 precision=nf4" in shown


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_tab_in_a_real_zsh(scripts: dict[str, str]) -> None:
    keys = ['eval "$(lorasweep completion zsh)"\n', "lorasweep run lora.ra\t", "8 model=mini\t"]
    shown = typed(["zsh", "-f", "-i"], keys, scripts, "model=minilm")
    assert "lora.rank=8" in shown.replace("\x07", "")


def test_bash_reads_its_script() -> None:
    subprocess.run(["bash", "-n"], input=BASH, text=True, check=True)
