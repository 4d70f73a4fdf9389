"""Memory that this process may use: the machine's, or what a container, a batch system or a service was given of it.

Linux keeps such a limit in a control group. Those of version 2 are one tree; version 1 has a tree for memory alone.
A container sees its own group at the root of the tree, a job of a batch system sees it at the path that it is in.
"""

from collections.abc import Iterator
from pathlib import Path

import psutil

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
_KILLS_OF_MACHINE = Path("/proc/vmstat")


def limit() -> int | None:
    """The least limit of the control groups that this process is in, in bytes; None where none is below the machine."""
    limits = [amount for group in _groups() if (amount := _limit_of(group)) is not None]
    least = min(limits, default=None)
    return least if least is not None and least < psutil.virtual_memory().total else None


def total() -> int:
    """Bytes of the machine's memory, or of it what this process and those in its control group may have."""
    return limit() or psutil.virtual_memory().total


def available() -> int:
    """Bytes that can still be had without swapping, and without being killed for it."""
    free = psutil.virtual_memory().available
    for group in _groups():
        most, used = _limit_of(group), _number(group / "memory.current", group / "memory.usage_in_bytes")
        if most is not None and used is not None:
            free = min(free, max(0, most - used + _file_cache(group)))
    return free


def kills() -> int:
    """How often the system has ended a process of this control group for want of memory, in it or on the machine.

    Of the whole machine, where this process is in no group. It only grows; 0 where the system does not say.
    """
    for group in _groups():
        for file in (group / "memory.events", group / "memory.oom_control"):
            if file.is_file():
                return _named(file, "oom_kill")
    return _named(_KILLS_OF_MACHINE, "oom_kill")


def _groups() -> Iterator[Path]:
    """Folders of this process's control groups for memory, from its own one up to the root of the tree."""
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root = _GROUPS
        elif "memory" in controllers.split(","):
            root = _GROUPS / "memory"
        else:
            continue
        group = root / path.lstrip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(root) and folder.is_dir())


def _limit_of(group: Path) -> int | None:
    return _number(group / "memory.max", group / "memory.limit_in_bytes")


def _number(*files: Path) -> int | None:
    """The number in the first of these files that is there; None for "max"."""
    for file in files:
        try:
            return int(file.read_text())
        except (OSError, ValueError):
            continue
    return None


def _file_cache(group: Path) -> int:
    """Bytes of files in memory that the system gives up before it kills: they count as used."""
    return _named(group / "memory.stat", "total_inactive_file") or _named(group / "memory.stat", "inactive_file")


def _named(file: Path, name: str) -> int:
    try:
        lines = (line.split() for line in file.read_text().splitlines())
        return next((int(line[1]) for line in lines if len(line) == 2 and line[0] == name), 0)
    except (OSError, ValueError):
        return 0
