"""The points that a search tries first: ``search.start_from``, checked against the space."""

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.errors import ConfigError
from sweeps.space.dimensions import Scalar, Space, flatten, validate_point


def start_points(
    space: Space, points: Sequence[Mapping[str, Any]], lenient: bool
) -> tuple[list[dict[str, Scalar]], list[str]]:
    """``search.start_from`` as flat, checked points, and a note for each that was left out.

    Args:
        space: of the sweep.
        points: dotted or nested.
        lenient: whether the points come from a file while the command line changed the space. Then keys that are no
            longer searched are taken out of a point, and a point that no longer lies in the space is left out.

    Raises:
        ConfigError: unless lenient, for a point outside the space.
    """
    read: list[dict[str, Scalar]] = []
    notes: list[str] = []
    for number, point in enumerate(points):
        where, values = f"search.start_from[{number}]", dict(flatten(point))
        if lenient:
            values = {path: value for path, value in values.items() if path in space}
            if not values:
                continue
        try:
            read.append(validate_point(space, values, where))
        except ConfigError as error:
            if not lenient:
                raise
            notes.append(f"Left out, because the command line changed the space: {error}")
    return read, notes
