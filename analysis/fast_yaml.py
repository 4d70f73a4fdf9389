"""Reads and writes plain YAML with libyaml, ten times as fast as PyYAML's own code, which is used without libyaml."""

import copy
import functools
import re
from typing import Any

import yaml

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DEEPEST = 200  # levels
_TOO_DEEP = f"it is nested more than {_DEEPEST} levels deep"
_NESTED = re.compile(r"(?:[-?] +){8}")  # lists in lists on one line
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def load(content: bytes | str) -> Any:
    """The content of a YAML document, each time a new copy, parsed once: a command reads a sweep's file a dozen times.

    Raises:
        YAMLError, ValueError: for what is not YAML.
    """
    try:
        return copy.deepcopy(_loaded(content))
    except RecursionError:
        raise yaml.YAMLError(_TOO_DEEP) from None


@functools.lru_cache(maxsize=8)
def _loaded(content: bytes | str) -> Any:
    _refuse_deep(content)
    return yaml.load(content, Loader=LOADER)


def _refuse_deep(content: bytes | str) -> None:
    """Raises YAMLError for what is nested too deep: libyaml's own loader ends the process there."""
    text = content.decode("utf-8", "replace") if isinstance(content, bytes) else content
    if text.count("[") + text.count("{") <= _DEEPEST and not _NESTED.search(text):
        return  # cannot be so deep but by indentation, which would take megabytes
    depth = 0
    for event in yaml.parse(text, Loader=LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise yaml.YAMLError(_TOO_DEEP)


def dump(content: Any, width: int = 80) -> str:
    """A YAML document, keys in their order.

    Args:
        content: plain values, mappings and lists.
        width: of a line, in characters.

    Raises:
        RepresenterError: for a value that is not plain, such as a tuple.
    """
    return str(yaml.dump(content, Dumper=_DUMPER, sort_keys=False, allow_unicode=True, width=width))
