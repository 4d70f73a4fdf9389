"""Where the value of a config key came from, for messages: an override, or a file and line."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

from analysis.text.visible import middle_out


@dataclass(frozen=True)
class Source:
    """A config file.

    Attributes:
        file: its path.
        shown: what messages call it.
        package: the path in the composed config below which its keys stand; empty for the root.
    """

    file: Path
    shown: str
    package: str


@dataclass(frozen=True)
class Origins:
    """All that a config was composed from. What comes later replaces what came before.

    Attributes:
        load: gives the files; called only when there is something to explain, as reading them takes time.
        overrides: dotted path, and the override as the user wrote it.
    """

    load: Callable[[], Sequence[Source]]
    overrides: Sequence[tuple[str, str]]

    @cached_property
    def sources(self) -> Sequence[Source]:
        """The files, read once."""
        return self.load()

    def of(self, path: str) -> str:
        """Where a key's value came from: ``conf/space/lora.yaml, line 4``, ``override 'lora.rank=0'`` or ``a default``.

        Args:
            path: dotted path of the key.
        """
        for key, typed in reversed(self.overrides):
            if path == key or path.startswith((f"{key}.", f"{key}[")) or key.startswith(f"{path}."):
                return f"override '{middle_out(typed, 200)}'"
        for source in reversed(self.sources):
            line = 1 if path == source.package else self._line(source, path)
            if line:
                return f"{source.shown}, line {line}"
        parent = path.rpartition(".")[0]
        return self.of(parent) if parent else "a default"

    @staticmethod
    def _line(source: Source, path: str) -> int:
        if source.package and not path.startswith(f"{source.package}."):
            return 0
        rest = path.removeprefix(f"{source.package}.") if source.package else path
        try:
            node = yaml.compose(source.file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except (OSError, yaml.YAMLError, RecursionError):
            return 0
        return _find(node, rest.split("[", 1)[0])


def _find(node: yaml.Node | None, path: str) -> int:
    """Line of a dotted path in a YAML mapping, 1 for the first; 0 if it is not there. Keys may hold dots."""
    if not isinstance(node, yaml.MappingNode):
        return 0
    for key, value in node.value:
        if key.value == path:
            return int(key.start_mark.line) + 1
        if path.startswith(f"{key.value}."):
            line = _find(value, path[len(key.value) + 1 :])
            if line:
                return line
    return 0


def shown(file: Path, shipped: Path) -> str:
    """What messages call a config file: ``conf/…`` for a shipped one, else its path from the working directory.

    Args:
        file: absolute.
        shipped: the folder of the shipped ones.
    """
    if file.is_relative_to(shipped):
        return str(Path("conf") / file.relative_to(shipped))
    relative = os.path.relpath(file)
    return str(file) if relative.startswith("..") else relative
