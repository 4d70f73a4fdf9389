"""``lorasweep wandb``: the views that are saved, and sweeps pulled from a project, against the loopback server."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from analysis.folder import FORMAT_VERSION, MetricsRow, State, Status, SweepFolder, atomic_write
from analysis.leaderboard import leaderboard
from sweeps.cli import main
from tests.sweeps.tracking.test_wandb_online import server
from tests.wandb_server import ServedRun, WandbServer

__all__ = ["server"]

TERMS = {
    "quality": {"metric": "accuracy", "direction": "max", "target": None, "range": [0.0, 1.0], "weight": 1.0},
    "loss": {"metric": "log_loss", "direction": "min", "target": None, "range": [0.0, 2.0], "weight": 1.0},
}


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    """A finished sweep of two trials and a baseline."""
    made = SweepFolder(tmp_path / "runs" / "tickets")
    objective = {"name": "balanced", "rho": 0.05, "terms": TERMS}
    manifest = {
        "format_version": FORMAT_VERSION, "uid": "ab12cd34", "name": "tickets", "unresolved": {}, "data": {},
        "config": {"objective": objective, "tracking": {"project": "p", "entity": None, "mode": "offline"}},
        "space": {"lora.rank": {"values": [4, 8]}, "optim.lr": {"low": 1e-4, "high": 1e-2, "log": True}},
    }  # fmt: skip
    atomic_write(made.sweep_file, yaml.safe_dump(manifest, sort_keys=False))
    scores = {"t0000": 0.8, "t0001": 0.9}
    for i, (trial_id, accuracy) in enumerate(scores.items()):
        files = made.trial(trial_id)
        config = {"lora": {"rank": 4 * (i + 1)}, "optim": {"lr": 1e-3}}
        atomic_write(files.config_file, yaml.safe_dump(config))
        metrics = {"accuracy": accuracy, "log_loss": 1 - accuracy}
        files.append_metrics(MetricsRow(trial_id, 24, 2400, 2.4, True, 160, metrics))
        files.write_status(Status(State.COMPLETED, step=24))
    base = made.baseline("zero_shot")
    base.append_metrics(MetricsRow("zero_shot", 0, 0, 0.1, True, 160, {"accuracy": 0.4, "log_loss": 1.5}))
    base.write_status(Status(State.COMPLETED))
    return made


def kinds(spec: Any) -> list[str]:
    """The types of all panels of a view, in order."""
    if isinstance(spec, dict):
        found = [spec["viewType"]] if "viewType" in spec else []
        return found + [kind for value in spec.values() for kind in kinds(value)]
    return [kind for value in spec for kind in kinds(value)] if isinstance(spec, list) else []


def test_report_saves_a_workspace_and_a_report_and_updates_them_the_second_time(
    server: WandbServer, folder: SweepFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    server.runs["x"] = ServedRun("x", "p")  # the project is there
    for _ in range(2):
        assert main(["wandb", "report", str(folder.root)]) == 0
        assert "nw=" in capsys.readouterr().out  # the view's address
    view, written = server.views
    assert (view["type"], written["type"]) == ("project-view", "runs")
    spec = json.loads(view["spec"])
    panels = ["Parallel Coordinates Plot", "Parameter Importance", "Run Comparer", "Scatter Plot", "Scatter Plot"]
    assert kinds(spec)[:5] == panels
    assert kinds(spec).count("Run History Line Plot") == 3
    (runs,) = spec["section"]["runSets"]
    assert [f["value"] for f in runs["filters"]["filters"]] == ["tickets", "trial"]
    assert [group["name"] for group in runs["grouping"]] == ["lora.value.rank"]
    against_loss = next(p for p in _panels(spec) if p["viewType"] == "Scatter Plot")
    assert against_loss["config"]["showMaxYAxisLine"]  # the Pareto front: most accuracy for the loss so far
    text = written["spec"]
    assert "beats the untuned model" in text or "accuracy" in text
    assert "| 1 | trial | t0001 |" in text
    assert "Run Comparer" in kinds(json.loads(text))


def _panels(spec: Any) -> list[dict[str, Any]]:
    if isinstance(spec, dict):
        return ([spec] if "viewType" in spec else []) + [p for value in spec.values() for p in _panels(value)]
    return [p for value in spec for p in _panels(value)] if isinstance(spec, list) else []


def test_print_shows_what_would_be_saved_without_asking_anybody(
    folder: SweepFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert main(["wandb", "report", str(folder.root), "--print"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert kinds(printed["workspace"]).count("Scatter Plot") == 2
    assert "| 1 | trial | t0001 |" in json.dumps(printed["report"])


def test_a_sweep_of_ours_is_pulled_with_its_objective_outcomes_and_curves(
    server: WandbServer, folder: SweepFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objective = {"name": "balanced", "rho": 0.05, "terms": TERMS}

    def config(**keys: Any) -> dict[str, Any]:
        return {name: {"value": value} for name, value in keys.items()}

    def serve(name: str, kind: str, config: dict[str, Any], summary: dict[str, Any], group: str = "tickets") -> None:
        lines = {0: {"step": 12, "accuracy": 0.5, "tokens": 1200, "seconds": 1.5, "n_items": 96}}
        server.runs[f"u-{name}"] = ServedRun(
            f"u-{name}", "p", name, group, kind, config=config, summary=summary, lines=lines, exit_code=0
        )

    serve("sweep", "sweep", config(objective=objective, searched=["lora.rank"]), {})
    done = {"state": "completed", "step": 24, "n_items": 160, "log_loss": 0.2}
    serve("t0000", "trial", config(lora={"rank": 4}), done | {"accuracy": 0.8})
    serve("t0001", "trial", config(lora={"rank": 8}), done | {"accuracy": 0.9})
    serve("t0002", "trial", config(lora={"rank": 8}), {"state": "diverged", "reason": "the loss is NaN", "step": 12})
    serve("zero_shot", "baseline", config(), done | {"accuracy": 0.3, "log_loss": 1.5})
    serve("t0009", "trial", config(lora={"rank": 1}), done | {"accuracy": 1.0}, group="another")

    to = tmp_path / "pulled"
    assert main(["wandb", "pull", "me/p", "--group", "tickets", "--to", str(to)]) == 0
    rows = leaderboard.build(SweepFolder.open(to))
    assert [(row.trial_id, row.status, row.kind) for row in rows] == [
        ("t0001", "completed", "trial"),
        ("t0000", "completed", "trial"),
        ("zero_shot", "completed", "baseline"),
        ("t0002", "diverged", "trial"),
    ]
    assert rows[0].config == {"lora.rank": 8}
    assert rows[0].metrics == {"accuracy": 0.9, "log_loss": 0.2}
    assert rows[3].reason == "the loss is NaN"
    rung, final = SweepFolder(to).trial("t0001").read_metrics()
    assert (rung.step, rung.final, rung.metrics, rung.n_items) == (12, False, {"accuracy": 0.5}, 96)
    assert (final.step, final.final, final.n_items) == (24, True, 160)
    assert "t0001" in capsys.readouterr().out


def test_runs_of_another_tool_are_ranked_by_names_that_the_user_gives(
    server: WandbServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, score, loss in (("fair-sun-1", 0.7, 0.3), ("fair-sun-2", 0.9, 0.5)):
        server.runs[name] = ServedRun(
            name, "other", name, config={"lr": {"value": score}, "model": {"value": "m"}}, exit_code=0,
            summary={"eval/loss": loss, "eval/f1_macro": score, "eval/accuracy": score - 0.1, "_step": 10},
        )  # fmt: skip
    to = tmp_path / "pulled"
    call = [
        "wandb",
        "pull",
        "me/other",
        "--to",
        str(to),
        "--metric",
        "macro_f1=eval/f1_macro",
        "--objective",
        "macro_f1",
    ]
    assert main(call) == 0
    best, other = leaderboard.build(SweepFolder.open(to))
    assert (best.trial_id, best.metrics) == ("fair-sun-2", {"accuracy": pytest.approx(0.8), "macro_f1": 0.9})
    assert other.config == {"lr": 0.7}  # what differs between runs is what was searched
    assert main(call) == 5  # a sweep is there already
    assert "--to DIR" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["wandb", "pull", "me/none"], 6, "cannot be read (Could not find project none)"),
        (["wandb", "pull", "p"], 2, "expected ENTITY/PROJECT"),
        (["wandb", "pull", "me/p", "--group", "nothing"], 2, "has no runs in group 'nothing'"),
        (["wandb", "pull", "me/p", "--metric", "accuracy"], 2, "expected OURS=THEIRS"),
        (["wandb", "pull", "me/p", "--metric", "acuracy=x"], 2, "Did you mean 'accuracy'"),
        (["wandb", "pull", "me/p", "--to", "TO"], 2, "They have: speed. Name one: --metric"),
        (["wandb", "reprot", "x"], 2, "Did you mean 'report'"),
    ],
)
def test_what_cannot_be_done_is_told(
    server: WandbServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, told: str
) -> None:
    server.runs["x"] = ServedRun("x", "p", "x", summary={"speed": 3.0}, exit_code=0)
    assert main([str(tmp_path / "to") if word == "TO" else word for word in arguments]) == code
    assert told in capsys.readouterr().err
    assert not (tmp_path / "to" / "sweep.yaml").exists()


def test_report_without_a_login_says_what_to_do(
    folder: SweepFolder, server: WandbServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.trouble = "500"
    assert main(["wandb", "report", str(folder.root), "--entity", "me"]) == 6
    assert "wandb login" in capsys.readouterr().err


class _NotInstalled:
    """A finder before all others, for whom there is no wandb-workspaces."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "wandb_workspaces":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize("only_print", [True, False])
def test_report_without_its_extra_names_it(
    folder: SweepFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], only_print: bool
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "wandb_workspaces"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_NotInstalled(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "sweeps.tracking.wandb_workspace", raising=False)
    assert main(["wandb", "report", str(folder.root), *["--print"][:only_print]]) == 7
    error = " ".join(capsys.readouterr().err.split())
    assert "lorasweep: wandb report needs wandb-workspaces, which is not installed." in error
    assert "pip install 'lorasweep[wandb-report]'" in error
