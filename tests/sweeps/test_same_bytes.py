"""The same trial in two processes leaves the same adapter, byte for byte, in files that others may read as this one."""

import hashlib
import stat
from pathlib import Path

import pytest

from sweeps import cli


def contents(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def modes(folder: Path) -> dict[str, int]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): stat.S_IMODE(file.stat().st_mode) for file in files}


@pytest.mark.parametrize("engine", ["packed", pytest.param("hf", marks=pytest.mark.heavy)])
def test_two_processes_write_the_same_adapter_with_modes_by_the_umask(engine, tiny, tmp_path, lorasweep):
    """PEFT keeps target modules in a set, whose order PYTHONHASHSEED decides; safetensors makes files of mode 0600."""
    sweeps = []
    for seed in ("1", "2"):
        settings = [
            "task=completion",
            "precision=fp32",
            "lora.targets=all_linear",
            f"engine={engine}",
            "sweep.name=one",
        ]
        call = lorasweep(tmp_path, {"PYTHONHASHSEED": seed})
        done = call("trial", *tiny("llama", *settings, f"sweep.dir={tmp_path / seed}", "baselines=[]"))
        assert done.returncode == 0, done.stderr
        sweeps.append(tmp_path / seed / "one")
    first, second = (contents(next(sweep.rglob("t0000/adapter"))) for sweep in sweeps)
    assert first == second
    assert set(first) == {"adapter_config.json", "adapter_model.safetensors"}
    assert cli.main(["export", str(sweeps[0]), "t0000", "--to", str(tmp_path / "exported")]) == 0
    (tmp_path / "plain").touch()
    usual = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    for folder in (sweeps[0], tmp_path / "exported"):
        assert {name: oct(mode) for name, mode in modes(folder).items() if mode != usual} == {}
