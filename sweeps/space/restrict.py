"""Makes a search space smaller: to what the command line leaves open, and to what this machine can do."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from analysis.errors import HardwareError
from sweeps.space.dimensions import Choices, Scalar, Space
from trainer.config import PRECISIONS


def fix(space: Space, fixed: Mapping[str, Scalar]) -> Space:
    """The space without the keys that have one value now. Conditions on these keys are decided.

    An entry whose condition the fixed value does not meet can never be active, and is left out too.

    Args:
        space: of the sweep.
        fixed: dotted path → value.
    """
    kept: Space = {}
    gone: set[str] = set(fixed)
    for path, dimension in space.items():  # a key comes after those its condition names
        met = all(fixed[other] in values for other, values in dimension.when.items() if other in fixed)
        if path in fixed or not met or any(other in gone - set(fixed) for other in dimension.when):
            gone.add(path)
            continue
        when = {other: values for other, values in dimension.when.items() if other not in fixed}
        kept[path] = replace(dimension, when=when)
    return kept


def restrict_precisions(
    space: Space, available: Sequence[str], explicit: bool, slow: Mapping[str, float] = MappingProxyType({})
) -> tuple[Space, str]:
    """The space with only the precisions that this machine can do, and a sentence about those left out (or "").

    Args:
        space: of the sweep.
        available: precisions that the machine can do.
        explicit: whether the user named the precisions on the command line. Then one that cannot be done is an error.
        slow: precision → how many times as long as fp32 it takes here. Such a one is searched only where ``explicit``.

    Raises:
        HardwareError: where an explicit choice cannot be done, or none is left.
    """
    dimension = space.get("precision")
    if not isinstance(dimension, Choices):
        return space, ""
    missing = [name for name in PRECISIONS if name in dimension.values and name not in available]
    quick = [name for name in dimension.values if name in available and name not in slow]
    too_slow = (
        [] if explicit or not quick else [name for name in available if name in slow and name in dimension.values]
    )
    if not missing and not too_slow:
        return space, ""
    left = tuple(name for name in dimension.values if name in available and name not in too_slow)
    able = ", ".join(available)
    if explicit or not left:
        raise HardwareError(
            f"space.precision: this machine cannot do {', '.join(missing)}. It can do {able}:"
            f" 'precision=choice({','.join(available)})', or precision={available[0]} for one."
        )
    shrunk: Space = {}
    for path, other in space.items():
        values = tuple(name for name in other.when.get("precision", ()) if name in left)
        if path == "precision":
            shrunk[path] = replace(dimension, values=left)
        elif "precision" not in other.when and all(key in shrunk for key in other.when):
            shrunk[path] = other
        elif values and all(key in shrunk for key in other.when):
            shrunk[path] = replace(other, when={**other.when, "precision": values})
    notes = [f"Not searched, because this machine cannot do it: precision {', '.join(missing)}."] if missing else []
    for name in too_slow:
        notes.append(f"Not searched: precision {name}, which {slowness(slow[name])} (precision={name} takes it).")
    return shrunk, " ".join(notes)


def slowness(times: float) -> str:
    """How slow a precision is, as part of a sentence; ``times`` as long as fp32."""
    return f"takes {times:.0f} times as long as fp32 on this machine"
