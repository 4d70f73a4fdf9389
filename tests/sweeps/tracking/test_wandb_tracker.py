"""What W&B is told about a sweep, read back with W&B's own reader; and that a sweep never depends on it."""

import io
import json
import math
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import wandb
from ray import tune
from wandb.util import get_core_path

from analysis.folder import MetricsRow, SweepFolder
from sweeps.display.progress import Progress
from sweeps.display.sweep_state import SweepState
from sweeps.driver.tune_run import TuneCallback
from sweeps.process import installation
from sweeps.tracking import wandb_runs
from sweeps.tracking.base import TrackedSweep
from sweeps.tracking.tune_callback import TrackerCallback
from sweeps.tracking.wandb_tracker import WandbTracker

KEY = "0123456789abcdef" * 3  # looks like an API key
VALUES = {"lora.rank": 8, "optim.lr": 3e-4}


@pytest.fixture(autouse=True)
def fresh_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No login, no settings and no environment but the test's own; W&B reads them once a process, at its start."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_DIR", "WANDB_SERVICE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    return SweepFolder(tmp_path / "runs" / "my sweep")


@pytest.fixture
def notes() -> list[str]:
    return []


def config_of(trial_id: str, values: dict[str, Any]) -> dict[str, Any]:
    return {"lora": {"rank": values["lora.rank"], "dropout": 0.0}, "optim": {"lr": values["optim.lr"]}}


@pytest.fixture
def tracker(folder: SweepFolder, notes: list[str]) -> Callable[..., TrackerCallback]:
    def make(mode: str = "offline", interrupted: Callable[[], bool] = lambda: False) -> TrackerCallback:
        sweep = TrackedSweep(folder, "ab12cd34", notes.append)
        made = WandbTracker(sweep, "lorasweep", None, ["quick"], mode)
        return TrackerCallback([] if made.off else [made], folder, config_of, interrupted)

    return make


def command(tracker: TrackerCallback) -> str:
    """The command that is printed when the sweep is over; empty where there is none."""
    return next((hint.command for hint in tracker.hints()), "")


def trial(trial_id: str, **values: Any) -> Any:
    # Tune's own id is another one, as in a real run.
    return SimpleNamespace(trial_id=f"tune_{trial_id}", config={"trial_id": trial_id, "values": VALUES | values})


def report(step: int, accuracy: float, **changes: Any) -> dict[str, Any]:
    result = {
        "trial_id": "tune_…",
        "step": step,
        "tokens": step * 100,
        "seconds": step / 10,
        "n_items": 96,
        "final": False,
        "state": "running",
        "reason": "",
        "objective": accuracy - 0.1,
        "metrics": {"accuracy": accuracy, "bias.crows_pairs.pct": 55.5},
    }
    return result | changes


def start(tracker: TrackerCallback, one: Any) -> None:
    tracker.on_trial_start(iteration=0, trials=[one], trial=one)


def tell(tracker: TrackerCallback, one: Any, result: dict[str, Any]) -> None:
    tracker.on_trial_result(iteration=0, trials=[one], trial=one, result=result)


def complete(tracker: TrackerCallback, one: Any) -> None:
    tracker.on_trial_complete(iteration=0, trials=[one], trial=one)


class Read:
    """One ``.wandb`` file through ``wandb leet inspect``."""

    def __init__(self, file: Path) -> None:
        command = [get_core_path(), "leet", "inspect", "--no-observability", "--json", "--run-file", str(file)]
        out = subprocess.run([*command, str(file.parent.parent)], capture_output=True, text=True, check=True).stdout
        records = [json.loads(line) for line in out.splitlines()]
        self.run = next(record["run"] for record in records if record["type"] == "run")
        self.config = {k: v for k, v in self.run["config"]["update"].items() if k != "_wandb"}
        self.history = [record["history"]["item"] for record in records if record["type"] == "history"]
        self.summary: dict[str, Any] = {}
        for record in records:
            if record["type"] == "summary":
                self.summary |= record["summary"]["update"]
        self.metrics = [record["metric"] for record in records if record["type"] == "metric"]
        self.exit_code = next((record["exit"].get("exit_code") for record in records if record["type"] == "exit"), None)

    def series(self, name: str) -> list[tuple[int, float]]:
        return [(point["step"], point[name]) for point in self.history if name in point]


def runs(folder: SweepFolder) -> dict[str, list[Read]]:
    """Runs by id, oldest first: a resumed run has several files."""
    read: dict[str, list[Read]] = {}
    for file in sorted(folder.root.glob("wandb/*/*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        run = Read(file)
        read.setdefault(run.run["run_id"], []).append(run)
    return read


def only(found: list[Read]) -> Read:
    (one,) = found
    return one


def test_two_trials_side_by_side_are_two_runs_with_config_metrics_by_step_and_outcome(
    tracker: Callable[..., TrackerCallback], folder: SweepFolder, notes: list[str]
) -> None:
    mine, (a, b) = tracker(), (trial("t0000"), trial("t0001", **{"lora.rank": 4}))
    for one in (a, b):
        start(mine, one)
    for step in (12, 24):
        tell(mine, a, report(step, step / 100))
        tell(mine, b, report(step, step / 200))
    # The last rung comes with the end; the trial's own scores are of all items, at the best rung's step.
    last_rung = report(48, 0.48)
    final = report(24, 0.9, n_items=160, final=True)
    tell(mine, a, final | {"state": "completed", "objective": 0.8, "step": 48, "rows": [last_rung, final]})
    complete(mine, a)
    complete(mine, b)
    mine.close()

    found = runs(folder)
    assert sorted(found) == ["ab12cd34-t0000", "ab12cd34-t0001"]
    first, second = only(found["ab12cd34-t0000"]), only(found["ab12cd34-t0001"])
    assert first.config == {"lora": {"rank": 8, "dropout": 0.0}, "optim": {"lr": 3e-4}}
    assert second.config["lora"]["rank"] == 4
    assert first.run["display_name"] == "t0000"
    assert (first.run["run_group"], first.run["job_type"]) == ("my sweep", "trial")
    assert (first.run["project"], first.run["tags"]) == ("lorasweep", ["quick"])
    assert first.series("accuracy") == [(12, 0.12), (24, 0.24), (48, 0.48)]
    assert first.series("objective") == [(12, pytest.approx(0.02)), (24, pytest.approx(0.14))]
    assert first.series("bias.crows_pairs.pct") == [(12, 55.5), (24, 55.5), (48, 55.5)]
    assert second.series("accuracy") == [(12, 0.06), (24, 0.12)]
    assert {"glob_name": "*", "step_metric": "step"}.items() <= first.metrics[-1].items()
    assert {
        "state": "completed",
        "reason": "",
        "objective": 0.8,
        "accuracy": 0.9,
        "step": 48,
        "n_items": 160,
    }.items() <= (first.summary.items())
    assert (first.exit_code or 0) == 0
    assert notes == []


@pytest.mark.parametrize(
    ("last", "state", "reason", "exit_code"),
    [
        ({}, "stopped_early", "scheduler: not among the best at step 24", 0),
        ({"state": "completed", "final": True}, "completed", "", 0),
        (
            {"state": "diverged", "reason": "the loss is NaN", "objective": math.nan, "metrics": {}},
            "diverged",
            "the loss is NaN",
            1,
        ),
        ({"state": "out_of_memory", "reason": "8 GiB asked"}, "out_of_memory", "8 GiB asked", 1),
    ],
)
def test_the_summary_tells_the_outcome(
    tracker: Callable[..., TrackerCallback],
    folder: SweepFolder,
    last: dict[str, Any],
    state: str,
    reason: str,
    exit_code: int,
) -> None:
    mine, one = tracker(), trial("t0000")
    start(mine, one)
    tell(mine, one, report(12, 0.5))
    tell(mine, one, report(24, 0.6, **last))
    complete(mine, one)
    mine.close()
    run = only(runs(folder)["ab12cd34-t0000"])
    assert (run.summary["state"], run.summary["reason"], run.exit_code or 0) == (state, reason, exit_code)
    assert run.summary["accuracy"] == (0.5 if last.get("metrics") == {} else 0.6)
    assert run.series("accuracy") == ([(12, 0.5), (24, 0.6)] if state == "stopped_early" else [(12, 0.5)])


def test_a_lost_process_is_failed_and_an_unfinished_trial_is_left_to_be_gone_on_with(
    tracker: Callable[..., TrackerCallback], folder: SweepFolder
) -> None:
    mine, lost, unfinished = tracker(), trial("t0000"), trial("t0001")
    for one in (lost, unfinished):
        start(mine, one)
        tell(mine, one, report(12, 0.5))
    mine.on_trial_error(iteration=0, trials=[], trial=lost)
    mine.on_experiment_end(trials=[])
    mine.close()
    found = runs(folder)
    assert only(found["ab12cd34-t0000"]).summary["state"] == "failed"
    assert only(found["ab12cd34-t0001"]).summary["state"] == "running"
    assert only(found["ab12cd34-t0001"]).exit_code == 255


def test_what_a_ctrl_c_takes_down_has_neither_failed_nor_been_stopped(
    tracker: Callable[..., TrackerCallback], folder: SweepFolder
) -> None:
    stopped = threading.Event()
    mine, lost, ended, done = tracker(interrupted=stopped.is_set), trial("t0000"), trial("t0001"), trial("t0002")
    for one in (lost, ended, done):
        start(mine, one)
        tell(mine, one, report(12, 0.5))
    stopped.set()
    mine.on_trial_error(iteration=0, trials=[], trial=lost)
    complete(mine, ended)
    tell(mine, done, report(12, 0.6, state="completed", final=True))
    complete(mine, done)
    mine.close()
    states = {run_id: only(found).summary["state"] for run_id, found in runs(folder).items()}
    assert states == {"ab12cd34-t0000": "running", "ab12cd34-t0001": "running", "ab12cd34-t0002": "completed"}


def test_what_is_logged_after_the_end_is_left_to_the_next_driver(
    tracker: Callable[..., TrackerCallback], folder: SweepFolder
) -> None:
    mine, idle = tracker(), tracker()
    start(mine, trial("t0000"))
    mine.on_experiment_end(trials=[])
    for callback in (mine, idle):
        callback.close()
        callback.log_baseline("zero_shot", {"accuracy": 0.3}, {})
        callback.close()
        callback.close()
    assert sorted(runs(folder)) == ["ab12cd34-t0000"]


def test_a_baseline_is_a_run_of_its_own_kind(tracker: Callable[..., TrackerCallback], folder: SweepFolder) -> None:
    mine = tracker()
    mine.log_baseline("zero_shot", {"accuracy": 0.3, "perplexity": math.nan}, {"model": {"name": "m"}})
    mine.close()
    run = only(runs(folder)["ab12cd34-zero_shot"])
    assert (run.run["job_type"], run.config) == ("baseline", {"model": {"name": "m"}})
    assert run.series("accuracy") == [(0, 0.3)]
    assert (run.summary["state"], run.summary["accuracy"], run.summary["perplexity"]) == ("completed", 0.3, "NaN")


def test_a_run_that_is_gone_on_with_is_written_whole(
    tracker: Callable[..., TrackerCallback], folder: SweepFolder
) -> None:
    one = trial("t0000")
    first = tracker()
    start(first, one)
    tell(first, one, report(12, 0.5))
    first.close()
    assert only(runs(folder)["ab12cd34-t0000"]).series("accuracy") == [(12, 0.5)]
    folder.trial("t0000").append_metrics(MetricsRow("t0000", 12, 1200, 1.2, False, 96, {"accuracy": 0.5}))
    second = tracker()
    start(second, one)
    tell(second, one, report(24, 0.6))
    complete(second, one)
    second.close()
    after = only(runs(folder)["ab12cd34-t0000"])  # whole, in the place of the first
    assert after.series("accuracy") == [(12, 0.5), (24, 0.6)]
    assert after.run["resume"]
    assert after.summary["state"] == "stopped_early"


def test_a_driver_that_is_killed_leaves_what_it_logged(folder: SweepFolder) -> None:
    script = f"""
import os, time
from pathlib import Path
from types import SimpleNamespace
from analysis.folder import MetricsRow, SweepFolder
from sweeps.tracking.base import TrackedSweep
from sweeps.tracking.tune_callback import TrackerCallback
from sweeps.tracking.wandb_tracker import WandbTracker
from sweeps.driver.tune_run import TuneCallback
folder = SweepFolder({str(folder.root)!r})
wandb_runs = WandbTracker(TrackedSweep(folder, "ab12cd34", print), "p", None, [], "offline")
tracker = TrackerCallback([wandb_runs], folder, lambda i, v: v)
one = SimpleNamespace(config={{"trial_id": "t0000", "values": {{}}}})
row = {report(12, 0.5)!r}
tracker.on_trial_start(0, [], one)
tracker.on_trial_result(0, [], one, row)
gives_up = time.monotonic() + 10  # W&B itself writes every 15 s
def written():
    return any(b"accuracy" in file.read_bytes() for file in Path({str(folder.root)!r}).glob("wandb/*/*.wandb"))
while time.monotonic() < gives_up and not written():
    time.sleep(0.05)
os.kill(os.getpid(), 9)
"""
    here = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", script], cwd=here, timeout=60).returncode == -9
    assert only(runs(folder)["ab12cd34-t0000"]).series("accuracy") == [(12, 0.5)]


def test_an_error_in_one_run_stops_neither_the_others_nor_the_sweep(
    tracker: Callable[..., TrackerCallback], folder: SweepFolder, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = wandb.Run.log

    def failing(run: Any, *args: Any, **kwargs: Any) -> None:
        if run.name == "t0000":
            raise RuntimeError("the service is gone\nlong story")
        plain(run, *args, **kwargs)

    monkeypatch.setattr(wandb.Run, "log", failing)
    mine, bad, good = tracker(), trial("t0000"), trial("t0001")
    for one in (bad, good):
        start(mine, one)
        for step in (12, 24):
            tell(mine, one, report(step, 0.5))
        complete(mine, one)
    mine.close()
    assert only(runs(folder)["ab12cd34-t0001"]).series("accuracy") == [(12, 0.5), (24, 0.5)]
    assert notes == [
        "W&B: t0000 is not tracked any further (the service is gone). Results are in the sweep folder all the same."
    ]


def test_wandb_not_installed_is_noted_once_and_the_sweep_goes_on(
    tracker: Callable[..., TrackerCallback], folder: SweepFolder, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # makes `import wandb` raise ImportError
    mine = tracker("online")
    mine.setup()
    for one in (trial("t0000"), trial("t0001")):
        start(mine, one)
        tell(mine, one, report(12, 0.5))
        complete(mine, one)
    mine.close()
    assert len(notes) == 1
    assert "not installed" in notes[0]
    assert command(mine) == ""


def test_not_logged_in_means_offline_with_the_command_to_upload(
    tracker: Callable[..., TrackerCallback], folder: SweepFolder, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("W&B asked the user"))
    mine, one = tracker("online"), trial("t0000")
    start(mine, one)
    tell(mine, one, report(12, 0.5))
    complete(mine, one)
    mine.close()
    assert only(runs(folder)["ab12cd34-t0000"]).series("accuracy") == [(12, 0.5)]
    assert len(notes) == 1
    assert "not logged in" in notes[0]
    assert command(mine) in notes[0]


def test_a_server_that_does_not_answer_means_offline_without_an_attempt_to_go_online(
    tracker: Callable[..., TrackerCallback], folder: SweepFolder, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)

    def no_answer(**_: Any) -> None:  # what login raises where nothing listens, after 10 s
        raise wandb.errors.AuthenticationError("Failed to authenticate: the service process did not respond in time.")

    monkeypatch.setattr(wandb, "login", no_answer)
    mine, one = tracker("online"), trial("t0000")
    start(mine, one)
    tell(mine, one, report(12, 0.5))
    complete(mine, one)
    mine.close()
    assert only(runs(folder)["ab12cd34-t0000"]).series("accuracy") == [(12, 0.5)]
    assert len(notes) == 1
    assert "did not respond in time." in notes[0]
    assert command(mine) in notes[0]


def test_a_server_that_is_lost_later_means_offline_from_then_on(
    tracker: Callable[..., TrackerCallback], folder: SweepFolder, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(wandb_runs, "INIT_SECONDS", 1.0)
    mine = tracker("online")
    for one in (trial("t0000"), trial("t0001")):
        start(mine, one)
        tell(mine, one, report(12, 0.5))
        complete(mine, one)
    mine.close()
    offline = [Read(file) for file in folder.root.glob("wandb/offline-run-*/*.wandb")]
    assert sorted(run.run["display_name"] for run in offline) == ["t0000", "t0001"]
    assert all(run.series("accuracy") == [(12, 0.5)] for run in offline)
    assert len(notes) == 1
    assert "connection refused" in notes[0] or "deadline" in notes[0]
    assert_no_key(folder)


def test_a_wandb_that_hangs_holds_up_neither_the_trials_nor_the_end(
    tracker: Callable[..., TrackerCallback], notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hung, release = threading.Event(), threading.Event()

    def hang(**_: Any) -> None:
        hung.set()
        release.wait(30)
        raise RuntimeError

    monkeypatch.setattr(wandb, "init", hang)
    mine, one = tracker(), trial("t0000")
    try:
        start(mine, one)
        assert hung.wait(30)
        tell(mine, one, report(12, 0.5))
        complete(mine, one)
        mine.close(timeout=0.05)
        assert not release.is_set()
        assert "still busy" in notes[0]
        queued = mine._threads[0]._queue.qsize()
        start(mine, trial("t0001"))  # and nothing is queued any more
        assert mine._threads[0]._queue.qsize() == queued
    finally:
        release.set()


@pytest.mark.parametrize(("variable", "given"), [("disabled", "online"), ("offline", "online"), ("dryrun", "online")])
def test_wandb_mode_in_the_environment_wins(
    tracker: Callable[..., TrackerCallback],
    folder: SweepFolder,
    notes: list[str],
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    given: str,
) -> None:
    monkeypatch.setenv("WANDB_MODE", variable)
    mine, one = tracker(given), trial("t0000")
    start(mine, one)
    tell(mine, one, report(12, 0.5))
    complete(mine, one)
    mine.close()
    found = list(folder.root.glob("wandb/*"))
    if variable == "disabled":
        assert found == []
    else:
        assert [path.name.split("-run")[0] for path in found] == ["offline"]
    assert notes == []


@pytest.mark.parametrize("given", ["online", "offline"])
def test_wandb_disabled_in_the_environment_switches_it_off_with_a_word(
    tracker: Callable[..., TrackerCallback],
    folder: SweepFolder,
    notes: list[str],
    monkeypatch: pytest.MonkeyPatch,
    given: str,
) -> None:
    monkeypatch.setenv("WANDB_DISABLED", "true")
    mine, one = tracker(given), trial("t0000")
    start(mine, one)
    tell(mine, one, report(12, 0.5))
    complete(mine, one)
    mine.close()
    assert list(folder.root.glob("wandb/*")) == []
    assert notes == ["W&B is switched off by WANDB_DISABLED in the environment: the trials are not tracked there."]


def test_no_api_key_lands_in_the_sweep_folder_or_in_a_pickle(
    tracker: Callable[..., TrackerCallback], folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    mine, one = tracker(), trial("t0000")
    start(mine, one)
    tell(mine, one, report(12, 0.5))
    pickled = pickle.dumps(mine)  # as Tune does, while a thread is at work
    mine.close()
    assert KEY.encode() not in pickled
    assert_no_key(folder)


def assert_no_key(folder: SweepFolder) -> None:
    files = [file for file in folder.root.rglob("*") if file.is_file()]
    assert files
    assert not [file for file in files if KEY.encode() in file.read_bytes()]


def test_the_hint_is_a_command_that_finds_the_runs_and_empty_once_they_are_synced(
    tracker: Callable[..., TrackerCallback], folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tracker()
    assert command(mine) == ""
    mine.log_baseline("zero_shot", {"accuracy": 0.3}, {})
    mine.close()
    monkeypatch.chdir(folder.root.parent.parent)
    monkeypatch.setattr(installation.shutil, "which", lambda name: None)  # the environment is not active
    hint = command(mine)
    assert hint.endswith("/bin/wandb sync 'runs/my sweep/wandb'")
    shown = subprocess.run(f"{hint} --dry-run", shell=True, capture_output=True, text=True, check=True)
    assert "Would sync 1 run(s)" in shown.stdout + shown.stderr
    (file,) = folder.root.glob("wandb/*/*.wandb")
    file.with_name(f"{file.name}.synced").touch()
    assert command(tracker()) == ""


class Tiny(tune.Trainable):
    """Reports as a trial's proxy does; the first trial ends by itself, the others are stopped at step 2."""

    def setup(self, config: dict[str, Any]) -> None:
        self.at = 0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.at = 0
        return True

    def step(self) -> dict[str, Any]:
        self.at += 1
        if self.at == 3:
            return report(3, 0.9, state="completed", final=True) | {"done": True}
        return report(self.at, self.at / 10)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        pass


class StopLater(tune.Stopper):
    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return bool(result["config"]["trial_id"] != "t0000" and result["step"] == 2)

    def stop_all(self) -> bool:
        return False


def test_a_real_tune_run_is_tracked_and_shown(
    tracker: Callable[..., TrackerCallback], folder: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    mine, stream = tracker(), io.StringIO()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        with Progress(SweepState("tiny", trials=3, max_steps=3), stream) as progress:
            space = {"trial_id": tune.grid_search(["t0000", "t0001", "t0002"]), "values": VALUES}
            results = tune.Tuner(
                tune.with_resources(Tiny, {"cpu": 0.001}),
                param_space=space,
                tune_config=tune.TuneConfig(max_concurrent_trials=2, reuse_actors=True),
                run_config=tune.RunConfig(
                    storage_path=str(tmp_path / "scratch"),
                    callbacks=[mine, TuneCallback(progress)],
                    stop=StopLater(),
                    verbose=0,
                ),
            ).fit()
    finally:
        ray.shutdown()
    mine.close()
    assert not results.errors
    found = {run_id: only(files) for run_id, files in runs(folder).items()}
    assert {run_id: (run.summary["state"], run.series("accuracy")) for run_id, run in found.items()} == {
        "ab12cd34-t0000": ("completed", [(1, 0.1), (2, 0.2)]),
        "ab12cd34-t0001": ("stopped_early", [(1, 0.1), (2, 0.2)]),
        "ab12cd34-t0002": ("stopped_early", [(1, 0.1), (2, 0.2)]),
    }
    shown = stream.getvalue()
    assert shown.count("started") == 3
    assert "t0000  completed at step 3  accuracy 0.900" in shown
    assert "t0002  stopped early at step 2  accuracy 0.200" in shown
    assert "(3/3 done)" in shown
