"""What MLflow is told about a sweep, read back with its own client; and that a sweep never depends on it."""

import csv
import io
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from analysis.folder import MetricsRow, State, SweepFolder
from analysis.rows import Row
from sweeps.tracking import mlflow_tracker
from sweeps.tracking.base import Outcome, Run, TrackedSweep
from sweeps.tracking.mlflow_tracker import MlflowTracker
from sweeps.tracking.tune_callback import TrackerCallback
from tests.sweeps.tracking.mlflow_reading import MlflowRun, MlflowServer, mlflow_runs
from tests.sweeps.tracking.test_wandb_online import finished, track_answers, write_trial
from tests.sweeps.tracking.test_wandb_tracker import complete, config_of, report, start, tell, trial


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for MLflow's database, which takes seconds to make: tests share it; their sweeps have other names."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in mlflow_tracker.SETTINGS:
        monkeypatch.setenv(name, os.environ.get(name, mlflow_tracker.SETTINGS[name]))  # undone with the test


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> SweepFolder:
    return SweepFolder(tmp_path / "runs" / request.node.name[:60].replace("[", "-").rstrip("]"))


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def tracker(folder: SweepFolder, notes: list[str], store: Path) -> Callable[..., TrackerCallback]:
    def make(uid: str = "ab12cd34", **keywords: Any) -> TrackerCallback:
        config = keywords.pop("config", config_of)
        made = MlflowTracker(TrackedSweep(folder, uid, notes.append), **({"uri": str(store)} | keywords))
        return TrackerCallback([made], folder, config, keywords.pop("interrupted", lambda: False))

    return make


@pytest.fixture
def runs(folder: SweepFolder, store: Path, tmp_path: Path) -> Callable[..., dict[str, MlflowRun]]:
    def read(experiment: str = "", only: list[str] | None = None) -> dict[str, MlflowRun]:
        files = tmp_path / f"read-{time.monotonic_ns()}"
        return mlflow_runs(f"sqlite:///{store}/mlflow.db", experiment or folder.name, files, only)

    return read


def test_a_trial_is_a_run_with_parameters_metrics_by_step_outcome_and_its_adapter(
    tracker: Callable[..., TrackerCallback], folder: SweepFolder, runs: Any, notes: list[str]
) -> None:
    mine, one = tracker(tags=["quick", "a b"], predictions=2), trial("t0000")
    write_trial(folder)
    start(mine, one)
    tell(mine, one, report(12, 0.12, metrics={"accuracy": 0.12, "bias.crows_pairs.pct": 55.5, "F1 (x)%": math.nan}))
    tell(mine, one, finished(24))
    complete(mine, one)
    mine.close()
    assert notes == []
    run = runs()["t0000"]
    assert run.params == {"lora.rank": "8", "lora.dropout": "0.0", "optim.lr": "0.0003"}
    assert run.history["accuracy"] == [(12, 0.12), (24, 0.24)]
    assert run.history["bias.crows_pairs.pct"] == [(12, 55.5), (24, 55.5)]
    assert math.isnan(run.last("F1 _x__"))  # a name that MLflow takes
    assert run.history["objective"] == [(12, pytest.approx(0.02))]
    assert (run.last("final.accuracy"), run.last("final.objective")) == (0.9, 0.8)
    assert run.status == "FINISHED"
    expected = {"kind": "trial", "state": "completed", "reason": "", "searched": "lora.rank, optim.lr"}
    assert (expected | {"tags": "quick, a b"}).items() <= run.tags.items()
    assert run.tags["adapter"] == str(folder.trial("t0000").adapter_dir)
    assert run.artifacts["adapter/adapter_model.safetensors"] == b"weights"
    lines = run.artifacts["predictions.csv"].decode().splitlines()
    assert [line.split(",")[0] for line in lines] == ["item_id", "v-2", "v-3"]


@pytest.mark.parametrize("rows", [0, 2])
def test_what_a_trial_wrote_is_a_file_where_it_is_asked_for(
    tracker: Callable[..., TrackerCallback], folder: SweepFolder, runs: Any, rows: int
) -> None:
    track_answers(tracker(answers=rows), folder)
    for name in ("t0000", "zero_shot"):
        files = runs()[name].artifacts
        assert ("answers.csv" in files) == bool(rows)
        if rows:
            lines = list(csv.DictReader(io.StringIO(files["answers.csv"].decode())))
            assert len(lines) == rows  # the worst
            assert "validation-1" not in [line["item_id"] for line in lines] or name == "zero_shot"
            heads = ["item_id", "prompt", "reference", "answer", "n_tokens", "finished", "exact_match", "overlap"]
            assert list(lines[0]) == heads


def test_an_adapter_over_the_limit_stays_in_the_sweep_folder(
    tracker: Callable[..., TrackerCallback], folder: SweepFolder, runs: Any
) -> None:
    mine, one = tracker(adapter_mb=1e-6), trial("t0000")  # a byte
    write_trial(folder)
    start(mine, one)
    tell(mine, one, finished(24))
    complete(mine, one)
    mine.close()
    assert runs()["t0000"].artifacts == {}
    assert runs()["t0000"].tags["adapter"] == str(folder.trial("t0000").adapter_dir)


@pytest.mark.parametrize(
    ("last", "state", "status"),
    [
        ({}, "stopped_early", "FINISHED"),
        (
            {"state": "diverged", "reason": "the loss is NaN", "objective": math.nan, "metrics": {}},
            "diverged",
            "FAILED",
        ),
        ({"state": "out_of_memory", "reason": "8 GiB"}, "out_of_memory", "FAILED"),
        (None, "running", "KILLED"),
    ],
)
def test_status_and_tags_tell_the_outcome(
    tracker: Callable[..., TrackerCallback], runs: Any, last: dict[str, Any] | None, state: str, status: str
) -> None:
    mine, one = tracker(), trial("t0000")
    start(mine, one)
    tell(mine, one, report(12, 0.5))
    if last is not None:
        tell(mine, one, report(24, 0.6, **last))
        complete(mine, one)
    mine.close()
    run = runs()["t0000"]
    assert (run.tags["state"], run.status) == (state, status)
    assert run.tags["reason"] == (last or {}).get("reason", run.tags["reason"])
    assert ("final.objective" in run.history) == (state != "running")


def test_baselines_and_the_sweep_are_runs_of_their_kinds(
    tracker: Callable[..., TrackerCallback], folder: SweepFolder, runs: Any
) -> None:
    write_trial(folder)
    row = Row("trial", "t0000", "completed", 24, 3, True, {"lora.rank": 8}, {"accuracy": 0.9}, 0.8, rank=1)
    base = Row("baseline", "zero_shot", "completed", 0, 3, True, {}, {"accuracy": 0.3}, 0.3, rank=2)
    figure = {"data": [{"type": "bar", "x": ["t0000"], "y": [0.8]}], "layout": {}}
    for best in (0.9, 0.95):  # and once more: of a sweep that was extended, the best may be another
        mine = tracker()
        mine.log_baseline("zero_shot", {"accuracy": 0.3}, {"model": {"name": "m"}})
        row.metrics["accuracy"] = best
        mine.log_sweep([row, base], {"search": {"trials": 1}}, {"chart/objective": figure})
        mine.close()
    found = runs()
    assert sorted(found) == ["sweep", "zero_shot"]
    assert found["zero_shot"].history["accuracy"] == [(0, 0.3)]
    assert (found["zero_shot"].tags["kind"], found["zero_shot"].params) == ("baseline", {"model.name": "m"})
    sweep = found["sweep"]
    assert (sweep.tags["kind"], sweep.tags["best.trial"], sweep.params["search.trials"]) == ("sweep", "t0000", "1")
    assert (sweep.last("best.accuracy"), sweep.last("trials.completed")) == (0.95, 1)
    assert sweep.artifacts["leaderboard.csv"].decode().splitlines()[1].startswith("1,trial,t0000,completed")
    assert b"plotly" in sweep.artifacts["charts.html"]
    assert sweep.artifacts["adapter/adapter_model.safetensors"] == b"weights"


def test_a_chart_that_cannot_be_drawn_does_not_keep_the_run_open(
    tracker: Callable[..., TrackerCallback], runs: Any, notes: list[str]
) -> None:
    mine = tracker()
    mine.setup()
    mine.log_sweep([], {"seed": 0}, {"chart/objective": {"data": [{"type": "no such chart"}]}})
    mine.close()
    run = runs()["sweep"]
    assert (run.status, "charts.html" in run.artifacts) == ("FINISHED", False)
    assert len(notes) == 1
    assert "sweep lacks its end" in notes[0]


def test_a_resumed_sweep_goes_on_in_its_runs_and_sends_what_was_not_sent(
    tracker: Callable[..., TrackerCallback], folder: SweepFolder, runs: Any
) -> None:
    one, files = trial("t0000"), folder.trial("t0000")
    first = tracker()
    start(first, one)
    tell(first, one, report(12, 0.12))
    first.close()
    for step in (12, 24):  # the driver was killed before it sent the second
        files.append_metrics(MetricsRow("t0000", step, step, 1.2, False, 96, {"accuracy": step / 100}))
    second = tracker()
    start(second, one)
    tell(second, one, report(24, 0.24))  # its worker had died: the rung is done again
    tell(second, one, report(48, 0.48))
    complete(second, one)
    second.close()
    (run,) = runs().values()
    assert run.history["accuracy"] == [(12, 0.12), (24, 0.24), (48, 0.48)]
    assert (run.status, run.tags["state"]) == ("FINISHED", "stopped_early")


def test_a_rung_that_is_recorded_before_its_run_begins_is_logged_once(
    folder: SweepFolder, runs: Any, store: Path
) -> None:
    folder.trial("t0000").append_metrics(MetricsRow("t0000", 12, 12, 1.2, False, 96, {"accuracy": 0.12}))
    tracker = MlflowTracker(TrackedSweep(folder, "ab12cd34", print), str(store))
    tracker.start_run(Run("t0000", "trial", {}))
    tracker.log_point("t0000", 12, {"accuracy": 0.12, "objective": 0.02})
    tracker.finish_run("t0000", Outcome(State.STOPPED_EARLY))
    history = runs()["t0000"].history
    assert (history["accuracy"], history["objective"]) == ([(12, 0.12)], [(12, 0.02)])


def test_two_sweeps_of_one_name_are_two_experiments(
    tracker: Callable[..., TrackerCallback], folder: SweepFolder, runs: Any
) -> None:
    for uid in ("aaaa1111", "bbbb2222", "aaaa1111"):
        mine, one = tracker(uid), trial("t0000")
        start(mine, one)
        tell(mine, one, report(12, 0.12))
        complete(mine, one)
        mine.close()
    (first,), (second,) = runs().values(), runs(f"{folder.name}-bbbb2222").values()
    assert (first.tags["lorasweep.uid"], second.tags["lorasweep.uid"]) == ("aaaa1111", "bbbb2222")
    assert first.history["accuracy"] == second.history["accuracy"] == [(12, 0.12)]


def test_more_and_longer_than_mlflow_takes_at_once(tracker: Callable[..., TrackerCallback], runs: Any) -> None:
    many = {f"key {i} (x)": "v" * 20_000 for i in range(101)} | {"nothing": None, "k" * 400: 1}
    mine, one = tracker(config=lambda trial_id, values: {"a": many}), trial("t0000")
    start(mine, one)
    tell(mine, one, report(12, 0.5, metrics={f"m{i}": float(i) for i in range(1001)}, state="running"))
    complete(mine, one)
    mine.close()
    run = runs(only=["m1000"])["t0000"]
    assert len(run.params) == 102
    assert run.params["a.key 7 _x_"] == "v" * 500
    assert run.last("m1000") == 1000


# --- a store that cannot be reached


def test_what_could_not_be_sent_is_sent_later_in_order(
    tracker: Callable[..., TrackerCallback], runs: Any, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    plain, away = MlflowClient.log_batch, threading.Event()

    def log_batch(*args: Any, **keywords: Any) -> Any:
        if away.is_set():
            raise ConnectionError("nobody there")
        return plain(*args, **keywords)

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    monkeypatch.setattr(mlflow_tracker, "PAUSE_SECONDS", 0.0)
    away.set()
    mine, one, other = tracker(), trial("t0000"), trial("t0001")
    for each in (one, other):
        start(mine, each)
        tell(mine, each, report(12, 0.12))
    complete(mine, one)
    tell(mine, other, report(24, 0.24))
    mine._threads[0].post("t0001", "log_point", "t0001", 25, {"accuracy": 0.25})
    until = time.monotonic() + 60
    while not notes and time.monotonic() < until:
        time.sleep(0.01)
    away.clear()
    complete(mine, other)
    mine.close()
    found = runs()
    assert found["t0000"].history["accuracy"] == [(12, 0.12)]
    assert found["t0001"].history["accuracy"] == [(12, 0.12), (24, 0.24), (25, 0.25)]
    assert {run.status for run in found.values()} == {"FINISHED"}
    (note,) = notes
    assert "nobody there" in note
    assert "tried again" in note


def test_a_run_that_was_deleted_there_does_not_hold_up_the_others(
    tracker: Callable[..., TrackerCallback], runs: Any, notes: list[str], store: Path, folder: SweepFolder
) -> None:
    from mlflow import MlflowClient

    mine = tracker()._threads[0]._tracker  # in this thread: the run is there before it is deleted
    mine.connect()
    mine.start_run(Run("t0000", "trial", {}))
    mine.log_point("t0000", 12, {"accuracy": 0.12})
    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    client.delete_run(runs()["t0000"].run_id)
    mine.log_point("t0000", 24, {"accuracy": 0.24})
    mine.start_run(Run("t0001", "trial", {}))
    mine.log_point("t0001", 12, {"accuracy": 0.5})
    mine.finish_run("t0001", Outcome(State.COMPLETED, {}, {}))
    mine.close()
    assert runs()["t0001"].history["accuracy"] == [(12, 0.5)]
    (note,) = notes
    assert "t0000 is not tracked any further" in note


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["silent", "absent"])
def test_a_server_that_does_not_answer_holds_up_neither_the_trials_nor_the_end(
    tracker: Callable[..., TrackerCallback], notes: list[str], silent: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setattr(mlflow_tracker, "HUNG_SECONDS", 0.9)
    mine, one = tracker(uri=silent if kind == "silent" else "http://127.0.0.1:9"), trial("t0000")
    began = time.monotonic()
    mine.setup()
    for step in range(1, 50):
        start(mine, one)
        tell(mine, one, report(step, 0.5))
    complete(mine, one)
    assert time.monotonic() - began < 1
    mine.close(timeout=25)
    (note,) = notes
    assert "busy" not in note
    assert ("timed out" if kind == "silent" else "Connection refused") in note
    assert mine.hints() == []


def test_the_settings_bound_how_long_mlflow_waits(tracker: Callable[..., TrackerCallback]) -> None:
    tracker()
    waits = float(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]) * (1 + int(os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]))
    assert waits <= 20
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_the_environment_names_the_store_where_the_config_does_not(
    folder: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def uri(given: str | None = None) -> str:
        return MlflowTracker(TrackedSweep(folder, "ab12cd34", print), given)._uri

    assert uri() == f"sqlite:///{folder.root}/mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert uri() == "http://127.0.0.1:5000"
    assert uri(str(tmp_path)) == uri(f"file://{tmp_path}") == f"sqlite:///{tmp_path}/mlflow.db"
    assert uri("postgresql+psycopg://host/db") == "postgresql+psycopg://host/db"


@pytest.mark.heavy
def test_a_real_server_that_is_killed_and_comes_back_misses_nothing(
    tracker: Callable[..., TrackerCallback],
    folder: SweepFolder,
    notes: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mlflow_tracker, "PAUSE_SECONDS", 0.5)
    server = MlflowServer(tmp_path / "server").start()
    try:
        mine, one = tracker(uri=server.url), trial("t0000")
        write_trial(folder)
        start(mine, one)
        tell(mine, one, report(12, 0.12))
        until = time.monotonic() + 60
        while time.monotonic() < until and not _has_rung(server, folder, tmp_path):
            time.sleep(0.2)
        server.kill()
        tell(mine, one, report(18, 0.18))
        while not notes and time.monotonic() < until:
            time.sleep(0.1)
        server.start()
        tell(mine, one, finished(24))
        complete(mine, one)
        mine.close()
        run = mlflow_runs(server.url, folder.name, tmp_path / "read")["t0000"]
    finally:
        server.kill()
    assert run.history["accuracy"] == [(12, 0.12), (18, 0.18), (24, 0.24)]
    assert run.artifacts["adapter/adapter_model.safetensors"] == b"weights"
    assert run.status == "FINISHED"
    assert len(notes) == 1


def _has_rung(server: MlflowServer, folder: SweepFolder, files: Path) -> bool:
    try:
        return "accuracy" in mlflow_runs(server.url, folder.name, files / "wait")["t0000"].history
    except (AssertionError, KeyError):
        return False
