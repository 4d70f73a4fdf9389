"""The archive for a GPU's machine holds the right wheels, unpacked, without what no part uses."""

import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.benchmarks.gpu_day import bundle, processes


def wheel(folder: Path) -> Path:
    path = folder / "ray-2.60.0-cp312-cp312-manylinux2014_x86_64.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in (
            *("ray/__init__.py", "ray/jars/ray.jar", "ray/tests/test_all.py", "ray/tune/tune.py"),
            *(
                "ray-2.60.0.data/purelib/ray/more.py",
                "ray-2.60.0.data/scripts/rayllm.py",
                "ray-2.60.0.dist-info/METADATA",
            ),
            *("bitsandbytes/libbitsandbytes_cuda130.so", "bitsandbytes/libbitsandbytes_cuda118.so"),
            *("bitsandbytes/libbitsandbytes_cpu.so", "bitsandbytes/libbitsandbytes_rocm63.so"),
        ):
            archive.writestr(name, name)
        program = zipfile.ZipInfo("ray/core/src/ray/raylet/raylet")
        program.external_attr = 0o755 << 16
        archive.writestr(program, "program")
    return path


def test_wheels_are_unpacked_as_an_import_path_has_them(tmp_path: Path) -> None:
    site = tmp_path / "site"
    bundle.unpack([wheel(tmp_path)], site)
    there = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    assert there == {
        *("ray/__init__.py", "ray/more.py", "ray/tune/tune.py", "ray/core/src/ray/raylet/raylet"),
        *("ray-2.60.0.dist-info/METADATA", "bitsandbytes/libbitsandbytes_cuda130.so"),
        "bitsandbytes/libbitsandbytes_cpu.so",
    }
    assert (site / "ray/core/src/ray/raylet/raylet").stat().st_mode & 0o111
    assert not (site / "ray/__init__.py").stat().st_mode & 0o111


def test_what_has_no_wheel_is_copied_from_here_and_all_of_it_comes_out_of_the_archive(tmp_path: Path) -> None:
    site, archive, there = tmp_path / "site", tmp_path / "made" / "site.tar.xz", tmp_path / "there"
    for name in bundle.COPIED:
        bundle.copy(name, site)
    bundle.unpack([wheel(tmp_path)], site)
    bundle.pack_up(site, archive)
    with tarfile.open(archive, "r:xz") as packed:
        packed.extractall(there, filter="data")
    assert {path.name for path in there.iterdir()} >= {"antlr4", "rouge_score", "ray"}
    assert (there / "antlr4/__init__.py").read_bytes() == (site / "antlr4/__init__.py").read_bytes()
    assert (there / "ray/core/src/ray/raylet/raylet").stat().st_mode & 0o111


def test_versions_are_those_that_are_pinned() -> None:
    pinned = (processes.ROOT / "constraints.txt").read_text()
    lines = {line.lower().replace("_", "-") for line in pinned.splitlines()}
    found = bundle.versions([*bundle.WHEELS, *bundle.COPIED], pinned)
    assert set(found) <= lines
    assert len(found) == len(bundle.WHEELS) + len(bundle.COPIED)
    with pytest.raises(ValueError, match="no version of nothing-like-it"):
        bundle.versions(["ray", "nothing-like-it"], pinned)


def test_wheels_are_asked_for_the_cards_machine_without_what_they_need(tmp_path: Path) -> None:
    command = bundle.download_command(["ray==2.60.0"], tmp_path)
    assert command[command.index("--python-version") + 1] == "3.12"
    assert {"--no-deps", "--only-binary=:all:", "manylinux2014_x86_64", "manylinux_2_24_x86_64"} <= set(command)
    assert command[-2:] == [str(tmp_path), "ray==2.60.0"]


def test_where_there_are_no_wheels_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*of: object, **options: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.CompletedProcess([], 1, "", "no matching distribution")

    monkeypatch.setattr(bundle.subprocess, "run", none)
    assert bundle.make(tmp_path / "site.tar.xz") == 1
    assert "no matching distribution" in capsys.readouterr().out
    assert not (tmp_path / "site.tar.xz").exists()
