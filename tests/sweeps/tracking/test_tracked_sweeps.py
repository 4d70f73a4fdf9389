"""Whole sweeps by the real command with several trackers at once: W&B, MLflow, and a third of one file."""

import csv
import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from analysis.folder import SweepFolder
from sweeps.process.installation import package_root
from tests.sweeps.tracking.mlflow_reading import MlflowRun, MlflowServer, mlflow_runs

SETTINGS = ["search.start_from=[]", "precision=fp32", "resources.slots=1", "sweep.name=tiny"]
LONG = ["train.max_steps=200", "train.rungs=[2,200]"]  # so that a trial is not over before it is stopped

TOY = '''
"""A third tracker: what it is told, as lines of a file."""

import json
from pathlib import Path

from sweeps.tracking.base import Tracker


class ToyTracker(Tracker):
    def __init__(self, sweep, file):
        super().__init__(sweep)
        self.file = Path(file)

    def write(self, **line):
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\\n")

    def start_run(self, run):
        self.write(event="start", name=run.name, kind=run.kind, values=dict(run.values), uid=self.sweep.uid)

    def log_point(self, name, step, values):
        self.write(event="point", name=name, step=step, accuracy=values["accuracy"])

    def finish_run(self, name, outcome):
        tables = {key: len(table(None)[1]) for key, table in outcome.tables.items()}
        self.write(event="finish", name=name, state=str(outcome.state), metrics=sorted(outcome.metrics), tables=tables)
'''

TOY_CONFIG = """
trackers:
  toy:
    _target_: toy_tracker.ToyTracker
    file: FILE
"""


def until(process: "subprocess.Popen[str]", *words: str) -> str:
    """What the process printed up to the first line that holds all these words."""
    seen = ""
    assert process.stdout
    assert process.stderr
    for line in process.stdout:
        seen += line
        if all(word in line for word in words):
            return seen
    pytest.fail(f"{words} never came:\n{seen}\n{process.stderr.read()}")


def rungs(folder: SweepFolder) -> dict[str, list[tuple[int, float]]]:
    """Trial → step and accuracy of its rungs, as the sweep folder has them."""
    return {
        files.trial_id: [(row.step, row.metrics["accuracy"]) for row in files.read_metrics() if not row.final]
        for files in folder.trials()
    }


def check_runs(runs: dict[str, MlflowRun], folder: SweepFolder) -> None:
    """That MLflow holds what the sweep folder does, each rung once."""
    trials = {files.trial_id: files for files in folder.trials()}
    baselines = [files.trial_id for files in folder.baselines()]
    assert sorted(runs) == sorted([*trials, *baselines, "sweep"])
    assert {name: runs[name].history["accuracy"] for name in trials} == rungs(folder)
    for name, files in trials.items():
        run, status = runs[name], files.read_status()
        assert (run.status, run.tags["state"], run.tags["reason"]) == ("FINISHED", status.state, status.reason)
        assert run.params["lora.rank"]
        assert run.last("final.accuracy") == files.read_metrics()[-1].metrics["accuracy"]
        assert ("adapter/adapter_model.safetensors" in run.artifacts) == (status.state == "completed")
        if status.state == "completed":
            weights = (files.adapter_dir / "adapter_model.safetensors").read_bytes()
            assert run.artifacts["adapter/adapter_model.safetensors"] == weights
    for name in baselines:
        row = folder.baseline(name).read_metrics()[-1]
        assert runs[name].history["accuracy"] == [(0, row.metrics["accuracy"])]
        assert runs[name].tags["kind"] == "baseline"
    sweep = runs["sweep"]
    with folder.leaderboard_file.open(newline="") as file:
        board = [row["trial_id"] for row in csv.DictReader(file)]
    lines = sweep.artifacts["leaderboard.csv"].decode().splitlines()
    assert [row["trial"] for row in csv.DictReader(lines)] == board
    assert b"plotly" in sweep.artifacts["charts.html"]
    best = trials[sweep.tags["best.trial"]]
    assert sweep.artifacts["adapter/adapter_config.json"] == (best.adapter_dir / "adapter_config.json").read_bytes()


@pytest.fixture
def command(lorasweep: Any, tmp_path: Path) -> Any:
    """``lorasweep`` where a third tracker can be imported and chosen."""
    (tmp_path / "toy_tracker.py").write_text(TOY)
    (tmp_path / "mine" / "tracking").mkdir(parents=True)
    (tmp_path / "mine" / "tracking" / "toy.yaml").write_text(TOY_CONFIG.replace("FILE", str(tmp_path / "toy.jsonl")))
    environment = {"PYTHONPATH": f"{package_root()}:{tmp_path}", "MLFLOW_TRACKING_URI": "", "OMP_NUM_THREADS": "1"}
    return lorasweep(tmp_path, environment)


def test_three_trackers_follow_a_sweep_that_is_stopped_and_resumed(
    command: Any, tiny: Callable[..., list[str]], wandb_runs: Any, tmp_path: Path
) -> None:
    trackers = ["--config-dir", "mine", "tracking=[wandb_offline,mlflow,toy]"]
    process = command.start("run", *tiny("llama", *SETTINGS, *LONG, *trackers, "search.trials=3"))
    until(process, "t0000", "step 2/200")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (130, "")
    folder = SweepFolder(tmp_path / "runs" / "tiny")
    uri = f"sqlite:///{folder.root}/mlflow/mlflow.db"
    before = mlflow_runs(uri, "tiny", tmp_path / "before")
    assert before["t0000"].status == "KILLED"
    assert before["t0000"].tags["state"] == "running"

    done = command("resume", "runs/tiny", "--own-code")
    assert (done.returncode, done.stderr) == (0, "")
    after = mlflow_runs(uri, "tiny", tmp_path / "after")
    check_runs(after, folder)
    assert {name: after[name].run_id for name in before} == {name: run.run_id for name, run in before.items()}
    assert "mlflow ui --backend-store-uri sqlite:///runs/tiny/mlflow/mlflow.db" in done.stdout.split("Next:")[1]
    assert not list(tmp_path.glob("mlruns*"))

    offline = {name: [(p["step"], p["accuracy"]) for run in found for p in run.history if "accuracy" in p]
               for name, found in wandb_runs(folder).items()}  # fmt: skip
    assert {name: offline[name] for name in rungs(folder)} == rungs(folder)

    lines = [json.loads(line) for line in (tmp_path / "toy.jsonl").read_text().splitlines()]
    points = [(line["name"], line["step"], line["accuracy"]) for line in lines if line["event"] == "point"]
    baselines = [files.trial_id for files in folder.baselines()]
    assert sorted(points) == sorted(
        [(name, step, accuracy) for name, curve in rungs(folder).items() for step, accuracy in curve]
        + [(name, 0, folder.baseline(name).read_metrics()[-1].metrics["accuracy"]) for name in baselines]
    )
    started = {line["name"]: line for line in lines if line["event"] == "start"}
    assert {name: line["kind"] for name, line in started.items()} == (
        dict.fromkeys(rungs(folder), "trial") | dict.fromkeys(baselines, "baseline") | {"sweep": "sweep"}
    )
    assert set(started["t0001"]["values"]) == {"lora.rank", "lora.alpha_rule", "optim.lr"}
    ended = {line["name"]: line for line in lines if line["event"] == "finish"}
    states = {files.trial_id: str(files.read_status().state) for files in folder.trials()}
    assert {name: ended[name]["state"] for name in states} == states
    first = next(line for line in lines if line["event"] == "finish" and line["name"] == "t0000")
    assert first["state"] == "running"
    assert lines[-1]["event"] == "finish"
    assert lines[-1]["name"] == "sweep"
    assert lines[-1]["tables"] == {"leaderboard": len(states) + len(baselines)}
    assert "best.accuracy" in lines[-1]["metrics"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path / "server")
    yield server.start()
    server.kill()


@pytest.mark.heavy
def test_a_server_holds_a_sweep_that_is_stopped_and_resumed(
    command: Any, tiny: Callable[..., list[str]], server: MlflowServer, tmp_path: Path
) -> None:
    chosen = ["tracking=mlflow", f"tracking.uri={server.url}"]
    process = command.start("run", *tiny("llama", *SETTINGS, *LONG, *chosen, "search.trials=3"))
    until(process, "t0000", "step 2/200")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err, out.count("MLflow")) == (130, "", 0)
    folder = SweepFolder(tmp_path / "runs" / "tiny")
    before = mlflow_runs(server.url, "tiny", tmp_path / "before")
    done = command("resume", "runs/tiny", f"tracking.uri={server.url}")
    assert (done.returncode, done.stderr) == (0, "")
    after = mlflow_runs(server.url, "tiny", tmp_path / "after")
    check_runs(after, folder)
    assert {name: after[name].run_id for name in before} == {name: run.run_id for name, run in before.items()}
    assert not (folder.root / "mlflow").exists()


@pytest.mark.heavy
def test_a_server_killed_in_mid_sweep_costs_one_note_and_nothing_of_the_sweep(
    command: Any, tiny: Callable[..., list[str]], server: MlflowServer, tmp_path: Path
) -> None:
    chosen = ["tracking=mlflow", f"tracking.uri={server.url}"]
    process = command.start("run", *tiny("llama", *SETTINGS, *chosen, "search.trials=4"))
    seen = until(process, "t0000", "completed")
    server.kill()
    killed = time.monotonic()
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert time.monotonic() - killed < 60
    notes = [line for line in (seen + out).splitlines() if "MLflow:" in line]
    assert len(notes) == 1, notes
    assert "Connection re" in notes[0]  # refused, or reset
    folder = SweepFolder(tmp_path / "runs" / "tiny")
    with folder.leaderboard_file.open(newline="") as file:
        rows = list(csv.DictReader(file))
    ended = [row["trial_id"] for row in rows if row["status"] in ("completed", "stopped_early")]
    assert {"t0000", "t0001", "t0002", "t0003"} <= set(ended)
    assert "Traceback" in folder.log_file.read_text()  # the whole story

    server.start()
    assert mlflow_runs(server.url, "tiny", tmp_path / "after")["t0000"].history["accuracy"][0][0] == 2
