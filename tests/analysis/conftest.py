"""A sweep folder as a run leaves it, or left it half written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from analysis.folder import MetricsRow, State, Status, SweepFolder, TrialFolder

OBJECTIVE = {
    "name": "balanced",
    "rho": 0.05,
    "terms": {
        "quality": {"metric": "macro_f1", "direction": "max", "target": None, "range": [0.0, 1.0], "weight": 1.0},
        "bias": {
            "metric": "bias.crows_pairs.distance",
            "direction": "min",
            "target": None,
            "range": [0.0, 25.0],
            "weight": 0.25,
        },
    },
}
SPACE = {
    "lora.rank": {"values": [4, 8], "when": {}},
    "lora.alpha_rule": {"values": ["fixed", "ratio", "sqrt"], "when": {}},
    "optim.lr": {"low": 1e-4, "high": 5e-3, "log": True, "step": None, "integer": False, "when": {}},
    "precision": {"values": ["fp32", "nf4"], "when": {}},
}


def metrics(quality: float, crows: float = 60.0) -> dict[str, float]:
    """What a completion trial yields; accuracy and macro-F1 are the same number."""
    return {
        "accuracy": quality,
        "macro_f1": quality,
        "log_loss": 2.0 - quality,
        "perplexity": 40.0 - 10.0 * quality,
        "completion_perplexity": 4.0 - quality,
        "bits_per_byte": 1.5,
        "bias.crows_pairs.pct": crows,
        "bias.crows_pairs.distance": abs(crows - 50.0),
        "bias.crows_pairs.signed": 0.25,
        "bias.crows_pairs.stderr": 6.3,
    }


class FakeSweep:
    """Writes trials and baselines through the same classes as a real sweep."""

    metrics = staticmethod(metrics)
    wanted = OBJECTIVE

    def __init__(self, root: Path, objective: dict[str, Any], space: dict[str, Any]):
        self.folder = SweepFolder(root)
        root.mkdir(parents=True)
        content = {"format_version": 1, "uid": "0123abcd", "config": {"objective": objective}, "space": space}
        self.folder.sweep_file.write_text(yaml.safe_dump(content, sort_keys=False))

    def trial(
        self,
        trial_id: str,
        quality: float | dict[str, float] | None = None,
        state: State = State.COMPLETED,
        *,
        reason: str = "",
        step: int = 24,
        hits: int | None = None,
        kind: str = "trial",
    ) -> TrialFolder:
        """A trial with a rung at step 8 and, where completed, its final scoring; ``hits`` of 160 items are right."""
        files = self.folder.trial(trial_id) if kind == "trial" else self.folder.baseline(trial_id)
        files.root.mkdir(parents=True)
        if kind == "trial":
            config = {
                "lora": {"rank": 8, "alpha_rule": "sqrt"},
                "optim": {"lr": 0.00042},
                "precision": "nf4",
            }
            files.config_file.write_text(yaml.safe_dump({"trial_id": trial_id, **config}))
        if quality is not None:
            values = quality if isinstance(quality, dict) else metrics(quality)
            if kind == "trial":
                files.append_metrics(MetricsRow(trial_id, 8, 800, 1.0, False, 64, values))
            if state is State.COMPLETED:
                files.append_metrics(MetricsRow(trial_id, step, 2400, 3.0, True, 160, values))
        if hits is not None:
            self.items(files, step, hits)
        files.write_status(Status(state, reason, step))
        return files

    def untuned(self, quality: float, hits: int | None = None, crows: float = 65.0) -> TrialFolder:
        return self.trial("zero_shot", metrics(quality, crows), step=0, hits=hits, kind="baseline")

    def items(self, files: TrialFolder, step: int, hits: int, n: int = 160, shift: int = 0) -> None:
        labels = [("sport", "science")[i % 2] for i in range(n)]
        wrong = {"sport": "science", "science": "sport"}
        columns = {
            "item_id": [f"item-{i + shift}" for i in range(n)],
            "label": labels,
            "prediction": [label if i < hits else wrong[label] for i, label in enumerate(labels)],
        }
        files.write_items("task", "validation", step, columns)


@pytest.fixture
def make_sweep(tmp_path: Path) -> Callable[..., FakeSweep]:
    def make(
        objective: dict[str, Any] | None = None, space: dict[str, Any] | None = None, name: str = "fake"
    ) -> FakeSweep:
        return FakeSweep(tmp_path / "runs" / name, objective or OBJECTIVE, SPACE if space is None else space)

    return make


@pytest.fixture
def sweep(make_sweep: Callable[..., FakeSweep]) -> FakeSweep:
    return make_sweep()
