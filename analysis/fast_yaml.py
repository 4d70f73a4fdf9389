"""Reads and writes plain YAML with libyaml, ten times as fast as PyYAML's own code, which is used without libyaml."""

from typing import Any

import yaml

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DEEPEST = 200  # levels; what nests deeper has more characters than that
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def load(content: bytes | str) -> Any:
    """The content of a YAML document.

    Raises:
        YAMLError, ValueError: for what is not YAML.
    """
    if len(content) > _DEEPEST:
        _check_depth(content)
    return yaml.load(content, Loader=LOADER)


def _check_depth(content: bytes | str) -> None:
    """libyaml's reader ends the process where nesting uses up the stack; its events do not nest."""
    depth = 0
    for event in yaml.parse(content, Loader=LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError(f"nested more than {_DEEPEST} deep")


def dump(content: Any, width: int = 80) -> str:
    """A YAML document, keys in their order.

    Args:
        content: plain values, mappings and lists.
        width: of a line, in characters.

    Raises:
        RepresenterError: for a value that is not plain, such as a tuple.
    """
    return str(yaml.dump(content, Dumper=_DUMPER, sort_keys=False, allow_unicode=True, width=width))
