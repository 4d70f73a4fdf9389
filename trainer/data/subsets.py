"""Fixed subsets of items: the same on every machine and in every order, with every library version.

An item is taken by the SHA-256 of its id, so a subset of 50 from one group is part of the subset of 100.
"""

from collections.abc import Sequence
from hashlib import sha256


def fixed_draw(ids: Sequence[str], n: int, seed: int) -> list[int]:
    """A fixed subset of items.

    Args:
        ids: of the items, distinct.
        n: how many to take; all, if there are fewer.
        seed: another seed gives another subset.

    Returns:
        Ascending indices.
    """
    ranked = sorted(range(len(ids)), key=lambda i: sha256(f"{seed}:{ids[i]}".encode()).digest())
    return sorted(ranked[:n])


def proportional_shares(sizes: dict[str, int], n: int) -> dict[str, int]:
    """How many items each group gives to a subset of ``n``, in proportion to its size.

    Every group gives at least one where ``n`` allows it; otherwise the ``n`` biggest groups give one each. Shares are
    within one of the exact proportion, except where the one at least pushes others down. Ties go by name.

    Args:
        sizes: items per group, each at least 1.
        n: how many items to take; all, if there are fewer.
    """
    total = sum(sizes.values())
    n = min(n, total)
    if n < len(sizes):
        biggest = sorted(sizes, key=lambda name: (-sizes[name], name))[:n]
        return {name: int(name in biggest) for name in sizes}
    shares = {name: max(1, n * size // total) for name, size in sizes.items()}

    def surplus(name: str) -> int:  # over the exact proportion, in units of 1 / total: whole numbers never round
        return shares[name] * total - n * sizes[name]

    while sum(shares.values()) > n:
        shares[max((name for name in sorted(shares) if shares[name] > 1), key=surplus)] -= 1
    while sum(shares.values()) < n:
        shares[min((name for name in sorted(shares) if shares[name] < sizes[name]), key=surplus)] += 1
    return shares


def stratified(ids: Sequence[str], groups: Sequence[str], n: int, seed: int) -> list[int]:
    """Ascending indices of a fixed subset that holds each group in proportion (see ``proportional_shares``).

    Args:
        ids: one per item, distinct: they decide what is drawn.
        groups: one per item.
        n: how many items to take; all, if there are fewer.
        seed: another seed gives another subset.
    """
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    shares = proportional_shares({group: len(indices) for group, indices in members.items()}, n)
    chosen = []
    for group, indices in members.items():
        chosen += [indices[i] for i in fixed_draw([ids[i] for i in indices], shares[group], seed)]
    return sorted(chosen)
