"""A sweep's trials as an Optuna study, for Optuna's own importances and plots. Nothing is suggested from it."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from analysis.rows import Row

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution


def study_of(name: str, rows: Sequence[Row], space: Mapping[str, Any], values: Mapping[str, float]) -> "optuna.Study":
    """A study that holds the rows with a finite value, each as complete.

    Args:
        name: of the sweep.
        rows: trials.
        space: ``space`` of ``sweep.yaml``: dotted path → ``{values}`` or ``{low, high, log, …}``.
        values: trial id → what is maximised.
    """
    import optuna
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name=name, direction="maximize")
    distributions = {
        path: distribution(space.get(path), [row.config.get(path) for row in rows]) for path in paths(rows)
    }
    trials = []
    for row in rows:
        value = values.get(row.trial_id, math.nan)
        if not math.isfinite(value):
            continue
        params = {path: row.config[path] for path, dist in distributions.items() if _fits(dist, row.config.get(path))}
        trials.append(
            create_trial(
                state=TrialState.COMPLETE,
                value=value,
                params=params,
                distributions={path: distributions[path] for path in params},
                user_attrs={"trial_id": row.trial_id, "state": str(row.status)},
            )
        )
    study.add_trials(trials)
    return study


def paths(rows: Sequence[Row]) -> list[str]:
    """Searched paths of which more than one value was tried."""
    values_of: dict[str, set[Any]] = {}
    for row in rows:
        for path, value in row.config.items():
            if value is not None:
                values_of.setdefault(path, set()).add(value)
    return [path for path, values in values_of.items() if len(values) > 1]


def distribution(dimension: Any, tried: Sequence[Any]) -> "BaseDistribution":
    """Optuna's distribution of a searched path, wide enough for all values tried: some may lie outside the space.

    Args:
        dimension: of ``space`` in ``sweep.yaml``.
        tried: values of all trials, None where a trial has none.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    known = [value for value in tried if value is not None]
    numbers = [value for value in known if isinstance(value, int | float) and not isinstance(value, bool)]
    settings = dimension if isinstance(dimension, Mapping) else {}
    low, high = settings.get("low"), settings.get("high")
    if low is None or high is None or len(numbers) < len(known):
        choices = list(dict.fromkeys([*(settings.get("values") or settings.get("choices") or []), *known]))
        ordered = sorted(choices) if all(isinstance(x, int | float) for x in choices) else choices
        return CategoricalDistribution(ordered)
    low, high = min([low, *numbers]), max([high, *numbers])
    log = bool(settings.get("log")) and low > 0
    if settings.get("integer") and all(isinstance(value, int) for value in numbers):
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _fits(dist: "BaseDistribution", value: Any) -> bool:
    return value is not None and dist._contains(dist.to_internal_repr(value))
