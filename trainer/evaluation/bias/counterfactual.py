"""Does the prediction change when names, pronouns and group terms in a text are swapped?

``trainer/data/counterfactual_text.py`` swaps them. Counterfactual token fairness (Garg et al. 2019, arXiv 1809.10610)
on the task's own validation rows. The target is 0:
the swapped text should get the same answer. It says nothing about what the swap does not name, and where the label
truly depends on the group, a flip is no fault.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.bias_sets import BIAS_SETS
from analysis.shares import share_error
from trainer.config import BiasConfig, TaskConfig, TrialConfig
from trainer.data.counterfactual_text import swap_terms
from trainer.data.dataset import Row
from trainer.data.encode import Encoded, encode_rows
from trainer.data.subsets import stratified
from trainer.evaluation.bias.registry import BiasScoring, Scorer, Table, TaskRows

SWAP = BIAS_SETS["swap"].metric_names  # each figure before its standard error
_SEED = 0  # which name becomes which: the same in every trial


@dataclass(frozen=True)
class Swap:
    """A validation row and its counterfactual, as tokens."""

    item_id: str
    group: str | None
    original: Encoded
    swapped: Encoded


def find_swaps(
    rows: Sequence[Row],
    encoded: Sequence[Encoded],
    labels: tuple[str, ...],
    tokenizer: object,
    task: TaskConfig,
    max_length: int,
    n: int,
) -> list[Swap]:
    """A fixed subset, stratified by label, of the rows in which the part that the model sees has something to swap.

    Args:
        rows: of validation.
        encoded: the same, as tokens.
        labels, tokenizer, task, max_length: as they were encoded with.
        n: rows; more than there are means all.
    """
    texts = {i: swapped for i, row in enumerate(rows) if (swapped := swap_terms(row.text, _SEED)) is not None}
    others = [replace(rows[i], text=text) for i, text in texts.items()]
    if not others:
        return []
    pairs = zip(texts, encode_rows(others, labels, tokenizer, task, max_length), strict=True)
    seen = [Swap(rows[i].item_id, rows[i].group, encoded[i], other) for i, other in pairs]
    seen = [swap for swap in seen if swap.original.context != swap.swapped.context]
    chosen = stratified([swap.item_id for swap in seen], [labels[swap.original.target] for swap in seen], n, 0)
    return [seen[i] for i in chosen]


def score_swaps(swaps: list[Swap], scorer: Scorer) -> Table:
    """Columns of the item table: the log-probabilities of the labels for each row and for its counterfactual."""
    scores = scorer.label_logprobs([row for swap in swaps for row in (swap.original, swap.swapped)])
    before, after, labels = scores[0::2], scores[1::2], scorer.labels
    return {
        "item_id": [swap.item_id for swap in swaps],
        "group": [swap.group for swap in swaps],
        "label": [labels[swap.original.target] for swap in swaps],
        "prediction": [labels[int(i)] for i in before.argmax(1)],
        "swapped_prediction": [labels[int(i)] for i in after.argmax(1)],
        "logprobs": before.tolist(),
        "swapped_logprobs": after.tolist(),
    }


def swap_metrics(
    original: Sequence[Sequence[float]], swapped: Sequence[Sequence[float]], gold: Sequence[int]
) -> dict[str, float]:
    """Flip rate and gap, with standard errors.

    Args:
        original: (rows, classes) log-probabilities of the text as it is.
        swapped: the same of its counterfactual.
        gold: index of each row's label.

    Returns:
        ``flip_rate``: share of rows whose prediction changes; ``gap``: mean absolute change of the probability of the
        row's label. NaN where a log-probability is not finite.
    """
    before, after = (np.asarray(values, dtype=np.float64) for values in (original, swapped))
    if before.size == 0 or not (np.isfinite(before).all() and np.isfinite(after).all()):
        return dict.fromkeys(SWAP, math.nan)
    rows = np.arange(len(gold))
    flips = before.argmax(1) != after.argmax(1)
    moves = np.abs(np.exp(before[rows, list(gold)]) - np.exp(after[rows, list(gold)]))
    n = len(gold)
    figures = (
        *(float(flips.mean()), share_error(float(flips.sum()), n)),
        *(float(moves.mean()), float(moves.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan),
    )
    return dict(zip(SWAP, figures, strict=True))


def _figures(table: Table, labels: tuple[str, ...], settings: BiasConfig) -> dict[str, float]:
    gold = [labels.index(label) for label in table["label"]]
    return swap_metrics(table["logprobs"], table["swapped_logprobs"], gold)


def _from_rows(rows: TaskRows, n: int) -> list[Swap]:
    return find_swaps(rows.rows, rows.encoded, rows.labels, rows.tokenizer, rows.task, rows.max_length, n)


def _absent(trial: TrialConfig, swaps: list[Swap], rung: Sequence[Row]) -> dict[str, str]:
    if not trial.bias.swap or swaps:
        return {}
    why = "no validation row, as far as the model reads it, has a name, pronoun or group term to swap (bias.swap)"
    return dict.fromkeys(SWAP, why)


SCORINGS = (BiasScoring("swap", figures=_figures, from_rows=_from_rows, score=score_swaps, absent=_absent),)
