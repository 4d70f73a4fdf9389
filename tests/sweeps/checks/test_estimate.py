"""`lorasweep check`: what it says of a sweep, and that `run` meets the same errors."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sweeps import cli
from sweeps.checks import probe
from sweeps.checks.estimate import Probed, estimate, whole_sweep
from sweeps.checks.preflight import preflight
from sweeps.checks.simulate import Cost
from sweeps.compose.compose import compose
from tests.conftest import write_rows
from trainer.models import base_model


def leaky(tiny_data: tuple[Path, Path], folder: Path) -> Path:
    """A validation file with a training row in it."""
    train, validation = tiny_data
    path = folder / "leaky.csv"
    shutil.copy(validation, path)
    with path.open("a") as file:
        file.write(train.read_text().splitlines()[1] + "\n")
    return path


def test_everything_is_said_from_two_probe_steps(tiny, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    given = tiny("bert", "task=classification", "search.trials=4", "precision=fp32", "resources.price_per_hour=3600")
    assert cli.main(["check", *given, "--samples", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is True
    assert (found["plan"]["trials"], found["plan"]["rungs"]) == (4, [2, 8])
    estimate = found["estimate"]
    assert 0 < estimate["low"] <= estimate["seconds"] <= estimate["high"]
    assert estimate["cost"] == pytest.approx(estimate["seconds"] * estimate["devices"])
    assert 8 + 3 * 2 <= estimate["steps"] <= 32
    assert estimate["flops"] > 0
    assert found["precisions"]["fp32"]["base_bytes"] > 1000
    assert found["lengths"]["train"]["rows"] == 60
    assert [sample["trial_id"] for sample in found["samples"]] == ["t0000", "t0001"]
    assert found["samples"][0]["train"]["rungs"] == [2, 8]
    assert list(tmp_path.iterdir()) == []  # nothing is written


def test_no_more_trials_are_counted_than_search_time_has_room_for() -> None:
    given = ["task=classification", "model=minilm", "precision=fp32", "baselines=[]", "scheduler=fifo"]
    cost = Cost("fp32", 1.0, 0.0, (2, 8), 0.5, 1.0)  # 10 s a trial
    probed = Probed({}, [cost], 2, 5.0, 1.0, 10.0, 1000, 20, 60, {})
    found = {}
    for time in ("null", "60s", "5s"):
        length = ["train.max_steps=8", "train.rungs=[2,8]", "search.trials=500", f"search.time={time}"]
        found[time] = whole_sweep(compose([*given, *length]).config, [probed], 1, 10.0)
    assert found["null"]["trials"] == 500
    assert found["null"]["seconds"] > 5000
    assert found["60s"]["trials"] == 4
    assert 50 < found["60s"]["seconds"] <= found["60s"]["high"] <= 60
    assert (found["5s"]["trials"], found["5s"]["seconds"]) == (1, 5), "running trials stop at their next rung"


def test_the_same_text_in_both_splits_fails_check_and_run_unless_allowed(
    tiny, tiny_data, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    given = tiny("bert", "task=classification", f"data.validation={leaky(tiny_data, tmp_path)}")
    assert cli.main(["check", *given, "--no-probe"]) == 3
    assert "✗ 1 validation row stands among the training rows too" in capsys.readouterr().out
    assert cli.main(["run", *given]) == 3
    assert "data.allow_overlap=true" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    allowed = [*given, "data.allow_overlap=true"]
    assert cli.main(["check", *allowed, "--no-probe"]) == 0
    assert "! 1 validation row stands" in capsys.readouterr().out
    composed = compose(allowed)
    preflight(composed.config, composed.space)


def test_check_compares_test_rows_with_the_rows_of_a_sweep(tiny, tiny_data, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for name, known in zip(("of_training", "of_validation"), tiny_data, strict=True):
        test = write_rows(tmp_path / f"{name}.csv", 6, 9)
        test.write_text(test.read_text() + known.read_text().splitlines()[1] + "\n")
        given = [*tiny("bert", "task=classification", f"data.test={test}"), "--no-probe"]
        assert cli.main(["check", *given]) == 3
        said = " ".join(capsys.readouterr().out.split())
        assert "60 to train on, 30 to rank by, 7 kept for the final scores" in said
        assert "✗ 1 test row stands among the training or validation rows too" in said
        assert cli.main(["check", *given, "data.allow_overlap=true"]) == 0
        assert "! 1 test row stands" in capsys.readouterr().out
    clean = write_rows(tmp_path / "clean.csv", 6, 9)
    assert cli.main(["check", *tiny("bert", "task=classification", f"data.test={clean}"), "--no-probe"]) == 0


def test_the_plan_is_readable_in_80_columns(tiny, monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    cli.main(["check", *tiny("bert", "task=classification", "sweep.name=x"), "--no-probe"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "rows       60 to train on, 30 to rank by; 3 labels: bird 20, fruit 20, metal 20" in lines


@pytest.mark.parametrize(
    ("share", "device", "planned"), [("0", "cpu", 1.0), ("0.5", "cuda", 0.5), ("null", "cuda", 1.0)]
)
def test_an_estimate_is_of_the_device_and_the_share_that_workers_will_have(
    share: str, device: str, planned: float, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Asked(Exception):
        pass

    def prober(dataset: Any, device: torch.device, settings: Any, gpu_share: float) -> None:
        raise Asked(device.type, gpu_share)

    monkeypatch.setattr(probe, "Prober", prober)
    monkeypatch.setattr(base_model, "best_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(base_model, "available_precisions", lambda device: {"fp32": ""})
    monkeypatch.setattr(base_model, "slow_precisions", lambda device: {})
    composed = compose(tiny("llama", f"resources.gpus_per_trial={share}", "precision=fp32"))
    with pytest.raises(Asked) as raised:
        estimate(composed, None)  # type: ignore[arg-type]
    assert raised.value.args == (device, planned)
