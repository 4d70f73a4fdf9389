"""Plain YAML by libyaml, ten times as fast as PyYAML's own code, which stands in where there is no libyaml."""

from typing import Any

import yaml

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def load(content: bytes | str) -> Any:
    """Raises YAMLError, or ValueError, for what is not YAML."""
    return yaml.load(content, Loader=LOADER)


def dump(content: Any, width: int = 80) -> str:
    """Keys in their order. Raises RepresenterError for a value that is not plain, such as a tuple."""
    return str(yaml.dump(content, Dumper=_DUMPER, sort_keys=False, allow_unicode=True, width=width))
