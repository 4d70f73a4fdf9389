"""The label that a free answer names."""

import re
from collections.abc import Sequence


def label_in(text: str, labels: Sequence[str]) -> str | None:
    """The one label that stands as whole words in the first line of an answer, in either case.

    A label within a longer one that is there too does not count (``sport`` in ``winter sport``).

    Returns:
        None where no label stands there, or more than one.
    """
    line = " ".join((text.strip().splitlines() or [""])[0].split())
    found: list[tuple[int, int, str]] = []
    for label in labels:
        words = r"\s+".join(map(re.escape, label.split()))
        pattern = rf"(?<!\w){words}(?!\w)" if words else r"(?!)"
        exact = list(re.finditer(pattern, line))
        others = [other for other in labels if other != label and other.casefold() == label.casefold()]
        matches = exact if others else re.finditer(pattern, line, re.IGNORECASE)
        found += [(match.start(), match.end(), label) for match in matches]
    outer = {
        label
        for begin, end, label in found
        if not any(b <= begin and end <= e and (b, e) != (begin, end) for b, e, _ in found)
    }
    return outer.pop() if len(outer) == 1 else None
