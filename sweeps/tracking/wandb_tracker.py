"""Weights & Biases: one run per trial, all held by the driver in one service process.

Without a login or a network the runs are written offline, into the sweep folder; ``wandb sync`` uploads them later.
``wandb_runs.py`` makes all calls of ``wandb``; here is what W&B shows of a sweep.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.folder import State
from sweeps.tracking.base import SWEEP_RUN, Hint, Outcome, Run, TrackedSweep, Tracker
from sweeps.tracking.wandb_environment import switched_off
from sweeps.tracking.wandb_runs import OFFLINE, ONLINE, WandbRuns

ARTIFACT_NAME = re.compile(r"[^A-Za-z0-9_.-]")  # what W&B refuses in an artifact's name

# W&B shows 0 as finished, 255 as killed, and 1 (all other states) as failed.
_EXIT_CODES = {State.COMPLETED: 0, State.STOPPED_EARLY: 0, State.RUNNING: 255}


class WandbTracker(Tracker):
    """Runs at W&B, grouped by the sweep's name.

    Runs are named by trial id and found again by ``<uid>-<trial id>``, so a sweep that is run again goes on in the same
    runs. In the environment ``WANDB_MODE`` (online, offline, disabled) wins over ``mode``, and ``WANDB_DISABLED`` over
    both; no API key is handled here.

    Args:
        sweep: W&B writes to ``wandb/`` in its folder.
        project, entity: where the runs belong; an entity of None is the account's default.
        tags: of every run.
        mode: ``online``, ``offline`` or ``disabled``.
        predictions: rows of each completed trial's table of validation predictions; 0 leaves the tables out.
        answers: rows of the table of what each completed trial and baseline wrote, which holds texts; 0: no table.
    """

    title = "W&B"
    writes_earlier = True

    def __init__(
        self,
        sweep: TrackedSweep,
        project: str = "lorasweep",
        entity: str | None = None,
        tags: Sequence[str] = (),
        mode: str = "offline",
        predictions: int = 0,
        answers: int = 0,
    ) -> None:
        super().__init__(sweep)
        requested = os.environ.get("WANDB_MODE", "").strip().lower() or mode
        mode = {"run": ONLINE, "shared": ONLINE, "dryrun": OFFLINE}.get(requested, requested)
        if mode != "disabled" and switched_off():
            mode = "disabled"
            sweep.note("W&B is switched off by WANDB_DISABLED in the environment: the trials are not tracked there.")
        fixed = {"project": project, "entity": entity, "group": sweep.folder.name, "tags": tuple(tags)}
        self._runs = WandbRuns(sweep.folder, sweep.uid, mode, fixed, sweep.note)
        self._most = {"predictions": predictions, "answers": answers}
        self._baselines: set[str] = set()
        self.off = mode == "disabled"
        self._target = f"{entity or ''}/{project}"

    def connect(self) -> None:
        self._runs.connect()

    def start_run(self, run: Run) -> None:
        tags = _tags(run.config) if run.kind == "trial" else []
        if run.kind == "baseline":
            self._baselines.add(run.name)
        earlier = [{"step": step} | dict(values) for step, values in run.earlier]
        self._runs.start(run.name, run.kind, dict(run.config), tags, earlier)

    def log_point(self, name: str, step: int, values: Mapping[str, Any]) -> None:
        self._runs.log(name, {"step": step} | dict(values))

    def finish_run(self, name: str, outcome: Outcome) -> None:
        """Tables, charts, the best trial's adapter as an artifact of the sweep's run, the summary, and the end."""
        for key, table in outcome.tables.items():
            most = self._most.get(key)
            if most != 0:
                self._runs.table(name, key, *table(most))
        if outcome.charts:
            self._runs.charts(name, outcome.charts)
        adapter = outcome.adapter
        if name == SWEEP_RUN and adapter is not None and adapter.folder.is_dir():
            artifact = f"{ARTIFACT_NAME.sub('-', self.sweep.folder.name)}-adapter"
            metadata, aliases = dict(adapter.metadata), ["best", adapter.trial_id]
            self._runs.artifact(name, artifact, "model", adapter.folder, metadata, aliases)
        summary = dict(outcome.facts)
        if name not in self._baselines:  # a baseline's only point is its summary already
            summary |= outcome.metrics
        self._runs.finish(name, summary, _EXIT_CODES.get(outcome.state, 1))

    def kept(self, name: str) -> str | None:
        mode = self._runs.kept.get(name)
        return f"{mode} {self._target}" if mode else None

    def holds(self, name: str, place: str) -> bool:
        """Where runs go online, one that is only on disk is written again, unless ``wandb sync`` uploaded it."""
        mode, _, target = place.partition(" ")
        there = mode == ONLINE or self._runs.mode != ONLINE or self._runs.uploaded(name)
        return target == self._target and there

    def cut_off(self, name: str) -> bool:
        return name in self._runs.cut_off

    def close(self) -> None:
        self._runs.disconnect()

    def hint(self, cut_short: bool = False) -> Hint | None:
        """The command that uploads what is not uploaded yet."""
        if not self._runs.waiting():
            return None
        return Hint(self._runs.sync_command(), "upload the W&B runs that are only here")


def _tags(config: Mapping[str, Any]) -> list[str]:
    """What W&B's run list can be filtered by at a click."""
    return [str(config[name]) for name in ("precision",) if config.get(name)]
