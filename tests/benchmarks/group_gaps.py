"""Gaps between groups where the truth is known: does the bound hold, and which cells are too small to tell anything?

    python -m tests.benchmarks.group_gaps

draws predictions whose true gap is known, and prints how often the upper bound of equalized odds is at or above it, the
standard error beside the spread of the figure itself, and what fair predictions are said to score beside what they do.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.group_cells import Cells, fair_gaps, gap_errors, gaps, upper_bounds

ODDS = "equalized_odds"


@dataclass(frozen=True)
class World:
    """Where rows and predictions come from.

    Attributes:
        classes, groups: how many; classes are equally frequent.
        halved: each group is half as frequent as the one before; else all are equal.
        accuracy: of every class in every group.
        unfair: by how much lower it is in the last group: of ``all`` classes, or of ``one``.
    """

    classes: int
    groups: int
    halved: bool
    accuracy: float
    unfair: float
    of: str = "all"

    def shares(self) -> np.ndarray:
        """(classes, groups) of the rows."""
        of_group = 0.5 ** np.arange(self.groups) if self.halved else np.ones(self.groups)
        return np.outer(np.ones(self.classes) / self.classes, of_group / of_group.sum())

    def predictions(self) -> np.ndarray:
        """(classes, groups, classes) probability of each prediction."""
        right = np.full((self.classes, self.groups), self.accuracy)
        right[: None if self.of == "all" else 1, -1] -= self.unfair
        shares = np.repeat(((1 - right) / (self.classes - 1))[..., None], self.classes, axis=2)
        shares[np.arange(self.classes), :, np.arange(self.classes)] = right
        return shares

    def draw(self, n: int, rng: np.random.Generator) -> Cells:
        """``n`` rows with their predictions."""
        rows = rng.multinomial(n, self.shares().ravel()).reshape(self.classes, self.groups)
        counts = np.zeros((self.classes, self.groups, self.classes + 1), dtype=np.int64)
        counts[..., :-1] = rng.multinomial(rows, self.predictions())
        return Cells(tuple(map(str, range(self.classes))), tuple(map(str, range(self.groups))), counts)

    def truth(self, part: dict[str, np.ndarray]) -> float:
        """The gap among the rates that take part."""
        counts = np.zeros((self.classes, self.groups, self.classes + 1))
        counts[..., :-1] = self.predictions() * self.shares()[..., None]
        return float(gaps(counts, part, [ODDS])[ODDS])


def measured(world: World, n: int, least: int, samples: int, with_errors: int) -> dict[str, float]:
    """What ``samples`` draws of ``n`` rows give; errors and fair predictions of the first ``with_errors`` alone."""
    rng = np.random.default_rng(n)
    seen: dict[str, list[float]] = {
        name: [] for name in ("gap", "held", "upper", "error", "zero", "fair", "below", "off")
    }
    absent = 0
    for k in range(samples):
        cells = world.draw(n, rng)
        if ODDS not in cells.measurable(least):
            absent += 1
            continue
        part = cells.taking_part(least)
        gap, upper = float(gaps(cells.counts, part, [ODDS])[ODDS]), upper_bounds(cells.counts, part, [ODDS])[ODDS]
        truth = world.truth(part)
        for name, value in (("gap", gap), ("held", float(upper >= truth)), ("upper", upper), ("off", gap - truth)):
            seen[name].append(value)
        if k < with_errors:
            error, fair = gap_errors(cells.counts, part, [ODDS])[ODDS], fair_gaps(cells.counts, part, [ODDS])[ODDS]
            for name, value in (
                ("error", error),
                ("zero", float(error <= 0)),
                ("fair", float(fair.mean())),
                ("below", float(gap <= np.quantile(fair, 0.95))),
            ):
                seen[name].append(value)
    means = {name: float(np.mean(values)) if values else float("nan") for name, values in seen.items()}
    spread = float(np.std(seen["gap"])) if seen["gap"] else float("nan")
    return means | {"spread": spread, "absent": absent / samples}


def coverage(samples: int, with_errors: int) -> None:
    """The worst cases over accuracies and who is treated unfairly, for each size."""
    print("| rows | groups | classes | not measured | fair: bound holds | unfair: bound holds | gap, fair truth |"
          " foretold | bound, fair truth | error : spread |\n|" + "---|" * 10)  # fmt: skip
    for n, groups, classes in itertools.product((96, 300, 1000, 5000), (2, 5), (2, 4, 8)):
        fair = [measured(World(classes, groups, h, a, 0.0), n, 10, samples, with_errors)
                for h in (False, True) for a in (0.6, 0.8, 0.95)]  # fmt: skip
        unfair = [measured(World(classes, groups, h, a, 0.2, of), n, 10, samples, with_errors)
                  for h in (False, True) for a in (0.6, 0.8, 0.95) for of in ("all", "one")]  # fmt: skip
        both = [it for it in (*fair, *unfair) if it["absent"] <= 0.5]
        if not both:
            print(f"| {n:,} | {groups} | {classes} | nearly always |" + " |" * 6, flush=True)
            continue
        f = [it for it in fair if it["absent"] <= 0.5]
        ratio = [it["error"] / it["spread"] for it in both]
        cells = [
            f"{n:,}", groups, classes, f"{max(it['absent'] for it in (*fair, *unfair)):.0%}",
            f"{min(it['held'] for it in f):.1%}", f"{min(it['held'] for it in unfair if it in both):.1%}",
            _ends([it["gap"] for it in f]), _ends([it["fair"] for it in f]), _ends([it["upper"] for it in f]),
            _ends(ratio),
        ]  # fmt: skip
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
        assert not any(it["zero"] for it in both), "an error is 0"


def least_rows(samples: int, with_errors: int) -> None:
    """What each choice of the least rows gives, over sizes, groups and classes."""
    print("\n| `bias.group_rows` | not measured | bound holds, worst | figure above the truth by | error : spread |"
          " bound, fair truth |\n|" + "---|" * 6)  # fmt: skip
    for least in (1, 3, 5, 10, 20, 30):
        found = [measured(World(classes, groups, True, accuracy, unfair, "one"), n, least, samples, with_errors)
                 for n in (96, 300, 1000) for groups in (2, 4) for classes in (2, 4) for accuracy in (0.8, 0.95)
                 for unfair in (0.0, 0.2)]  # fmt: skip
        there = [it for it in found if it["absent"] <= 0.5]
        fair = [it for it, unfair in zip(found, itertools.cycle((True, False))) if unfair and it in there]
        cells = [
            least, f"{np.mean([it['absent'] for it in found]):.0%}", f"{min(it['held'] for it in there):.1%}",
            f"{np.mean([it['off'] for it in there]):.2f}",
            _ends([it["error"] / it["spread"] for it in there]), f"{np.mean([it['upper'] for it in fair]):.2f}",
        ]  # fmt: skip
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def _ends(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--samples", type=int, default=1_000, help="draws of each setting")
    parser.add_argument("--errors", type=int, default=100, help="of them with a standard error and fair predictions")
    options = parser.parse_args(arguments)
    coverage(options.samples, options.errors)
    least_rows(options.samples // 2, options.errors // 2)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
