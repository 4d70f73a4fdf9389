"""Splits one table of rows into training, validation and test rows: stratified by label, or by whole groups.

A row's place depends on its id and the seed, not on the machine or a library's version.
"""

from collections.abc import Sequence
from hashlib import sha256

from analysis.errors import DataError
from trainer.config import SplitConfig
from trainer.data.likeness import normal_form
from trainer.data.schemas import Row
from trainer.data.subsets import fixed_draw, proportional_shares

SPLITS = ("train", "validation", "test")


def make_splits(rows: Sequence[Row], groups: Sequence[str] | None, split: SplitConfig) -> dict[str, list[Row]]:
    """``train``, ``validation`` and ``test`` rows, each in the order given.

    Args:
        rows: with distinct ids.
        groups: one per row: rows of one group stay together, and an empty one is a group of its own. None: each label
            is divided in proportion (rows without labels: at random), and rows that say the same (``normal_form``)
            stay together. A label of two texts has one to train on and one in validation, whatever the share.
        split: shares and seed.

    Raises:
        DataError: where a split would be empty.
    """
    if split.validation + split.test >= 1.0:
        raise DataError(
            f"data.split.validation={split.validation:g} and data.split.test={split.test:g} leave no rows to train on."
            " Give shares below 1 in all, such as 0.2 and 0.1."
        )
    copies: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        copies.setdefault(normal_form(row.content), []).append(i)
    left = list(range(len(rows)))
    chosen: dict[str, list[int]] = {}
    # of each label, texts that are left for what is drawn later: one to train on, and one to rank by
    keep = {"test": 2 if split.validation else 1, "validation": 1}
    for name, share in (("test", split.test), ("validation", split.validation)):
        size = round(share * (len(copies) if groups is None else len(rows)))
        if groups is None:
            unassigned = set(left)
            same = [alike for alike in copies.values() if alike[0] in unassigned]
            firsts = [rows[alike[0]] for alike in same]
            drawn = _of_each_label(firsts, size, keep[name], split.seed, at_least_one=name == "validation")
            taken = {i for n in drawn for i in same[n]}
        else:
            taken = _whole_groups(left, groups, size, split.seed)
        chosen[name] = sorted(taken)
        left = [i for i in left if i not in taken]
        if share and not taken:
            raise DataError(
                f"data.split.{name}={share:g} of {len(rows)} rows is none"
                + (" (the groups are larger)." if groups is not None and size else ".")
                + f" Raise data.split.{name}, or add rows."
            )
    if not left:
        raise DataError(
            f"data.split leaves no rows to train on: {len(rows)} rows in {len(set(groups or ()))} groups."
            " Group by another column, or lower the shares."
        )
    chosen["train"] = left
    return {name: [rows[i] for i in chosen[name]] for name in SPLITS}


def _of_each_label(rows: Sequence[Row], size: int, keep: int, seed: int, at_least_one: bool) -> list[int]:
    """Indices of about ``size`` rows that hold each label in proportion, while ``keep`` of each label are left.

    Args:
        rows: to draw from.
        size: how many; none where it is 0.
        keep: rows of each label that are not drawn.
        seed: another seed draws others.
        at_least_one: whether every label with more than ``keep`` rows gives one, even where ``size`` is too small.
    """
    members: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        members.setdefault(row.label, []).append(i)
    if size and at_least_one:
        size = max(size, sum(len(indices) > keep for indices in members.values()))
    shares = proportional_shares({label: len(indices) for label, indices in members.items()}, size)
    drawn = []
    for label, indices in members.items():
        share = min(shares[label], max(len(indices) - keep, 0))
        drawn += [indices[i] for i in fixed_draw([rows[i].item_id for i in indices], share, seed)]
    return drawn


def _whole_groups(left: Sequence[int], groups: Sequence[str], size: int, seed: int) -> set[int]:
    """Groups in an order drawn by the seed, each taken where it brings the number of rows nearer to ``size``."""
    members: dict[str, list[int]] = {}
    for i in left:
        members.setdefault(groups[i] or f"\0{i}", []).append(i)
    order = sorted(members, key=lambda group: sha256(f"{seed}:{group}".encode()).digest())
    taken: set[int] = set()
    for group in order:
        if abs(len(taken) + len(members[group]) - size) < abs(len(taken) - size):
            taken.update(members[group])
    return taken
