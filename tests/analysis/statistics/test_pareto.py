"""Fronts and hypervolume, against Optuna's own."""

import itertools
import math

import numpy as np
import optuna
import pytest
from optuna._hypervolume import compute_hypervolume
from optuna.study._multi_objective import _fast_non_domination_rank

from analysis.statistics import pareto
from analysis.statistics.pareto import fronts, hypervolume


@pytest.mark.parametrize(("n", "k"), [(1, 2), (40, 2), (60, 3), (25, 4)])
@pytest.mark.parametrize("kind", ["scattered", "grid"])
def test_fronts_and_hypervolume_are_optunas(n: int, k: int, kind: str) -> None:
    rng = np.random.default_rng(n + k)
    losses = rng.random((n, k)) if kind == "scattered" else rng.integers(0, 4, (n, k)) / 4  # the grid has equals
    assert [place - 1 for place in fronts(losses.tolist())] == _fast_non_domination_rank(losses).tolist()
    reference = np.ones(k)
    assert hypervolume(losses.tolist(), [1.0] * k) == pytest.approx(compute_hypervolume(losses, reference), rel=1e-9)


def test_the_first_front_is_the_best_trials_of_a_study() -> None:
    rng = np.random.default_rng(5)
    losses = rng.random((50, 2))
    study = optuna.create_study(directions=["minimize", "minimize"])
    study.add_trials([optuna.trial.create_trial(values=row.tolist()) for row in losses])
    best = {trial.number for trial in study.best_trials}
    assert {i for i, place in enumerate(fronts(losses.tolist())) if place == 1} == best


def test_rows_without_a_loss_are_on_no_front_and_have_no_volume() -> None:
    assert fronts([[0.5, math.nan], [0.2, 0.2], [math.inf, 0.0]]) == [0, 1, 0]
    assert fronts([]) == []
    assert hypervolume([], [1.0, 1.0]) == 0.0
    assert hypervolume([[0.5, math.nan], [2.0, 0.0]], [1.0, 1.0]) == 0.0
    assert hypervolume([[0.5, 0.5]], [1.0, 1.0]) == 0.25


def test_the_order_of_rows_does_not_matter() -> None:
    rows = [[0.1, 0.9], [0.5, 0.5], [0.9, 0.1], [0.6, 0.6]]
    for order in itertools.permutations(rows):
        assert hypervolume(order, [1.0, 1.0]) == pytest.approx(hypervolume(rows, [1.0, 1.0]))
        assert [row for row, place in zip(order, fronts(order), strict=True) if place == 2] == [[0.6, 0.6]]


@pytest.mark.parametrize("fronts_there", [1, 30, 2000])
def test_a_row_is_compared_with_few_fronts(monkeypatch: pytest.MonkeyPatch, fronts_there: int) -> None:
    rng = np.random.default_rng(0)
    steps = rng.integers(fronts_there, size=2000)
    across = rng.permutation(2000) / 2000
    losses = np.stack([steps + across, steps + 1 - across], axis=1)
    looks: list[int] = []
    plain = pareto._dominated
    monkeypatch.setattr(pareto, "_dominated", lambda *given: looks.append(1) or plain(*given))
    assert [place - 1 for place in fronts(losses.tolist())] == _fast_non_domination_rank(losses).tolist()
    assert len(looks) <= 2000 * (1 + math.ceil(math.log2(max(fronts_there, 2))))
