"""The sentence pairs of CrowS-Pairs (Nangia et al. 2020, arXiv 2010.00133), licence CC BY-SA 4.0.

Which sentence is which: the authors' README (github.com/nyu-mll/crows-pairs) defines ``sent_more`` as the more
stereotypical sentence of *every* pair, whatever its direction. The direction says whom it is about. ``stereo`` (1,290
pairs): ``sent_more`` is about a historically disadvantaged group and shows a stereotype. ``antistereo`` (218 pairs):
``sent_less`` is about the disadvantaged group and violates a stereotype, and ``sent_more`` is its contrast about an
advantaged group. lm-evaluation-harness (``lm_eval/tasks/crows_pairs/utils.py``) counts the share of pairs where
``sent_more`` is likelier, in both directions alike. These are the original 1,508 pairs; the harness reads a revised
multilingual set, so its figures for a model are near, not equal.
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass

from trainer.assets import fetch
from trainer.strata import stratified


@dataclass(frozen=True)
class Pair:
    """Two sentences that differ in the group they name.

    Attributes:
        item_id: the row in the original file, the same in every subset.
        more: the more stereotypical sentence.
        less: the less stereotypical one.
        bias_type: one of nine, such as ``race-color``.
        direction: ``stereo`` or ``antistereo`` (see the module).
    """

    item_id: str
    more: str
    less: str
    bias_type: str
    direction: str


def load_pairs(n: int, seed: int = 0, report: Callable[[str], None] = lambda message: None) -> list[Pair]:
    """A fixed subset, stratified by bias type, in the order of the original file.

    Args:
        n: pairs; 0 gives none, 1,508 or more gives all.
        seed: another seed gives another subset.
        report: told about a download.

    Raises:
        FetchError: if the package cannot be downloaded.
    """
    if n == 0:
        return []
    path = fetch("crows_pairs", report) / "crows_pairs_anonymized.csv"
    with path.open(encoding="utf-8", newline="") as file:
        pairs = [
            Pair(
                f"crows_pairs-{row['']}", row["sent_more"], row["sent_less"], row["bias_type"], row["stereo_antistereo"]
            )
            for row in csv.DictReader(file)
        ]
    chosen = stratified([pair.item_id for pair in pairs], [pair.bias_type for pair in pairs], n, seed)
    return [pairs[i] for i in chosen]
