"""Names in a sentence: all of them where they are few, else the first and how many others there are."""

from collections.abc import Sequence


def listed(names: Sequence[str], most: int = 4, last: str = " and ", rest: str = "others") -> str:
    """Names with commas between them. One that would be left over alone is named too, so none is "1 others".

    Args:
        names: in order; "none" where there are none.
        most: how many are named, where there are at least two more.
        last: between the last two of a whole list.
        rest: what those that are left out are called, in the plural.
    """
    if not names:
        return "none"
    if len(names) > most + 1:
        return f"{', '.join(names[:most])} and {len(names) - most} {rest}"
    return last.join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
