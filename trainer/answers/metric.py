"""The decorator that says which way a metric of your own is better, and between which values it lies.

A file with metrics works without it too: ``eval.metrics`` says the same in the config.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

MARK = "lorasweep_metric"  # attribute of the function; trainer/answers/metric_host.py reads it

_Function = TypeVar("_Function", bound=Callable[..., Any])


def metric(
    better: str | float = "high",
    range: tuple[float, float] | None = None,
    figures: Sequence[str] | Mapping[str, Any] = (),
    timeout: float | None = None,
) -> Callable[[_Function], _Function]:
    """Mark a function from (prompt, reference, answer, row) to a number, or to a dictionary of numbers.

    Args:
        better: ``high``, ``low``, or a value to be near to.
        range: lowest and highest value; None: no bounds.
        figures: names of the numbers where it gives a dictionary; or name → what ``better`` says of that one.
        timeout: seconds for one item; None: 10.
    """

    def mark(function: _Function) -> _Function:
        given = {"better": better, "range": range, "figures": figures, "timeout": timeout}
        setattr(function, MARK, {key: value for key, value in given.items() if value not in (None, ())})
        return function

    return mark
