"""Whole sweeps that are logged online, whose driver is killed: what the server has after a resume."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.folder import SweepFolder
from tests.sweeps.tracking.test_tracked_sweeps import SETTINGS, rungs, until
from tests.wandb_server import WandbServer

KEY = "0123456789abcdef" * 3


def check_server(server: WandbServer, folder: SweepFolder) -> None:
    """That the server has one run for each trial and baseline, with each rung once and its end, and the sweep's."""
    names = [files.trial_id for files in (*folder.trials(), *folder.baselines())]
    runs = {run.display_name: run for run in server.runs.values()}
    assert sorted(run.display_name for run in server.runs.values()) == sorted([*names, "sweep"])
    assert {name: runs[name].series("accuracy") for name in rungs(folder)} == rungs(folder)
    states = {files.trial_id: str(files.read_status().state) for files in folder.trials()}
    assert {name: runs[name].summary["state"] for name in states} == states
    assert {run.exit_code for run in runs.values()} == {0}
    for files in folder.baselines():
        assert runs[files.trial_id].series("accuracy") == [(0, files.read_metrics()[-1].metrics["accuracy"])]
    assert any("leaderboard" in name for name in runs["sweep"].files)


@pytest.mark.heavy
@pytest.mark.parametrize("last", [("t0000", "step 2/8"), ("t0000", "completed")])
def test_after_a_kill_and_a_resume_the_server_has_one_whole_run_for_each_trial(
    lorasweep: Any, tiny: Callable[..., list[str]], tmp_path: Path, last: tuple[str, str]
) -> None:
    environment = {"OMP_NUM_THREADS": "1", "WANDB_API_KEY": KEY, "NETRC": str(tmp_path / "netrc")}
    environment |= {"WANDB_CONFIG_DIR": str(tmp_path / "wandb-config"), "WANDB_SWEEP_ID": "s1", "WANDB_RUN_ID": "r1"}
    environment["WANDB_MODE"] = "online"
    with WandbServer() as server:
        command = lorasweep(tmp_path, environment | {"WANDB_BASE_URL": server.url})
        process = command.start("run", *tiny("llama", *SETTINGS, "tracking=wandb", "search.trials=3"))
        until(process, *last)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        folder = SweepFolder(tmp_path / "runs" / "tiny")

        done = command("resume", "runs/tiny")
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        check_server(server, folder)
        assert "wandb sync" not in done.stdout
        assert done.stdout.count("WANDB_RUN_ID, WANDB_SWEEP_ID") == 1

        # As though the driver had been killed before it could record the last ones.
        lines = folder.tracked_file.read_text().splitlines()
        folder.tracked_file.write_text("".join(f"{line}\n" for line in lines if "t0002" not in line)[:-30])
        asked = len(server.asked)
        again = command("resume", "runs/tiny")
        assert (again.returncode, again.stderr) == (0, "")
        assert "W&B lacks" in again.stdout
        assert "have ended" in again.stdout
        assert len(server.asked) > asked
        check_server(server, folder)
        asked = len(server.asked)
        nothing: subprocess.CompletedProcess[str] = command("resume", "runs/tiny")
        assert nothing.returncode == 0
        assert "W&B" not in nothing.stdout
        assert len(server.asked) == asked
