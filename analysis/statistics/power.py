"""How large a difference some items can show, and how many items would show one that was seen.

Power is the chance that the test names a difference that is there; 80 % is usual. Computed for paired answers, from
how far they disagree (Connor 1987, "Sample size for testing differences in proportions for the paired-sample design",
Biometrics 43, 207-211): with v the mean square of the items' differences, the test's error is √(v/n) and the
difference's own √((v − d²)/n). McNemar's exact test is coarse where there are few disagreements: its power is summed
over how many there may be. As in Card et al. 2020, "With little power comes great responsibility", EMNLP (arXiv
2010.06595), two models are taken to disagree on as many items as were seen.

The level is 0.05 without a correction for the number of rivals: that the best beats each of them is an
intersection-union test, which needs none (``analysis/statistics/comparison.py``).
"""

import math

POWER = 0.8
LEVEL = 0.05
MOST_ITEMS = 1_000_000  # more are not worth a number
_EXACT_UP_TO = 4_000  # disagreements; with more, McNemar's exact test is the normal one
MOST_SEEDS = 1_000


def mean_square(difference: float, error: float, n: int) -> float:
    """Mean square of the items' differences, from the mean difference and its standard error.

    Args:
        difference: mean over items.
        error: its standard error.
        n: items.
    """
    return n * error**2 + difference**2


def power(difference: float, square: float, n: int, shares: bool = False) -> float:
    """Chance that a two-sided paired test at 0.05 finds a difference.

    Args:
        difference: that is there.
        square: mean square of the items' differences; of right answers the share of items that one alone has right.
        n: items.
        shares: whether right answers are compared, by McNemar's exact test.
    """
    size = abs(difference)
    if shares:
        square = min(max(square, size), 1.0)  # who is better by 5 points disagrees on 5 % at least
        if n * square <= _EXACT_UP_TO:
            return _power_of_mcnemar(size, square, n)
    from scipy.stats import norm

    square = max(square, size**2)
    if square == 0.0:
        return 0.0
    short = size - norm.isf(LEVEL / 2) * math.sqrt(square / n)
    own = math.sqrt(max(square - size**2, 0.0) / n)
    return float(norm.cdf(short / own)) if own > 0 else float(short > 0)


def _power_of_mcnemar(size: float, square: float, n: int) -> float:
    import numpy as np
    from scipy.stats import binom

    if square <= 0.0:
        return 0.0
    low, high = binom.ppf([1e-9, 1 - 1e-9], n, square)
    disagreements = np.arange(max(low, 1), high + 1)
    fewest = binom.ppf(
        LEVEL / 2, disagreements, 0.5
    )  # the largest number for one side that is significant, or the next
    fewest = np.where(2 * binom.cdf(fewest, disagreements, 0.5) < LEVEL, fewest, fewest - 1)
    ahead = (square + size) / (2 * square)  # how often the better one is right where they disagree
    named = binom.cdf(fewest, disagreements, 1 - ahead) + binom.cdf(fewest, disagreements, ahead)
    return float((binom.pmf(disagreements, n, square) * named).sum())


def could_have_shown(square: float, n: int, shares: bool = False) -> float:
    """The smallest difference that the items find with 80 % power; NaN where even the largest would not be found.

    Arguments as of ``power``; the difference is in the unit of the square's root.
    """
    high = 1.0 if shares else 10.0 * math.sqrt(square)
    if not power(high, square, n, shares) >= POWER:
        return math.nan
    low = 0.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, square, n, shares) >= POWER else (middle, high)
    return high


def items_needed(difference: float, square: float, shares: bool = False) -> int | None:
    """How many items would find a difference with 80 % power; None for more than a million, or none at all.

    Arguments as of ``power``.
    """
    if difference == 0.0:
        return None
    low, high = 1, 2
    while power(difference, square, high, shares) < POWER:
        low, high = high, 2 * high
        if high > MOST_ITEMS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(difference, square, middle, shares) >= POWER else (middle, high)
    return high


def seeds_needed(difference: float, deviation: float) -> int | None:
    """How many seeds of each of two configurations would tell their means apart with 80 % power; None for over 1,000.

    Two-sided t-test of two means at 0.05, by the noncentral t distribution (Cohen 1988, "Statistical power analysis for
    the behavioral sciences", section 2.3).

    Args:
        difference: of the two means.
        deviation: of one seed, the same for both.
    """
    from scipy.stats import nct, t

    if difference == 0.0:
        return None
    if deviation == 0.0:
        return 2
    effect = abs(difference) / deviation

    def enough(seeds: int) -> bool:
        freedom = 2 * (seeds - 1)
        critical = t.isf(LEVEL / 2, freedom)
        return bool(nct.sf(critical, freedom, effect * math.sqrt(seeds / 2)) >= POWER)

    low, high = 1, 2
    while not enough(high):
        low, high = high, 2 * high
        if low > MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high if high <= MOST_SEEDS else None


def rounded(number: int) -> str:
    """A number of items with two significant digits, as it is an estimate: ``2,700``, ``48``."""
    return f"{round(number, min(0, 2 - len(str(number)))):,}"
