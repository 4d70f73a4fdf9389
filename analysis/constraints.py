"""Constraints of the objective: bounds that a trial has to keep, however good its score is.

A model that can do nothing easily has the best bias figure. So bias is ranked under a capability guard: a metric that
must not pass a bound, or must not be worse than a baseline's by more than a margin (``objective.constraints``).

A metric that has an upper bound (``Metric.upper``), such as a gap between groups, is held by that bound against
``at_most``: a trial keeps the constraint where its rows show that the true value is no larger, 95 % sure, and not where
they are too few to show it. Against a baseline the bounds of both are compared, since the same rows blur both alike.
``at_least`` holds the figure itself.

Standard library only: workers and proxies may import it.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from analysis.errors import ConfigError, did_you_mean
from analysis.metrics import METRICS, badness, ranking_metrics
from analysis.objective import read_mapping, read_number

_KEYS = ("metric", "at_least", "at_most", "baseline", "margin", "enabled")

Baselines = Mapping[str, Mapping[str, float]]  # name → metrics
_ROUNDING = 1e-12  # of the largest number in a comparison: far below a difference that items can make


@dataclass(frozen=True)
class Value:
    """A metric of one row.

    Attributes:
        figure: NaN where it is not known.
        upper: its upper bound; NaN where it has none.
        floor: the lowest upper bound that any predictions could have on the row's items; NaN where it has none.
    """

    figure: float = math.nan
    upper: float = math.nan
    floor: float = math.nan

    @classmethod
    def of(cls, metric: str, metrics: Mapping[str, float]) -> "Value":
        """A metric's value among a row's metrics."""
        row = METRICS.get(metric)
        others = (row.upper, row.floor) if row else ("", "")
        return cls(*(metrics.get(name, math.nan) for name in (metric, *others)))

    @property
    def highest(self) -> float:
        """What the true value is no larger than, as far as is known."""
        return self.upper if math.isfinite(self.figure) and math.isfinite(self.upper) else self.figure


@dataclass(frozen=True)
class Constraint:
    """One bound. Either ``at_least`` and/or ``at_most`` are given, or ``baseline``.

    Attributes:
        name: as in the config.
        metric: name of the metric.
        at_least: lower bound, in the metric's unit.
        at_most: upper bound.
        baseline: the baseline that the trial must not be worse than (``analysis/metrics.py``: which way is worse).
        margin: by how much it may be worse, in the metric's unit.
    """

    name: str
    metric: str
    at_least: float | None = None
    at_most: float | None = None
    baseline: str | None = None
    margin: float = 0.0

    def violation(self, value: Value, reference: Value = Value()) -> float:
        """How far a value is outside, in the metric's unit; 0 or less where it is inside (Optuna's convention).

        A value exactly at its bound is inside, also where floating point makes 0.3 - 0.2 more than 0.1.

        Args:
            value: of the trial.
            reference: the baseline's, where the constraint has one.

        Returns:
            Infinite where the value, or a needed reference, is not finite: an unknown value does not keep a bound.
        """
        if not math.isfinite(value.figure) or (self.baseline is not None and not math.isfinite(reference.figure)):
            return math.inf
        if self.baseline is not None:
            own, other = self._comparable(value, reference)
            amount = badness(self.metric, own) - badness(self.metric, other) - self.margin
            return _rounded(amount, own, other, self.margin, _target(self.metric))
        amounts = []
        if self.at_most is not None:
            amounts.append(_rounded(value.highest - self.at_most, value.highest, self.at_most))
        if self.at_least is not None:
            amounts.append(_rounded(self.at_least - value.figure, value.figure, self.at_least))
        return max(amounts)

    def sentence(self, value: Value, reference: Value = Value()) -> str:
        """A sentence that says what is violated, with the figures.

        Args:
            value: of the trial.
            reference: the baseline's, where the constraint has one.
        """
        opening = f"constraint {self.name}: {self.metric}"
        if not math.isfinite(value.figure):
            return f"{opening} is not known"
        if self.baseline is None:
            bounds = [f"at least {self.at_least:g}"] if self.at_least is not None else []
            bounds += [f"at most {self.at_most:g}"] if self.at_most is not None else []
            by_bound = self.at_most is not None and math.isfinite(value.upper)
            shown = _with_bound(value) if by_bound else f"{value.figure:.4g}"
            few = f"; the groups are so small here that no predictions could show less than {value.floor:.2g}"
            never = self.at_most is not None and value.floor > self.at_most
            return f"{opening} is {shown}, wanted {' and '.join(bounds)}{few if never else ''}"
        if not math.isfinite(reference.figure):
            return f"{opening} of the baseline {self.baseline} is not known"
        blurred = math.isfinite(value.upper) and math.isfinite(reference.upper)
        shown, other = (_with_bound(it) if blurred else f"{it.figure:.4g}" for it in (value, reference))
        return f"{opening} is {shown}, wanted at most {self.margin:g} worse than {self.baseline}'s {other}"

    def _comparable(self, value: Value, reference: Value) -> tuple[float, float]:
        """The bounds of both, where both have one and a large value is the worse one; else the figures."""
        if math.isfinite(value.upper) and math.isfinite(reference.upper):
            return value.upper, reference.upper
        return value.figure, reference.figure


@dataclass(frozen=True)
class Constraints:
    """All constraints of a sweep; there may be none."""

    items: tuple[Constraint, ...] = ()

    @classmethod
    def from_config(cls, objective: Mapping[str, Any]) -> "Constraints":
        """The constraints of a resolved config's ``objective``.

        Args:
            objective: ``{constraints: {name: {metric, at_least | at_most | baseline and margin}}}``; other keys are
                ``analysis.objective``'s.

        Raises:
            ConfigError: naming the key, what was given and what was expected.
        """
        constraints = objective.get("constraints") or {}
        if not isinstance(constraints, Mapping):
            raise ConfigError(
                f"objective.constraints={constraints!r}: expected a mapping from names to constraints, such as"
                " {capability: {metric: bits_per_byte, baseline: zero_shot, margin: 0.2}}."
            )
        read = [_constraint(str(name), item) for name, item in constraints.items()]
        return cls(tuple(item for item in read if item is not None))

    @property
    def baselines(self) -> set[str]:
        """Names of the baselines that must be scored before a trial can be judged."""
        return {item.baseline for item in self.items if item.baseline is not None}

    def check(self, measured: Collection[str], baselines: Collection[str]) -> None:
        """Raises ConfigError for a metric that trials do not yield, or a baseline that is not scored.

        Args:
            measured: metrics that every trial yields.
            baselines: names in the config's ``baselines``.
        """
        for item in self.items:
            where = f"objective.constraints.{item.name}"
            if item.metric not in measured:
                raise ConfigError(
                    f"{where}.metric={item.metric!r} is not measured in this sweep."
                    f" {did_you_mean(item.metric, measured)} To leave the constraint out: {where}.enabled=false"
                )
            if item.baseline is not None and item.baseline not in baselines:
                raise ConfigError(
                    f"{where}.baseline={item.baseline} is not among baselines=[{','.join(baselines)}], so there is"
                    f" nothing to compare with. Add it there, or give at_least or at_most instead of baseline."
                )

    def violations(self, metrics: Mapping[str, float], baselines: Baselines) -> dict[str, float]:
        """Constraint → violation, 0 or less where it is kept.

        Args:
            metrics: of the trial.
            baselines: baseline → its metrics, on the same items as the trial's.
        """
        return {item.name: item.violation(*_values(item, metrics, baselines)) for item in self.items}

    def broken(self, metrics: Mapping[str, float], baselines: Baselines) -> list[str]:
        """A sentence for each constraint that is not kept.

        Args:
            metrics: of the trial.
            baselines: baseline → its metrics, on the same items as the trial's.
        """
        values = [(item, *_values(item, metrics, baselines)) for item in self.items]
        return [item.sentence(value, other) for item, value, other in values if item.violation(value, other) > 0.0]


def check_available(objective: Mapping[str, Any], absent: Mapping[str, str]) -> None:
    """Raises ConfigError where an objective's terms or constraints need what these data cannot give.

    Args:
        objective: of a resolved config.
        absent: metric → why it is not measured.
    """
    for part in ("terms", "constraints"):
        for name, item in (objective.get(part) or {}).items():
            if item["metric"] in absent:
                off = "weight=0" if part == "terms" else "enabled=false"
                raise ConfigError(
                    f"objective.{part}.{name}.metric={item['metric']} is not measured on these data:"
                    f" {absent[item['metric']]}. To leave it out: objective.{part}.{name}.{off}"
                )


def _values(item: Constraint, metrics: Mapping[str, float], baselines: Baselines) -> tuple[Value, Value]:
    reference = baselines.get(item.baseline, {}) if item.baseline is not None else {}
    return Value.of(item.metric, metrics), Value.of(item.metric, reference)


def _with_bound(value: Value) -> str:
    return f"{value.figure:.4g} (95 % sure: at most {value.upper:.4g})"


def _rounded(amount: float, *compared: float) -> float:
    """0 for an amount that the rounding of the numbers that it comes from may have made."""
    return 0.0 if abs(amount) <= _ROUNDING * max(map(abs, compared)) else amount


def _target(metric: str) -> float:
    better = METRICS[metric].better
    return better if isinstance(better, float) else 0.0


def _constraint(name: str, config: Any) -> Constraint | None:
    """One constraint, or None where it is not enabled."""
    where = f"objective.constraints.{name}"
    config = read_mapping(where, config, _KEYS)
    if config.get("enabled", True) is False:
        return None
    metric, baseline = config.get("metric"), config.get("baseline")
    if not isinstance(metric, str) or not metric:
        raise ConfigError(f"{where}.metric={metric!r}: expected the name of a metric, such as bits_per_byte.")
    low, high = (_number(f"{where}.{end}", config.get(end)) for end in ("at_least", "at_most"))
    margin = _number(f"{where}.margin", config.get("margin")) or 0.0
    if margin < 0.0:
        raise ConfigError(f"{where}.margin={margin:g}: expected 0 or more, in the unit of {metric}.")
    if (baseline is None) == (low is None and high is None):
        raise ConfigError(
            f"{where}: expected either baseline (with margin), or at_least and at_most or one of them; got"
            f" {'both' if baseline is not None else 'neither'}."
        )
    if baseline is None and margin:
        raise ConfigError(f"{where}.margin={margin:g} without a baseline: move the bound itself instead.")
    if low is not None and high is not None and low > high:
        raise ConfigError(f"{where}: at_least={low:g} is above at_most={high:g}, which no value can keep.")
    if baseline is not None and metric in METRICS and metric not in ranking_metrics():
        raise ConfigError(
            f"{where}.metric={metric}: neither more nor less of it is worse, so it cannot be compared with a baseline."
        )
    return Constraint(name, metric, low, high, None if baseline is None else str(baseline), margin)


def _number(where: str, value: Any) -> float | None:
    return None if value is None else read_number(where, value)
