"""What becomes of answers: several seeds as one, what a sampler is told, and what a file of them says."""

from typing import Any

import pytest
from optuna.distributions import FloatDistribution, distribution_to_json
from optuna.trial import TrialState

from analysis.errors import FolderError
from analysis.folder import State
from sweeps.search.study_log import Answer, mean_of, own_scores, read_past, told_as, trial_name, violations

DONE = State.COMPLETED


def answer(state: State = DONE, objective: float | None = 0.5, **more: Any) -> Answer:
    return Answer(state, objective, **more)


def test_the_answer_of_several_seeds_is_the_mean_of_those_that_completed() -> None:
    one = answer(objective=0.2, losses=(0.1, 0.4), constraints={"fair": -0.2, "small": 0.5}, step=8)
    two = answer(objective=0.6, losses=(0.3, 0.2), constraints={"fair": 0.4}, step=24)
    failed = answer(State.FAILED, None, reason="a driver's fault")
    mean = mean_of([one, failed, two])
    assert (mean.state, mean.objective, mean.step, mean.reason) == (DONE, pytest.approx(0.4), 24, "mean of 2 seeds")
    assert mean.losses == pytest.approx((0.2, 0.3))
    assert mean.constraints == pytest.approx({"fair": 0.1, "small": 0.75})  # one that is not known is not kept
    assert mean_of([one, answer(objective=0.6)]).losses == (), "one whose losses are not finite"
    assert mean_of([one, answer(objective=None), two]).objective == pytest.approx(0.4)


@pytest.mark.parametrize("bad", [State.DIVERGED, State.OUT_OF_MEMORY])
def test_a_seed_that_diverges_or_finds_no_memory_is_the_answer(bad: State) -> None:
    worst = answer(bad, None, step=3)
    assert mean_of([answer(), worst, answer()]) is worst
    both = [answer(State.DIVERGED, None), answer(State.OUT_OF_MEMORY, None)]
    assert mean_of(both).state is State.OUT_OF_MEMORY
    lost = [answer(State.FAILED, None, reason="first"), answer(State.FAILED, None, reason="second")]
    assert mean_of(lost).reason == "first"


@pytest.mark.parametrize(
    ("ended", "rungs", "more", "told"),
    [
        (answer(), {}, {}, TrialState.COMPLETE),
        (answer(objective=None), {}, {}, TrialState.FAIL),
        (answer(), {}, {"perturbed": 4}, TrialState.PRUNED),  # its values are not those that were suggested
        (answer(), {}, {"several": True}, TrialState.FAIL),  # one of the losses is not finite
        (answer(losses=(0.1,)), {}, {"several": True}, TrialState.COMPLETE),
        (answer(objective=None, losses=(0.1,)), {}, {"several": True}, TrialState.FAIL),
        (answer(State.STOPPED_EARLY, None), {4: 0.2, 8: None}, {}, TrialState.PRUNED),
        (answer(State.STOPPED_EARLY, None), {4: None, 8: None}, {}, TrialState.FAIL),
        (answer(State.STOPPED_EARLY, None), {}, {}, TrialState.FAIL),
        (answer(State.OUT_OF_MEMORY, None), {}, {}, TrialState.PRUNED),
        (answer(State.DIVERGED, None), {4: 0.2}, {}, TrialState.FAIL),
        (answer(State.FAILED, None), {4: 0.2}, {}, TrialState.FAIL),
    ],
)
def test_what_the_sampler_is_told(ended: Answer, rungs: Any, more: Any, told: TrialState) -> None:
    assert told_as(ended, rungs, **more) is told


def test_memory_that_ran_out_is_a_constraint_beside_the_objectives() -> None:
    assert violations(answer(constraints={"fair": -1.0})) == {"fair": -1.0}
    broken = violations(answer(State.OUT_OF_MEMORY, None, constraints={"fair": -1.0}))
    assert broken.pop("fair") == -1.0
    (violated,) = broken.values()
    assert violated > 0


def test_scores_count_up_to_where_a_trial_went_on_with_other_values() -> None:
    rungs = {2: 0.1, 4: None, 6: 0.3, 8: 0.4}
    assert own_scores(rungs, None) == {2: 0.1, 6: 0.3, 8: 0.4}
    assert own_scores(rungs, 6) == {2: 0.1, 6: 0.3}
    assert own_scores(rungs, 4) == {2: 0.1}


def ask(number: int | None, lr: float, **more: Any) -> dict[str, Any]:
    drawn = {"optim.lr": distribution_to_json(FloatDistribution(1e-5, 1.0))}
    line = {"event": "ask", "number": number, "values": {"optim.lr": lr}, "distributions": drawn, "attrs": {}}
    return line | {"study": {}, "start": None, "time": 1e9} | more


def line(event: str, number: int, **more: Any) -> dict[str, Any]:
    return {"event": event, "number": number, "values": {}, "time": 2e9, "objective": None, "step": 8} | more


def test_of_each_kind_of_line_the_first_counts() -> None:
    (past,) = read_past([
        ask(0, 0.1),
        line("rung", 0, step=4, objective=0.25),
        line("rung", 0, step=4, objective=0.9),
        line("perturb", 0, step=4, values={"optim.lr": 0.2}),
        line("rung", 0, objective=0.5),
        line("perturb", 0, values={"optim.lr": 0.3}),
        ask(0, 0.9),
        line("tell", 0, state="completed", objective=0.75),
        line("tell", 0, state="failed"),
    ])  # fmt: skip
    assert (past.values, past.current, past.perturbed) == ({"optim.lr": 0.1}, {"optim.lr": 0.3}, 4)
    assert past.rungs == {4: 0.25, 8: 0.5}
    trial = past.frozen(3, several=False)
    assert (trial.state, trial.number, trial.params) == (TrialState.PRUNED, 3, {"optim.lr": 0.1})
    assert (trial.value, trial.intermediate_values) == (0.25, {4: 0.25})
    assert trial.user_attrs == {"trial_id": "t0000", "state": "completed", "reason": ""}
    assert (trial.datetime_start.timestamp(), trial.datetime_complete.timestamp()) == (1e9, 2e9)  # type: ignore[union-attr]
    assert past.frozen(0, several=True).intermediate_values == {}
    waiting = past.waiting(several=False)
    assert (waiting.state, waiting.system_attrs["fixed_params"]) == (TrialState.WAITING, {"optim.lr": 0.1})
    assert (waiting.intermediate_values, past.waiting(several=True).intermediate_values) == ({4: 0.25}, {})


def test_rejected_points_and_those_of_other_sweeps_are_trials_of_the_study_and_none_of_ours() -> None:
    warm = ask(None, 0.4, event="warm", told="COMPLETE", objective=0.9, source="runs/a/t0003", rungs={"4": 0.8})
    rejected, theirs, running = read_past([ask(None, 0.2, event="reject"), warm, ask(0, 0.1)])
    assert rejected.frozen(0, several=False).state is TrialState.FAIL
    trial = theirs.frozen(1, several=False)
    assert (trial.state, trial.value, trial.user_attrs) == (TrialState.COMPLETE, 0.9, {"source": "runs/a/t0003"})
    assert trial.intermediate_values == {4: 0.8}
    mine = running.frozen(2, several=False)
    assert (mine.state, mine.user_attrs, mine.datetime_complete) == (TrialState.RUNNING, {"trial_id": "t0000"}, None)


def test_seeds_of_a_configuration_are_read_apart_from_the_first() -> None:
    (past,) = read_past([
        ask(0, 0.1),
        line("tell", 0, state="completed", objective=0.5, told="WAIT"),
        line("ask", 0, repeat=1, values={"seed": 8}),
        line("ask", 0, repeat=1, values={"seed": 9}),
        line("rung", 0, repeat=1, step=4, objective=0.3),
        line("rung", 0, repeat=1, step=4, objective=0.4),
        line("tell", 0, repeat=1, state="completed", objective=0.7),
        line("tell", 0, repeat=1, state="failed"),
    ])  # fmt: skip
    assert past.first is not None
    assert (past.first.objective, past.end_line) == (0.5, None)
    assert list(past.repeats) == [1]
    repeat = past.repeats[1]
    assert (repeat.values, repeat.rungs) == ({"seed": 8}, {4: 0.3})
    assert repeat.ended is not None
    assert repeat.ended.objective == 0.7
    assert (trial_name(7), trial_name(7, 2)) == ("t0007", "t0007.2")


def test_a_trial_that_is_missing_and_an_answer_without_its_ask_are_refused() -> None:
    with pytest.raises(FolderError, match=r"trial t0001 was never handed out, but later ones were"):
        read_past([ask(0, 0.1), ask(2, 0.1)])
    with pytest.raises(FolderError, match=r"record 2: cannot be understood \(KeyError"):
        read_past([ask(0, 0.1), line("tell", 1, state="completed")])


@pytest.mark.parametrize(
    "damaged",
    [
        line("tell", 0),
        line("tell", 0, state="sleeping"),
        line("tell", 0, state="completed", time="noon"),
        line("mean", 0, state="completed", losses=3),
        line("rung", 0) | {"number": [0]},
        ask(None, 0.1, event="warm", told="WON"),
        ask(None, 0.1, event="reject", distributions={"optim.lr": "a number"}),
    ],
)
def test_a_damaged_line_is_named(damaged: dict[str, Any]) -> None:
    with pytest.raises(FolderError, match="record 2: cannot be understood"):
        read_past([ask(0, 0.1), damaged])
