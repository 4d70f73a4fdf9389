"""Every process of a real sweep is killed and stopped at random: ``tests/chaos.py``, which is also run by hand."""

import json
from pathlib import Path

import pytest

from analysis.folder import MetricsRow, State, Status, SweepFolder, append_line
from tests.chaos import Settings, chaos
from tests.sweep_differences import Shown, differences, wandb_faults

VALUES = {"t0000": {"lora.rank": 4}, "t0001": {"lora.rank": 8}}


@pytest.mark.heavy
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("wandb", "strikes", "slots"), [("offline", 50, 1), ("online", 20, 1), ("offline", 10, 2)])
def test_a_sweep_whose_processes_are_killed_and_stopped_ends_as_an_undisturbed_one(
    wandb: str, strikes: int, slots: int, tmp_path: Path
) -> None:
    assert chaos(Settings(tmp_path, seed=1, strikes=strikes, wandb=wandb, slots=slots)) == []


# --- that it would see it


@pytest.fixture
def sweeps(tmp_path: Path) -> tuple[SweepFolder, SweepFolder]:
    """The same sweep twice: two trials with two rungs each."""
    folders = SweepFolder(tmp_path / "cut"), SweepFolder(tmp_path / "whole")
    for folder in folders:
        for trial_id, values in VALUES.items():
            append_line(folder.asks_file, {"event": "ask", "trial_id": trial_id, "values": values})
            files = folder.trial(trial_id)
            for step in (10, 20):
                files.append_metrics(MetricsRow(trial_id, step, 100, 1.0, False, 12, {"accuracy": step / 100}))
            files.write_status(Status(State.COMPLETED, step=20))
            files.adapter_dir.mkdir()
            (files.adapter_dir / "adapter_config.json").write_text("{}")
            append_line(folder.asks_file, {"event": "tell", "trial_id": trial_id, "state": "completed"})
        folder.leaderboard_file.write_text("rank,trial_id,status,seconds\n1,t0001,completed,2\n2,t0000,completed,3\n")
    return folders


def complete() -> dict[str, Shown]:
    """What W&B shows of it."""
    points = [{"step": step, "accuracy": step / 100} for step in (10, 20)]
    return {name: Shown({f"uid-{name}"}, list(points), {"state": "completed"}) for name in VALUES}


def test_the_same_sweep_twice_has_no_differences(sweeps: tuple[SweepFolder, SweepFolder]) -> None:
    cut, whole = sweeps
    whole.leaderboard_file.write_text(whole.leaderboard_file.read_text().replace(",3\n", ",4\n"))  # its seconds
    assert list(differences(cut, whole, 0.0)) == []
    assert list(wandb_faults(cut, complete())) == []


def test_each_difference_is_told(sweeps: tuple[SweepFolder, SweepFolder]) -> None:
    cut, whole = sweeps

    def told() -> str:
        return " ".join(differences(cut, whole, 0.0))

    asks = cut.asks_file.read_text()
    append_line(cut.asks_file, json.loads(asks.splitlines()[0]))
    assert told() == "", "a trial that is gone on with is asked for again"
    append_line(cut.asks_file, json.loads(asks.splitlines()[2]) | {"values": {"lora.rank": 16}})
    assert "t0001 was asked for with {'lora.rank': 8} too" in told()
    cut.asks_file.write_text(asks.replace('"lora.rank": 8', '"lora.rank": 16'))
    assert "values: t0001: {'lora.rank': 16} and not {'lora.rank': 8}" in told()
    append_line(cut.asks_file, json.loads(asks.splitlines()[-1]))
    assert "told: " in told()
    cut.asks_file.write_text(asks)
    cut.leaderboard_file.write_text("rank,trial_id,status,seconds\n1,t0000,completed,2\n2,t0001,completed,3\n")
    assert told().startswith("ranking: ")
    cut.leaderboard_file.write_text(whole.leaderboard_file.read_text())
    files = cut.trial("t0000")
    (files.adapter_dir / "adapter_config.json").write_text('{"r": 8}')
    assert told() == "t0000: adapter_config.json: r: 8 and not None"
    (files.adapter_dir / "adapter_config.json").rename(files.adapter_dir / "other.json")
    assert "the adapter's files are ['other.json']" in told()
    (files.adapter_dir / "other.json").unlink()
    (files.adapter_dir / "adapter_config.json").write_text("{}")
    files.write_status(Status(State.STOPPED_EARLY, step=20))
    assert "t0000: Status(" in told()
    files.write_status(Status(State.COMPLETED, step=20))
    files.checkpoint_dir(20).mkdir(parents=True)
    assert told() == "t0000: checkpoints are left"
    files.remove_checkpoints()
    files.metrics_file.write_text(files.metrics_file.read_text().replace("0.2}", "0.25}"))
    assert told() == "t0000: accuracy at step 20 is 0.25 and not 0.2"
    files.append_metrics(files.read_metrics()[-1])
    assert "t0000: rungs" in told()


def test_weights_are_compared_bit_by_bit(sweeps: tuple[SweepFolder, SweepFolder]) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    weights = np.ones((2, 3), np.float32)
    for folder, more in zip(sweeps, (1e-6, 0.0), strict=True):
        save_file({"a": weights + np.float32(more)}, folder.trial("t0000").adapter_dir / "adapter_model.safetensors")
    assert list(differences(*sweeps, 0.0)) == ["t0000: a in adapter_model.safetensors differs by 9.54e-07"]
    assert list(differences(*sweeps, 1e-4)) == []


def test_each_fault_of_what_wandb_shows_is_told(sweeps: tuple[SweepFolder, SweepFolder]) -> None:
    def faults(_: object) -> str:
        return " ".join(wandb_faults(sweeps[0], shown))

    shown = complete()
    assert faults(shown["t0000"].points.pop()) == "W&B: t0000 lacks the rungs [20] of [10, 20]"
    shown = complete()
    assert "points twice" in faults(shown["t0000"].points.append({"step": 20, "accuracy": 0.2}))
    shown = complete()
    assert "none of its rungs: {15: 1}" in faults(shown["t0000"].points.append({"step": 15, "accuracy": 0.2}))
    shown = complete()
    assert "at step 10 has other values of ['accuracy']" in faults(shown["t0000"].points[0].update(accuracy=0.3))
    shown = complete()
    assert faults(shown["t0000"].ids.add("uid-t0000-offline")).startswith("W&B: t0000 has 2 runs")
    shown = complete()
    assert faults(shown["t0000"].summary.update(state="running")) == "W&B: t0000 is running and not completed"
    shown = complete()
    assert faults(shown.pop("t0001")) == "W&B: t0001 has no run"
    shown = complete()
    shown["t0000"].points.append({"predictions": "a table"})
    assert faults(None) == ""
