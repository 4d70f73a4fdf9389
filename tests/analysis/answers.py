"""A sweep folder in which trials, baselines and a finalist wrote answers."""

from pathlib import Path
from typing import Any

import yaml

from analysis.folder import MetricsRow, State, Status, SweepFolder, TrialFolder

TERM = {"metric": "generate.exact_match", "direction": "max", "target": None, "range": [0.0, 1.0], "weight": 1.0}
PROMPTS = ["Where is the \x1b[31mEiffel\x1b[0m tower?", "Who wrote [bold]Faust[/bold]?", "東京はどこにありますか"]
REFERENCES = ["in Paris, France", "Goethe", "日本の首都です"]
TUNED = ["in Paris, Spain", "Goethe", "日本の東です"]
UNTUNED = ["<script>alert(1)</script> tower", "Schiller \x1b]0;owned\x07\x9b2J \u202egnp", "日本の首都です"]


def table(written: list[str], items: int = 3, **more: list[Any]) -> dict[str, list[Any]]:
    """An item table of answers to the first items, with exact match as a figure."""
    hits = [float(a == b) for a, b in zip(written, REFERENCES, strict=False)]
    columns: dict[str, list[Any]] = {
        "item_id": [f"validation-{i}" for i in range(items)],
        "prompt": PROMPTS[:items],
        "label": REFERENCES[:items],
        "generated": written[:items],
        "n_tokens": [4, 3, 7][:items],
        "finished": [True, False, True][:items],
        "exact_match": hits[:items],
        "overlap": [0.5, None, 0.25][:items],
    }
    return columns | more


def score(files: TrialFolder, state: State, step: int, value: float, final: bool, split: str = "validation") -> None:
    files.root.mkdir(parents=True, exist_ok=True)
    files.config_file.write_text("{}")
    files.append_metrics(MetricsRow(files.trial_id, step, 0, 1.0, final, 3, {"generate.exact_match": value}, split))
    files.write_status(Status(state, "", step))


def make(root: Path, metric: str = "generate.exact_match", task: str = "completion") -> SweepFolder:
    """Two trials (one stopped early, with answers to two items of its rung), three baselines and a finalist."""
    folder = SweepFolder(root)
    root.mkdir(parents=True)
    objective = {"name": "o", "terms": {"q": TERM | {"metric": metric}}}
    content = {
        "format_version": 1, "uid": "0123abcd", "space": {},
        "config": {"objective": objective, "task": {"name": task}},
    }  # fmt: skip
    folder.sweep_file.write_text(yaml.safe_dump(content))
    best, stopped = folder.trial("t0000"), folder.trial("t0001")
    score(best, State.COMPLETED, 8, 0.33, True)
    best.write_items("generated", "validation", 8, table(TUNED))
    score(stopped, State.STOPPED_EARLY, 4, 0.3, False)
    stopped.write_items("generated", "validation", 4, table(["Goethe", "Goethe"], items=2))
    for name, written in (("zero_shot", UNTUNED), ("few_shot", REFERENCES)):
        score(folder.baseline(name), State.COMPLETED, 0, 0.33, True)
        folder.baseline(name).write_items("generated", "validation", 0, table(written))
    score(folder.baseline("majority"), State.COMPLETED, 0, 0.0, True)
    final = folder.final("t0000-seed1")
    score(final, State.COMPLETED, 8, 0.0, True, "test")
    final.write_items("generated", "test", 8, table(TUNED) | {"item_id": ["test-0", "test-1", "test-2"]})
    return folder
