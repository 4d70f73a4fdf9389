"""Reads the searched values from many trials' ``config.yaml``, in microseconds instead of milliseconds a file.

The files of a sweep are written by one dumper and differ in a few values. So a file is compared with the last one that
was parsed as YAML: where only plain values differ, each on a line of its own, these lines are read alone. Any other
file is parsed.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import yaml

from analysis import fast_yaml

# a key and a value that can be nothing but one plain scalar, such as "  lr: 4.2e-4"
_PLAIN = re.compile(rb"( *[A-Za-z_][\w.-]*: )([\w.+][\w.+-]*)")


class ConfigReader:
    """Reads the same dotted paths from one file after the other.

    Args:
        searched: the paths.
    """

    def __init__(self, searched: Sequence[str]):
        self.searched = tuple(searched)
        self._lines: list[bytes] = []
        self._paths: dict[int, str] = {}  # line → path of the plain value that stands there
        self._found: dict[str, Any] = {}

    def read(self, content: bytes) -> dict[str, Any]:
        """Searched path → value, of those that the file has. Raises ValueError or YAMLError for what is not YAML."""
        lines = content.split(b"\n")
        changed = self._changed(lines)
        if changed is None:
            return self._whole(content, lines)
        return self._found | {path: value for path, value in changed.items() if path in self._found}

    def _changed(self, lines: list[bytes]) -> dict[str, Any] | None:
        """Path → value where the lines differ from the last file's; None where they do in anything but plain values."""
        if len(lines) != len(self._lines):
            return None
        values = {}
        for number, (line, before) in enumerate(zip(lines, self._lines, strict=True)):
            if line == before:
                continue
            new, old = _PLAIN.fullmatch(line), _PLAIN.fullmatch(before)
            if number not in self._paths or new is None or old is None or new[1] != old[1]:
                return None
            values[self._paths[number]] = _scalar(new[2])
        return values

    def _whole(self, content: bytes, lines: list[bytes]) -> dict[str, Any]:
        parsed = fast_yaml.load(content)  # refuses what would end the process in compose
        root = yaml.compose(content, Loader=fast_yaml.LOADER)
        values: dict[str, Any] = {}
        for path in self.searched:
            at: Any = parsed
            for part in path.split("."):
                at = at.get(part, _ABSENT) if isinstance(at, Mapping) else _ABSENT
            if at is not _ABSENT:
                values[path] = at
        self._lines, self._found, self._paths = lines, values, dict(_plain_lines(root, ""))
        return values


_ABSENT = object()


def _plain_lines(node: Any, prefix: str) -> "list[tuple[int, str]]":
    """Line → path of every value that is a plain scalar on one line."""
    if not isinstance(node, yaml.MappingNode) or node.flow_style:
        return []
    lines: list[tuple[int, str]] = []
    for key, value in node.value:
        path = f"{prefix}{key.value}"
        if isinstance(value, yaml.ScalarNode):
            if not value.style and key.start_mark.line == value.start_mark.line == value.end_mark.line:
                lines.append((value.start_mark.line, path))
        else:
            lines += _plain_lines(value, f"{path}.")
    return lines


@lru_cache(maxsize=4096)
def _scalar(text: bytes) -> Any:
    return fast_yaml.load(text)


def at(content: Any, *path: str) -> Any:
    """The value under these keys of nested mappings; None where there is none.

    Args:
        content: nested mappings.
        path: keys, the outermost first.
    """
    for name in path:
        content = content.get(name) if isinstance(content, Mapping) else None
    return content


def leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of every leaf of a nested mapping; an empty mapping is a leaf."""
    for name, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
