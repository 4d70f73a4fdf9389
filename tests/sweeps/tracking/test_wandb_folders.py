"""The folders in which W&B keeps runs, and what is in their files: beside W&B's own writer."""

from pathlib import Path

import pytest
import wandb

from sweeps.tracking.wandb_folders import WandbFolders, mark_uploaded, note_points


def written(root: Path, run_id: str, points: int, length: int = 1) -> Path:
    """A run of W&B's with points, a table and a text as long as asked for in each point."""
    settings = wandb.Settings(silent=True, console="off", symlink=False, x_disable_stats=True, use_dot_wandb=False)
    run = wandb.init(project="p", id=run_id, mode="offline", dir=root, reinit="create_new", settings=settings)
    for step in range(points):
        run.log({"step": step, "text": "x" * length, "accuracy": 0.5})
    run.log({"answers": wandb.Table(columns=["text"], data=[["x" * length]])})
    folder = Path(run.settings.sync_dir)
    run.finish()
    wandb.teardown()  # only then all is on disk
    return folder


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WandbFolders:
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))
    return WandbFolders(tmp_path / "wandb")


@pytest.mark.parametrize(("points", "length"), [(3, 1), (40, 5_000), (2, 100_000), (700, 90)])
def test_points_are_counted_in_what_wandb_wrote(
    folders: WandbFolders, tmp_path: Path, points: int, length: int
) -> None:
    """Also where a record lies in several blocks of the file, and blocks hold many records."""
    folder = written(tmp_path, "ab-t0000", points, length)
    assert folders.points("ab-t0000") == 0
    mark_uploaded(folder)
    assert folders.points("ab-t0000") == points
    (file,) = folder.glob("*.wandb")
    file.write_bytes(file.read_bytes()[:-50])  # a driver was killed; the end of the file is not a point
    assert folders.points("ab-t0000") == points
    for nonsense in (b"", b"no file of W&B's at all" * 9, b":W&B\0\0\0" + b"\0\0\0\0\x20\0\x01" + b"\xff" * 32):
        file.write_bytes(nonsense)
        assert folders.points("ab-t0000") == 0


def test_two_folders_of_one_run_in_the_same_second_are_both_found(folders: WandbFolders, tmp_path: Path) -> None:
    def named(points: int, name: str, run_id: str = "ab-t0000") -> Path:
        return written(tmp_path, run_id, points).rename(folders.root / name)

    later = named(1, "offline-run-20260101_000002-ab-t0000")
    same_second = named(2, "offline-run-20260101_000001-ab-t0000-1")  # as W&B names it
    first = named(1, "offline-run-20260101_000001-ab-t0000")
    mark_uploaded(named(5, "offline-run-20260101_000003-ab-t0000-1", "ab-t0000-1"))  # another run, which looks alike
    assert folders.of("ab-t0000") == [first, same_second, later]
    for folder in (first, same_second, later):
        mark_uploaded(folder)
    assert folders.points("ab-t0000") == 1 + 2 + 1
    note_points(later, 3)  # all points of the run, and not those of the folder alone
    assert folders.points("ab-t0000") == 3
