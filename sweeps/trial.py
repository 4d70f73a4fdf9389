"""A trial as Ray Tune sees it: a thin proxy, without torch, for a slot on a device worker.

One call of ``step`` is one rung. The proxy's actor is reused for the next trial (``reset_config``), so that a trial
costs milliseconds of orchestration.
"""

import contextlib
import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayActorError

from analysis.folder import MetricsRow, State, SweepFolder
from analysis.objective import Objective
from sweeps.compose import Composed
from trainer.config import TrialConfig
from trainer.engine import Admitted, Ended, Refused, RungResult

_ASK_AGAIN = 0.2  # seconds between rounds where every worker is full


class TrialProxy(tune.Trainable):
    """Tune's config is ``{"trial_id": …, "values": {dotted path: value}}``."""

    def setup(  # type: ignore[override]  # with_parameters gives what comes after config
        self,
        config: dict[str, Any],
        composed: Composed,
        objective: Objective,
        root: str,
        workers: list[tuple[Any, str]],  # each with the node and device that it has
    ) -> None:
        self.composed, self.objective, self.workers = composed, objective, workers
        self.folder = SweepFolder(root)
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._release()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train to the next rung. The last rung and the final scoring are reported together, as one result."""
        if self.worker is None:
            ended = self._admit()
            if ended is not None:
                return self._report(ended)
        else:
            ray.get(self.worker.proceed.remote(self.trial.trial_id))
        event = self._next()
        if isinstance(event, RungResult):
            self._note_score(event.row)
            if event.row.step < self.trial.train.max_steps:
                return self._report(event)
            last = event.row
            while isinstance(event, RungResult):  # again after the last rung only where the trial lost its slot there
                last = event.row
                ray.get(self.worker.proceed.remote(self.trial.trial_id))
                event = self._next()
            return self._report(event, last_rung=last)
        return self._report(event)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """A pointer: weights and counters are in the sweep folder, written by the worker."""
        (Path(checkpoint_dir) / "pointer.json").write_text(json.dumps({"trial_id": self.trial.trial_id}))

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to load: admission finds the trial's last checkpoint in the sweep folder."""

    def cleanup(self) -> None:
        self._release()

    def _begin(self, config: dict[str, Any]) -> None:
        self.trial: TrialConfig = self.composed.trial(config["trial_id"], config["values"])
        self.worker: Any = None
        self.where = ""
        self.best_score, self.best_losses = math.nan, [math.nan]
        for row in self.folder.trial(self.trial.trial_id).read_metrics():
            self._note_score(row)  # of a trial that goes on from a checkpoint

    def _admit(self) -> Ended | None:
        """Find a worker with a free slot. Returns how the trial ended where it can never run."""
        path = str(self.folder.trial(self.trial.trial_id).root)
        first = int("".join(filter(str.isdigit, self.trial.trial_id)) or 0)
        while True:
            for i in range(len(self.workers)):
                worker, where = self.workers[(first + i) % len(self.workers)]
                admission = ray.get(worker.admit.remote(self.trial, path))
                if isinstance(admission, Admitted):
                    self.worker, self.where = worker, where
                    return None
                if isinstance(admission, Refused):
                    reason = f"{admission.reason} {admission.remedy}".strip()
                    return Ended(self.trial.trial_id, State.FAILED, reason, 0)
                if isinstance(admission, Ended):
                    return admission
            time.sleep(_ASK_AGAIN)

    def _next(self) -> RungResult | Ended:
        while True:
            event = ray.get(self.worker.next_event.remote(self.trial.trial_id))
            if isinstance(event, RungResult):
                return event
            self.worker = None
            ended = event if isinstance(event, Ended) else self._admit()  # it lost its slot: find another
            if ended is not None:
                return ended

    def _note_score(self, row: MetricsRow) -> None:
        score = self.objective.score(row.metrics)
        if not row.final and not score <= self.best_score:
            self.best_score, self.best_losses = score, self.objective.losses(row.metrics)

    def _report(self, event: RungResult | Ended, last_rung: MetricsRow | None = None) -> dict[str, Any]:
        rung = event.row if isinstance(event, RungResult) else last_rung
        final = event.row if isinstance(event, Ended) else None
        shown = final or rung
        completed = isinstance(event, Ended) and event.state is State.COMPLETED
        return {
            "trial_id": self.trial.trial_id,
            "step": event.row.step if isinstance(event, RungResult) else event.step,
            "tokens": shown.tokens if shown else 0,
            "seconds": shown.seconds if shown else 0.0,
            "n_items": shown.n_items if shown else 0,
            "final": completed,
            "state": str(event.state) if isinstance(event, Ended) else str(State.RUNNING),
            "reason": event.reason if isinstance(event, Ended) else "",
            "where": self.where,
            "objective": self.best_score if completed else self.objective.score(rung.metrics) if rung else math.nan,
            "losses": self.best_losses if completed else [],
            "metrics": dict(shown.metrics) if shown else {},
            "rung_metrics": dict(rung.metrics) if rung else {},
            "rows": [asdict(row) for row in (rung, final) if row is not None],
            "done": isinstance(event, Ended),
        }

    def _release(self) -> None:
        if self.worker is not None:
            worker, self.worker = self.worker, None
            with contextlib.suppress(RayActorError):  # a worker that is gone has no slots to free
                ray.get(worker.end.remote(self.trial.trial_id, str(State.STOPPED_EARLY)))
