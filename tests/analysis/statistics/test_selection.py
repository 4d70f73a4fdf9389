"""The winner's curse: what the best of many shows too much, and how many it was chosen among."""

import math

import numpy as np
import pytest

from analysis.objective import Objective
from analysis.rows import Row
from analysis.statistics import selection
from analysis.statistics.comparison import configurations
from analysis.statistics.estimators import ESTIMATORS, Scored
from analysis.statistics.intervals import spread
from analysis.statistics.items import align
from analysis.statistics.selection import LEAST_QUARTERED, expected_largest, optimism, quarters
from tests.benchmarks.claims import SHARES, World, compared

F1 = Objective.from_config({"name": "s", "rho": 0.0, "terms": {"q": {"metric": "macro_f1", "range": [0.0, 1.0]}}})


def left_over(world: World, n: int, samples: int, copies: int = 1) -> tuple[float, float, float]:
    """Mean of what the best shows above all trials' mean, in points; of the same corrected; share covered."""
    rng, labels, found = np.random.default_rng(1), world.labels, []
    for _ in range(samples):
        task = [table for table in world.draw(rng, n)["task"] for _ in range(copies)]
        columns = ESTIMATORS["accuracy"].columns(align(task), labels)[..., 0].mean(axis=1)
        order = np.argsort(-columns, kind="stable")
        got = compared({"task": task}, ["accuracy"], F1, labels, "accuracy", order, trials=range(len(task)))
        shown = columns.max() - columns.mean()  # equals: their mean is the truth, without the noise that they share
        found.append((shown, shown - got.optimism["accuracy"], got.low[0] <= world.accuracy[0] <= got.high[0]))
    return tuple(100 * np.mean(found, axis=0))  # type: ignore[return-value]


def test_the_best_of_equals_is_corrected_to_the_truth_and_its_interval_with_it() -> None:
    shown, corrected, covered = left_over(World(SHARES["4 equal"], (0.8,) * 16), 200, 60)
    assert shown > 3.0
    assert -0.5 < corrected < 1.0
    assert covered >= 88.0  # of 60; three quarters without the correction


def test_copies_of_a_trial_do_not_raise_the_correction() -> None:
    shown, corrected, _ = left_over(World(SHARES["4 equal"], (0.8,) * 3), 200, 40, copies=6)
    assert shown < 3.0
    assert abs(corrected) < 1.0


def test_a_best_that_stands_out_is_hardly_corrected() -> None:
    world = World(SHARES["4 equal"], (0.9, *(0.75,) * 7))
    task = world.draw(np.random.default_rng(0), 500)["task"]
    got = compared({"task": task}, ["accuracy"], F1, world.labels, "accuracy", range(8), trials=range(8))
    assert 0.0 <= got.optimism["accuracy"] < 0.003


def test_quarters_say_that_more_items_leave_less_to_chance_where_one_stands_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def excess(world: World) -> np.ndarray:
        found = []
        for sample in range(12):
            task = world.draw(np.random.default_rng(sample), 240)["task"]
            columns = ESTIMATORS["accuracy"].columns(align(task), world.labels)[..., 0].mean(axis=1)
            order = np.argsort(-columns, kind="stable")
            got = compared({"task": task}, ["accuracy"], F1, world.labels, "accuracy", order, trials=range(8))
            found.append(got.optimism["accuracy"])
        return np.asarray(found)

    apart, equal = World(SHARES["4 equal"], (0.86, *(0.78,) * 7)), World(SHARES["4 equal"], (0.8,) * 8)
    with_quarters = excess(apart), excess(equal)
    monkeypatch.setattr(selection, "LEAST_QUARTERED", 1_000)  # halves alone, as of equals
    by_halves = excess(apart), excess(equal)
    assert with_quarters[0].mean() < 0.8 * by_halves[0].mean()
    assert with_quarters[1].mean() == pytest.approx(by_halves[1].mean(), rel=0.15)
    assert (with_quarters[1] <= by_halves[1] + 1e-12).all(), "more items never leave more to chance than of equals"


def test_parts_have_a_quarter_of_each_class_and_two_of_them_half_of_all() -> None:
    classes = np.repeat([0, 1, 2], [50, 7, 3])
    found = quarters(classes, np.random.default_rng(0))
    for part in range(4):
        assert set((found == part).sum(axis=1)) == {15}
        for which, n in enumerate((50, 7, 3)):
            assert set((found == part)[:, classes == which].sum(axis=1)) <= {n // 4, -(-n // 4)}
    for which, n in enumerate((50, 7, 3)):
        inside = (found % 2 == 0)[:, classes == which].sum(axis=1)
        assert set(inside) <= {n // 2, -(-n // 2)}
    assert abs((found % 2 == 0).mean(axis=0) - 0.5).max() < 0.2


def test_trials_that_were_stopped_early_raise_the_correction_by_the_part_of_the_items() -> None:
    world = World(SHARES["4 equal"], (0.8,) * 15)
    task = world.draw(np.random.default_rng(0), 200)["task"]
    excess = [
        compared(
            {"task": task},
            ["accuracy"],
            F1,
            world.labels,
            "accuracy",
            None,
            trials=range(15),
            left_behind=left,
            part=part,
        ).optimism["accuracy"]
        for left, part in ((0, 1.0), (45, 0.4), (45, 1.0))
    ]
    more = expected_largest(60) / expected_largest(15) - 1
    assert excess[1] / excess[0] == pytest.approx(1 + 0.4 * more)
    assert excess[2] / excess[0] == pytest.approx(1 + more)


@pytest.mark.parametrize(
    ("k", "known"), [(1, 0.0), (2, 1 / math.sqrt(math.pi)), (3, 1.5 / math.sqrt(math.pi)), (10, 1.53875)]
)
def test_the_expected_largest_of_normal_numbers_is_known(k: int, known: float) -> None:
    assert expected_largest(k) == pytest.approx(known, abs=1e-5)


def test_copies_of_a_configuration_count_once_and_unknown_ones_each() -> None:
    rows = [Row("trial", f"t{i}", "completed", 1, config=config) for i, config in
            enumerate(({"lora.rank": 8}, {"lora.rank": 8}, {"lora.rank": 16}, {}, {}))]  # fmt: skip
    assert configurations(rows) == 4


def of_seeds(between: float, of_seeds: float, slope: float = 1.0) -> tuple[dict[str, float], float]:
    """The correction of the best of twelve configurations of two seeds; and what the best shows above the truth.

    Args:
        between: standard deviation of what configurations are truly apart.
        of_seeds: of what seeds add to it.
        slope: by how much the score rises with the accuracy.

    Returns:
        Means over thirty draws.
    """
    rng, runs, n, corrected, shown = np.random.default_rng(7), 24, 300, [], []
    owners = np.repeat(np.arange(12), 2)
    for _ in range(30):
        truth = 0.7 + between * rng.standard_normal(12)
        share = truth[owners] + of_seeds * rng.standard_normal(runs)
        columns = (rng.random((runs, n)) < share[:, None]).astype(np.float32)[..., None]
        scored = Scored({"task": n}, {"accuracy": columns}, {}, lambda them: slope * them["accuracy"], owners)
        given = spread(scored, "accuracy")
        corrected.append(optimism(scored, {"accuracy": given}, {"accuracy": np.full(12, slope)}, range(12)))
        best = int(np.argmax(given.quantity))
        shown.append(given.quantity[best] - truth[best])
    return {name: float(np.mean([it[name] for it in corrected])) for name in corrected[0]}, float(np.mean(shown))


def test_of_configurations_with_several_seeds_the_noise_of_items_and_seeds_is_taken_off() -> None:
    equal, shown = of_seeds(0.0, 0.0)
    assert equal["accuracy"] == pytest.approx(shown, rel=0.15)
    assert equal["objective"] == pytest.approx(equal["accuracy"])
    by_seeds, more = of_seeds(0.0, 0.08)
    assert more > 2 * shown
    assert by_seeds["accuracy"] == pytest.approx(more, rel=0.15)
    clear, less = of_seeds(0.1, 0.0)
    assert less < 0.6 * shown
    assert clear["accuracy"] == pytest.approx(less, rel=0.5)
    scaled, _ = of_seeds(0.0, 0.08, slope=5.0)
    assert scaled["accuracy"] == pytest.approx(by_seeds["accuracy"])
    assert scaled["objective"] == pytest.approx(5 * by_seeds["accuracy"])


def test_of_few_items_the_fall_from_halves_is_taken_as_of_noise() -> None:
    rng = np.random.default_rng(3)

    def found(n: int) -> float:
        columns = (rng.random((8, n)) < 0.7).astype(np.float32)[..., None]
        scored = Scored({"task": n}, {"accuracy": columns}, {}, lambda them: them["accuracy"])
        return optimism(scored, {}, {}, range(8))["accuracy"] / math.sqrt(0.21 / n)

    few = [found(LEAST_QUARTERED - 1) for _ in range(60)]
    many = [found(4 * LEAST_QUARTERED) for _ in range(60)]
    assert np.mean(few) == pytest.approx(expected_largest(8), rel=0.2)
    assert np.mean(many) == pytest.approx(expected_largest(8), rel=0.25)
