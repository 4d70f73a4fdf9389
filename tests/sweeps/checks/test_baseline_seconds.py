"""What an estimate takes the baselines to cost: those without a model next to nothing, the frozen one all rows."""

import pytest

from sweeps.checks.estimate import _baseline_seconds, _Probed
from sweeps.compose.compose import compose


@pytest.mark.parametrize(
    ("baselines", "seconds"),
    [
        ("", 0.0),
        ("majority", 0.0),
        ("linear", 2.0),
        ("zero_shot", 10.0),
        ("frozen", 50.0),
        ("zero_shot,few_shot", 20.0),
    ],
)
def test_each_baseline_costs_what_it_scores(baselines: str, seconds: float) -> None:
    task = ["task=classification", "bias=none"] if baselines == "frozen" else []
    config = compose([f"baselines=[{baselines}]", *task]).config
    probed = _Probed({}, [], 1, 0.0, scoring_seconds=10.0, item_tokens=8.0, parameters=1, n_validation=200, n_train=800,
                     lengths={})  # fmt: skip
    assert _baseline_seconds(config, probed) == pytest.approx(seconds)
