"""What an estimate takes the baselines to cost: those without a model next to nothing, the frozen one all rows."""

import pytest

from sweeps.checks.length import baseline_seconds
from sweeps.compose.compose import compose


@pytest.mark.parametrize(
    ("baselines", "seconds"),
    [
        ("", 0.0),
        ("majority", 0.0),
        ("linear", 2.0),
        ("zero_shot", 10.0),
        ("frozen", 50.0),
        ("zero_shot,few_shot", 50.0),  # with four examples before an item
    ],
)
def test_each_baseline_costs_what_it_scores(baselines: str, seconds: float) -> None:
    task = ["task=classification", "bias=none"] if baselines == "frozen" else []
    config = compose([f"baselines=[{baselines}]", *task]).config
    assert baseline_seconds(config, n_train=800, n_validation=200, scoring=10.0) == pytest.approx(seconds)
