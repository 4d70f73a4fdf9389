"""Reads and writes plain YAML with libyaml, ten times as fast as PyYAML's own code, which is used without libyaml."""

from typing import Any

import yaml

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def load(content: bytes | str) -> Any:
    """The content of a YAML document.

    Raises:
        YAMLError, ValueError: for what is not YAML.
    """
    return yaml.load(content, Loader=LOADER)


def dump(content: Any, width: int = 80) -> str:
    """A YAML document, keys in their order.

    Args:
        content: plain values, mappings and lists.
        width: of a line, in characters.

    Raises:
        RepresenterError: for a value that is not plain, such as a tuple.
    """
    return str(yaml.dump(content, Dumper=_DUMPER, sort_keys=False, allow_unicode=True, width=width))
