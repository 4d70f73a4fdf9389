"""A user's own metrics in a config: found beside it, stored completed, and tried on rows before a sweep."""

from pathlib import Path

import pytest

from analysis.errors import ConfigError
from analysis.metrics import METRICS
from sweeps.checks.preflight import try_metrics
from sweeps.compose.compose import Composed, compose
from trainer.data.dataset import load_dataset

BODY = "def brevity(prompt, reference, answer, row):\n    return 1 / (1 + len(answer))\n"


def overrides(tmp_path: Path, metric: str = "shortness.brevity") -> list[str]:
    rows = "".join(f'{{"prompt": "say {i}", "completion": "word {i}", "tests": "t"}}\n' for i in range(20))
    (tmp_path / "rows.jsonl").write_text(rows)
    data = [
        "data=jsonl",
        f"data.train={tmp_path}/rows.jsonl",
        "data.split.validation=0.3",
        "eval.code_tests=tests",
        "eval.run_code=true",
    ]
    setting = f"eval.metrics={{brief: {{function: {metric}, better: high, range: [0, 1]}}}}"
    return [*data, setting, "objective=single", "objective.terms.quality.metric=generate.brief"]


def test_a_metric_in_the_folder_of_the_command_is_an_objective_and_a_resume_imports_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shortness.py").write_text(BODY)
    composed = compose(overrides(tmp_path))
    entry = composed.config.eval.metrics["brief"]
    assert (entry["file"], entry["better"], entry["range"]) == (str(tmp_path / "shortness.py"), "high", [0.0, 1.0])
    assert METRICS["generate.brief"].own
    assert composed.config.eval.generate == "rung"
    assert composed.config.data.extra_columns == ["tests"]
    (tmp_path / "shortness.py").unlink()
    assert Composed.from_stored(composed.unresolved(), [], own_code=True).config.eval.metrics["brief"] == entry


def test_a_metric_beside_the_config_folder_is_found_and_one_that_is_nowhere_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 3\n")
    with pytest.raises(ConfigError, match=r"there is no shortness.py in .*own/experiment.*override 'eval.metrics="):
        compose([*overrides(tmp_path), "experiment=mine"], str(tmp_path / "own"))
    (tmp_path / "own" / "shortness.py").write_text(BODY)
    composed = compose([*overrides(tmp_path), "experiment=mine"], str(tmp_path / "own"))
    assert composed.config.eval.metrics["brief"]["file"] == str(tmp_path / "own" / "shortness.py")


def test_metrics_are_tried_on_rows_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shortness.py").write_text(BODY.replace("1 / (1 + len(answer))", "1 / len(answer)"))
    config = compose(overrides(tmp_path)).config
    with pytest.raises(ConfigError, match=r"generate.brief was tried on 3 rows .* ZeroDivisionError"):
        try_metrics(config.eval.metrics, load_dataset(config.data))
