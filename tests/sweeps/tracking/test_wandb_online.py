"""The online path against a W&B server on the loopback address: what it shows, and what happens when it fails."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import wandb
from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

from analysis.folder import MetricsRow, State, Status, SweepFolder, append_line
from analysis.rows import Row
from sweeps.process.logs import to_file
from sweeps.tracking import wandb_runs
from sweeps.tracking.base import TrackedSweep
from sweeps.tracking.catch_up import CatchUp
from sweeps.tracking.from_folder import PastRuns
from sweeps.tracking.tune_callback import TrackerCallback
from sweeps.tracking.wandb_tracker import WandbTracker
from tests.analysis.answers import TUNED, UNTUNED, table
from tests.sweeps.tracking.test_wandb_tracker import VALUES, Read, command, complete, report, start, tell, trial
from tests.wandb_server import ServedRun, WandbServer, wait_for

KEY = "0123456789abcdef" * 3
HEAVY = pytest.mark.heavy


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_SERVICE", "WANDB_PROJECT", "WANDB_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "0.2")
    monkeypatch.setattr(wandb_runs, "INIT_SECONDS", 3.0)
    monkeypatch.setattr(wandb_runs, "FINISH_SECONDS", 3.0)
    wandb.teardown()
    with WandbServer() as found:
        monkeypatch.setenv("WANDB_BASE_URL", found.url)
        yield found
        found.trouble = ""
    wandb.teardown()


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    return SweepFolder(tmp_path / "runs" / "my sweep")


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def tracker(folder: SweepFolder, notes: list[str], server: WandbServer) -> Callable[..., TrackerCallback]:
    def make(answers: int = 0) -> TrackerCallback:
        def config(trial_id: str, values: dict[str, Any]) -> dict[str, Any]:
            return {"precision": "nf4", "lora": {"rank": values["lora.rank"]}, "optim": {"lr": values["optim.lr"]}}

        sweep = TrackedSweep(folder, "ab12cd34", notes.append)
        return TrackerCallback([WandbTracker(sweep, "p", None, ["quick"], "online", 2, answers)], folder, config)

    return make


def write_trial(folder: SweepFolder, trial_id: str = "t0000") -> None:
    """What a worker and the recorder leave of a completed trial."""
    files = folder.trial(trial_id)
    items = {
        "item_id": ["v-1", "v-2", "v-3"],
        "label": ["a", "b", "a"],
        "prediction": ["a", "a", "b"],
        "logprobs": [[-0.1, -2.4], [-0.05, -3.0], [-1.2, -0.4]],
        "nll": [0.1, 3.0, 1.2],
    }
    files.write_items("task", "validation", 24, items)
    files.adapter_dir.mkdir()
    (files.adapter_dir / "adapter_model.safetensors").write_bytes(b"weights")
    files.write_status(Status(State.COMPLETED, step=24))


def track_answers(tracker: TrackerCallback, folder: SweepFolder) -> None:
    """A trial and a baseline that wrote answers, from their start to the tracker's end."""
    write_trial(folder)
    folder.trial("t0000").write_items("generated", "validation", 24, table(TUNED))
    folder.baseline("zero_shot").write_items("generated", "validation", 0, table(UNTUNED))
    one = trial("t0000")
    start(tracker, one)
    tell(tracker, one, finished(24))
    complete(tracker, one)
    tracker.log_baseline("zero_shot", {"accuracy": 0.2}, {})
    tracker.close()


def finished(step: int) -> dict[str, Any]:
    rows = [report(step, 0.24), report(step, 0.9, n_items=3, final=True)]
    return report(step, 0.9, state="completed", final=True, objective=0.8, rows=rows)


def test_online_shows_what_offline_writes_with_predictions_leaderboard_and_the_best_adapter(
    tracker: Callable[..., TrackerCallback], folder: SweepFolder, server: WandbServer, notes: list[str]
) -> None:
    mine, one = tracker(), trial("t0000")
    write_trial(folder)
    start(mine, one)
    tell(mine, one, report(12, 0.12))
    tell(mine, one, finished(24))
    complete(mine, one)
    row = Row("trial", "t0000", "completed", 24, 3, True, {"lora.rank": 8}, {"accuracy": 0.9}, 0.8, rank=1)
    other = Row("baseline", "zero_shot", "completed", 0, 3, True, {}, {"accuracy": 0.3}, 0.3, rank=2)
    figure = {"data": [{"type": "bar", "x": ["t0000"], "y": [0.8]}], "layout": {}}
    mine.log_sweep([row, other], {"search": {"trials": 1}}, {"chart/objective": figure})
    mine.close()

    assert notes == []
    assert sorted(server.runs) == ["ab12cd34-sweep", "ab12cd34-t0000"]
    run = server.runs["ab12cd34-t0000"]
    assert (run.display_name, run.group, run.job_type, run.tags) == ("t0000", "my sweep", "trial", ["quick", "nf4"])
    assert run.plain_config == {"precision": "nf4", "lora": {"rank": 8}, "optim": {"lr": VALUES["optim.lr"]}}
    assert run.series("accuracy") == [(12, 0.12), (24, 0.24)]
    assert run.exit_code == 0
    expected = {"state": "completed", "objective": 0.8, "accuracy": 0.9, "bias.crows_pairs.pct": 55.5, "step": 24}
    assert expected.items() <= run.summary.items()
    # On disk, read back by W&B's reader, are the same figures as on the server.
    disk = [Read(file) for file in folder.root.glob("wandb/run-*/*-t0000.wandb")]
    assert [one.series("accuracy") for one in disk] == [run.series("accuracy")]
    assert expected.items() <= disk[0].summary.items()

    (shown,) = [json.loads(content) for name, content in run.files.items() if "predictions" in name]
    assert shown["columns"] == ["item_id", "label", "prediction", "confidence", "nll"]
    assert [cells[:3] for cells in shown["data"]] == [
        ["v-2", "b", "a"],
        ["v-3", "a", "b"],
    ]  # the surest mistakes, 2 rows
    sweep = server.runs["ab12cd34-sweep"]
    assert sweep.job_type == "sweep"
    assert sweep.plain_config == {"search": {"trials": 1}}
    assert {"best.trial": "t0000", "best.accuracy": 0.9, "trials.completed": 1}.items() <= sweep.summary.items()
    (board,) = [json.loads(content) for name, content in sweep.files.items() if "leaderboard" in name]
    assert [cells[2] for cells in board["data"]] == ["t0000", "zero_shot"]
    assert any("chart" in name for name in sweep.files)
    (adapter,) = server.latest("model")
    assert adapter.committed
    assert (adapter.name, set(adapter.aliases)) == ("my-sweep-adapter", {"best", "latest", "t0000"})
    assert adapter.files == {"adapter_model.safetensors": b"weights"}
    assert adapter.metadata["metrics"] == {"accuracy": 0.9}


@pytest.mark.parametrize("rows", [0, 2])
def test_what_a_trial_wrote_is_a_table_where_it_is_asked_for(
    tracker: Callable[..., TrackerCallback], folder: SweepFolder, server: WandbServer, rows: int
) -> None:
    track_answers(tracker(rows), folder)
    for name in ("t0000", "zero_shot"):
        files = server.runs[f"ab12cd34-{name}"].files
        found = [json.loads(content) for file, content in files.items() if "answers" in file]
        assert len(found) == bool(rows)
        for one_table in found:
            heads = ["item_id", "prompt", "reference", "answer", "n_tokens", "finished", "exact_match", "overlap"]
            assert one_table["columns"] == heads
            assert len(one_table["data"]) == rows  # the worst
            assert "validation-1" not in [cells[0] for cells in one_table["data"]] or name == "zero_shot"


def test_a_resumed_driver_goes_on_in_the_same_run_and_logs_no_rung_twice(
    tracker: Callable[..., TrackerCallback], folder: SweepFolder, server: WandbServer
) -> None:
    one = trial("t0000")
    first = tracker()
    start(first, one)
    tell(first, one, report(12, 0.12))
    first.close()
    folder.trial("t0000").append_metrics(MetricsRow("t0000", 12, 1200, 1.2, False, 96, {"accuracy": 0.12}))
    second = tracker()
    start(second, one)
    tell(second, one, report(12, 0.12))  # its worker had died: the rung is done again
    tell(second, one, report(24, 0.24))
    complete(second, one)
    second.close()
    assert sorted(server.runs) == ["ab12cd34-t0000"]
    assert server.runs["ab12cd34-t0000"].series("accuracy") == [(12, 0.12), (24, 0.24)]
    assert server.runs["ab12cd34-t0000"].summary["state"] == "stopped_early"


@pytest.mark.parametrize("trouble", ["500", pytest.param("hang", marks=HEAVY), pytest.param("drop", marks=HEAVY)])
def test_a_server_that_fails_from_the_start_means_offline(
    tracker: Callable[..., TrackerCallback], folder: SweepFolder, server: WandbServer, notes: list[str], trouble: str
) -> None:
    server.trouble = trouble
    mine, one = tracker(), trial("t0000")
    start(mine, one)
    tell(mine, one, report(12, 0.5))
    complete(mine, one)
    mine.close()
    assert server.refused
    assert server.runs == {}
    (run,) = [Read(file) for file in folder.root.glob("wandb/offline-run-*/*.wandb")]
    assert run.series("accuracy") == [(12, 0.5)]
    assert len(notes) == 1
    assert command(mine) in notes[0]


@pytest.mark.parametrize("trouble", [pytest.param("500", marks=HEAVY), "hang", pytest.param("drop", marks=HEAVY)])
def test_a_server_lost_in_the_middle_loses_nothing_that_was_logged(
    tracker: Callable[..., TrackerCallback], folder: SweepFolder, server: WandbServer, notes: list[str], trouble: str
) -> None:
    mine, one, later = tracker(), trial("t0000"), trial("t0001")
    start(mine, one)
    tell(mine, one, report(12, 0.12))
    assert wait_for(lambda: server.runs and server.runs["ab12cd34-t0000"].series("accuracy"), 40)
    server.trouble = trouble
    tell(mine, one, report(24, 0.24))
    complete(mine, one)
    start(mine, later)
    tell(mine, later, report(12, 0.2))
    complete(mine, later)
    mine.close()
    found = {}
    for file in folder.root.glob("wandb/*run-*/*.wandb"):
        run = Read(file)
        found.setdefault(run.run["display_name"], []).extend(run.series("accuracy"))
    assert found == {"t0000": [(12, 0.12), (24, 0.24)], "t0001": [(12, 0.2)]}
    assert command(mine)
    assert notes
    assert command(mine) in notes[0]


def record_rungs(folder: SweepFolder, *steps: int) -> None:
    """What the recorder writes of rungs, before any tracker hears of them."""
    for step in steps:
        row = MetricsRow("t0000", step, step * 100, step / 10, False, 96, {"accuracy": step / 100})
        folder.trial("t0000").append_metrics(row)


def record_end(folder: SweepFolder) -> None:
    """What a completed trial's folder holds beside its rungs."""
    write_trial(folder)
    folder.trial("t0000").append_metrics(MetricsRow("t0000", 24, 2400, 2.4, True, 3, {"accuracy": 0.9}))
    append_line(folder.asks_file, {"event": "ask", "trial_id": "t0000", "values": VALUES})
    append_line(folder.asks_file, {"event": "tell", "trial_id": "t0000", "step": 24, "objective": 0.8})


def catch_up(folder: SweepFolder, notes: list[str], mode: str = "online") -> CatchUp:
    sweep = TrackedSweep(folder, "ab12cd34", notes.append)
    return CatchUp(folder, [WandbTracker(sweep, "p", None, [], mode, 2, 0)], list(PastRuns(folder).due()))


def cores() -> list[psutil.Process]:
    mine = psutil.Process().children(recursive=True)
    return [it for it in mine if it.is_running() and "wandb-core" in " ".join(it.cmdline())]


def test_what_was_written_offline_goes_online_with_the_rest_once_the_server_is_back(
    tracker: Callable[..., TrackerCallback], folder: SweepFolder, server: WandbServer, notes: list[str]
) -> None:
    """Fallen back to offline, interrupted, and gone on with: still one run, and nothing left to upload."""
    server.trouble = "500"
    one = trial("t0000")
    first = tracker()
    start(first, one)
    tell(first, one, report(12, 0.12))
    first.close()
    assert "wandb sync runs" not in command(first)
    assert " sync " in command(first)
    assert "--include-online" not in command(first)
    server.trouble = ""
    record_rungs(folder, 12)
    write_trial(folder)
    second = tracker()
    start(second, one)
    tell(second, one, finished(24))
    complete(second, one)
    second.close()
    (run,) = server.runs.values()
    assert run.series("accuracy") == [(12, 0.12), (24, 0.24)]
    assert command(second) == ""


@pytest.mark.parametrize("killed", [False, True])
def test_the_printed_command_uploads_runs_that_were_gone_on_with_offline_as_one_run_each(
    folder: SweepFolder, server: WandbServer, notes: list[str], killed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.root.parents[1])  # `wandb sync` makes a folder for logs

    def offline() -> TrackerCallback:
        sweep = TrackedSweep(folder, "ab12cd34", notes.append)
        return TrackerCallback([WandbTracker(sweep, "p", None, [], "offline")], folder, lambda i, v: v)

    def upload() -> list[tuple[int, float]]:
        synced = subprocess.run(command(offline()), shell=True, capture_output=True, text=True)
        assert synced.returncode == 0, synced.stdout + synced.stderr
        (run,) = server.runs.values()
        return run.series("accuracy")

    one = trial("t0000")
    for step, end in ((12, False), (24, False), (48, True)):
        mine = offline()
        start(mine, one)
        tell(mine, one, report(step, step / 100))
        if end:
            complete(mine, one)
        mine.close()
        record_rungs(folder, step)
        if step == 24:
            for noted in folder.root.rglob("lorasweep-points") if killed else ():
                noted.unlink()  # a driver that is killed has not written it
            assert upload() == [(12, 0.12), (24, 0.24)]  # two drivers wrote it
    assert upload() == [(12, 0.12), (24, 0.24), (48, 0.48)]  # and what is uploaded is not uploaded again
    assert command(offline()) == ""


@pytest.mark.parametrize("there", [0, 1, 2])
def test_an_ended_trial_whose_driver_was_killed_gets_what_its_run_lacks_and_nobody_asks_twice(
    folder: SweepFolder, server: WandbServer, notes: list[str], there: int
) -> None:
    """Whatever W&B had when the driver died: no run, one rung, or both and no end."""
    if there:
        lines = {i: {"step": step, "accuracy": step / 100, "_step": i} for i, step in enumerate((12, 24)[:there])}
        server.runs["ab12cd34-t0000"] = ServedRun("ab12cd34-t0000", "p", lines=lines)
    record_rungs(folder, 12, 24)
    record_end(folder)
    first = catch_up(folder, notes)
    assert first.needed
    assert first.write() == []
    (run,) = server.runs.values()
    assert (run.name, run.job_type) == ("ab12cd34-t0000", "trial")
    assert run.series("accuracy") == [(12, 0.12), (24, 0.24)]
    assert {"state": "completed", "accuracy": 0.9, "objective": 0.8}.items() <= run.summary.items()
    assert run.exit_code == 0
    assert [name for name in run.files if "predictions" in name]
    assert notes == ["W&B lacks 1 run of this sweep: written there from the sweep folder."]
    asked = len(server.asked)
    assert not catch_up(folder, notes).needed
    assert not catch_up(folder, notes, "offline").needed
    assert len(server.asked) == asked


def test_a_run_that_is_only_on_disk_is_complete_offline_and_not_online(
    folder: SweepFolder, server: WandbServer, notes: list[str]
) -> None:
    record_rungs(folder, 12, 24)
    record_end(folder)
    (hint,) = catch_up(folder, notes, "offline").write()
    assert "--include-online" not in hint.command
    assert not catch_up(folder, notes, "offline").needed
    online = catch_up(folder, notes)
    assert online.needed
    assert online.write() == []
    assert server.runs["ab12cd34-t0000"].series("accuracy") == [(12, 0.12), (24, 0.24)]
    assert not list(folder.root.glob("wandb/offline-run-*"))


def test_an_upload_that_the_server_refused_is_said_with_the_command_and_written_by_the_next_resume(
    tracker: Callable[..., TrackerCallback], folder: SweepFolder, server: WandbServer, notes: list[str]
) -> None:
    """W&B ends such a run without an error."""
    mine, one = tracker(), trial("t0000")
    start(mine, one)
    tell(mine, one, report(12, 0.12))
    assert wait_for(lambda: server.runs and server.runs["ab12cd34-t0000"].lines, 60)
    server.trouble = "401"
    tell(mine, one, report(24, 0.24))
    complete(mine, one)
    mine.close()
    assert "sync --include-online" in command(mine)
    assert "sync --include-online" in notes[0]
    server.trouble = ""
    record_rungs(folder, 12, 24)
    folder.trial("t0000").write_status(Status(State.STOPPED_EARLY, step=24))
    assert catch_up(folder, notes).write() == []
    assert server.runs["ab12cd34-t0000"].series("accuracy") == [(12, 0.12), (24, 0.24)]
    assert server.runs["ab12cd34-t0000"].summary["state"] == "stopped_early"


def test_a_service_process_that_is_killed_costs_one_sentence_and_no_run(
    tracker: Callable[..., TrackerCallback],
    folder: SweepFolder,
    server: WandbServer,
    notes: list[str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    mine, one, later = tracker(), trial("t0000"), trial("t0001")
    with to_file(folder.log_file):
        start(mine, one)
        tell(mine, one, report(12, 0.12))
        assert wait_for(lambda: server.runs and server.runs["ab12cd34-t0000"].lines, 60)
        for core in cores():
            core.kill()
            core.wait()
        tell(mine, one, report(24, 0.24))
        complete(mine, one)
        start(mine, later)
        tell(mine, later, report(12, 0.5))
        complete(mine, later)
        record_rungs(folder, 12, 24)
        folder.trial("t0000").write_status(Status(State.STOPPED_EARLY, step=24))
        mine.catch_up(list(PastRuns(folder).due()))
        mine.close(60)
    assert {name: run.series("accuracy") for name, run in server.runs.items()} == {
        "ab12cd34-t0000": [(12, 0.12), (24, 0.24)],
        "ab12cd34-t0001": [(12, 0.5)],
    }
    assert {run.exit_code for run in server.runs.values()} == {0}
    assert "its service process has ended; it is started again" in notes[0]
    assert command(mine) == ""
    assert "Traceback" not in "".join(capfd.readouterr())
    assert "Traceback" in folder.log_file.read_text()


@pytest.mark.parametrize("error", [ConnectionResetError, MailboxClosedError, HandleAbandonedError])
def test_a_service_that_dies_while_a_run_begins_is_no_reason_to_go_offline(
    tracker: Callable[..., TrackerCallback],
    folder: SweepFolder,
    server: WandbServer,
    notes: list[str],
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
) -> None:
    begin, calls = wandb.init, []

    def dies_once(**keys: Any) -> Any:
        calls.append(keys)
        if len(calls) == 1:
            raise error
        return begin(**keys)

    monkeypatch.setattr(wandb, "init", dies_once)
    mine, one = tracker(), trial("t0000")
    start(mine, one)
    tell(mine, one, report(12, 0.12))
    complete(mine, one)
    record_rungs(folder, 12)
    folder.trial("t0000").write_status(Status(State.STOPPED_EARLY, step=12))
    mine.catch_up(list(PastRuns(folder).due()))
    mine.close(60)
    assert server.runs["ab12cd34-t0000"].series("accuracy") == [(12, 0.12)]
    assert "its service process has ended; it is started again" in notes[0]
    assert command(mine) == ""


def test_the_variables_of_an_agent_change_no_run(
    tracker: Callable[..., TrackerCallback], server: WandbServer, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"WANDB_SWEEP_ID": "s1", "WANDB_RUN_ID": "r1", "WANDB_RUN_GROUP": "theirs"}.items():
        monkeypatch.setenv(name, value)
    mine = tracker()
    for one in (trial("t0000"), trial("t0001")):
        start(mine, one)
        tell(mine, one, report(12, 0.12))
        complete(mine, one)
    mine.close()
    assert sorted(server.runs) == ["ab12cd34-t0000", "ab12cd34-t0001"]
    assert {(run.project, run.group) for run in server.runs.values()} == {("p", "my sweep")}
    (note,) = notes
    assert "WANDB_RUN_GROUP, WANDB_RUN_ID, WANDB_SWEEP_ID" in note


def test_a_killed_driver_leaves_one_run_that_the_next_goes_on_with(
    tracker: Callable[..., TrackerCallback], folder: SweepFolder, server: WandbServer
) -> None:
    script = f"""
import time
from types import SimpleNamespace
from analysis.folder import SweepFolder
from sweeps.tracking.base import TrackedSweep
from sweeps.tracking.catch_up import CatchUp
from sweeps.tracking.from_folder import PastRuns
from sweeps.tracking.tune_callback import TrackerCallback
from sweeps.tracking.wandb_tracker import WandbTracker
folder = SweepFolder({str(folder.root)!r})
wandb_runs = WandbTracker(TrackedSweep(folder, "ab12cd34", print), "p", None, [], "online")
tracker = TrackerCallback([wandb_runs], folder, lambda i, v: v)
one = SimpleNamespace(config={{"trial_id": "t0000", "values": {{}}}})
tracker.on_trial_start(0, [], one)
tracker.on_trial_result(0, [], one, {report(12, 0.12)!r})
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[3], env=dict(os.environ))
    try:
        assert wait_for(lambda: "ab12cd34-t0000" in server.runs and server.runs["ab12cd34-t0000"].lines, 60)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    record_rungs(folder, 12)
    mine, one = tracker(), trial("t0000")
    start(mine, one)
    tell(mine, one, report(24, 0.24))
    complete(mine, one)
    mine.close()
    assert sorted(server.runs) == ["ab12cd34-t0000"]
    assert server.runs["ab12cd34-t0000"].series("accuracy") == [(12, 0.12), (24, 0.24)]
