"""Constraints of the search space (``space_constraints``): which points may become trials.

Each is an expression that must hold. It may read every key of a trial. A key that is not searched, or whose condition
does not hold, has its value from the config.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from analysis.errors import ConfigError, did_you_mean
from sweeps.config import Leaf
from sweeps.space.dimensions import Scalar, Space
from sweeps.space.expression import Expression

_WHERE = "space_constraints"


class Constraints:
    """The constraints of a space.

    Args:
        texts: as in the config.
        known: the keys of a trial.
        whole: (searched values, dotted paths) → the values of these paths in that trial's whole config.

    Raises:
        ConfigError: for an expression that cannot be read, or a path that is no key of a trial.
    """

    def __init__(
        self,
        texts: Sequence[str],
        known: Mapping[str, Leaf],
        whole: Callable[[Mapping[str, Scalar], Sequence[str]], dict[str, Any]],
    ):
        self.expressions = [Expression.parse(text, f"{_WHERE}[{n}]") for n, text in enumerate(texts)]
        self._whole = whole
        for n, expression in enumerate(self.expressions):
            for path in expression.paths:
                if path not in known:
                    raise ConfigError(
                        f"{_WHERE}[{n}]: '{path}' in '{expression.text}' is no key of a trial."
                        f' {did_you_mean(path, known)} Text needs quotes of its own: "{path}".'
                    )

    def broken(self, values: Mapping[str, Scalar]) -> str:
        """The first constraint that a point breaks, as the user wrote it; empty where the point may become a trial."""
        read = dict(values)
        missing = [path for it in self.expressions for path in it.paths if path not in values]
        if missing:
            read |= self._whole(values, missing)
        return next((it.text for it in self.expressions if not it.value(read)), "")

    def allows(self, values: Mapping[str, Scalar]) -> bool:
        """Whether a point may become a trial."""
        return not self.broken(values)

    def require_some(self, space: Space, start: Sequence[Mapping[str, Scalar]], draws: int = 500) -> None:
        """Draw points at random until one is allowed.

        Args:
            space: to draw from.
            start: points that will be tried first.
            draws: how many points to draw at most.

        Raises:
            ConfigError: where no drawn point is allowed, or a whole point of ``start`` breaks a constraint.
        """
        if not self.expressions:
            return
        import optuna

        from sweeps.space.dimensions import active, suggest

        for n, point in enumerate(start):
            whole = all(path in point or not active(dimension, point) for path, dimension in space.items())
            if whole and (broken := self.broken(point)):
                raise ConfigError(
                    f"search.start_from[{n}]: {point} breaks the constraint '{broken}'. Change one of the two."
                )
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # else it announces the study
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        if not any(self.allows(suggest(space, study.ask())) for _ in range(draws)):
            texts = "; ".join(it.text for it in self.expressions)
            raise ConfigError(
                f"{_WHERE}: of {draws} points drawn from the space none is allowed ({texts}). Loosen a constraint, or"
                " shrink the space to where they hold."
            )
