"""A trial as Ray Tune sees it: a thin proxy, without torch, for a slot on a device worker.

One call of ``step`` is one rung. The proxy's actor is reused for the next trial (``reset_config``), so that a trial
costs milliseconds of orchestration. ``sweeps/driver/device_client.py`` finds the slot and asks the device worker
(``sweeps/driver/device_worker.py``), which trains.
"""

import contextlib
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray import tune

from analysis.folder import MetricsRow, State, SweepFolder
from analysis.objective import Objective
from sweeps.compose.trial_template import TrialTemplate
from sweeps.driver.device_client import LOST, DeviceClient, DispatcherClient, TrialPlacement, device_named
from sweeps.process.visible_gpus import hide_gpus
from sweeps.search.lineage import exchanged_values
from trainer.config import TrialConfig
from trainer.engine import Ended, Halted, RungResult


class TrialProxy(tune.Trainable):
    """Tune's config is ``{"trial_id": …, "values": {dotted path: value}}``."""

    asked_last = ""  # name of the device worker that was asked for a slot last

    def __init__(self, *arguments: Any, **named: Any):
        hide_gpus()
        super().__init__(*arguments, **named)

    def setup(  # type: ignore[override]  # what comes after config is given below
        self,
        config: dict[str, Any],
        template: TrialTemplate,
        objective: Objective,
        root: str,
        dispatcher: DispatcherClient,
    ) -> None:
        self.template, self.objective, self.dispatcher = template, objective, dispatcher
        self.folder = SweepFolder(root)
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._release()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train to the next rung. The last rung and the final scoring are reported together, as one result."""
        report = self._step()
        self.placement.rung_recorded()
        return report

    def _step(self) -> dict[str, Any]:
        if self.placement.device is None:
            self._leave_slot_of_earlier_proxy()
        event = self.placement.next_event()
        last_rung = None
        while isinstance(event, RungResult):
            self._note_score(event.row)
            if event.row.step < self.trial.train.max_steps:
                return self._rung_report(event.row)
            last_rung = event.row
            event = self.placement.next_event()  # a rung again only where the trial lost its slot or worker meanwhile
        return self._halted_report(event) if isinstance(event, Halted) else self._end_report(event, last_rung)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """A pointer: weights and counters are in the sweep folder, written by the worker."""
        (Path(checkpoint_dir) / "pointer.json").write_text(json.dumps({"trial_id": self.trial.trial_id}))

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to load: admission finds the trial's last checkpoint in the sweep folder."""

    def cleanup(self) -> None:
        self._release()

    def _begin(self, config: dict[str, Any]) -> None:
        self.values = dict(config["values"])
        self.trial: TrialConfig = self.template.trial(config["trial_id"], self.values)
        files = self.folder.trial(self.trial.trial_id)
        self.placement = TrialPlacement(
            self.dispatcher,
            self.trial,
            files,
            rung_timeout=self.template.config.resources.rung_timeout,
            before_asking=self._before_asking,
        )
        self.best_score, self.best_losses = math.nan, [math.nan]
        self.slot_file = files.root / ".slot"
        self.asked_last = ""
        for row in files.read_metrics():
            self._note_score(row)  # of a trial that goes on from a checkpoint

    def _before_asking(self, device: DeviceClient) -> None:
        """A trial that took over another one's weights goes on with the values that it has had since then."""
        if new := exchanged_values(self.placement.folder):
            self.placement.trial = self.template.trial(self.trial.trial_id, {**self.values, **new})
        self._write_slot_file(device)

    def _write_slot_file(self, device: DeviceClient | None) -> None:
        """Write down which worker is asked for a slot, before it is: a proxy can die before it hears the answer."""
        name = device.name if device else ""
        if name == self.asked_last:
            return
        self.asked_last = name
        if device is None:
            self.slot_file.unlink(missing_ok=True)
        else:
            self.slot_file.parent.mkdir(parents=True, exist_ok=True)
            self.slot_file.write_text(name)

    def _leave_slot_of_earlier_proxy(self) -> None:
        """Free the slot of a proxy that was killed, or died with its node: the trial would train there for ever."""
        if self.asked_last:  # that is this proxy's own
            return
        try:
            device = device_named(self.slot_file.read_text())
        except (OSError, ValueError):
            return
        if device is not None:
            with contextlib.suppress(*LOST):
                device.end(self.trial.trial_id, State.STOPPED_EARLY).get()

    def _note_score(self, row: MetricsRow) -> None:
        score = self.objective.score(row.metrics)
        if not row.final and not score <= self.best_score:
            self.best_score, self.best_losses = score, self.objective.losses(row.metrics)

    def _rung_report(self, rung: MetricsRow) -> dict[str, Any]:
        """A rung after which the trial goes on, if the scheduler wants it."""
        return self._report(rung, None, state=State.RUNNING, step=rung.step)

    def _end_report(self, event: Ended, last_rung: MetricsRow | None) -> dict[str, Any]:
        """The end that the trial came to by itself, and its last rung where that was reached just before."""
        self._write_slot_file(None)
        report = self._report(last_rung, event.row, state=event.state, step=event.step)
        report |= {"reason": event.reason, "done": True}
        if event.state is State.COMPLETED:
            report |= {"final": True, "objective": self.best_score, "losses": self.best_losses}
        return report

    def _halted_report(self, event: Halted) -> dict[str, Any]:
        """The device worker cannot go on, through no fault of the trial's, which stands where it stood."""
        reached = max((row.step for row in self.folder.trial(self.trial.trial_id).read_metrics()), default=0)
        return self._report(None, None, state=State.RUNNING, step=reached) | {"halt": event.reason}

    def _report(self, rung: MetricsRow | None, final: MetricsRow | None, state: State, step: int) -> dict[str, Any]:
        """What Tune, the recorder and the trackers are given.

        Args:
            rung: scored on the rung subset, just now.
            final: scored on all validation items.
            state: of the trial; RUNNING unless it ended by itself.
            step: optimiser steps that it has made.
        """
        shown = final or rung
        return {
            "trial_id": self.trial.trial_id,
            "step": step,
            "tokens": shown.tokens if shown else 0,
            "seconds": shown.seconds if shown else 0.0,
            "n_items": shown.n_items if shown else 0,
            "final": False,
            "state": str(state),
            "reason": "",
            "where": self.placement.where,
            "notes": list(self.placement.notes),
            "objective": self.objective.score(rung.metrics) if rung else math.nan,
            "losses": [],
            "metrics": dict(shown.metrics) if shown else {},
            "rung_metrics": dict(rung.metrics) if rung else {},
            "rows": [asdict(row) for row in (rung, final) if row is not None],
            "done": False,
        }

    def _release(self) -> None:
        if self.placement.device is not None:
            self._write_slot_file(None)
            self.placement.leave()


def with_parameters(**parameters: Any) -> type[TrialProxy]:
    """The proxy's class for one sweep, as Tune starts it.

    Not ``tune.with_parameters``, which puts each parameter into Ray's object store: where a raylet is ended by SIGTERM,
    the driver would try to recover them there, and Ray's code ends it at once, with status 1 and without a word.

    Args:
        parameters: of ``TrialProxy.setup``, which each proxy gets with its class.
    """

    class BoundProxy(TrialProxy):
        def setup(self, config: dict[str, Any]) -> None:  # type: ignore[override]
            super().setup(config, **parameters)

    BoundProxy.__name__ = TrialProxy.__name__
    return BoundProxy
