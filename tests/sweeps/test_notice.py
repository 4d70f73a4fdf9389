"""A whole sweep whose device workers get SIGTERM in the middle of rungs ends as the undisturbed one.

It takes minutes and is marked heavy:

    pytest -m heavy tests/sweeps/test_notice.py
"""

import signal
import time

import psutil
import pytest

from analysis.folder import SweepFolder

# One slot: with whom a row is padded decides the last bits, which grow in so many steps.
SETTINGS = ("search.trials=2", "resources.threads=1", "resources.slots=1", "tracking=none", "baselines=[]",
            "scheduler=fifo", "sampler=random", "train.max_steps=240", "train.rungs=[120,240]")  # fmt: skip


def device_worker(driver):
    """The process of the worker, which Ray starts again after its end; None while there is none."""
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::DeviceWorker"):
                return process
        except psutil.Error:  # it has ended meanwhile
            continue
    return None


def between(folder):
    """Checkpoints that are no rung's."""
    return {
        (trial.trial_id, step) for trial in folder.trials() for step in trial.checkpoints() if step not in (120, 240)
    }


@pytest.mark.heavy
@pytest.mark.parametrize("engine", ["packed", "hf"])
def test_sigterm_in_the_middle_of_rungs_changes_nothing(engine, lorasweep, tiny, tmp_path, reading):
    settings = (*SETTINGS, f"engine={engine}")
    process = lorasweep(tmp_path).start("run", *tiny("llama", *settings, "sweep.name=moved"))
    folder = SweepFolder(tmp_path / "runs" / "moved")
    seen, reached, gives_up = set(), set(), time.monotonic() + 240
    while process.poll() is None:
        assert time.monotonic() < gives_up
        time.sleep(0.05)
        new = {trial.trial_id for trial in folder.trials() if [row.step for row in trial.read_metrics()] == [120]}
        if new - reached and (worker := device_worker(process)) is not None:
            time.sleep(0.3)  # they have gone on
            worker.send_signal(signal.SIGTERM)
            psutil.wait_procs([worker], timeout=30)
            seen, reached = seen | between(folder), reached | new
    assert len(seen) > 1
    out, err = process.communicate()
    assert (process.returncode, err) == (0, ""), out
    assert {trial.read_status().state for trial in folder.trials()} == {"completed"}
    assert sorted(reading.tells(folder)) == ["t0000", "t0001"]

    whole = lorasweep(tmp_path)("run", *tiny("llama", *settings, "sweep.name=whole"))
    assert whole.returncode == 0, whole.stderr
    reading.require_same_curves(folder, SweepFolder(tmp_path / "runs" / "whole"), 1e-6)
