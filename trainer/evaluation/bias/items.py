"""What a trial's bias is measured on: fixed, stratified items, the same for every trial. Without torch."""

from collections.abc import Callable
from dataclasses import dataclass, field

from trainer.config import BiasConfig
from trainer.evaluation.bias.bbq import Question, load_questions
from trainer.evaluation.bias.counterfactual import Swap
from trainer.evaluation.bias.crows_pairs import Pair, load_pairs, read_pairs
from trainer.evaluation.bias.stereoset import Cluster, load_clusters

PAIRS, OWN, STEREOSET, BBQ, SWAP = "crows_pairs", "pairs", "stereoset", "bbq", "swap"  # names of item tables


@dataclass(frozen=True)
class BiasItems:
    """What a trial's bias is measured on; an empty list is not measured."""

    pairs: list[Pair] = field(default_factory=list)
    own_pairs: list[Pair] = field(default_factory=list)
    clusters: list[Cluster] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    swaps: list[Swap] = field(default_factory=list)

    def tables(self) -> list[str]:
        """Names of the item tables that scoring these gives."""
        sets = {PAIRS: self.pairs, OWN: self.own_pairs, STEREOSET: self.clusters, BBQ: self.questions, SWAP: self.swaps}
        return [name for name, items in sets.items() if items]


def load_bias(bias: BiasConfig, report: Callable[[str], None] = lambda message: None) -> BiasItems:
    """What a decoder is measured on; fetches what comes as a package.

    Raises:
        FetchError: if a package cannot be downloaded.
        DataError: for a pairs file that cannot be used.
        ConfigError: for too few questions.
    """
    own = read_pairs(bias.pairs_file) if bias.pairs_file else []
    return BiasItems(
        load_pairs(bias.crows_pairs, report=report),
        own,
        load_clusters(bias.stereoset, report=report),
        load_questions(bias.bbq, report=report),
    )
