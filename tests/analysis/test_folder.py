"""The sweep folder: what a crash, a torn file or a hostile name may not do."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.errors import FolderError
from analysis.folder import (
    ENDED,
    MetricsRow,
    State,
    Status,
    SweepFolder,
    TrialFolder,
    append_line,
    atomic_write,
    usual_modes,
)
from analysis.folder import read_lines as lines_of


@pytest.fixture
def trial(tmp_path: Path) -> TrialFolder:
    return SweepFolder(tmp_path / "sweep").trial("t0000")


def row(step: int = 10, **metrics: float) -> MetricsRow:
    return MetricsRow("t0000", step, 100 * step, 1.5, False, 32, metrics)


# Whole files


def test_a_write_makes_its_folders_and_leaves_nothing_but_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    atomic_write(path, "über")
    atomic_write(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("mask", "mode"), [(0o002, "0o664"), (0o022, "0o644"), (0o077, "0o600")])
def test_files_have_the_modes_that_the_umask_gives(tmp_path: Path, mask: int, mode: str) -> None:
    before = os.umask(mask)
    try:
        atomic_write(tmp_path / "whole.json", "{}")
        append_line(tmp_path / "lines.jsonl", {})
        (tmp_path / "below").mkdir()
        for name, other in (("closed", 0o600), ("below/open", 0o666)):  # by a library that has a mind of its own
            (tmp_path / name).touch()
            (tmp_path / name).chmod(other)
        usual_modes(tmp_path)
    finally:
        os.umask(before)
    modes = {it.name: oct(it.stat().st_mode & 0o777) for it in tmp_path.rglob("*") if it.is_file()}
    assert modes == dict.fromkeys(["whole.json", "lines.jsonl", "closed", "open"], mode)


def test_a_failure_before_the_rename_leaves_the_old_file_and_no_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "status.json"
    atomic_write(path, "old")

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("dies_in", ["fsync", "replace"])
def test_a_process_killed_between_write_and_rename_leaves_the_old_file(tmp_path: Path, dies_in: str) -> None:
    path = tmp_path / "status.json"
    atomic_write(path, "old")
    program = (
        "import os, sys, pathlib\nfrom analysis.folder import atomic_write\n"
        f"os.{dies_in} = lambda *_: os._exit(9)\natomic_write(pathlib.Path(sys.argv[1]), 'new')"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", program, str(path)], cwd=root).returncode == 9
    assert path.read_text() == "old"


def test_the_content_is_on_disk_before_the_name_points_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    atomic_write(tmp_path / "file", "x")
    assert calls == ["fsync", "replace"]


# Lines


def test_lines_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "asks.jsonl"
    append_line(path, {"n": 1, "text": "ä\n"})
    append_line(path, {"n": 2})
    assert list(lines_of(path)) == [{"n": 1, "text": "ä\n"}, {"n": 2}]
    assert path.read_bytes().count(b"\n") == 2


def test_a_missing_file_has_no_lines(tmp_path: Path) -> None:
    assert list(lines_of(tmp_path / "none.jsonl")) == []


@pytest.mark.parametrize("torn", [b'{"n": 2, "te', b'{"n": "\xc3', b"2", b"[1]"])
def test_a_torn_last_line_is_dropped_and_does_not_swallow_the_next_one(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"n": 1})
    with path.open("ab") as file:
        file.write(torn)
    assert list(lines_of(path)) == [{"n": 1}]
    append_line(path, {"n": 3})
    append_line(path, {"n": 4})
    assert list(lines_of(path)) == [{"n": 1}, {"n": 3}, {"n": 4}]


def test_every_cut_of_a_log_gives_the_lines_that_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "asks.jsonl"
    for n in range(3):
        append_line(path, {"n": n, "text": "ä{}"})
    content = path.read_bytes()
    ends = [i for i, byte in enumerate(content) if byte == ord("\n")]
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        assert [record["n"] for record in lines_of(path)] == list(range(sum(end <= size for end in ends)))


# Trials


def test_status_comes_back_as_written(trial: TrialFolder) -> None:
    for state in State:
        trial.write_status(Status(state, "Grund: – \n", 7, "alpha: CPU, 2 threads"))
        assert trial.read_status() == Status(state, "Grund: – \n", 7, "alpha: CPU, 2 threads")


def test_a_trial_without_status_is_pending(trial: TrialFolder) -> None:
    assert trial.read_status() == Status(State.PENDING)


def test_only_pending_and_running_trials_have_not_ended() -> None:
    assert set(State) - ENDED == {State.PENDING, State.RUNNING}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"state": "comp',
        b'{"state": "won"}',
        b"{}",
        b"[]",
        b"null",
        b'{"state": "running", "step": "x"}',
        b"\xff",
    ],
)
def test_an_unreadable_status_names_the_file_and_what_to_do(trial: TrialFolder, content: bytes) -> None:
    atomic_write(trial.status_file, content)
    with pytest.raises(FolderError, match=r"status\.json: not a status file .*Delete it"):
        trial.read_status()


def test_metrics_come_back_as_written_nan_included(trial: TrialFolder) -> None:
    trial.append_metrics(row(10, accuracy=0.5))
    trial.append_metrics(row(20, perplexity=math.nan))
    first, second = trial.read_metrics()
    assert first == row(10, accuracy=0.5)
    assert second.step == 20
    assert math.isnan(second.metrics["perplexity"])


@pytest.mark.parametrize("foreign", [{"step": 1}, {**vars(row()), "new": 1}, {**vars(row()), "metrics": None}])
def test_rows_of_another_shape_are_passed_over(trial: TrialFolder, foreign: dict[str, object]) -> None:
    append_line(trial.metrics_file, foreign)
    trial.append_metrics(row(20))
    assert [r.step for r in trial.read_metrics()] == [20]


def test_only_finished_checkpoints_count_in_order_of_steps(trial: TrialFolder) -> None:
    assert trial.checkpoints() == []
    for step in (100, 20):
        atomic_write(trial.checkpoint_dir(step) / "counters.json", "{}")
    trial.checkpoint_dir(300).mkdir()  # its writer died
    atomic_write(trial.checkpoints_dir / "tmp" / "counters.json", "{}")
    assert trial.checkpoints() == [20, 100]


def test_item_tables_come_back_by_dataset_split_and_step(trial: TrialFolder) -> None:
    columns = {"item_id": ["a", "b"], "logprobs": [[-0.1, -2.0], [-1.0, -0.5]], "prediction": ["x", "y"]}
    path = trial.write_items("task", "validation", 20, columns)
    assert path.relative_to(trial.root) == Path("items/task-validation-20.parquet")
    assert trial.read_items("task", "validation", 20) == columns
    with pytest.raises(FolderError, match=r"not scored on task \(validation\) at step 10"):
        trial.read_items("task", "validation", 10)


def test_a_torn_item_table_is_explained(trial: TrialFolder) -> None:
    path = trial.write_items("task", "validation", 20, {"item_id": ["a"]})
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(FolderError, match="not an item table"):
        trial.read_items("task", "validation", 20)


# The sweep


@pytest.mark.parametrize(
    "trial_id", ["..", "../t0000", "a/../../b", "/etc/passwd", "", ".", ".hidden", "t0\n", "t 0", "a\\b", "a\0b", "-rf"]
)
def test_a_trial_id_that_is_not_a_plain_name_is_refused(tmp_path: Path, trial_id: str) -> None:
    with pytest.raises(FolderError, match="is not a trial id"):
        SweepFolder(tmp_path).trial(trial_id)


def test_our_own_ids_and_dotted_ones_stay_inside(tmp_path: Path) -> None:
    for trial_id in ("t0003", "a..b", "x_1-2.y"):
        files = SweepFolder(tmp_path).trial(trial_id)
        assert files.root.resolve().parent == tmp_path.resolve() / "trials"
        assert files.trial_id == trial_id


def test_trials_are_listed_in_order_and_stray_files_are_not_trials(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    assert folder.trials() == folder.baselines() == []
    for trial_id in ("t0010", "t0002"):
        folder.trial(trial_id).write_status(Status(State.RUNNING))
    (folder.trials_dir / "notes.txt").write_text("")
    folder.baseline("zero_shot").write_status(Status(State.COMPLETED))
    assert [t.trial_id for t in folder.trials()] == ["t0002", "t0010"]
    assert [t.trial_id for t in folder.baselines()] == ["zero_shot"]


def test_a_folder_without_a_sweep_is_refused_and_its_neighbours_are_named(tmp_path: Path) -> None:
    for name in ("beta", "alpha"):
        atomic_write(tmp_path / name / "sweep.yaml", "")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FolderError, match=r"no sweep here.*Sweeps beside it: alpha, beta\."):
        SweepFolder.open(tmp_path / "empty")
    with pytest.raises(FolderError, match=r"no sweep here.*<name>\.$"):
        SweepFolder.open(tmp_path / "no" / "where")
    assert SweepFolder.open(tmp_path / "alpha").name == "alpha"


def test_the_folder_does_not_depend_on_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = SweepFolder("sweep")
    monkeypatch.chdir("/")
    folder.trial("t0000").write_status(Status(State.RUNNING))
    assert json.loads((tmp_path / "sweep/trials/t0000/status.json").read_text())["state"] == "running"
