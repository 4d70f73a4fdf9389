"""What parts 4 to 6 need on a machine that has PyTorch, transformers and PEFT but no package index: one archive.

Wheels for that machine's Python and platform, unpacked into one folder, without what no part uses. What exists as
source only is copied from this environment. There: ``tar -xf FILE -C /tmp/site``, and ``PYTHONPATH=/tmp/site``.
"""

import importlib.metadata
import lzma
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.gpu_day import processes

PYTHON = "3.12"
PLATFORMS = ("manylinux_2_34_x86_64", "manylinux_2_28_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64")
PLATFORMS += ("manylinux2014_x86_64", "manylinux1_x86_64")
# By part of the day that needs them. Versions are those of constraints.txt.
WHEELS = (
    "bitsandbytes",  # nf4
    *("ray", "jsonschema", "jsonschema-specifications", "referencing", "rpds-py"),
    *("optuna", "colorlog", "alembic", "mako", "sqlalchemy"),
    *("hydra-core", "omegaconf"),
    *("datasets", "dill", "multiprocess"),
    *("datasketch", "gguf", "fairlearn"),
)
COPIED = ("antlr4-python3-runtime", "rouge-score")  # there are no wheels of these
# Left out of the archive: no part uses it, and it is large. The card's CUDA is 13.0.
_LEFT_OUT = re.compile(
    r"ray/(jars|cpp|rllib|core/src/ray/cpp|dashboard/client|_private/thirdparty/.*/tests)/"
    r"|bitsandbytes/libbitsandbytes_(?!cuda130|cpu)"
    r"|(.*/)?(tests|__pycache__)/"
)


def versions(names: Sequence[str], constraints: str) -> list[str]:
    """``name==version`` of each, as ``constraints.txt`` has it.

    Raises:
        ValueError: for one that is not in it.
    """
    known = {}
    for line in constraints.splitlines():
        name, _, version = line.partition("==")
        known[name.strip().lower().replace("_", "-")] = version.split(";")[0].split("#")[0].strip()
    lacking = [name for name in names if not known.get(name)]
    if lacking:
        raise ValueError(f"constraints.txt has no version of {', '.join(lacking)}")
    return [f"{name}=={known[name]}" for name in names]


def download_command(requirements: Sequence[str], to: Path) -> list[str]:
    """pip's command for wheels of the card's machine."""
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", PYTHON, *platforms]
    return [*command, "--dest", str(to), *requirements]


def unpack(wheels: Sequence[Path], site: Path) -> None:
    """Put wheels into one folder, as an import path has them; what is left out is not unpacked."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                inner = Path(name)
                if inner.parts[0].endswith(".data"):  # of which only code belongs on the path
                    if inner.parts[1:2] not in (("purelib",), ("platlib",)):
                        continue
                    inner = Path(*inner.parts[2:])
                if not name.endswith("/") and wanted(inner):
                    _write(archive.read(name), site / inner)
                    _make_executable(archive.getinfo(name).external_attr >> 16, site / inner)


def wanted(path: Path) -> bool:
    """Whether a file of a package goes into the archive."""
    return _LEFT_OUT.match(path.as_posix()) is None


def copy(name: str, site: Path) -> None:
    """Copy an installed package."""
    for file in importlib.metadata.files(name) or ():
        if ".." not in file.parts and wanted(Path(file)):
            _write(Path(str(file.locate())).read_bytes(), site / file)


def pack_up(site: Path, to: Path) -> None:
    """The folder as a tar.xz, its files at the top."""
    to.parent.mkdir(parents=True, exist_ok=True)
    with lzma.open(to, "wb", preset=3) as stream, tarfile.open(fileobj=stream, mode="w|") as archive:
        for path in sorted(site.rglob("*")):
            archive.add(path, path.relative_to(site).as_posix(), recursive=False)


def make(to: Path) -> int:
    """Make the archive, and say how large it is. Returns 1 where wheels cannot be had."""
    requirements = versions(WHEELS, (processes.ROOT / "constraints.txt").read_text())
    with tempfile.TemporaryDirectory(prefix="gpu-day-bundle-") as name:
        wheels, site = Path(name) / "wheels", Path(name) / "site"
        done = subprocess.run(download_command(requirements, wheels), capture_output=True, text=True)
        if done.returncode:
            print(f"pip found no wheels:\n{done.stderr[-2000:]}")
            return 1
        unpack(sorted(wheels.glob("*.whl")), site)
        for package in COPIED:
            copy(package, site)
        pack_up(site, to)
        unpacked = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    print(f"{to}: {to.stat().st_size / 1e6:.1f} MB, {unpacked / 1e6:.0f} MB unpacked")
    return 0


def _write(content: bytes, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_bytes(content)


def _make_executable(mode: int, path: Path) -> None:
    if mode & 0o111:  # such as Ray's raylet
        path.chmod(path.stat().st_mode | 0o755)
