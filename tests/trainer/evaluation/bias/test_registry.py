"""Each bias set that is declared has its scoring, and what it computes is what it declares."""

import subprocess
import sys
from dataclasses import replace

import pytest

from analysis import bias_sets
from analysis.bias_sets import BIAS_SETS
from analysis.metrics import METRICS
from trainer.config import BiasConfig, DataConfig, EvalConfig, TaskConfig
from trainer.evaluation.bias import registry
from trainer.evaluation.bias.registry import scorings
from trainer.evaluation.metric_names import metric_names

# An item or two of each set, as its table has them.
TABLES = {
    "crows_pairs": {"logprobs": [[-1.0, -2.0], [-3.0, -1.0]]},
    "pairs": {"logprobs": [[-1.0, -2.0], [-3.0, -1.0]]},
    "stereoset": {"target": ["a", "b"], "logprobs": [[-1.0, -2.0, -3.0]] * 2},
    "bbq": {
        "condition": ["ambig", "disambig"], "label": [2, 0], "biased": [1, 1], "unknown": [2, 2],
        "logprobs": [[-1.0, -2.0, -3.0]] * 2,
    },
    "swap": {"label": ["x", "y"], "logprobs": [[-0.1, -2.4]] * 2, "swapped_logprobs": [[-2.4, -0.1]] * 2},
    "group": {"label": ["x", "x", "y", "y"], "prediction": ["x", "y", "y", "y"], "group": ["f", "m", "f", "m"]},
}  # fmt: skip


def test_each_set_gives_the_metrics_that_it_declares_within_their_ranges() -> None:
    assert TABLES.keys() == scorings().keys() == BIAS_SETS.keys()
    for name, scoring in scorings().items():
        figures = scoring.figures(TABLES[name], ("x", "y"), BiasConfig(group_rows=1))
        assert tuple(figures) == BIAS_SETS[name].metric_names
        for metric, value in figures.items():
            low, high = METRICS[metric].range
            assert low <= value <= high, metric


def test_a_set_that_is_declared_without_a_module_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    more = BIAS_SETS | {"toy": replace(BIAS_SETS["stereoset"], name="toy")}
    monkeypatch.setattr(registry, "BIAS_SETS", more)
    scorings.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"without their counterpart: toy\. .*analysis/bias_sets\.py"):
            scorings()
    finally:
        monkeypatch.undo()
        scorings.cache_clear()
    assert bias_sets.BIAS_SETS.keys() == scorings().keys()


def test_the_sets_are_known_without_torch() -> None:
    code = (
        "import sys; from trainer.evaluation.bias.registry import scorings; scorings();"
        " from trainer.evaluation.bias import items; print('torch' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


@pytest.mark.parametrize(
    ("task", "schema", "there", "absent"),
    [
        ("completion", "label", {"accuracy", "completion_perplexity", "bias.bbq.s_dis"}, {"completion_loss"}),
        ("completion", "chat", {"completion_loss", "perplexity", "bias.bbq.s_dis"}, {"accuracy", "bias.swap.gap"}),
        ("completion", "text", {"bits_per_byte", "bias.bbq.s_dis"}, {"completion_loss", "completion_perplexity"}),
        ("classification", "label", {"accuracy", "bias.swap.gap"}, {"perplexity", "bias.bbq.s_dis", "bias.pairs.pct"}),
    ],
)  # fmt: skip
def test_a_task_yields_what_the_table_says(task: str, schema: str, there: set[str], absent: set[str]) -> None:
    names = set(metric_names(TaskConfig(name=task), BiasConfig(bbq=44), DataConfig(schema=schema), EvalConfig()))
    assert there <= names
    assert not names & (absent | {"generate.accuracy", "bias.group.tpr_gap"})
