"""``sweep.yaml``: everything that tells what ran."""

import importlib.metadata
import os
import platform
import subprocess
import sys
import uuid
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from analysis import fast_yaml
from analysis.errors import FolderError
from analysis.folder import FORMAT_VERSION, SweepFolder, atomic_write
from sweeps.compose.compose import Composed
from sweeps.compose.stored import normalised
from sweeps.process.installation import package_root
from sweeps.space.dimensions import Choices, Space

LIBRARIES = (
    "torch", "transformers", "peft", "bitsandbytes", "accelerate", "ray", "optuna", "wandb", "hydra-core",
    "scikit-learn",
)  # fmt: skip
NEEDED = ("uid", "name", "config", "unresolved", "space", "data")  # what resume and export read


def _told_apart(composed: Composed) -> Space:
    """The keys in which trials differ: those that are searched, and the seed where each has several."""
    repeats, first = composed.config.search.repeats, composed.config.seed
    seeds = Choices(tuple(first + k for k in range(repeats)))
    return composed.space | ({"seed": seeds} if repeats > 1 else {})


def make_manifest(composed: Composed, data: dict[str, Any], devices: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of ``sweep.yaml``.

    Args:
        composed: the sweep as it will run on this machine.
        data: rows by split, labels and fingerprint.
        devices: facts of each device worker.
    """
    return {
        "format_version": FORMAT_VERSION,
        "uid": uuid.uuid4().hex[:8],
        "name": composed.config.sweep.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "config": composed.resolved(),
        "unresolved": composed.unresolved(),
        "space": {path: asdict(dimension) for path, dimension in _told_apart(composed).items()},
        "seed": composed.config.sweep.seed,
        "data": data,
        "fingerprints": {"data": data["fingerprint"], "model": data.get("model_revision")},
        "versions": versions(),
        "commit": commit(),
        "hardware": {
            "host": platform.node(),
            "system": platform.platform(),
            "cpus": os.cpu_count(),
            "devices": devices,
        },
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("lorasweep", *LIBRARIES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> str | None:
    """The checkout's commit, ``+`` appended where files differ from it; None outside a checkout."""
    git = ["git", "-C", package_root()]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        changed = subprocess.run(
            [*git, "status", "--porcelain"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def write_manifest(folder: SweepFolder, manifest: dict[str, Any]) -> None:
    # through JSON-like plain values: a dumper of plain YAML refuses tuples
    atomic_write(folder.sweep_file, fast_yaml.dump(_plain(manifest), width=120))


def read_manifest(folder: SweepFolder) -> dict[str, Any]:
    """Raises FolderError for a file that is not a manifest of this version."""
    try:
        manifest = fast_yaml.load(folder.sweep_file.read_text())
        version = manifest["format_version"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError) as error:
        why = f"lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise FolderError(f"{folder.sweep_file}: cannot be read ({why}). Restore it from a copy.") from None
    if version != FORMAT_VERSION:
        raise FolderError(
            f"{folder.sweep_file}: format {version}, but this lorasweep reads {FORMAT_VERSION}."
            " Use the version of lorasweep named under 'versions' in it."
        )
    missing = [name for name in NEEDED if name not in manifest]
    if missing:
        raise FolderError(f"{folder.sweep_file}: lacks {', '.join(missing)}. Restore it from a copy.")
    for name in ("config", "unresolved", "asked", "space", "data"):
        if not isinstance(manifest.get(name, {}), dict):
            raise FolderError(f"{folder.sweep_file}: '{name}' is no mapping. Restore it from a copy.")
    if not isinstance(manifest["config"].get("search", {}), dict):  # one that was pulled from a tracker has none
        raise FolderError(f"{folder.sweep_file}: 'config.search' is no mapping. Restore it from a copy.")
    for name in ("config", "unresolved", "asked"):
        if name in manifest:
            manifest[name] = normalised(manifest[name])
    result: dict[str, Any] = manifest
    return result


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
