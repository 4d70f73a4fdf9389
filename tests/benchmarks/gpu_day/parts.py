"""The parts of the day, in order."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.gpu_day.record import Record

_HERE = "tests.benchmarks.gpu_day"


@dataclass(frozen=True)
class Part:
    """One part: a process of its own.

    Attributes:
        number: 1 and up.
        title: what it measures.
        minutes: after which it is ended, whatever it does.
        module: that measures it, and shows its figures by ``tables``.
        function: of that module.
    """

    number: int
    title: str
    minutes: float
    module: str
    function: str = "measure"

    @property
    def measure(self) -> Callable[[Record], None]:
        function: Callable[[Record], None] = getattr(importlib.import_module(self.module), self.function)
        return function

    @property
    def tables(self) -> Callable[[dict[str, Any]], list[str]]:
        function: Callable[[dict[str, Any]], list[str]] = importlib.import_module(self.module).tables
        return function


# 1 to 3 take 9 minutes, 4 to 6 take 9: two calls, each under ten.
PARTS = (
    Part(1, "ceilings, tests on the card, grouped products", 3.0, f"{_HERE}.ceilings"),
    Part(2, "packed against alone: 135M and 1B", 3.5, f"{_HERE}.throughput", "small_models"),
    Part(3, "where a step's time goes", 2.5, f"{_HERE}.profiling"),
    Part(4, "packed against alone: 8B, bf16 and nf4", 3.0, f"{_HERE}.throughput", "large_model"),
    Part(5, "a real sweep through Ray", 4.5, f"{_HERE}.real_sweep"),
    Part(6, "out of memory, and two workers on one card", 1.5, f"{_HERE}.memory"),
)
