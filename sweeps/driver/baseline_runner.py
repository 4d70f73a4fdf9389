"""The baselines of a sweep: which rows there are to be, and who scores them while the trials run."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from analysis.errors import last_line
from analysis.folder import MetricsRow, State, Status, SweepFolder
from sweeps.compose.trial_template import TrialTemplate
from sweeps.config import SweepConfig, computed_baselines, saved_answers
from sweeps.display.live_view import main_figures
from sweeps.driver.device_fleet import DeviceFleet
from sweeps.store.bucket_upload import fetched_back
from trainer.config import Baseline

_AT_A_TIME = 16  # baselines that wait for a device side by side


def planned(template: TrialTemplate, precisions: Sequence[str]) -> list[Baseline]:
    """The baselines to score: one row a precision, but for ``frozen`` and those that no model takes part in.

    The row at the config's own precision (the first one given, where that is not among them) has the baseline's plain
    name; the others are called such as ``few_shot@nf4``.

    Args:
        template: of trials, which baselines are scored like; its config names the baselines.
        precisions: those that trials may have.
    """
    config = template.config
    plain = config.precision if config.precision in precisions else precisions[0]
    precisions = [plain, *(precision for precision in precisions if precision != plain)]
    baselines = []
    for precision in precisions:
        for kind in computed_baselines(config):
            if precision != plain and not _at_each_precision(config, kind):
                continue
            name = kind if precision == plain else f"{kind}@{precision}"
            trial = template.trial(name, {"precision": precision})
            baselines.append(Baseline(kind, trial, config.few_shot, config.retrieval))
    for name, file in saved_answers(config).items():
        trial = template.trial(name, {"precision": plain})
        baselines.append(Baseline("answers", trial, config.few_shot, config.retrieval, file))
    return baselines


def _at_each_precision(config: SweepConfig, kind: str) -> bool:
    """``frozen`` reads all training rows, and its states hardly differ: once is enough."""
    if kind == "retrieval" and config.task.name == "classification":
        return config.retrieval.neighbours == "hidden"
    return kind not in ("majority", "linear", "frozen")


def missing(folder: SweepFolder, baselines: Sequence[Baseline]) -> list[Baseline]:
    """Those that have not been scored to their end."""
    return [b for b in baselines if folder.baseline(b.name).read_status().state is not State.COMPLETED]


class BaselineRunner:
    """Hands baselines to device workers, which score them when they have no trial.

    Args:
        folder: the sweep's.
        fleet: has the device workers.
        baselines: what is to be scored.
        note: told about each row in a line.
        scored: called with each row.
        interrupted: whether the user stopped the sweep.
    """

    def __init__(
        self,
        folder: SweepFolder,
        fleet: DeviceFleet,
        baselines: Sequence[Baseline],
        note: Callable[[str], None],
        scored: Callable[[Baseline, MetricsRow], None],
        interrupted: Callable[[], bool],
    ):
        self.folder, self.fleet, self.note, self.scored, self.interrupted = folder, fleet, note, scored, interrupted
        self._waiting = deque(baselines)
        self._unscored = [baseline.name for baseline in baselines]
        self._threads = [
            threading.Thread(target=self._serve, name="baselines", daemon=True)
            for _ in range(min(_AT_A_TIME, len(self._waiting)))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    @property
    def unscored(self) -> list[str]:
        """Names of those that are waiting or being scored."""
        return list(self._unscored)

    def finish(self) -> None:
        """Wait until all are scored, or the sweep is interrupted."""
        for thread in self._threads:
            while thread.is_alive() and not self.interrupted():
                thread.join(0.2)

    def _serve(self) -> None:
        while not self.interrupted():
            try:
                baseline = self._waiting.popleft()
            except IndexError:
                return
            self._score(baseline)

    def _score(self, baseline: Baseline) -> None:
        files = self.folder.baseline(baseline.name)
        try:
            row = self.fleet.call(lambda device: device.score_baseline(baseline, files), baseline.trial.precision)
            fetched_back(files)
        except Exception as error:
            if not self.interrupted():
                self._failed(baseline, last_line(error))
        else:
            self._unscored.remove(baseline.name)
            self.note(f"{baseline.name}  scored{main_figures(row.metrics)}")
            self.scored(baseline, row)

    def _failed(self, baseline: Baseline, reason: str) -> None:
        self._unscored.remove(baseline.name)
        self.note(f"{baseline.name}  could not be scored: {reason}")
        self.folder.baseline(baseline.name).write_status(Status(State.FAILED, reason))


def settings_of(baseline: Baseline) -> dict[str, Any]:
    """What a tracker shows as a baseline's config."""
    return asdict(baseline.trial) | {"baseline": baseline.kind}
