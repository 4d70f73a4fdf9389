"""Writes what trials report into the sweep folder: the driver's side of it. Workers write items and tensors."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import yaml
from ray.tune import Callback

from analysis.folder import ENDED, MetricsRow, State, Status, SweepFolder, TrialFolder, atomic_write
from sweeps.reports import outcome_of, trial_key


class Recorder(Callback):
    """Status, metrics and configuration of every trial, as they happen.

    Args:
        folder: the sweep's.
        trial_config: (trial_id, values) → the trial's resolved configuration.
        interrupted: whether the user stopped the sweep: what runs then has not ended, and goes on with a resume.
        after_end: called after a trial ended, such as to write the leaderboard.
    """

    def __init__(
        self,
        folder: SweepFolder,
        trial_config: Callable[[str, dict[str, Any]], dict[str, Any]],
        interrupted: Callable[[], bool],
        after_end: Callable[[], None],
    ):
        self.folder, self.trial_config = folder, trial_config
        self.interrupted, self.after_end = interrupted, after_end

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray pickles callbacks into its scratch folder, and a sweep is never restored from there."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        files = self._files(trial)
        if not files.config_file.exists():
            write_config(files, self.trial_config(*trial_key(trial)))
        status = files.read_status()
        if status.state not in ENDED:
            files.write_status(replace(status, state=State.RUNNING, reason=""))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        files = self._files(trial)
        known = {(row.step, row.final) for row in files.read_metrics()}
        for record in result["rows"]:
            row = MetricsRow(**record)
            if (row.step, row.final) not in known:  # a trial that was retried reports a rung again
                files.append_metrics(row)
        files.write_status(Status(State(result["state"]), result["reason"], result["step"], result["where"]))
        if State(result["state"]) in ENDED:
            self.after_end()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        files = self._files(trial)
        status = files.read_status()
        if status.state is State.RUNNING and self.interrupted():
            files.write_status(replace(status, reason=f"interrupted after step {status.step}"))
        elif status.state is State.RUNNING:
            state, reason = outcome_of(asdict(status))
            files.write_status(replace(status, state=state, reason=reason))
            self.after_end()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if self.interrupted():  # its worker was taken away from it
            self.on_trial_complete(iteration, trials, trial)
            return
        files = self._files(trial)
        error = trial.get_pickled_error() if hasattr(trial, "get_pickled_error") else None
        reason = _last_line(error) if error is not None else "the trial's process died"
        files.write_status(replace(files.read_status(), state=State.FAILED, reason=reason))
        self.after_end()

    def _files(self, trial: Any) -> TrialFolder:
        return self.folder.trial(trial_key(trial)[0])


def write_config(files: TrialFolder, config: dict[str, Any]) -> None:
    """A trial's resolved configuration into its folder."""
    atomic_write(files.config_file, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def _last_line(error: BaseException) -> str:
    cause = getattr(error, "cause", None) or error
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    return lines[-1].strip()[:500]
