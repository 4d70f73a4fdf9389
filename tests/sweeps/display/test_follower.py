"""A view of a sweep from its folder alone: the same rows, times and lines as the sweep's own process shows."""

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest

from analysis.folder import MetricsRow, SweepFolder, append_line
from sweeps.display.follower import Follower
from sweeps.display.progress import Progress
from sweeps.store.control import Driver

TERMS = {"accuracy": {"metric": "accuracy", "direction": "max"}}
VALUES = {"lora.rank": 8}


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    return SweepFolder(tmp_path / "mine")


def manifest(trials: int = 4, repeats: int = 1) -> dict[str, Any]:
    return {
        "name": "mine",
        "config": {
            "search": {"trials": trials, "repeats": repeats},
            "train": {"max_steps": 16},
            "objective": {"name": "o", "method": "chebyshev", "rho": 0.0, "terms": TERMS},
        },
    }


def event(folder: SweepFolder, kind: str, trial_id: str, at: float, step: int = 0, **more: Any) -> None:
    record = {"event": kind, "trial_id": trial_id, "number": 0, "values": VALUES, "time": at, "step": step}
    append_line(folder.asks_file, record | {"objective": None, "state": "pending"} | more)


def rung(folder: SweepFolder, trial_id: str, at: float, step: int, accuracy: float) -> None:
    scored(folder, trial_id, step, accuracy)
    event(folder, "rung", trial_id, at, step, state="running", objective=accuracy)


def scored(folder: SweepFolder, trial_id: str, step: int, accuracy: float, final: bool = False) -> None:
    row = MetricsRow(trial_id, step, 100, 5.0, final, 12, {"accuracy": accuracy})
    folder.trial(trial_id).append_metrics(row)


def test_what_has_happened_stands_in_the_view_with_its_own_times(folder: SweepFolder) -> None:
    now = time.time()
    began = now - 100
    event(folder, "ask", "t0000", began + 10)
    rung(folder, "t0000", began + 30, 8, 0.5)
    event(folder, "ask", "t0001", began + 40)
    scored(folder, "t0000", 16, 0.75, final=True)
    event(folder, "tell", "t0000", began + 60, 16, state="completed", objective=0.75, reason="")
    state = Follower(folder, manifest(), Driver(True, 1, "here", began, now)).state
    assert (state.ended, state.total, [trial.trial_id for trial in state.running]) == (1, 4, ["t0001"])
    done = state.trials["t0000"]
    assert (done.step, done.metrics, done.objective, str(done.state)) == (16, {"accuracy": 0.75}, 0.75, "completed")
    assert state.elapsed("t0000") == pytest.approx(50)
    assert state.elapsed("t0001") == pytest.approx(60, abs=5)
    assert state.elapsed() == pytest.approx(100, abs=5)
    assert state.seconds_left() is not None


def test_what_happens_meanwhile_is_told_in_the_lines_of_the_sweeps_own_process(folder: SweepFolder) -> None:
    began = time.time()
    event(folder, "ask", "t0000", began)
    follower, out = Follower(folder, manifest(), Driver(True, 1, "here", began, began)), io.StringIO()
    with Progress(follower.state, out, "plain") as progress:
        follower.look(progress)
        assert out.getvalue() == ""
        rung(folder, "t0000", began, 8, 0.5)
        event(folder, "ask", "t0001", began)
        files = folder.baseline("majority")
        files.append_metrics(MetricsRow("majority", 0, 0, 1.0, True, 30, {"accuracy": 0.25, "macro_f1": 0.125}))
        follower.look(progress)
        event(folder, "tell", "t0001", began, 0, state="failed", reason="it broke")
        follower.look(progress)
        follower.look(progress)
    said = [line.split("] ", 1)[1] for line in out.getvalue().splitlines()]
    assert said[0] == "majority  scored  accuracy 0.250  F1 0.125"
    assert said[1].startswith("t0000  step 8/16  accuracy 0.500  objective 0.500  (0/4 done")
    assert said[2] == "t0001  started  rank=8"
    assert said[3].startswith("t0001  failed at step 0  (1/4 done")
    assert said[3].endswith(": it broke")
    assert len(said) == 4


def test_after_a_resume_only_what_its_process_runs_is_shown_and_the_rest_is_counted(folder: SweepFolder) -> None:
    resumed = time.time() - 10
    for trial_id, outcome in (("t0000", "completed"), ("t0001", "stopped_early"), ("t0002", "completed")):
        event(folder, "ask", trial_id, resumed - 60)
        rung(folder, trial_id, resumed - 50, 8, 0.5)
        event(folder, "tell", trial_id, resumed - 40, 8, state=outcome)
    event(folder, "ask", "t0000.1", resumed - 30)
    event(folder, "tell", "t0000.1", resumed - 20, 16, state="completed")
    event(folder, "ask", "t0002.1", resumed - 15)
    state = Follower(folder, manifest(repeats=2), Driver(True, 1, "here", resumed, resumed)).state
    assert (state.ended_before, state.ended) == (2, 2), "t0002 has another seed to come"
    assert "t0000" not in state.trials
    assert [trial.trial_id for trial in state.running][-1:] == ["t0002.1"]
    assert state.elapsed("t0002.1") == pytest.approx(10, abs=5), "it goes on since the resume"


def test_a_torn_line_and_records_of_other_versions_stop_no_view(folder: SweepFolder) -> None:
    folder.asks_file.parent.mkdir(parents=True)
    folder.asks_file.write_text(json.dumps({"event": "warm", "trial_id": None}) + '\n{"event": "as')
    assert Follower(folder, manifest(), Driver(True)).state.trials == {}
