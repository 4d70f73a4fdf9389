"""Sweep folders of version 0.1.0, whose configs name modules by the places that these had before there were rooms.

``before_rooms/`` was written by that version: ``tests/benchmarks/simulated.py run``, once with the grid sampler and
once with population based training, two classes that configs name by ``_target_``.
"""

import csv
import shutil
from pathlib import Path

import pytest

from analysis.folder import State, SweepFolder
from analysis.leaderboard import leaderboard
from sweeps import cli
from sweeps.compose.compose import compose
from sweeps.run import resume_sweep
from sweeps.store.manifest import read_manifest
from tests.benchmarks.simulated import SimulatedWorker, overrides

STORED = Path(__file__).parent / "before_rooms"
NOW = {"grid": "sweeps.search.samplers.GridSampler", "pbt": "sweeps.search.pbt.PopulationBasedTraining"}
GROUP = {"grid": "sampler", "pbt": "scheduler"}


@pytest.fixture(params=["grid", "pbt"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> SweepFolder:
    """A copy whose config names the data beside it."""
    shutil.copytree(STORED / request.param / "sweep", tmp_path / "runs" / request.param)
    for split in ("train", "validation"):
        shutil.copy(STORED / f"{split}.csv", tmp_path)
    for path in (tmp_path / "runs").rglob("*.yaml"):
        path.write_text(path.read_text().replace("HERE", str(tmp_path)))
    return SweepFolder(tmp_path / "runs" / request.param)


def test_the_stored_folder_is_an_old_one() -> None:
    assert "_target_: sweeps.samplers.GridSampler" in (STORED / "grid" / "sweep" / "sweep.yaml").read_text()
    assert (
        "_target_: sweeps.population.PopulationBasedTraining" in (STORED / "pbt" / "sweep" / "sweep.yaml").read_text()
    )


def test_names_of_before_are_read_as_those_of_now(stored: SweepFolder) -> None:
    manifest = read_manifest(stored)
    for config in (manifest["config"], manifest["unresolved"], manifest["asked"]):
        assert config[GROUP[stored.name]]["_target_"] == NOW[stored.name]


def test_it_ranks_and_reports_as_it_did(stored: SweepFolder, capsys: pytest.CaptureFixture[str]) -> None:
    before = list(csv.DictReader((stored.root / "leaderboard.csv").read_text().splitlines()))
    leaderboard.write(stored, leaderboard.build(stored))
    now = list(csv.DictReader((stored.root / "leaderboard.csv").read_text().splitlines()))
    assert [{name: row[name] for name in before[0]} for row in now] == before
    assert set(now[0]) - set(before[0]) == {"seeds", "sd"}
    assert cli.main(["rank", str(stored.root)]) == 0
    assert "t0000" in capsys.readouterr().out
    assert cli.main(["report", str(stored.root)]) == 0
    assert (stored.root / "report.html").stat().st_size > 10_000


def test_it_goes_on(stored: SweepFolder) -> None:
    """With more trials: those of before stay as they are."""
    before = {files.trial_id: files.read_metrics() for files in stored.trials()}
    more = len(before) + 1
    assert resume_sweep(str(stored.root), [f"search.trials={more}"], view="quiet", worker=SimulatedWorker) == 0
    after = {files.trial_id: files for files in stored.trials()}
    assert len(after) == more
    assert {name: after[name].read_metrics() for name in before} == before
    assert after[f"t{more - 1:04}"].read_status().state in (State.COMPLETED, State.STOPPED_EARLY)


def test_a_command_may_name_a_class_by_its_old_place(tmp_path: Path) -> None:
    old = compose(
        [*overrides(tmp_path), "scheduler=fifo", "sampler=grid", "sampler._target_=sweeps.samplers.GridSampler"]
    )
    assert old.config.sampler["_target_"] == NOW["grid"]
