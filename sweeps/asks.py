"""The lines of ``study/asks.jsonl``: what was suggested and answered, in order, and what the sampler is told.

The file is the authority that a search is rebuilt from. Every line has ``event``, ``trial_id``, ``number``, ``values``,
``objective``, ``step``, ``state``, ``time`` (seconds since 1970), and

- ``ask``: a point was handed out. ``distributions`` (Optuna's JSON), ``attrs`` of the sampler, ``study``: attributes
  that it gave the study, ``start``: the point of ``search.start_from`` it came from, or null, ``again``: handed out
  once more after a resume;
- ``reject``: a point that the space's constraints forbid, or that a grid gave before; it is told FAIL, which teaches
  nothing, and another is asked for. ``trial_id`` and ``number`` are null: it is no trial of the sweep;
- ``warm``: a trial of an earlier sweep (``source``), carried over with its values, ``rungs`` and objective;
  ``trial_id`` and ``number`` are null;
- ``rung``: a trial was scored on the rung subset;
- ``perturb``: a trial took up the weights of ``parent`` at ``step``, and goes on with ``values`` instead of ``old``;
- ``tell``: a trial ended. ``told``: what the sampler was told, ``reason``.

What the sampler is told:

- completed → COMPLETE with the best rung's value;
- stopped early → PRUNED with the last rung's value;
- out of memory → PRUNED with a violated constraint. Optuna's TPE leaves FAIL out altogether, constraint or
  not, and goes where it ran out of memory again; a violated constraint on a pruned trial ranks below every other trial;
- diverged, failed, no finite value, stopped before the first rung → FAIL;
- perturbed, and completed with other values than were suggested → PRUNED with the last value that it had before.

TPE learns from COMPLETE and PRUNED; GP and NSGA-II from COMPLETE alone; random and grid from nothing.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from analysis.errors import FolderError
from analysis.folder import State

OUT_OF_MEMORY = {"out_of_memory": 1.0}  # an Optuna constraint: above 0 is violated


@dataclass
class Past:
    """What ``study/asks.jsonl`` knows of one trial of the study.

    Attributes:
        number: ours, as in the trial's name; None for a rejected point or an earlier sweep's, no trials of this sweep.
        told: its last line; None for one that never ended.
        perturbed: the step after which it went on from another trial's weights, with other values.
        current: its values now.
        study: attributes of the study that the sampler set when it was asked.
    """

    number: int | None
    values: dict[str, Any]
    distributions: dict[str, BaseDistribution]
    attrs: dict[str, Any]
    study: dict[str, Any]
    start: dict[str, Any] | None
    asked_at: float
    rungs: dict[int, float | None] = field(default_factory=dict)
    told: Mapping[str, Any] | None = None
    perturbed: int | None = None
    current: dict[str, Any] = field(default_factory=dict)

    @property
    def _scores(self) -> dict[int, float]:
        """By step, as long as it trained with the values that were suggested."""
        return own_scores(self.rungs, self.perturbed)

    @property
    def _params(self) -> dict[str, Any]:
        return {name: self.values[name] for name in self.distributions}

    def waiting(self) -> FrozenTrial:
        """In Optuna's queue: the next ask hands out the same number and values."""
        attrs = {**self.attrs, "fixed_params": self._params}
        return create_trial(state=TrialState.WAITING, system_attrs=attrs, intermediate_values=self._scores)

    def frozen(self, index: int) -> FrozenTrial:
        """As the study had it when it was last written down, at its place ``index`` there."""
        trial = self._foreign() if self.number is None else self._trial(self.number)
        trial.number = index
        trial.datetime_start = datetime.fromtimestamp(self.asked_at)
        if self.told:
            trial.datetime_complete = datetime.fromtimestamp(self.told["time"])
        return trial

    def _foreign(self) -> FrozenTrial:
        """A rejected point, or a trial of an earlier sweep."""
        assert self.told is not None
        state = TrialState[self.told["told"]]
        last = self._scores[max(self._scores)] if self._scores else None
        return create_trial(
            state=state,
            value={TrialState.COMPLETE: self.told["objective"], TrialState.PRUNED: last}.get(state),
            params=self._params,
            distributions=self.distributions,
            system_attrs=dict(self.attrs),
            user_attrs={"source": self.told["source"]} if "source" in self.told else {},
            intermediate_values=self._scores,
        )

    def _trial(self, number: int) -> FrozenTrial:
        ended = self.told or {}
        state = State(ended.get("state", State.RUNNING))
        told = told_as(state, ended.get("objective"), self.rungs, self.perturbed) if ended else TrialState.RUNNING
        last = self._scores[max(self._scores)] if self._scores else None
        return create_trial(
            state=told,
            value={TrialState.COMPLETE: ended.get("objective"), TrialState.PRUNED: last}.get(told),
            params=self._params,
            distributions=self.distributions,
            system_attrs=dict(self.attrs),  # Optuna writes the constraints into it
            user_attrs={"trial_id": trial_name(number)}
            | ({"state": str(state), "reason": ended.get("reason", "")} if ended else {}),
            intermediate_values=self._scores,
            constraints=OUT_OF_MEMORY if state is State.OUT_OF_MEMORY else None,
        )


def read_past(records: Iterable[Mapping[str, Any]]) -> list[Past]:
    """The trials of the study, in its order, from the lines of ``study/asks.jsonl``.

    The first ask, the first value at a rung and the first tell count.

    Raises:
        FolderError: for a line that lacks a field, an answer without its ask, or a missing trial.
    """
    study: list[Past] = []
    past: dict[int, Past] = {}
    for line, record in enumerate(records, start=1):
        try:
            number, event = record["number"], record["event"]
            if event in ("reject", "warm") or (event == "ask" and number not in past):
                if event == "ask" and number != len(past):
                    raise FolderError(
                        f"study/asks.jsonl: trial {trial_name(len(past))} was never handed out, but later ones were."
                        " Restore the file from a copy, or start a new sweep with another sweep.name."
                    )
                read = {name: json_to_distribution(text) for name, text in record["distributions"].items()}
                told_of = (record["attrs"], record.get("study", {}), record["start"], record["time"])
                study.append(Past(number, record["values"], read, *told_of))
                if event == "ask":
                    past[number] = study[-1]
                    past[number].current = record["values"]
                else:
                    study[-1].told = record
                    study[-1].rungs = {int(step): value for step, value in record.get("rungs", {}).items()}
            elif event == "rung":
                past[number].rungs.setdefault(record["step"], record["objective"])
            elif event == "perturb":
                first = past[number].perturbed
                past[number].perturbed = record["step"] if first is None else first
                past[number].current = record["values"]
            elif event == "tell" and past[number].told is None:
                past[number].told = record
        except (KeyError, TypeError, ValueError) as error:
            raise FolderError(
                f"study/asks.jsonl, record {line}: cannot be understood ({type(error).__name__}: {error})."
                " Restore the file from a copy, or start a new sweep with another sweep.name."
            ) from None
    return study


def trial_name(number: int) -> str:
    """Our id of the trial that has this number in the Optuna study."""
    return f"t{number:04d}"


def own_scores(rungs: Mapping[int, float | None], perturbed: int | None) -> dict[int, float]:
    """The finite scores by step, up to where a trial went on with other values than were suggested."""
    last = math.inf if perturbed is None else perturbed
    return {step: value for step, value in rungs.items() if value is not None and step <= last}


def told_as(
    state: State, objective: float | None, rungs: Mapping[int, float | None], perturbed: int | None = None
) -> TrialState:
    """What the sampler is told of a trial that ended (see the head of this file)."""
    if state is State.COMPLETED and objective is not None:
        return TrialState.COMPLETE if perturbed is None else TrialState.PRUNED
    if state is State.OUT_OF_MEMORY:
        return TrialState.PRUNED
    if state is State.STOPPED_EARLY and any(value is not None for value in rungs.values()):
        return TrialState.PRUNED
    return TrialState.FAIL
