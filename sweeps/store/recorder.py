"""The driver's part of writing trials into the sweep folder: configuration, status and metrics."""

import functools
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ray.tune import Callback

from analysis import fast_yaml
from analysis.buckets.local_copy import copy_of
from analysis.errors import last_line
from analysis.folder import (
    ENDED,
    MetricsRow,
    State,
    Status,
    SweepFolder,
    TrialFolder,
    atomic_write,
    replace_tree,
)
from sweeps.store.bucket_upload import insist
from sweeps.store.tune_results import outcome_of, trial_key
from trainer.engines.checkpoints import COUNTERS


def _reports_disk_faults(hook: Callable[..., None]) -> Callable[..., None]:
    """Report a disk fault before the error goes on: Tune would make it a line of text, or blame a trial for it."""

    @functools.wraps(hook)
    def called(self: "Recorder", *args: Any, **info: Any) -> None:
        try:
            hook(self, *args, **info)
        except OSError as error:
            self.disk_fault(str(error))
            raise

    return called


class Recorder(Callback):
    """A callback of Ray Tune that writes status, metrics and configuration of every trial as they come in.

    Device workers write the rest: item tables, checkpoints and adapters.

    Args:
        folder: the sweep's.
        trial_config: (trial_id, values) → the trial's resolved configuration.
        interrupted: whether the user stopped the sweep. What runs then has not ended: a resume goes on with it.
        after_end: called after a trial ended, such as to write the leaderboard.
        disk_fault: called with the error's text where the folder cannot be written: the sweep must stop.
        waits: whether a trial that Tune gave up is to be handed out again.
    """

    def __init__(
        self,
        folder: SweepFolder,
        trial_config: Callable[[str, dict[str, Any]], dict[str, Any]],
        interrupted: Callable[[], bool],
        after_end: Callable[[], None],
        disk_fault: Callable[[str], None] = lambda fault: None,
        waits: Callable[[str], bool] = lambda trial_id: False,
    ):
        self.folder, self.trial_config = folder, trial_config
        self.interrupted, self.after_end, self.disk_fault = interrupted, after_end, disk_fault
        self.waits = waits
        self._notes: dict[str, tuple[str, ...]] = {}  # running trial → notes of earlier runs
        self._known: dict[str, set[tuple[int, bool]]] = {}  # running trial → (step, final) of its rows

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray pickles callbacks into its scratch folder, and a sweep is never restored from there."""
        return {}

    @_reports_disk_faults
    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Write the configuration, and that the trial runs."""
        files = self._files(trial)
        if not files.config_file.exists():
            write_config(files, self.trial_config(*trial_key(trial)))
        status = files.read_status()
        self._notes[files.trial_id] = status.notes
        if status.state not in ENDED:
            files.write_status(replace(status, state=State.RUNNING, reason=""))

    @_reports_disk_faults
    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Write the rungs of a report, and the trial's status. A rung that is reported again is not written again."""
        if result.get("halt"):
            return
        files = self._files(trial)
        known = self._known.get(files.trial_id)
        if known is None:
            known = self._known[files.trial_id] = {(row.step, row.final) for row in files.read_metrics()}
        for record in result["rows"]:
            row = MetricsRow(**record)
            if (row.step, row.final) not in known:  # a trial that was retried reports a rung again
                files.append_metrics(row)
                known.add((row.step, row.final))
        notes = tuple(dict.fromkeys([*self._notes.get(files.trial_id, ()), *result.get("notes", ())]))
        status = Status(State(result["state"]), result["reason"], result["step"], result["where"], notes)
        files.write_status(status)
        if State(result["state"]) in ENDED:
            self._ended(files)

    @_reports_disk_faults
    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Write the end of a trial that a scheduler or stopper ended; one that ended itself has reported so."""
        files = self._files(trial)
        status = files.read_status()
        if status.state is State.RUNNING and self.interrupted():
            files.write_status(replace(status, reason=f"interrupted after step {status.step}"))
        elif status.state is State.RUNNING:
            state, reason = outcome_of(asdict(status))
            write_best_adapter(files)  # its worker, if it lives, writes the same later
            files.write_status(replace(status, state=state, reason=reason))
            self._ended(files)

    @_reports_disk_faults
    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Write that the trial failed, unless it will be handed out again."""
        if self.interrupted():  # its worker was taken away from it
            self.on_trial_complete(iteration, trials, trial)
            return
        if self.waits(trial_key(trial)[0]):
            return
        files = self._files(trial)
        error = trial.get_pickled_error() if hasattr(trial, "get_pickled_error") else None
        reason = last_line(error) if error is not None else "the trial's process died"
        files.write_status(replace(files.read_status(), state=State.FAILED, reason=reason))
        self._ended(files)

    def _ended(self, files: TrialFolder) -> None:
        """After the end is on disk: only now are the trial's checkpoints of no more use."""
        self._known.pop(files.trial_id, None)
        self._notes.pop(files.trial_id, None)
        files.remove_checkpoints()
        self.after_end()

    def _files(self, trial: Any) -> TrialFolder:
        return self.folder.trial(trial_key(trial)[0])


def write_config(files: TrialFolder, config: dict[str, Any]) -> None:
    """Write a trial's resolved configuration into its folder."""
    atomic_write(files.config_file, fast_yaml.dump(config))


def write_best_adapter(files: TrialFolder) -> None:
    """Write the adapter of the best rung, from the last checkpoint that has one; without a checkpoint, do nothing."""
    parts = {"adapter_config.json": "adapter_config.json", "best.safetensors": "adapter_model.safetensors"}
    if (copy := copy_of(files.root)) is not None:  # a worker of another machine may have written them
        insist(lambda: copy.fetch_missing_below(files.checkpoints_dir, {COUNTERS, *parts}))
    for step in reversed(files.checkpoints()):
        checkpoint = files.checkpoint_dir(step)
        if all((checkpoint / name).exists() for name in parts):
            beside: Path = files.adapter_dir.with_name(".adapter.settled.tmp")
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            for name, to in parts.items():
                shutil.copyfile(checkpoint / name, beside / to)
            replace_tree(beside, files.adapter_dir)
            return
