"""The files of a sweep's config that lie outside its folder: data, and a model in a folder. Every node needs them."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from sweeps.config import SweepConfig

_HASHED = 1 << 22  # bytes: of a larger file size and ends are compared, so that a model of gigabytes costs nothing
_END = 1 << 20  # bytes
_MOST = 256  # files of a folder; of more, as many are taken evenly
_IN_PACKAGES = ("newsgroups", "hub", "package")  # sources whose data.train and the like are no files


@dataclass(frozen=True)
class LocalFile:
    """A file or folder that a config key names, as it is on one machine.

    Attributes:
        key: of the config.
        path: absolute.
        content: path below it → size in bytes, and sha256 (of a large file, of its ends); of a file the path is empty.
    """

    key: str
    path: str
    content: dict[str, tuple[int, str]]


def local_files(config: SweepConfig) -> tuple[LocalFile, ...]:
    """The files that the config names and this machine has, with their sizes and hashes."""
    named = {"bias.pairs_file": config.bias.pairs_file}
    if config.data.source not in _IN_PACKAGES:
        data = config.data
        named |= {"data.train": data.train, "data.validation": data.validation, "data.test": data.test}
    if config.data.source == "hub":
        named["data.name"] = config.data.name  # owner/name, or a folder
    if config.model.source == "local":
        named["model.path"] = config.model.path
    there = {key: path for key, path in named.items() if path and Path(path).exists()}
    return tuple(LocalFile(key, path, _content(Path(path))) for key, path in there.items())


def differing(node: str, files: Sequence[LocalFile]) -> dict[str, str]:
    """Config key → what is wrong with its file on this node; empty where all are as on the driver's machine.

    Args:
        node: where this runs, for the sentences.
        files: as they are on the driver's machine.
    """
    return {file.key: wrong for file in files if (wrong := "; ".join(_faults(node, file)))}


def _faults(node: str, file: LocalFile) -> Iterator[str]:
    path = Path(file.path)
    remedy = "Put the same files at the same place on every node, or on a file system that all share."
    lacking, other = list[str](), list[str]()
    for name, content in file.content.items():
        try:
            if _of_file(path / name) != content:
                other.append(name or path.name)
        except FileNotFoundError:
            lacking.append(name or path.name)
        except OSError as error:
            yield f"{file.key}={path}: node {node} cannot read it ({error.strerror}). {remedy}"
            return
    if len(lacking) == len(file.content):
        yield f"{file.key}={path}: not there on node {node}. {remedy}"
    elif lacking:
        yield f"{file.key}={path}: node {node} lacks {_listed(lacking)}. {remedy}"
    if other:
        yield f"{file.key}={path}: node {node} has another content there than this machine ({_listed(other)}). {remedy}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _content(path: Path) -> dict[str, tuple[int, str]]:
    if not path.is_dir():
        return {"": _of_file(path)}
    below = {str(it.relative_to(path)): it for it in sorted(path.rglob("*")) if it.is_file()}
    seen = [name for name in below if not any(part.startswith(".") for part in Path(name).parts)]
    return {name: _of_file(below[name]) for name in seen[:: -(-len(seen) // _MOST) or 1]}


def _of_file(path: Path) -> tuple[int, str]:
    size = path.stat().st_size
    with path.open("rb") as file:
        content = file.read(_HASHED if size <= _HASHED else _END)
        if size > _HASHED:
            file.seek(-_END, os.SEEK_END)
            content += file.read()
    return size, sha256(content).hexdigest()
