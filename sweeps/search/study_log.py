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
- ``tell``: a trial ended. ``told``: what the sampler was told, ``reason``, ``losses`` of the objective's terms,
  ``constraints``: how far each is violated;
- ``mean``: all seeds of a configuration ended (``search.repeats``), and the sampler is told their mean. Until then
  ``told`` is WAIT; lines of a repeat carry ``repeat`` (1, 2, …) and the number of the first.

What the sampler is told:

- completed → COMPLETE with the best rung's value;
- stopped early → PRUNED with the last rung's value;
- several objectives (``objective.method=pareto``): the loss of each term at the best rung; a stopped trial is PRUNED
  without a value, which counts as worse than every completed one;
- several seeds: a configuration whose first seed completes is trained with the others, to their end; told is the mean
  of those that completed. Where one diverges or runs out of memory, that is what is told of the configuration;
- objective.constraints: how far each is violated, with what COMPLETE and PRUNED say; a figure that is not known counts
  as violated;
- out of memory → PRUNED with a violated constraint. Optuna's TPE leaves FAIL out altogether, constraint or
  not, and goes where it ran out of memory again; a violated constraint on a pruned trial ranks below every other trial;
- diverged, failed, no finite value, stopped before the first rung → FAIL;
- perturbed, and completed with other values than were suggested → PRUNED with the last value that it had before.

TPE learns from COMPLETE and PRUNED; GP and NSGA-II from COMPLETE alone; random and grid from nothing.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from analysis.errors import FolderError
from analysis.folder import State
from analysis.leaderboard.seeds import WAIT

OUT_OF_MEMORY = {"out_of_memory": 1.0}  # an Optuna constraint: above 0 is violated


@dataclass(frozen=True)
class Answer:
    """How a trial ended, as far as the sampler cares.

    Attributes:
        objective: of the best rung where it completed; finite or None.
        losses: of the objective's terms at that rung; empty where one of them is not finite.
        constraints: name → how far it is violated; 0 or less where it is kept.
    """

    state: State
    objective: float | None
    losses: tuple[float, ...] = ()
    constraints: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    step: int = 0

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> "Answer":
        """From a line of the file."""
        read = (State(line["state"]), line["objective"], tuple(line.get("losses", ())), line.get("constraints", {}))
        return cls(*read, line.get("reason", ""), line["step"])


def mean_of(answers: Sequence[Answer]) -> Answer:
    """Several seeds of one configuration as one answer; ``analysis/leaderboard/seeds.py`` ranks by the same rule."""
    for bad in (State.OUT_OF_MEMORY, State.DIVERGED):
        for answer in answers:
            if answer.state is bad:
                return answer
    done = [answer for answer in answers if answer.state is State.COMPLETED and answer.objective is not None]
    if not done:
        return answers[0]
    n = len(done)
    whole = all(len(answer.losses) == len(done[0].losses) for answer in done)
    return Answer(
        State.COMPLETED,
        sum(answer.objective or 0.0 for answer in done) / n,
        tuple(sum(parts) / n for parts in zip(*(answer.losses for answer in done), strict=True)) if whole else (),
        {name: sum(answer.constraints.get(name, 1.0) for answer in done) / n for name in done[0].constraints},
        f"mean of {n} seeds",
        max(answer.step for answer in done),
    )


@dataclass
class Repeat:
    """Another seed of a configuration."""

    values: dict[str, Any]
    rungs: dict[int, float | None] = field(default_factory=dict)
    ended: Answer | None = None


@dataclass
class Past:
    """What ``study/asks.jsonl`` knows of one trial of the study.

    Attributes:
        number: ours, as in the trial's name; None for a rejected point or an earlier sweep's, no trials of this sweep.
        end_line: the line that says how it ended; None for one that never did.
        perturbed: the step after which it went on from another trial's weights, with other values.
        current: its values now.
        first: how its first seed ended, where the other seeds have not.
        repeats: the other seeds, by their number from 1.
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
    end_line: Mapping[str, Any] | None = None
    perturbed: int | None = None
    current: dict[str, Any] = field(default_factory=dict)
    first: Answer | None = None
    repeats: dict[int, Repeat] = field(default_factory=dict)

    @property
    def _scores(self) -> dict[int, float]:
        """By step, as long as it trained with the values that were suggested."""
        return own_scores(self.rungs, self.perturbed)

    @property
    def _params(self) -> dict[str, Any]:
        return {name: self.values[name] for name in self.distributions}

    def waiting(self, several: bool) -> FrozenTrial:
        """In Optuna's queue: the next ask hands out the same number and values."""
        attrs = {**self.attrs, "fixed_params": self._params}
        scores = {} if several else self._scores
        return create_trial(state=TrialState.WAITING, system_attrs=attrs, intermediate_values=scores)

    def frozen(self, index: int, several: bool) -> FrozenTrial:
        """As the study had it when it was last written down.

        Args:
            index: its place there.
            several: whether the study has several objectives.
        """
        trial = self._foreign(several) if self.number is None else self._trial(self.number, several)
        trial.number = index
        trial.datetime_start = datetime.fromtimestamp(self.asked_at)
        if self.end_line:
            trial.datetime_complete = datetime.fromtimestamp(self.end_line["time"])
        return trial

    def _values(self, told: TrialState, several: bool) -> list[float] | None:
        """What the study has as the trial's value, or values."""
        ended = self.end_line or {}
        if told is TrialState.COMPLETE:
            return list(ended["losses"]) if several else [ended["objective"]]
        if told is TrialState.PRUNED and self._scores and not several:
            return [self._scores[max(self._scores)]]
        return None

    def _foreign(self, several: bool) -> FrozenTrial:
        """A rejected point, or a trial of an earlier sweep."""
        assert self.end_line is not None
        state = TrialState[self.end_line.get("told", TrialState.FAIL.name)]
        return create_trial(
            state=state,
            values=self._values(state, several),
            params=self._params,
            distributions=self.distributions,
            system_attrs=dict(self.attrs),
            user_attrs={"source": self.end_line["source"]} if "source" in self.end_line else {},
            intermediate_values={} if several else self._scores,
        )

    def _trial(self, number: int, several: bool) -> FrozenTrial:
        ended = self.end_line or {}
        state = State(ended.get("state", State.RUNNING))
        told = TrialState.RUNNING
        if ended:
            told = told_as(Answer.of(ended), self.rungs, self.perturbed, several)
        return create_trial(
            state=told,
            values=self._values(told, several),
            params=self._params,
            distributions=self.distributions,
            system_attrs=dict(self.attrs),  # Optuna writes the constraints into it
            user_attrs={"trial_id": trial_name(number)}
            | ({"state": str(state), "reason": ended.get("reason", "")} if ended else {}),
            intermediate_values={} if several else self._scores,
            constraints=violations(Answer.of(ended)) if ended else None,
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
            number, event, repeat = record["number"], record["event"], record.get("repeat", 0)
            if repeat:
                _note_repeat(past[number].repeats, repeat, record)
            elif event in ("reject", "warm") or (event == "ask" and number not in past):
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
                    _ = TrialState[record.get("told", TrialState.FAIL.name)], float(record["time"])
                    study[-1].end_line = record
                    study[-1].rungs = {int(step): value for step, value in record.get("rungs", {}).items()}
            elif event == "rung":
                past[number].rungs.setdefault(record["step"], record["objective"])
            elif event == "perturb":
                first = past[number].perturbed
                past[number].perturbed = record["step"] if first is None else first
                past[number].current = record["values"]
            elif event == "tell" and record.get("told") == WAIT:
                past[number].first = Answer.of(record)
            elif event in ("tell", "mean") and past[number].end_line is None:
                _ = Answer.of(record), float(record["time"])  # what is read of it later is there
                past[number].end_line = record
        except (KeyError, TypeError, ValueError) as error:
            raise FolderError(
                f"study/asks.jsonl, record {line}: cannot be understood ({type(error).__name__}: {error})."
                " Restore the file from a copy, or start a new sweep with another sweep.name."
            ) from None
    return study


def _note_repeat(repeats: dict[int, Repeat], repeat: int, record: Mapping[str, Any]) -> None:
    if record["event"] == "ask":
        repeats.setdefault(repeat, Repeat(record["values"]))
    elif record["event"] == "rung":
        repeats[repeat].rungs.setdefault(record["step"], record["objective"])
    elif record["event"] == "tell" and repeats[repeat].ended is None:
        repeats[repeat].ended = Answer.of(record)


def trial_name(number: int, repeat: int = 0) -> str:
    """Our id of a trial: its number among those asked for, and which repeat of it, where it is one."""
    return f"t{number:04d}" + (f".{repeat}" if repeat else "")


def own_scores(rungs: Mapping[int, float | None], perturbed: int | None) -> dict[int, float]:
    """The finite scores by step, up to where a trial went on with other values than were suggested."""
    last = math.inf if perturbed is None else perturbed
    return {step: value for step, value in rungs.items() if value is not None and step <= last}


def violations(answer: Answer) -> dict[str, float]:
    """The Optuna constraints of a trial that ended."""
    return {**answer.constraints, **(OUT_OF_MEMORY if answer.state is State.OUT_OF_MEMORY else {})}


def told_as(
    answer: Answer, rungs: Mapping[int, float | None], perturbed: int | None = None, several: bool = False
) -> TrialState:
    """What the sampler is told of a trial that ended (see the head of this file)."""
    state = answer.state
    if state is State.COMPLETED and answer.objective is not None and (answer.losses or not several):
        return TrialState.COMPLETE if perturbed is None else TrialState.PRUNED
    if state is State.OUT_OF_MEMORY:
        return TrialState.PRUNED
    if state is State.STOPPED_EARLY and any(value is not None for value in rungs.values()):
        return TrialState.PRUNED
    return TrialState.FAIL
