"""How sure a share of items is, also where it is none or all of them. Without a sweep folder, pure numpy."""

import math

import numpy as np

Array = np.ndarray


def share_error(hits: float, n: float, ddof: int = 1) -> float:
    """Standard error of a share, never 0 by the accident of all items being alike.

    Where hits are none or all, the usual estimate of the variance is 0. Then it is the standard deviation of the
    share's posterior under Jeffreys' prior, Beta(hits + 1/2, n - hits + 1/2): about 0.7 / n.

    Args:
        hits: how many of the items count; may be a sum of parts between 0 and 1.
        n: items.
        ddof: 1: the sample's standard deviation over the root of ``n``, NaN for fewer than 2 items; 0: the binomial.
    """
    if n <= ddof:
        return math.nan
    share = hits / n
    if 0.0 < share < 1.0:
        return math.sqrt(share * (1.0 - share) / (n - ddof))
    return posterior_error(hits, n)


def posterior_error(hits: float, n: float) -> float:
    """Standard deviation of a share's posterior under Jeffreys' prior."""
    a, b = hits + 0.5, n - hits + 0.5
    return math.sqrt(a * b / ((a + b) ** 2 * (a + b + 1.0)))


def wilson(share: Array, n: Array, z: float) -> tuple[Array, Array]:
    """Wilson's limits of shares (Wilson 1927, Journal of the American Statistical Association 22, 209-212).

    Args:
        share: observed.
        n: items that each is over; NaN limits where there are none.
        z: quantile of the normal distribution: 1.96 for both limits at 95 %, 1.645 for one.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        middle = (share + z * z / (2 * n)) / (1 + z * z / n)
        half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return np.clip(middle - half, 0.0, 1.0), np.clip(middle + half, 0.0, 1.0)
