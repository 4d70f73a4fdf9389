"""`lorasweep status`, `stop` and `enqueue`, on folders and on a simulated sweep that runs; the same command again."""

import fcntl
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from analysis.errors import ConfigError, FolderError
from analysis.folder import MetricsRow, State, Status, SweepFolder, append_line, read_lines
from sweeps.cli import main
from sweeps.compose.compose import Composed, compose
from sweeps.display.status import overview
from sweeps.driver.baseline_runner import planned
from sweeps.driver.resume import differences, nothing_left, same_sweep
from sweeps.driver.stopper import SweepStopper
from sweeps.process.installation import package_root
from sweeps.store.control import Heartbeat, requests
from sweeps.store.manifest import make_manifest, read_manifest, write_manifest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "simulated.py"
_spec = importlib.util.spec_from_file_location("simulated_steering", SCRIPT)
assert _spec
assert _spec.loader
simulated: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(simulated)


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    """A sweep of three trials: one completed, one that has reached a rung, one to come."""
    composed = compose([*simulated.overrides(tmp_path), "search.trials=3", "search.budget.hours=2"])
    made = SweepFolder(tmp_path / "runs" / "simulated")
    facts = {"fingerprint": "0" * 64, "labels": ["a", "b"], "rows": {}}
    write_manifest(made, make_manifest(composed, facts, []) | {"asked": composed.unresolved()})
    for number, (state, step) in enumerate([(State.COMPLETED, 16), (State.RUNNING, 8)]):
        files, values = made.trial(f"t{number:04d}"), {"lora.rank": 8, "optim.lr": 1e-3}
        files.write_status(Status(state, "", step, "here: CPU", ("a checkpoint was damaged",) if number else ()))
        metrics = {"accuracy": 0.8, "macro_f1": 0.8, "log_loss": 0.4}
        files.append_metrics(MetricsRow(files.trial_id, step, 1000, 1.0, number == 0, 12, metrics))
        line = {"trial_id": files.trial_id, "number": number, "values": values, "time": 0.0}
        append_line(made.asks_file, {"event": "ask", **line})
        if number == 0:
            append_line(made.asks_file, {"event": "tell", **line, "state": "completed", "objective": 0.8})
    return made


@contextmanager
def driven(folder: SweepFolder) -> Iterator[Heartbeat]:
    with (folder.root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Heartbeat(folder, 1)


def status(folder: SweepFolder, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    assert main(["status", str(folder.root), "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert main(["status", str(folder.root)]) == 0
    return seen, capsys.readouterr().out


def test_status_of_a_sweep_that_runs_was_killed_was_stopped(
    folder: SweepFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    with driven(folder) as heartbeat:
        seen, shown = status(folder, capsys)
        assert (seen["state"], seen["driver"]["pid"]) == ("running", os.getpid())
        assert f"running (process {os.getpid()} on " in shown
    seen, shown = status(folder, capsys)
    assert seen["state"] == "died"
    assert "died" in shown
    assert "resume" in shown
    heartbeat.end("Stopping. Everything is kept.")
    seen, shown = status(folder, capsys)
    assert seen["state"] == "stopped"
    assert "Everything is kept" in shown
    assert seen["trials"] == {
        "total": 3, "seeds_each": 1, "runs": 2, "handed_out": 2, "ended": 1,
        "by_state": {"running": 1, "completed": 1}, "enqueued": [],
    }  # fmt: skip
    assert seen["spent"]["tokens"] == 2000
    assert seen["budget"] == {"hours": 2}
    assert (seen["best"]["trial_id"], seen["running"][0]["trial_id"]) == ("t0000", "t0001")
    assert "note     t0001: a checkpoint was damaged" in shown
    assert "trials   1 of 3 ended (1 running, 1 completed), 1 to come" in shown


def test_status_of_a_sweep_with_a_file_that_cannot_be_read_says_so(
    folder: SweepFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.trial("t0001").status_file.write_text("{")
    seen, shown = status(folder, capsys)
    assert seen["trials"]["ended"] == 1
    assert "not a status file" in shown


def test_status_of_a_sweep_whose_record_lacks_the_search_says_so(folder: SweepFolder) -> None:
    content = yaml.safe_load(folder.sweep_file.read_text())
    del content["config"]["search"]
    folder.sweep_file.write_text(yaml.safe_dump(content))
    with pytest.raises(FolderError, match=r"sweep\.yaml: lacks config\.search\.trials"):
        overview(folder)


def test_enqueue_checks_the_point_and_says_when_it_is_tried(
    folder: SweepFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    for values, words in (
        (["lora.rank=7"], "lora.rank=7 is outside the space"),
        (["lora.rnk=8"], "Did you mean 'lora.rank'"),
        (["train.max_steps=8"], "not in the search space"),
        (["lora.rank=choice(4,8)"], "expected values of the search space"),
    ):
        assert main(["enqueue", str(folder.root), *values]) == ConfigError.exit_code
        assert words in capsys.readouterr().err
    assert requests(folder) == []
    assert main(["enqueue", str(folder.root), "lora.rank=16", "optim.lr=3e-4"]) == 0
    assert "one of the 1 trials to come" in capsys.readouterr().out
    assert main(["enqueue", str(folder.root), "lora.rank=32"]) == 0
    assert "all 3 trials of the sweep are taken" in (out := capsys.readouterr().out)
    assert "search.trials=4" in out
    assert [request.point for request in requests(folder)] == [{"lora.rank": 16, "optim.lr": 3e-4}, {"lora.rank": 32}]


def test_stop_needs_a_sweep_that_runs_and_a_trial_that_has_not_ended(
    folder: SweepFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stop", str(folder.root)]) == FolderError.exit_code
    assert "no lorasweep runs this sweep now" in capsys.readouterr().err
    with driven(folder):
        assert main(["stop", str(folder.root), "t0000"]) == FolderError.exit_code
        assert "t0000 has ended already (completed)" in capsys.readouterr().err
        assert main(["stop", str(folder.root), "t0011"]) == FolderError.exit_code
        assert "no trial 't0011' has started" in capsys.readouterr().err
        assert main(["stop", str(folder.root), "t0001"]) == 0
        assert main(["stop", str(folder.root)]) == 0
        assert [request.trial_id for request in requests(folder)] == ["t0001", ""]


def test_the_same_command_again_goes_on_and_another_config_is_refused_with_what_differs(
    folder: SweepFolder, tmp_path: Path
) -> None:
    manifest = read_manifest(folder)
    again = same_sweep(folder, manifest, compose([*simulated.overrides(tmp_path), "search.trials=5"]))
    assert again.config.search.trials == 5
    assert "holds this sweep: going on with it" in again.notes[-1]
    unresolved = manifest["unresolved"]  # what the first run chose stays, unless another is asked for now
    chosen = {part: {**unresolved[part]} for part in ("search", "ray")}
    chosen["search"]["time"], chosen["ray"]["max_concurrent_trials"] = "7m", 3
    fitted = {**manifest, "asked": unresolved, "unresolved": {**unresolved, **chosen}}
    for more, concurrent in ((), 3), (("ray.max_concurrent_trials=2",), 2):
        found = same_sweep(folder, fitted, compose([*simulated.overrides(tmp_path), *more])).config
        assert (found.search.time, found.ray.max_concurrent_trials) == ("7m", concurrent)
    other = compose([*simulated.overrides(tmp_path), "train.max_steps=32", "train.rungs=[8,32]"])
    with pytest.raises(FolderError) as refused:
        same_sweep(folder, manifest, other)
    for words in ("train.max_steps: there 16, here 32", "resume", "sweep.name=simulated-2"):
        assert words in str(refused.value)
    changed = {"search": {"trials": 9}, "sweep": {"dir": "x", "seed": 1}, "new": {"key": 1}}
    before = {"search": {"trials": 2}, "sweep": {"dir": "y", "seed": 1}}
    assert list(differences(before, changed)) == ["new.key: there nothing, here 1"]


def test_a_sweep_whose_trials_have_all_ended_has_nothing_left_to_do(folder: SweepFolder, tmp_path: Path) -> None:
    def left(composed: Composed) -> str:
        return nothing_left(folder, composed.config.search, planned(composed.template, composed.precisions))

    composed = compose([*simulated.overrides(tmp_path), "search.trials=2"])
    assert left(composed) == ""
    line = {"event": "tell", "trial_id": "t0001", "number": 1, "state": "stopped_early", "objective": 0.5}
    append_line(folder.asks_file, line)
    assert left(composed) == "", "its files do not say so yet"
    folder.trial("t0001").write_status(Status(State.STOPPED_EARLY))
    assert "All 2 trials have ended" in left(composed)
    assert left(compose([*simulated.overrides(tmp_path), "search.trials=3"])) == ""
    spent = compose([*simulated.overrides(tmp_path), "search.trials=3", "search.budget.tokens=2000"])
    assert "search.budget.tokens=2000 is used up" in left(spent)


def of_two_seeds(folder: SweepFolder) -> None:
    """Each configuration of the sweep has two seeds; t0000 has its first one, t0001 runs."""
    manifest = read_manifest(folder)
    for part in ("config", "unresolved"):
        manifest[part]["search"]["repeats"] = 2
    write_manifest(folder, manifest)
    lines = [line | ({"told": "WAIT"} if line["event"] == "tell" else {}) for line in read_lines(folder.asks_file)]
    folder.asks_file.unlink()
    for line in lines:
        append_line(folder.asks_file, line)


def test_a_sweep_of_several_seeds_is_extended_by_configurations(folder: SweepFolder, tmp_path: Path) -> None:
    def left(trials: int) -> str:
        composed = compose([*simulated.overrides(tmp_path), f"search.trials={trials}", "search.repeats=2"])
        return nothing_left(folder, composed.config.search, planned(composed.template, composed.precisions))

    of_two_seeds(folder)
    folder.trial("t0001").write_status(Status(State.STOPPED_EARLY))
    line = {"trial_id": "t0001", "number": 1, "state": "stopped_early", "objective": 0.5, "told": "PRUNED"}
    append_line(folder.asks_file, {"event": "tell", **line})
    assert left(2) == "", "t0000 has another seed to come"
    seed = {"trial_id": "t0000.1", "number": 0, "repeat": 1, "values": {}, "state": "completed", "objective": 0.7}
    append_line(folder.asks_file, {"event": "ask", **seed})
    append_line(folder.asks_file, {"event": "tell", "told": "WAIT", **seed})
    folder.trial("t0000.1").write_status(Status(State.COMPLETED))
    assert left(2) == "", "the sampler was not told of the mean"
    append_line(folder.asks_file, {"event": "mean", "trial_id": "t0000", "number": 0})
    assert left(2).startswith("All 2 configurations (3 runs) have ended. For more: ")
    assert left(2).endswith("search.trials=3")
    assert left(3) == "", "a third configuration is a larger sweep, whatever the number of runs"


def test_the_other_seeds_of_a_configuration_can_be_stopped(
    folder: SweepFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    of_two_seeds(folder)
    with driven(folder):
        assert main(["stop", str(folder.root), "t0000"]) == 0
        assert "to end the other seeds of t0000 at their next rungs" in capsys.readouterr().out
    stopper: Any = SweepStopper(SimpleNamespace(stopping=lambda why: None), lambda: None)  # type: ignore[arg-type]
    stopper.stop_trial("t0000")
    reports = [(name, {"config": {"trial_id": name}, "state": "running", "step": 4}) for name in ("t0000.1", "t0001")]
    assert [stopper("x", result) for _, result in reports] == [True, False]
    assert reports[0][1]["reason"] == "stopped on request at step 4"
    stopper.stop_trial("t0001.1")  # a further seed alone
    assert not stopper("x", reports[1][1])


def run(*arguments: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": package_root()}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments], env=environment, stdout=subprocess.PIPE, text=True
    )


def until(what: Any, process: "subprocess.Popen[str]") -> None:
    gives_up = time.monotonic() + 120
    while not what():
        assert process.poll() is None
        assert time.monotonic() < gives_up
        time.sleep(0.05)


@pytest.mark.heavy
def test_a_running_sweep_obeys_requests_and_budgets_and_goes_on_afterwards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = SweepFolder(tmp_path / "runs" / "simulated")
    more = ["scheduler=fifo", "search.trials=6", "resources.slots=2", "search.budget.patience=100"]
    process = run("run", str(tmp_path), "--seconds", "1", *more)
    until(lambda: any(files.read_metrics() for files in folder.trials()), process)
    assert main(["enqueue", str(folder.root), "lora.rank=16", "optim.lr=4.25e-4"]) == 0
    assert main(["stop", str(folder.root), "t0001"]) == 0
    stopped = folder.trial("t0001")
    until(lambda: stopped.read_status().state is State.STOPPED_EARLY, process)
    assert stopped.read_status().reason.startswith("stopped on request at step")
    assert (stopped.adapter_dir / "adapter_model.safetensors").exists()
    points = lambda: [line["values"] for line in read_lines(folder.asks_file) if line["event"] == "ask"]  # noqa: E731
    until(lambda: {"lora.rank": 16, "optim.lr": 4.25e-4} in points(), process)
    assert main(["stop", str(folder.root)]) == 0
    process.communicate(timeout=120)
    assert process.returncode == 130
    seen = json.loads(_status(folder, capsys))
    assert seen["state"] == "stopped"
    assert 0 < seen["trials"]["ended"] < 6

    limited = run("resume", str(tmp_path), "--seconds", "0.1", f"search.budget.tokens={seen['spent']['tokens'] + 1000}")
    limited.communicate(timeout=120)
    assert limited.returncode == 0
    paused = json.loads(_status(folder, capsys))
    assert "search.budget.tokens" in paused["driver"]["ended"]
    assert paused["trials"]["ended"] < 6

    whole = run("resume", str(tmp_path), "search.budget.tokens=null")
    whole.communicate(timeout=120)
    assert whole.returncode == 0
    ended = json.loads(_status(folder, capsys))
    assert (ended["state"], ended["trials"]["ended"]) == ("finished", 6)
    assert requests(folder) == []
    assert len(points()) >= 6
    tells = [line["trial_id"] for line in read_lines(folder.asks_file) if line["event"] == "tell"]
    assert sorted(tells) == [f"t{n:04d}" for n in range(6)]


def _status(folder: SweepFolder, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["status", str(folder.root), "--json"]) == 0
    return capsys.readouterr().out
