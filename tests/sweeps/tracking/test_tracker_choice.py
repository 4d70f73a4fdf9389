"""How trackers are chosen in the config: options, lists of them, stored sweeps, and what is refused at once."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from analysis.errors import ConfigError
from analysis.folder import SweepFolder
from sweeps.cli import main
from sweeps.compose.compose import Composed, compose
from sweeps.tracking.base import Outcome, Run, TrackedSweep, Tracker, build_trackers, check_trackers


def names(composed: Composed) -> list[str]:
    return list(composed.config.tracking.trackers)


def check(composed: Composed) -> None:
    check_trackers(composed.config.tracking, composed.raw["tracking"], composed.explicit)


def test_each_option_names_its_tracker_and_a_list_names_several() -> None:
    assert names(compose([])) == ["wandb"]
    assert names(compose(["tracking=wandb"])) == ["wandb"]
    assert names(compose(["tracking=mlflow"])) == ["mlflow"]
    assert names(compose(["tracking=none"])) == []
    both = compose(["tracking=[wandb_offline,mlflow]", "tracking.tags=[a]", "tracking.uri=http://127.0.0.1:5000"])
    assert names(both) == ["wandb", "mlflow"]
    entries = both.config.tracking.trackers
    assert (entries["wandb"]["mode"], entries["wandb"]["tags"], entries["mlflow"]["tags"]) == ("offline", ["a"], ["a"])
    assert entries["mlflow"]["uri"] == "http://127.0.0.1:5000"
    assert compose(["tracking=[mlflow,wandb]"]).config.tracking.mode == "online"


def test_a_tracker_can_be_taken_out_or_get_another_keyword() -> None:
    chosen = ["tracking=[wandb_offline,mlflow]"]
    assert names(compose([*chosen, "~tracking.trackers.wandb"])) == ["mlflow"]
    entries = compose([*chosen, "tracking.trackers.mlflow.adapter_mb=5"]).config.tracking.trackers
    assert entries["mlflow"]["adapter_mb"] == 5


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("tracking=[wandb_ofline,mlflow]", "tracking=wandb_ofline: there is no such option. Did you mean"),
        ("tracking=wandb,mlflow", r"Several: 'tracking=\[wandb,mlflow\]'"),
        ("tracking=[]", "Options of tracking: mlflow, none, wandb, wandb_offline"),
        ("data=[csv,tsv]", r"data=\[csv,tsv\]: there is no such option"),
        ("tracking.trackers.mlflow=3", "tracking.trackers.mlflow=3: expected"),
    ],
)
def test_what_is_no_choice_is_refused(choice: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose([choice])


def test_a_resumed_sweep_may_get_other_trackers() -> None:
    stored = compose(["tracking.project=p"]).unresolved()
    assert names(Composed.from_stored(stored)) == ["wandb"]
    assert Composed.from_stored(stored).config.tracking.project == "p"
    assert names(Composed.from_stored(stored, ["tracking=mlflow"])) == ["mlflow"]
    both = Composed.from_stored(stored, ["tracking=[wandb_offline,mlflow]", "tracking.uri=http://127.0.0.1:5000"])
    assert names(both) == ["wandb", "mlflow"]
    assert both.config.tracking.trackers["mlflow"]["uri"] == "http://127.0.0.1:5000"
    assert names(Composed.from_stored(both.unresolved(), ["tracking=none"])) == []


def test_a_sweep_stored_before_there_were_trackers_is_tracked_as_it_was() -> None:
    stored = compose(["tracking=wandb", "tracking.project=p"]).unresolved()
    del stored["tracking"]["trackers"]
    (entry,) = Composed.from_stored(stored).config.tracking.trackers.values()
    shipped = compose(["tracking=wandb", "tracking.project=p"]).config.tracking.trackers["wandb"]
    assert {**entry, "answers": 0} == shipped  # texts stay here, as they did
    stored["tracking"]["mode"] = "disabled"
    assert Composed.from_stored(stored).config.tracking.trackers["wandb"]["mode"] == "disabled"
    assert (
        Composed.from_stored(stored, ["tracking.mode=offline"]).config.tracking.trackers["wandb"]["mode"] == "offline"
    )


def test_mode_disabled_switches_wandb_off_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    sweep = TrackedSweep(SweepFolder(tmp_path), "ab12cd34", print)
    chosen = compose(["tracking=[wandb_offline,mlflow]"]).config.tracking
    assert [tracker.title for tracker in build_trackers(chosen, sweep)] == ["W&B", "MLflow"]
    off = compose(["tracking=[wandb_offline,mlflow]", "tracking.mode=disabled"]).config.tracking
    assert [tracker.title for tracker in build_trackers(off, sweep)] == ["MLflow"]
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert build_trackers(compose([]).config.tracking, sweep) == []


def test_a_relative_folder_stays_where_it_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    composed = compose(["tracking=mlflow", "tracking.uri=./shared"])
    again = Composed.from_stored(composed.unresolved(), addresses=True)
    assert again.config.tracking.trackers["mlflow"]["uri"] == str(tmp_path / "shared")
    assert compose(["tracking.uri=databricks"]).config.tracking.uri == "databricks"


# --- refused before anything is started


class Unfinished(Tracker):
    """Lacks what a tracker has to have."""

    def start_run(self, run: Run) -> None:
        pass


class Demanding(Tracker):
    """Cannot be made without ``place``."""

    def __init__(self, sweep: TrackedSweep, place: str, port: int = 1) -> None:
        super().__init__(sweep)

    def start_run(self, run: Run) -> None: ...
    def log_point(self, name: str, step: int, values: Any) -> None: ...
    def finish_run(self, name: str, outcome: Outcome) -> None: ...


HERE = __name__


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tracking.trackers={x:{a:1}}"], r"tracking.trackers.x._target_=None: expected a dotted class"),
        (["tracking.trackers={x:{_target_:no.such.Module}}"], "No module named 'no'"),
        (["tracking.trackers={x:{_target_:pathlib.Path}}"], "is no Tracker"),
        (["tracking.trackers={x:{_target_:sweeps.tracking.wandb_tracker.WandbTraker}}"], "Did you mean 'WandbTracker'"),
        ([f"tracking.trackers={{x:{{_target_:{HERE}.Unfinished}}}}"], "it lacks finish_run, log_point"),
        ([f"tracking.trackers={{x:{{_target_:{HERE}.Demanding}}}}"], "needs place. Add tracking.trackers.x.place=…"),
        ([f"tracking.trackers={{x:{{_target_:{HERE}.Demanding,place:a,prt:1}}}}"], "'prt' is not a keyword of.*'port'"),
        (["tracking=mlflow", "tracking.trackers.mlflow.adapter_mb=-1"], "adapter_mb=-1: expected megabytes"),
        (["tracking=mlflow", "tracking.uri=nonsense"], "tracking.uri=nonsense: expected a server"),
        (["tracking=mlflow", "tracking.uri=htp://127.0.0.1:1"], "expected a server"),
        (["tracking=mlflow", "tracking.uri=http://me:secret@127.0.0.1:1"], "MLFLOW_TRACKING_PASSWORD"),
        (["tracking=none", "tracking.mode=online"], r"tracking.mode=online: no tracker of this sweep reads it.*none"),
        (["tracking.uri=http://127.0.0.1:1"], r"no tracker of this sweep reads it \(its trackers: wandb\)"),
    ],
)
def test_what_cannot_track_is_a_clear_error(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(compose(overrides))


@pytest.mark.parametrize("option", ["wandb", "wandb_offline", "mlflow", "none", "[wandb_offline,mlflow]"])
def test_what_is_shipped_can_track(option: str) -> None:
    check(compose([f"tracking={option}"]))
    check(compose([f"tracking={option}", "tracking.mode=disabled"]))


def test_a_missing_library_is_said_at_once_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny: Any
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "mlflow" else real(name, *a))
    monkeypatch.chdir(tmp_path)
    assert main(["run", *tiny("llama", "tracking=mlflow", "sweep.name=tiny")]) == 2
    assert "pip install 'lorasweep[mlflow]'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert main(["check", *tiny("llama", "tracking=mlflow"), "--no-probe"]) == 2
