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
from ray.exceptions import GetTimeoutError, OutOfMemoryError

from analysis.folder import MetricsRow, State, SweepFolder
from analysis.objective import Objective
from sweeps.compose.compose import Composed
from sweeps.driver.worker_errors import GONE, LOST
from trainer.config import TrialConfig
from trainer.engine import Admitted, Ended, Halted, Refused, RungResult

_ASK_AGAIN = 0.2  # seconds between rounds where every worker is full
_LIVES = 3  # device workers that a trial may lose between two rungs before it is taken for the cause
_ALONE_AFTER = 2  # losses: then the trial gets a device to itself, so that it takes no neighbour with it
_DIE_SECONDS = 5.0  # for a worker that hangs to end itself


class _Replaced(Exception):
    """The worker died and was started again while the trial rested: its new process does not know the trial."""


class TrialProxy(tune.Trainable):
    """Tune's config is ``{"trial_id": …, "values": {dotted path: value}}``.

    A device worker that dies, or that hangs (``resources.rung_timeout``), is started again, and its trials go on from
    their last rung. One of them may be the cause: a trial that loses a second worker before its next rung goes on alone
    on a device, and ends with the third.
    """

    noted: int | None = None  # place, in the list of workers, of the one that was asked for a slot last

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
        while True:
            try:
                report = self._step()
            except (*LOST, OutOfMemoryError, GetTimeoutError, _Replaced) as error:
                ended = self._lost(error)
                if ended is None:
                    continue
                report = self._report(ended)
            self.losses = 0
            return report

    def _step(self) -> dict[str, Any]:
        rests = self.worker is not None
        if not rests:
            ended = self._admit()
            if ended is not None:
                return self._report(ended)
        event = self._next(proceed=rests)
        if isinstance(event, RungResult):
            self._note_score(event.row)
            if event.row.step < self.trial.train.max_steps:
                return self._report(event)
            last = event.row
            while isinstance(event, RungResult):  # again after the last rung only where the trial lost its slot there
                last = event.row
                event = self._next(proceed=True)
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
        self.losses = 0  # of device workers since the last rung
        self.slot_file = self.folder.trial(self.trial.trial_id).root / ".slot"
        self.noted = None
        self.notes: list[str] = []  # what went wrong and was mended
        for row in self.folder.trial(self.trial.trial_id).read_metrics():
            self._note_score(row)  # of a trial that goes on from a checkpoint

    def _admit(self) -> Ended | Halted | None:
        """Find a worker with a free slot. Returns how the trial ended where it can never run.

        Raises one of ``GONE`` where every worker is gone for good.
        """
        path = str(self.folder.trial(self.trial.trial_id).root)
        self._leave_slot_of_earlier_proxy()
        first = int("".join(filter(str.isdigit, self.trial.trial_id)) or 0)
        while True:
            gone = 0
            for i in range(len(self.workers)):
                place = (first + i) % len(self.workers)
                worker, where = self.workers[place]
                self._note_slot(place)
                try:
                    admission = ray.get(worker.admit.remote(self.trial, path, self.losses >= _ALONE_AFTER))
                except GONE:  # with its node, or because the sweep is over
                    gone += 1
                    if gone == len(self.workers):
                        raise
                    continue
                except LOST:  # it starts again
                    continue
                if isinstance(admission, Admitted):
                    self.worker, self.where = worker, where
                    self.notes += [admission.note] if admission.note else []
                    return None
                if isinstance(admission, Refused):
                    reason = f"{admission.reason} {admission.remedy}".strip()
                    return Ended(self.trial.trial_id, State.FAILED, reason, 0)
                if isinstance(admission, Ended | Halted):
                    return admission
            time.sleep(_ASK_AGAIN)

    def _note_slot(self, place: int | None) -> None:
        """Write down which worker is asked for a slot, before it is: a proxy can die before it hears the answer."""
        if place == self.noted:
            return
        self.noted = place
        if place is None:
            self.slot_file.unlink(missing_ok=True)
        else:
            self.slot_file.parent.mkdir(parents=True, exist_ok=True)
            self.slot_file.write_text(str(place))

    def _leave_slot_of_earlier_proxy(self) -> None:
        """Free the slot of a proxy that was killed, or died with its node: the trial would train there for ever."""
        if self.noted is not None:  # that is this proxy's own
            return
        try:
            place = int(self.slot_file.read_text())
        except (OSError, ValueError):
            return
        if place < len(self.workers):
            with contextlib.suppress(*LOST):
                ray.get(self.workers[place][0].end.remote(self.trial.trial_id, str(State.STOPPED_EARLY)))

    def _next(self, proceed: bool) -> RungResult | Ended | Halted:
        limit = self.composed.config.resources.rung_timeout
        while True:
            event = ray.get(self.worker.next_event.remote(self.trial.trial_id, proceed), timeout=limit)
            if event is None:
                raise _Replaced
            if isinstance(event, RungResult):
                return event
            self.worker = None
            ended = event if isinstance(event, Ended | Halted) else self._admit()  # it lost its slot: find another
            if ended is not None:
                return ended
            proceed = False

    def _lost(self, error: Exception) -> Ended | None:
        """Let go of a worker that died or hangs. Returns how the trial ended where it is taken for the cause.

        Raises the error where there was no worker to lose.
        """
        worker, self.worker = self.worker, None
        if worker is None:
            raise error
        hung = isinstance(error, GetTimeoutError)
        if hung:
            replace_worker(worker, self.trial.trial_id)
        self.losses += 1
        how = f"hung for {self.composed.config.resources.rung_timeout:g} s" if hung else "died"
        if self.losses < _LIVES:
            self.notes.append(f"its device worker ({self.where}) {how}: went on from its last rung")
            return None
        rows = self.folder.trial(self.trial.trial_id).read_metrics()
        memory = isinstance(error, OutOfMemoryError) or "running low on memory" in str(error)
        how = "the node's memory ran out" if memory else f"it {how}"
        return Ended(
            self.trial.trial_id,
            State.OUT_OF_MEMORY if memory else State.FAILED,
            f"its device worker was lost {self.losses} times before the next rung, in the end alone: {how}",
            rows[-1].step if rows else 0,
        )

    def _note_score(self, row: MetricsRow) -> None:
        score = self.objective.score(row.metrics)
        if not row.final and not score <= self.best_score:
            self.best_score, self.best_losses = score, self.objective.losses(row.metrics)

    def _report(self, event: RungResult | Ended | Halted, last_rung: MetricsRow | None = None) -> dict[str, Any]:
        if isinstance(event, Ended):
            self._note_slot(None)
        if isinstance(event, Halted):
            reached = max((row.step for row in self.folder.trial(self.trial.trial_id).read_metrics()), default=0)
            standing = Ended(self.trial.trial_id, State.RUNNING, "", reached)
            return self._report(standing) | {"halt": event.reason, "done": False}
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
            "notes": list(self.notes),
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
            self._note_slot(None)
            with contextlib.suppress(*LOST, GetTimeoutError):  # a worker that is gone has no slots to free
                limit = self.composed.config.resources.rung_timeout
                ray.get(worker.end.remote(self.trial.trial_id, str(State.STOPPED_EARLY)), timeout=limit)


def replace_worker(worker: Any, trial_id: str) -> None:
    """End a worker that hangs; Ray starts it again. One that has been started again since then is left alone."""
    try:
        ray.get(worker.die.remote(trial_id), timeout=_DIE_SECONDS)
    except GetTimeoutError:  # it does not even answer
        ray.kill(worker, no_restart=False)
    except LOST:
        pass  # as asked
