"""The search: Ray Tune's ``OptunaSearch`` with the guards it lacks.

The study lives in memory. Every suggestion and answer is written to ``study/asks.jsonl``
(``sweeps/search/study_log.py``), from which ``replay`` rebuilds the study on resume; dashboards read
``sweeps/search/dashboard_journal.py``'s copy.
"""

import itertools
import json
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import distribution_to_json
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from analysis.errors import ConfigError
from analysis.folder import ENDED, State, SweepFolder, append_line
from analysis.leaderboard.seeds import WAIT
from analysis.metrics import one_class
from sweeps.search.dashboard_journal import DashboardJournal
from sweeps.search.pbt_exchange import Exchange
from sweeps.search.samplers import GridSampler, reseed
from sweeps.search.study_log import Answer, Past, mean_of, read_past, told_as, trial_name, violations
from sweeps.search.transfer import takes_prior
from sweeps.search.warm_start import Earlier
from sweeps.space.dimensions import DefineByRun, distributions
from sweeps.space.grid import combinations, size

_METRICS = "metrics/"  # of a report whose nested keys Tune has joined
METRIC = "objective"  # in every report of a trial; higher is better
# Attributes that Optuna writes itself while a trial runs, or (cma:) that hold a pickle.
_NOT_KEPT = ("tpe:", "gp:", "cma:", "constraints", "fixed_params")
_MOST_REJECTED = 10  # points in a row
_MOST_DRAWN = 2000
_DIGITS = 12  # significant ones that tell two numbers apart

logger = logging.getLogger(__name__)


@dataclass
class _Handed:
    """A point that was handed out and has not ended."""

    number: int  # ours; the study has rejected points too
    trial: optuna.Trial
    values: dict[str, Any]
    rungs: dict[int, float | None]  # step → objective, None where it was not finite
    perturbed: int | None = None  # the step after which it has other values than were suggested
    repeat: int = 0  # which further seed of its configuration, from 1

    @property
    def trial_id(self) -> str:
        return trial_name(self.number, self.repeat)


@dataclass
class _Group:
    """A configuration whose first seed completed, and that is trained with others."""

    first: _Handed
    answers: list[Answer]
    size: int


@dataclass(frozen=True)
class SearchPlan:
    """What a search is to suggest, and what it is told in return.

    Attributes:
        trials: how many points to ask for in total, those of earlier runs and of ``start_from`` included.
        seed: with the trial number, decides the sampler's random numbers.
        start_from: points to try first, already validated against the space. Keys that a point leaves out are sampled.
        prior: further points of sweeps over other models, tried ever more seldom (``sweeps/search/transfer.py``).
        warm: trials of earlier sweeps that the sampler knows from the start; those already written down are left out.
        seeds: trial seeds of every configuration, that of the config first; with more than one, the sampler is told
            the mean. A configuration whose first seed does not complete is not trained with the others.
        objectives: terms of the objective that the study has as its own, lower is better; 1: the objective itself.
        second_chances: times that a trial whose process was lost is handed out again.
        allowed: whether the space's constraints allow a point. One that they forbid is told to the sampler as such, and
            never becomes a trial.
        violated: (metrics of a trial, whether they are of all validation items) → constraint → how far it is violated.
        disk_fault: called where ``asks.jsonl`` cannot be written, before the error goes on.
        used_up: called with a sentence where the space holds no further point before ``trials`` are reached.
    """

    trials: int
    seed: int = 0
    start_from: Sequence[Mapping[str, Any]] = ()
    prior: Sequence[Mapping[str, Any]] = ()
    warm: Sequence[Earlier] = ()
    seeds: Sequence[int] = (0,)
    objectives: int = 1
    second_chances: int = 0
    allowed: Callable[[Mapping[str, Any]], bool] = lambda values: True
    violated: Callable[[Mapping[str, float], bool], dict[str, float]] = lambda metrics, final: {}
    disk_fault: Callable[[str], None] = lambda fault: None
    used_up: Callable[[str], None] = lambda sentence: None


class GuardedOptunaSearch(OptunaSearch):
    """Suggests ``{"trial_id": "t0003", "values": {dotted path: value}}`` and survives whatever trials answer.

    Args:
        space: called with an Optuna trial, returns dotted path → value; Optuna's names are the paths.
        sampler: reseeded before every ask.
        folder: of the sweep.
        plan: what to suggest.
    """

    def __init__(self, space: DefineByRun, sampler: BaseSampler, folder: SweepFolder, plan: SearchPlan):
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # else a line on stderr for every trial
        self._plan = plan
        self._several = plan.objectives > 1
        losses = [f"loss{k}" for k in range(plan.objectives)]
        goal: Any = (losses, ["min"] * len(losses)) if self._several else (METRIC, "max")
        super().__init__(space, metric=goal[0], mode=goal[1], sampler=sampler, study_name=folder.name)
        # Tune refuses every report that lacks a metric of its searcher: a rung has the one number, and the losses of
        # several objectives are a list in a trial's last report.
        self._metric, self._mode = METRIC, "max"
        self._groups: dict[int, _Group] = {}
        self._due: list[_Handed] = []  # further seeds that wait for a place
        study: Any = self._ot_study  # annotated None by Ray
        self._study: optuna.Study = study
        study.stop = self._use_up  # a grid that is used up calls it, and it raises outside Study.optimize
        self._points, self._own_sampler = space, sampler
        self._asks_file = folder.asks_file
        self._mirror = DashboardJournal(folder.journal_file, folder.name)
        self._start_points = [dict(point) for point in plan.start_from]  # not handed out yet
        self._prior = [dict(point) for point in plan.prior]  # not handed out yet
        self._warm = list(plan.warm)  # not in the study yet
        self._resumed: dict[int, Past] = {}  # unfinished trials
        self._seen: set[tuple[tuple[str, Any], ...]] = set()  # points handed out
        self._live: dict[str, _Handed] = {}  # Tune's trial id → trial that runs
        self._enqueued_points: dict[str, dict[str, Any]] = {}  # request → its point, to be tried next
        self._requests: dict[int, str] = {}  # trial number → request that it came from
        self.enqueued: set[str] = set()  # requests whose point was handed out, which asks.jsonl says
        self._taken_up: list[str] = []  # keys in _live of trials that wait for Tune to ask for one
        self._retries: Counter[str] = Counter()  # trial id (ours) → times handed out again after its process was lost
        self._numbers_given = 0  # of trials
        self._ready = self._closed = self._abandoned = self._used_up = False

    def replay(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Go on from the lines of ``study/asks.jsonl``; to be called before the first suggestion.

        Ended trials enter the study as they were told. Those that never ended are handed out again first, with the same
        id and values. Points of ``start_from`` that were handed out are not enqueued again.

        Raises:
            FolderError: for records that do not belong together.
        """
        records = list(records)
        study = read_past(records)
        self.enqueued |= {record["request"] for record in records if record.get("request")}
        for index, past in enumerate(study):
            for name, value in past.study.items():
                self._study._storage.set_study_system_attr(self._study._study_id, name, value)
            self._study.add_trial(past.frozen(index, self._several) if past.end_line else past.waiting(self._several))
            if past.number is not None:
                self._numbers_given = past.number + 1
                self._seen.add(_key(past.values))
                if not past.end_line:
                    self._resumed[past.number] = past
            for points in (self._start_points, self._prior):
                if past.start in points:
                    points.remove(past.start)
                    break
        known = {past.end_line.get("source") for past in study if past.end_line}
        self._warm = [earlier for earlier in self._warm if earlier.source not in known]
        self._begin([past.frozen(index, self._several) for index, past in enumerate(study)])

    @property
    def handed_out(self) -> int:
        """Configurations that were suggested so far."""
        return self._numbers_given

    def open_trials(self) -> tuple[set[str], int]:
        """Trials that run, by our ids, and how many are still to be handed out."""
        running = {handed.trial_id for handed in list(self._live.values())}
        if self._closed:
            return running, 0
        waiting = len(self._resumed) + len(self._due)
        configurations = 0 if self._used_up else max(0, self._plan.trials - self._numbers_given)
        return running, waiting + configurations * len(self._plan.seeds)

    def close(self) -> None:
        """Suggest nothing more. Running trials go on to their end, and are told."""
        self._closed = True

    def abandon(self) -> None:
        """The driver is about to stop: suggest nothing more, and leave trials that are now stopped from outside
        unfinished, to be handed out again on resume. Those that still end by themselves are told.
        """
        self._closed = self._abandoned = True

    def take_up(self) -> list[tuple[str, dict[str, Any]]]:
        """Hand out every unfinished trial of ``replay`` again, before Tune asks for any.

        Returns:
            A name for each, to answer by as if it were Tune's id, and its suggestion. Those that are not answered to
            their end are what ``suggest`` gives first.
        """
        handed_out: list[tuple[str, dict[str, Any]]] = []
        while self._resumed:
            name = f"taken up {len(handed_out)}"
            suggestion = self.suggest(name)
            if not isinstance(suggestion, dict):
                break
            handed_out.append((name, suggestion))
        self._taken_up = [name for name, _ in handed_out]
        return handed_out

    def waits(self, trial_id: str) -> bool:
        """Whether a trial, by our id, that Tune gave up is to be handed out again."""
        return any(self._live[name].trial_id == trial_id for name in list(self._taken_up))

    def enqueue(self, name: str, point: Mapping[str, Any]) -> None:
        """Try a point next, as one of ``trials``; where they are used up, it waits. May be called from any thread.

        Args:
            name: of the request; it is in ``enqueued`` once the point was handed out. One that is known is ignored.
            point: already validated against the space. Keys that it leaves out are sampled.
        """
        if name not in self.enqueued and name not in self._requests.values():
            self._enqueued_points[name] = dict(point)

    def suggest(self, trial_id: str) -> Any:
        """The next point; FINISHED where all were handed out.

        Args:
            trial_id: Tune's own id, which later answers carry. Ours is in the suggestion.
        """
        if self._closed:
            return Searcher.FINISHED
        while self._taken_up:
            taken = self._live.pop(self._taken_up.pop(0), None)
            if taken is not None:
                self._live[trial_id] = taken
                repeat = {"repeat": taken.repeat} if taken.repeat else {}
                return {"trial_id": taken.trial_id, "values": dict(taken.values), **repeat}
        if not self._ready:
            self._begin([])
        if handed := self._next_repeat():
            self._live[trial_id] = handed
            return {"trial_id": handed.trial_id, "values": dict(handed.values), "repeat": handed.repeat}
        if not self._resumed and (self._used_up or self._numbers_given >= self._plan.trials):
            # A configuration that completes may still be trained with its other seeds
            waits = len(self._plan.seeds) > 1 and any(not it.repeat for it in self._live.values())
            return None if waits else Searcher.FINISHED
        again = bool(self._resumed)
        number = min(self._resumed, default=self._numbers_given)
        point = None if again else self._next_point(number)
        handed = self._ask(number, point, again)
        if handed is None:
            self._use_up()
            return self.suggest(trial_id)
        past = self._resumed.pop(number, None)
        if past is not None and past.first is not None:
            self._regroup(handed, past)
            return self.suggest(trial_id)
        self._numbers_given = max(self._numbers_given, number + 1)
        self._seen.add(_key(handed.values))
        self._live[trial_id] = handed
        return {"trial_id": trial_name(number), "values": dict(handed.values)}

    def _use_up(self) -> None:
        """There are no more points; seeds of those that complete are still trained."""
        self._used_up, before = True, self._used_up
        if not before and self._numbers_given < self._plan.trials:
            self._plan.used_up(
                f"The space is used up: each of its {len(self._seen)} points was handed out, before search.trials="
                f"{self._plan.trials}."
            )

    def _next_repeat(self) -> _Handed | None:
        """A further seed of a configuration that completed."""
        if not self._due:
            return None
        handed = self._due.pop(0)
        named: dict[str, Any] = {"attrs": {}, "study": {}, "distributions": {}, "start": None}
        named["again"] = bool(handed.rungs)
        self._log("ask", handed, None, max(handed.rungs, default=0), str(State.PENDING), **named)
        return handed

    def _group(self, handed: _Handed, answer: Answer) -> _Group:
        """Have a configuration trained with its other seeds."""
        group = self._groups[handed.number] = _Group(handed, [answer], len(self._plan.seeds))
        for repeat, seed in enumerate(self._plan.seeds[1:], start=1):
            self._due.append(_Handed(handed.number, handed.trial, {**handed.values, "seed": seed}, {}, repeat=repeat))
        return group

    def _regroup(self, handed: _Handed, past: Past) -> None:
        """A configuration whose seeds had not all ended when the driver died."""
        assert past.first is not None
        group = self._group(handed, past.first)
        for due in [it for it in self._due if it.number == handed.number]:
            known = past.repeats.get(due.repeat)
            if known is None:
                continue
            due.values, due.rungs = dict(known.values), dict(known.rungs)
            if known.ended is not None:
                self._due.remove(due)
                group.answers.append(known.ended)
        self._tell_group(group)

    def _tell_group(self, group: _Group) -> None:
        if len(group.answers) < group.size:
            return
        del self._groups[group.first.number]
        answer = mean_of(group.answers)
        told = told_as(answer, group.first.rungs, None, self._several)
        self._log_answer("mean", group.first, answer, told.name)
        self._tell(group.first, answer, told)

    def _next_point(self, number: int) -> dict[str, Any] | None:
        """A point that somebody asked for, of ``start_from`` or of the prior; None leaves it to the sampler."""
        if self._enqueued_points:
            name = next(iter(self._enqueued_points))
            self._requests[number] = name
            return self._enqueued_points.pop(name)
        while self._start_points:
            point = self._start_points.pop(0)
            if _key(point) not in self._seen:
                return point
        self._prior = [point for point in self._prior if _key(point) not in self._seen]
        return self._prior.pop(0) if self._prior and takes_prior(self._plan.seed, number) else None

    def _ask(self, number: int, point: dict[str, Any] | None, again: bool) -> _Handed | None:
        """Ask the sampler until it gives a point that may be handed out. None where all were handed out.

        A sampler learns nothing from a forbidden point, and GP would suggest it for ever; and the best point of a small
        space is what a sampler likes to suggest again. After some of them in a row one is drawn at random from those
        that are allowed and new. Only a point that somebody asks for in full is tried again.

        Args:
            number: the trial's.
            point: of ``start_from``, or None.
            again: it was handed out before a death, and waits in the study.

        Raises:
            ConfigError: where the constraints allow nothing.
        """
        start = point
        for attempt in itertools.count():
            if attempt == _MOST_REJECTED and not isinstance(self._own_sampler, GridSampler):
                start = self._draw_new(start or {})
                if start is None:
                    return None
            reseed(self._own_sampler, self._plan.seed, len(self._study.get_trials(deepcopy=False)))
            if start is not None:
                self._study.enqueue_trial(start)
            before = dict(self._study_attrs())
            trial = self._study.ask()
            values = self._points(trial)
            handed = _Handed(number, trial, values, {})
            if again:
                past = self._resumed[number]
                handed = _Handed(number, trial, dict(past.current), dict(past.rungs), past.perturbed)
            study = {name: it for name, it in self._study_attrs().items() if before.get(name) != it}
            known = _key(values) in self._seen and _key(point or {}) != _key(values)
            if again or (self._plan.allowed(values) and not known):
                trial.set_user_attr("trial_id", trial_name(number))
                self._log_ask("ask", handed, study, point, again)
                return handed
            self._log_ask("reject", handed, study, None)
            self._study.tell(trial, state=TrialState.FAIL)
            self._mirror.ended(self._frozen(trial.number))
            if (known and isinstance(self._own_sampler, GridSampler)) or self._used_up:
                return None
        raise AssertionError

    def _draw_new(self, fixed: Mapping[str, Any]) -> dict[str, Any] | None:
        """A point drawn evenly from those of the space that are allowed and were not handed out; ``fixed`` keys keep
        their values, unless nothing is left with them. None where the space holds no further one.

        Raises:
            ConfigError: where none of many is allowed.
        """
        seed = np.random.SeedSequence([self._plan.seed, len(self._study.get_trials(deepcopy=False))])
        number = int(seed.generate_state(1)[0])
        space = self._points.space
        if size(space) is not None:
            every = [it for it in combinations(space) if self._plan.allowed(it)]
            new = [it for it in every if _key(it) not in self._seen]
            kept = [it for it in new if all(it.get(path) == value for path, value in fixed.items())]
            if every:
                return random.Random(number).choice(kept or new) if new else None
        study, allowed = optuna.create_study(sampler=optuna.samplers.RandomSampler(number)), False
        for _ in range(_MOST_DRAWN):
            study.enqueue_trial(dict(fixed))
            values = self._points(study.ask())
            if self._plan.allowed(values):
                allowed = True
                if _key(values) not in self._seen:
                    return values
        if allowed:
            return self._draw_new({}) if fixed else None
        raise ConfigError(
            f"space_constraints: of {_MOST_DRAWN} points drawn from the space none is allowed. Loosen a constraint, or"
            " shrink the space to where they hold."
        )

    def _study_attrs(self) -> dict[str, Any]:
        """What samplers remember in the study, such as NSGA-II the parents of a generation."""
        return self._study._storage.get_study_system_attrs(self._study._study_id)

    def perturb(self, exchange: Exchange) -> None:
        """Write down that a trial goes on from another one's weights, with other values."""
        handed = next(it for it in self._live.values() if it.trial_id == exchange.trial_id)
        if handed.perturbed is None:
            handed.perturbed = exchange.step
        handed.values = dict(exchange.new)
        score = handed.rungs.get(exchange.step)
        more = {"parent": exchange.parent, "old": exchange.old}
        self._log("perturb", handed, score, exchange.step, str(State.RUNNING), **more)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A rung after which the trial goes on."""
        handed = self._live.get(trial_id)
        if handed is not None:
            self._note_rung(handed, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A trial ended, in whatever way. A second answer, or one for an unknown trial, is ignored."""
        handed = self._live.pop(trial_id, None)
        if handed is None:
            logger.debug("ignored: another answer for Tune's trial %s", trial_id)
            return
        if error and not self._closed and self._retries[handed.trial_id] < self._plan.second_chances:
            # Tune gives a trial up whose proxy dies before it has started, such as while it is taken over from another.
            self._retries[handed.trial_id] += 1
            name = f"again {handed.trial_id} {self._retries[handed.trial_id]}"
            self._live[name] = handed
            self._taken_up.append(name)
            return
        last = result or {}
        self._note_rung(handed, last)  # Tune passes on the rung at which a trial is stopped only here
        if self._abandoned and last.get("state") not in ENDED:
            return
        answer = self._answer(handed, last, error)
        group = self._groups.get(handed.number)
        if handed.repeat and group is not None:
            self._log_answer("tell", handed, answer, WAIT)
            group.answers.append(answer)
            self._tell_group(group)
            return
        told = told_as(answer, handed.rungs, handed.perturbed, self._several)
        if told is TrialState.COMPLETE and len(self._plan.seeds) > 1:
            self._log_answer("tell", handed, answer, WAIT)
            self._group(handed, answer)
            return
        self._log_answer("tell", handed, answer, told.name)
        self._tell(handed, answer, told)

    def _answer(self, handed: _Handed, last: Mapping[str, Any], error: bool) -> Answer:
        state, objective = _outcome(last, handed.rungs, error)
        losses = [_finite(loss) for loss in last.get("losses", ())]
        kept = tuple(loss for loss in losses if loss is not None)
        judged = state in (State.COMPLETED, State.STOPPED_EARLY)
        violated = self._plan.violated(reported_metrics(last), bool(last.get("final"))) if judged else {}
        return Answer(
            state,
            objective,
            kept if len(kept) == len(losses) else (),
            {name: amount if math.isfinite(amount) else 1.0 for name, amount in violated.items()},
            str(last.get("reason", "")) or ("the trial's process ended with an error" if error else ""),
            max([int(last.get("step", 0)), *handed.rungs]),
        )

    def _log_answer(self, event: str, handed: _Handed, answer: Answer, told: str) -> None:
        more = {"told": told, "reason": answer.reason, "losses": answer.losses, "constraints": answer.constraints}
        self._log(event, handed, answer.objective, answer.step, str(answer.state), **more)

    def _tell(self, handed: _Handed, answer: Answer, told: TrialState) -> None:
        handed.trial.set_user_attr("state", str(answer.state))
        handed.trial.set_user_attr("reason", answer.reason)
        for name, amount in violations(answer).items():
            handed.trial.set_constraint(name, amount)
        values: Any = list(answer.losses) if self._several else answer.objective
        self._study.tell(handed.trial, values if told is TrialState.COMPLETE else None, state=told)
        self._mirror.ended(self._frozen(handed.trial.number))

    def save(self, checkpoint_path: str) -> None:
        """Tune keeps a pickle of its searcher here. The state is in the sweep folder; this only says so."""
        Path(checkpoint_path).write_text(json.dumps({"see": str(self._asks_file)}))

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("A sweep is resumed from its folder (replay), never from Tune's own files.")

    def _begin(self, past: Sequence[FrozenTrial]) -> None:
        self._ready = True
        self._mirror.start(past, self._study.directions)
        for earlier in self._warm:
            self._carry_over(earlier)

    def _carry_over(self, earlier: Earlier) -> None:
        """An earlier sweep's trial: into the study, and into asks.jsonl for the resumes to come."""
        told = TrialState.COMPLETE if earlier.completed else TrialState.PRUNED
        made = {name: it for name, it in distributions(self._points.space).items() if name in earlier.values}
        line = {
            "event": "warm", "trial_id": None, "number": None, "values": earlier.values, "objective": earlier.objective,
            "step": max(earlier.rungs), "state": str(State.COMPLETED if earlier.completed else State.STOPPED_EARLY),
            "time": time.time(), "distributions": {name: distribution_to_json(it) for name, it in made.items()},
            "attrs": {}, "start": None, "told": told.name, "source": earlier.source,
            "rungs": {str(step): value for step, value in earlier.rungs.items()}, "losses": earlier.losses,
        }  # fmt: skip
        append_line(self._asks_file, line)
        (past,) = read_past([line])
        frozen = past.frozen(len(self._study.get_trials(deepcopy=False)), self._several)
        self._study.add_trial(frozen)
        self._mirror.asked(frozen)

    def _note_rung(self, handed: _Handed, result: Mapping[str, Any]) -> None:
        step = result.get("step")
        if result.get("state") != State.RUNNING or result.get("halt") or step is None or step in handed.rungs:
            return  # an end, not a rung; or a rung told before the driver died
        value = _finite(result.get(METRIC))
        known = {"one_class": True} if names_one_class(result) else {}
        self._log("rung", handed, value, step, str(State.RUNNING), **known)
        handed.rungs[step] = value
        own = not handed.repeat and (handed.perturbed is None or step <= handed.perturbed)
        if value is not None and own and not self._several:  # Optuna has no rungs for several objectives
            handed.trial.report(value, step)
            self._mirror.rung(handed.trial.number, step, value)

    def _log_ask(
        self, event: str, handed: _Handed, study: Mapping[str, Any], start: dict[str, Any] | None, again: bool = False
    ) -> None:
        frozen, request = self._frozen(handed.trial.number), self._requests.get(handed.number)
        self._log(
            event,
            handed,
            None,
            max(handed.rungs, default=0),
            str(State.PENDING),
            distributions={name: distribution_to_json(it) for name, it in frozen.distributions.items()},
            attrs={name: it for name, it in frozen.system_attrs.items() if not name.startswith(_NOT_KEPT)},
            study=study,
            start=start,
            again=again,
            **({"request": request} if request and event == "ask" else {}),
        )
        if request and event == "ask":
            self.enqueued.add(request)
        self._mirror.asked(frozen)

    def _log(self, event: str, handed: _Handed, objective: float | None, step: int, state: str, **more: Any) -> None:
        rejected = event == "reject"
        named: dict[str, Any] = {"event": event, "trial_id": None, "number": None, "values": handed.values}
        named |= {} if rejected else {"trial_id": handed.trial_id, "number": handed.number}
        named |= {"repeat": handed.repeat} if handed.repeat else {}
        scored = {"objective": objective, "step": step, "state": state, "time": time.time()}
        try:
            append_line(self._asks_file, {**named, **scored, **more})
        except OSError as error:
            self._plan.disk_fault(str(error))
            raise

    def _frozen(self, index: int) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[index]


def reported_metrics(result: Mapping[str, Any]) -> Mapping[str, float]:
    """The metrics of a trial's report, as the proxy made it or as Tune hands it on, with nested keys joined by "/"."""
    nested: Mapping[str, float] | None = result.get("metrics")
    if nested is not None:
        return nested
    return {key.removeprefix(_METRICS): value for key, value in result.items() if key.startswith(_METRICS)}


def names_one_class(result: Mapping[str, Any]) -> bool:
    """Whether a trial predicts the same label for every item; of a report, or of its line in ``study/asks.jsonl``."""
    return bool(result.get("one_class", one_class(reported_metrics(result))))


def _outcome(answer: Mapping[str, Any], rungs: Mapping[int, float | None], error: bool) -> tuple[State, float | None]:
    """State and objective of a trial from its last answer; what still runs was stopped from outside."""
    reported = answer.get("state")
    if error:
        return State.FAILED, None
    if reported in ENDED:
        return State(reported), _finite(answer.get(METRIC))
    scores = [rungs[step] for step in sorted(rungs) if rungs[step] is not None]
    return State.STOPPED_EARLY, scores[-1] if scores else None


def _key(values: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """A point, by which two are told apart: floats that only rounding makes different are one, 1e-17 and 0 too."""
    rounded = {path: _rounded(it) if isinstance(it, float) else it for path, it in values.items()}
    return tuple(sorted(rounded.items()))


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}") if abs(value) > 10**-_DIGITS else 0.0


def _finite(value: Any) -> float | None:
    number = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if number else None
