"""The objective: several metrics made into one number, comparable between trials, sweeps and machines.

Standard library only: workers and proxies import it.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from analysis.errors import ConfigError, did_you_mean
from analysis.metrics import METRICS, direction, scale

DIRECTIONS = ("max", "min", "target")
TIES = ("cost", "score")
METHODS = ("chebyshev", "lexicographic", "pareto")
_KEYS = ("name", "method", "rho", "ties", "terms", "constraints")  # constraints: analysis/constraints.py
_TERM_KEYS = ("metric", "direction", "target", "range", "weight", "tolerance")
_EXACT = 10**6  # steps of a term without tolerance: a millionth of its range
BELOW_ONE = 1.0 - 1e-9  # a lower term never reaches the next step of a higher one
FARTHEST = 1e9  # beyond so many times a scale, losses count as equal
LAST_SHARE = 0.99  # of the way to the worse end, where the last term begins to fall more slowly


@dataclass(frozen=True)
class Term:
    """One metric of the objective.

    Attributes:
        name: as in the config.
        metric: name of the metric.
        direction: ``max``, ``min``, or ``target``: the nearer to ``target`` the better.
        target: in the metric's unit; None unless direction is ``target``.
        low: lower end of the scale, in the metric's unit.
        high: upper end.
        weight: above 0.
        tolerance: for ``lexicographic``, in the metric's unit: values are compared in steps of this size; 0: exactly.
    """

    name: str
    metric: str
    direction: str
    target: float | None
    low: float
    high: float
    weight: float
    tolerance: float = 0.0

    def loss(self, value: float) -> float:
        """Distance from the ideal end of the scale: 0 there, 1 at the worst end.

        It goes on linearly beyond both ends, so that values outside the scale still order.
        """
        if self.target is not None:
            return abs(value - self.target) / max(self.high - self.target, self.target - self.low)
        short = self.high - value if self.direction == "max" else value - self.low
        return short / (self.high - self.low)

    @property
    def steps(self) -> int:
        """How many steps of ``tolerance`` there are from the ideal end of the scale to the worst one."""
        far = self.high - self.low if self.target is None else max(self.high - self.target, self.target - self.low)
        return max(1, round(far / self.tolerance)) if self.tolerance else _EXACT


@dataclass(frozen=True)
class Objective:
    """Several metrics as one number, over fixed ranges.

    Attributes:
        name: as in the config.
        rho: weight of the sum of losses beside the largest one.
        terms: at least one; for ``lexicographic`` the most important first.
        method: ``chebyshev``; ``lexicographic``; or ``pareto``: the search has one objective a term, rows stand by
            Pareto front, and the Chebyshev number orders those of a front.
        ties: ``cost``: of trials that are tied with the best and within a standard error of it, the cheapest is first;
            or ``score``: as the number says.
    """

    name: str
    rho: float
    terms: tuple[Term, ...]
    method: str = "chebyshev"
    ties: str = "cost"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Objective":
        """The objective of a resolved config.

        Args:
            config: ``{name, method, rho, terms: {name: {metric, direction, target, range, weight, tolerance}}}``;
                ``constraints`` beside them are read by ``analysis.constraints``. A term without direction or range
                has its metric's.

        Raises:
            ConfigError: naming the key, what was given and what was expected.
        """
        settings = read_mapping("objective", config, _KEYS)
        rho = read_number("objective.rho", settings.get("rho", 0.0))
        if rho < 0:
            raise ConfigError(f"objective.rho={rho:g}: expected 0 or more.")
        terms = settings.get("terms") or {}
        if not isinstance(terms, Mapping) or not terms:
            raise ConfigError(
                "objective.terms is empty: expected at least one term, such as"
                " terms: {quality: {metric: macro_f1, weight: 1}}."
            )
        read = tuple(_term(str(name), term) for name, term in terms.items())
        method = settings.get("method", "chebyshev")
        if method not in METHODS:
            raise ConfigError(
                f"objective.method={method!r}: expected one of {', '.join(METHODS)}."
                f" {did_you_mean(str(method), METHODS)}"
            )
        ties = settings.get("ties", "cost")
        if ties not in TIES:
            raise ConfigError(f"objective.ties={ties!r}: expected one of {', '.join(TIES)}.")
        return cls(str(settings.get("name", "")), rho, read, method, ties)

    def restricted(self, available: Collection[str], known: Collection[str]) -> "tuple[Objective, list[str]]":
        """The objective without the terms that cannot be measured here, and the metrics of those.

        Args:
            available: metrics that this task yields.
            known: metrics that any task can yield.

        Raises:
            ConfigError: for a metric that is not known, or where no term remains.
        """
        for term in self.terms:
            if term.metric not in known:
                raise ConfigError(
                    f"objective.terms.{term.name}.metric='{term.metric}' is not a metric."
                    f" {did_you_mean(term.metric, known)}"
                )
        kept = tuple(term for term in self.terms if term.metric in available)
        if not kept:
            named = ", ".join(term.metric for term in self.terms)
            raise ConfigError(
                f"objective.terms: none of its metrics ({named}) is measured here."
                f" Measured are: {', '.join(sorted(available)) or 'none'}. Choose one of those."
            )
        return replace(self, terms=kept), [term.metric for term in self.terms if term not in kept]

    def score(self, metrics: Mapping[str, float]) -> float:
        """One number, higher is better: 1 where every metric is ideal, 0 where every one is at its worst end.

        For ``chebyshev`` and ``pareto``:
        ``1 - (max_i w_i·loss_i + rho·sum_i w_i·loss_i) / (max_i w_i + rho·sum_i w_i)``, the augmented weighted
        Chebyshev distance from the ideal point (Steuer and Choo 1983, "An interactive weighted Tchebycheff procedure
        for multiple objective programming", Mathematical Programming 26, 326-344). Ranges come from the config, never
        from the trials, so a new trial cannot reorder the others. With ``rho`` above 0 it is strictly monotone in
        every metric, also beyond the ranges.

        Args:
            metrics: name → value; names that no term uses are ignored.

        Returns:
            NaN where a needed metric is missing or not finite.
        """
        return self.combine(self.losses(metrics))

    def combine(self, losses: Sequence[float]) -> float:
        """The number of a trial whose terms have these losses; NaN where one is not finite."""
        if not all(math.isfinite(loss) for loss in losses):
            return math.nan
        if self.method == "lexicographic":
            return self._lexicographic(losses)
        weights = [term.weight for term in self.terms]
        weighted = [weight * loss for weight, loss in zip(weights, losses, strict=True)]
        return 1.0 - (max(weighted) + self.rho * sum(weighted)) / (max(weights) + self.rho * sum(weights))

    def losses(self, metrics: Mapping[str, float]) -> list[float]:
        """The loss of each term, lower is better; NaN where its metric is missing or not finite.

        What a multi-objective search minimises, and what Pareto fronts are made of.
        """
        values = [metrics.get(term.metric, math.nan) for term in self.terms]
        return [
            term.loss(value) if math.isfinite(value) else math.nan
            for term, value in zip(self.terms, values, strict=True)
        ]

    def _lexicographic(self, losses: Sequence[float]) -> float:
        """The first term decides; where two trials are in the same step of its tolerance, the next one does.

        The steps are fixed in the config, so this is an order (pairwise tolerances are not transitive), and one number:
        its digits are the terms'. Beyond the better end of a range all but a single term count as that end. Beyond the
        worse end, as metrics can be that grow without end, steps go on and share the lowest digit: the lower half of
        it, ever less of it a step.
        """
        score = 1.0 - losses[-1]
        if len(losses) > 1 and losses[-1] > LAST_SHARE:
            score = (1.0 - LAST_SHARE) ** 2 / (losses[-1] + 1.0 - 2.0 * LAST_SHARE)  # falls to 0, and never reaches it
        for term, loss in zip(reversed(self.terms[:-1]), reversed(losses[:-1]), strict=True):
            # the rounding keeps a value that is on a step, such as 0.83 of 100, from falling below it
            reached = math.floor(round((1.0 - min(max(loss, 0.0), FARTHEST)) * term.steps, 6))
            beyond = -reached / term.steps  # scales beyond the worse end, and one step
            low = 0.0 if reached > 0 else 1.0 / (2.0 + beyond)
            high = 1.0 if reached >= 0 else 1.0 / (2.0 + beyond - 1.0 / term.steps)
            below = low + (high - low) * min(score, 1.0) * BELOW_ONE
            score = (max(reached, 0) + below) / (term.steps + 1)
        return score


def term_defaults(metric: str, given: str | None = None) -> dict[str, Any]:
    """What a term has where its config says nothing of it: ``direction``, ``target`` and ``range`` of its metric.

    Args:
        metric: its name; ``max`` and [0, 1] where it has no direction of its own.
        given: the direction that the config gives. A target goes with ``target`` only.
    """
    own, target = direction(metric) or ("max", None)
    return {
        "direction": given or own,
        "target": target if (given or own) == "target" else None,
        "range": list(scale(metric)),
    }


def against_metric(metric: str, given: str) -> str:
    """Which way a metric is better, as the end of a sentence, where a direction says otherwise; else empty.

    To be near to a target is never otherwise: whoever gives one wants that value.
    """
    own, target = direction(metric) or (given, None)
    if given in (own, "target"):
        return ""
    return f"best at {target:g}" if own == "target" else f"better when {'higher' if own == 'max' else 'lower'}"


def _term(name: str, config: Any) -> Term:
    where = f"objective.terms.{name}"
    settings = read_mapping(where, config, _TERM_KEYS)
    metric, given = settings.get("metric"), settings.get("direction")
    if not isinstance(metric, str) or not metric:
        raise ConfigError(f"{where}.metric={metric!r}: expected the name of a metric, such as macro_f1.")
    if given is not None and given not in DIRECTIONS:
        raise ConfigError(
            f"{where}.direction={given!r}: expected one of {', '.join(DIRECTIONS)}."
            f" {did_you_mean(str(given), DIRECTIONS)}"
        )
    if given is None and metric in METRICS and METRICS[metric].better is None:
        raise ConfigError(
            f"{where}: {metric} is neither better high nor low by itself. Give its term a direction: max, min, or"
            " target with a value to be near to."
        )
    defaults = term_defaults(metric, given)
    if metric not in METRICS:
        del defaults["range"]  # nobody knows the scale of a metric that is not in the table
    settings = {**defaults, **{key: value for key, value in settings.items() if value is not None}}
    ends = settings.get("range")
    if not isinstance(ends, list | tuple) or len(ends) != 2:
        raise ConfigError(f"{where}.range={ends!r}: expected two numbers, the lower first, such as [0, 1].")
    low, high = (read_number(f"{where}.range", end) for end in ends)
    if not low < high:
        raise ConfigError(
            f"{where}.range=[{low:g}, {high:g}]: expected the lower end first."
            " Which end is better is said by 'direction'."
        )
    weight = read_number(f"{where}.weight", settings.get("weight", 1.0))
    if weight <= 0:
        raise ConfigError(f"{where}.weight={weight:g}: expected more than 0. To leave the term out, remove it.")
    tolerance = read_number(f"{where}.tolerance", settings.get("tolerance", 0.0))
    if not 0 <= tolerance <= high - low:
        raise ConfigError(f"{where}.tolerance={tolerance:g}: expected 0 or more, and no more than the range is wide.")
    target = _target(where, settings["direction"], settings["target"], low, high)
    return Term(name, metric, settings["direction"], target, low, high, weight, tolerance)


def _target(where: str, given: str, value: Any, low: float, high: float) -> float | None:
    if given != "target":
        if value is not None:
            raise ConfigError(f"{where}.target={value!r} with direction={given}: set direction=target, or remove it.")
        return None
    if value is None:
        raise ConfigError(f"{where}: direction=target needs {where}.target, a value in the metric's unit.")
    target = read_number(f"{where}.target", value)
    if not low <= target <= high:
        raise ConfigError(f"{where}.target={target:g} is outside {where}.range=[{low:g}, {high:g}]: widen the range.")
    return target


def read_mapping(where: str, value: Any, keys: Collection[str]) -> Mapping[str, Any]:
    """A config value that must be a mapping with some of these keys and no others.

    Args:
        where: its config path, for messages.
        value: as in the config.
        keys: those that it may have.

    Raises:
        ConfigError: for another type, or a key that is not among them.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}={value!r}: expected a mapping with the keys {', '.join(keys)}.")
    for name in value:
        if name not in keys:
            raise ConfigError(f"{where}: '{name}' is not a key of it. {did_you_mean(str(name), keys)}")
    return value


def read_number(where: str, value: Any) -> float:
    """A config value that must be a finite number. Raises ConfigError, with the path ``where``, for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{where}={value!r}: expected a finite number.")
    return float(value)
