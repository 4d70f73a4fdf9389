"""What a pack is to reach on a GPU, and whether a figure does."""

from dataclasses import dataclass

from tests.benchmarks.gpu_day.record import NOT_MEASURED
from tests.benchmarks.pack import Line

MET, NOT_MET = "met", "not met"
_SMALL_MODEL = 1.3e9  # parameters: up to Llama-3.2-1B, which has 1.24e9
_SHORT_STEP = 512  # tokens of a trial in a step
_MANY = 32  # slots
_NOISE = 0.03  # of a run: less than this below 1 is not slower


@dataclass(frozen=True)
class Goal:
    """A bound on a figure.

    Attributes:
        bound: the least, or the most.
        at_least: which of them it is.
        form: how it is shown.
    """

    bound: float
    at_least: bool = True
    form: str = "g"

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:{self.form}}"

    def verdict(self, value: float | None, device: str) -> str:
        """Met, not met, or not measured: a figure of a CPU says nothing of a GPU."""
        if value is None or not device.startswith("cuda"):
            return NOT_MEASURED
        return MET if (value >= self.bound if self.at_least else value <= self.bound) else NOT_MET


TEN_TIMES = Goal(10.0)
NEVER_SLOWER = Goal(1 - _NOISE)
FULL = Goal(0.45, form=".0%")
WAITS = Goal(1.0, at_least=False)
DROPOUT = Goal(0.10, at_least=False, form=".0%")


def of_line(line: Line) -> Goal:
    """The goal for what packing gives, in one setting."""
    setting = line.setting
    small = line.parameters is not None and line.parameters <= _SMALL_MODEL
    if small and setting.rows * setting.tokens <= _SHORT_STEP and setting.slots >= _MANY:
        return TEN_TIMES
    return NEVER_SLOWER
