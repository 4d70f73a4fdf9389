"""Which code and which libraries a process runs: compared between the driver and its device workers."""

import importlib.metadata
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from analysis.text.listing import listed
from sweeps.process.installation import PACKAGES, package_root

LIBRARIES = (
    "ray", "torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "numpy", "tokenizers",
    "safetensors", "scikit-learn",
)  # fmt: skip
_SHOWN = 3  # files that a message names


@dataclass(frozen=True)
class Fingerprint:
    """The code of one process.

    Attributes:
        root: the folder that holds the packages; told to people, and not compared.
        files: path below the root → sha256, of every module and config file of the four packages.
        versions: library → version, and that of Python. A build (``+cpu``, ``+cu130``) is none: machines with and
            without GPUs have different ones.
    """

    root: str
    files: Mapping[str, str]
    versions: Mapping[str, str]


def fingerprint() -> Fingerprint:
    """That of this process. Takes some 20 ms, and imports none of the libraries."""
    root = Path(package_root())
    found = [path for name in PACKAGES for path in (root / name).rglob("*.py")]
    found += (root / "conf").rglob("*.yaml")
    files = {str(path.relative_to(root)): sha256(path.read_bytes()).hexdigest() for path in sorted(found)}
    return Fingerprint(str(root), files, {"Python": f"{sys.version_info[0]}.{sys.version_info[1]}"} | _versions())


def differences(here: Fingerprint, there: Fingerprint) -> str:
    """What another process has that is not as here, for a message: a few files, and versions. Empty where all is alike.

    Args:
        here: of the driver.
        there: of a worker.
    """
    changed = _different(here.files, there.files)
    parts = []
    if changed:
        kinds = [f"{name} {_kind(here.files.get(name), there.files.get(name))}" for name in changed]
        parts.append(listed(kinds, _SHOWN, last=", ", rest="more"))
    for name in _different(here.versions, there.versions):
        parts.append(f"{name} {there.versions.get(name, 'not installed')} instead of {here.versions.get(name, 'none')}")
    return "; ".join(parts)


def _different(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    names: Iterable[str] = {**here, **there}
    return [name for name in names if here.get(name) != there.get(name)]


def _kind(here: str | None, there: str | None) -> str:
    return "is missing there" if there is None else "is only there" if here is None else "differs"


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
