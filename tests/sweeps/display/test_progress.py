"""What a user sees of a running sweep, on a terminal and in a pipe, and how honest the time left is."""

import io
import pickle
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from analysis.folder import State
from analysis.rows import Row
from sweeps.display.live_view import duration, one_line, short_values, table, time_left
from sweeps.display.progress import Progress
from sweeps.display.sweep_state import SweepState
from sweeps.driver.tune_run import TuneCallback
from sweeps.store.tune_results import outcome_of, rung_rows

VALUES = {"lora.rank": 8, "optim.lr": 3e-4, "precision": "nf4"}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def state(clock: Clock) -> SweepState:
    return SweepState("quick", trials=4, max_steps=48, clock=clock)


def trial(trial_id: str, **values: Any) -> Any:
    return SimpleNamespace(trial_id=f"tune_{trial_id}", config={"trial_id": trial_id, "values": VALUES | values})


def report(step: int, seconds: float = 0.0, **changes: Any) -> dict[str, Any]:
    result = {
        "trial_id": "tune_…",
        "step": step,
        "tokens": 0,
        "seconds": seconds,
        "n_items": 96,
        "final": False,
        "state": "running",
        "reason": "",
        "objective": 0.25,
        "metrics": {"accuracy": 0.71, "macro_f1": 0.695},
    }
    return result | changes


def tell(progress: Progress, one: Any, result: dict[str, Any]) -> None:
    progress.on_trial_result(iteration=0, trials=[one], trial=one, result=result)


def start(progress: Progress, one: Any) -> None:
    progress.on_trial_start(iteration=0, trials=[one], trial=one)


def complete(progress: Progress, one: Any) -> None:
    progress.on_trial_complete(iteration=0, trials=[one], trial=one)


def lines(state: SweepState, width: int = 80, height: int = 24) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    console.print(table(state, width, height))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


# Time left


def test_time_left_is_unknown_before_the_first_rung(state: SweepState, clock: Clock) -> None:
    assert state.seconds_left() is None
    state.start("t0000", VALUES)
    clock.now += 60
    assert state.seconds_left() is None


def test_time_left_comes_from_the_steps_all_trials_made_together(state: SweepState, clock: Clock) -> None:
    for trial_id in ("t0000", "t0001"):
        state.start(trial_id, VALUES)
    clock.now += 30
    state.report("t0000", 12, {}, 0.0, seconds=30)
    state.report("t0001", 12, {}, 0.0, seconds=30)
    # 24 steps in 30 s; 2 × 36 to go in those that run, 2 × 48 in those to come.
    assert state.seconds_left() == pytest.approx((72 + 96) * 30 / 24)


def test_time_left_counts_down_between_reports_and_is_unknown_once_it_is_over(state: SweepState, clock: Clock) -> None:
    state.start("t0000", VALUES)
    clock.now += 30
    state.report("t0000", 12, {}, 0.0, seconds=30)
    first = state.seconds_left()
    assert first is not None
    clock.now += 10
    assert state.seconds_left() == pytest.approx(first - 10)
    clock.now += first
    assert state.seconds_left() is None


def test_loading_the_model_is_not_taken_for_training(state: SweepState, clock: Clock) -> None:
    state.start("t0000", VALUES)
    clock.now += 500  # of which training, after the slot was given, 30
    state.report("t0000", 12, {}, 0.0, seconds=30)
    assert state.seconds_left() == pytest.approx((36 + 3 * 48) * 30 / 12)


def test_trials_that_were_stopped_make_those_to_come_look_shorter(state: SweepState, clock: Clock) -> None:
    state.start("t0000", VALUES)
    clock.now += 12
    state.report("t0000", 12, {}, 0.0, seconds=12)
    assert state.seconds_left() == pytest.approx(36 + 3 * 48)
    state.end("t0000", State.STOPPED_EARLY, "")
    assert state.seconds_left() == pytest.approx(3 * 12)


def test_trials_ended_before_a_sweep_goes_on_count_as_done_but_not_as_speed(clock: Clock) -> None:
    state = SweepState("quick", trials=4, max_steps=48, ended_before=3, clock=clock)
    assert state.ended == 3
    state.start("t0003", VALUES)
    clock.now += 12
    state.report("t0003", 12, {}, 0.0, seconds=12)
    assert state.seconds_left() == pytest.approx(36)


def test_a_configuration_is_done_when_all_its_seeds_are(clock: Clock) -> None:
    state = SweepState("quick", 3, 10, 1, clock, repeats=2, seeds_before={"t0001": 1})
    state.start("t0001.1", VALUES)  # its first seed ended before this process began
    state.start("t0002", VALUES)
    state.report("t0001.1", 10, {}, 0.5)
    state.report("t0002", 10, {}, 0.5)
    assert (state.ended, state.total) == (1, 3)
    state.end("t0001.1", State.COMPLETED, "")
    assert state.ended == 2
    state.end("t0002", State.COMPLETED, "")
    assert state.ended == 2
    state.start("t0002.1", VALUES)
    assert state.total == 3
    state.end("t0002.1", State.COMPLETED, "")
    assert state.ended == 3


def test_a_configuration_whose_first_seed_was_stopped_is_done_and_time_left_counts_the_seeds_to_come(
    clock: Clock,
) -> None:
    state = SweepState("quick", 3, 10, 0, clock, repeats=3)
    state.start("t0000", VALUES)
    clock.now += 10
    state.report("t0000", 10, {}, 0.5, seconds=10)
    state.end("t0000", State.COMPLETED, "")
    state.start("t0001", VALUES)
    state.report("t0001", 10, {}, 0.5)
    state.end("t0001", State.STOPPED_EARLY, "")
    assert state.ended == 1
    # 20 steps in 10 seconds; to come are two seeds of t0000, and three of a configuration, of 10 steps each
    assert state.seconds_left() == 25


def test_time_left_counts_the_seeds_to_come_of_every_configuration(clock: Clock) -> None:
    state = SweepState("quick", 4, 10, 0, clock, repeats=4, seeds_before={"t0001": 2})
    state.start("t0000", VALUES)
    clock.now += 10
    state.report("t0000", 10, {}, 0.5, seconds=10)
    state.end("t0000", State.COMPLETED, "")
    for trial in ("t0001.3", "t0002"):
        state.start(trial, VALUES)
        state.report(trial, 10, {}, 0.5)
        state.end(trial, State.COMPLETED, "")
    # 30 steps in 10 seconds, 10 a trial. To come: three seeds of t0000, one of t0001, three of t0002, four of the last
    assert state.seconds_left() == pytest.approx((3 + 1 + 3 + 4) * 10 * 10 / 30)


def test_a_trial_with_its_own_number_of_steps_is_measured_by_it(state: SweepState) -> None:
    state.start("t0000", {"train.max_steps": 96})
    assert state.trials["t0000"].max_steps == 96


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "…"),
        (3, "~10 s left"),
        (41, "~50 s left"),
        (57, "~1 min left"),
        (170, "~3 min left"),
        (5000, "~84 min left"),
        (7800, "~2 h 10 min left"),
        (7200, "~2 h left"),
    ],
)
def test_time_left_is_no_more_precise_than_an_estimate(seconds: float | None, shown: str) -> None:
    assert time_left(seconds) == shown


def test_durations() -> None:
    assert [duration(s) for s in (7.9, 754, 3723)] == ["0:07", "12:34", "1:02:03"]


def test_values_are_short() -> None:
    values = {
        "lora.rank": 8,
        "lora.targets": "attention",
        "optim.lr": 3.4e-4,
        "lora.alpha_value": 2.0,
        "precision": "nf4",
    }
    assert short_values(values) == "rank=8 targets=attention lr=3.4e-4 alpha_value=2 nf4"
    assert (
        short_values({"optim.lr": 1e-3, "lora.dropout": 0.05, "optim.warmup": 0.0}) == "lr=1e-3 dropout=0.05 warmup=0"
    )


# What reports mean


def test_a_trial_that_did_not_say_it_ended_was_stopped() -> None:
    assert outcome_of(report(12)) == (State.STOPPED_EARLY, "scheduler: not among the best at step 12")
    assert outcome_of(None) == (State.STOPPED_EARLY, "stopped before its first rung")
    assert outcome_of(report(12, state="diverged", reason="NaN")) == (State.DIVERGED, "NaN")


def test_the_final_scoring_is_not_a_rung() -> None:
    rung, final = report(48), report(24, final=True)
    assert [row["step"] for row in rung_rows(rung)] == [48]
    assert rung_rows(final | {"state": "completed"}) == []
    assert rung_rows(final | {"state": "completed", "rows": [rung, final]}) == [rung]


# In a pipe


def test_plain_lines_tell_each_event_with_the_time_since_the_start(state: SweepState, clock: Clock) -> None:
    stream = io.StringIO()
    with Progress(state, stream) as progress:
        progress.phase("loading model …")
        clock.now += 5
        a, b = trial("t0000"), trial("t0001", precision="fp32")
        start(progress, a)
        start(progress, b)
        clock.now += 60
        tell(progress, a, report(12, 60.0))
        complete(progress, a)
        tell(
            progress,
            b,
            report(12, 60.0, state="diverged", reason="the loss is NaN", metrics={}, objective=float("nan")),
        )
        complete(progress, b)
        progress.note("W&B is offline")
    scores = "accuracy 0.710  F1 0.695  objective 0.250"
    assert stream.getvalue().splitlines() == [
        "[   0:00] loading model …",
        "[   0:05] t0000  started  rank=8 lr=3e-4 nf4",
        "[   0:05] t0001  started  rank=8 lr=3e-4 fp32",
        f"[   1:05] t0000  step 12/48  {scores}  (0/4 done, ~15 min left)",
        f"[   1:05] t0000  stopped early at step 12  {scores}  (1/4 done, ~9 min left)",
        "[   1:05] t0001  diverged at step 12  (2/4 done, ~1 min left): the loss is NaN",
        "[   1:05] W&B is offline",
    ]


def test_a_completed_trial_shows_its_final_scores_in_one_line(state: SweepState) -> None:
    stream, one = io.StringIO(), trial("t0000")
    with Progress(state, stream) as progress:
        start(progress, one)
        tell(progress, one, report(48, state="completed", final=True, metrics={"accuracy": 0.8}))
        complete(progress, one)
        complete(progress, one)  # told twice, shown once
    assert stream.getvalue().splitlines()[1:] == [
        "[   0:00] t0000  completed at step 48  accuracy 0.800  objective 0.250  (1/4 done, …)"
    ]


def test_a_lost_process_is_shown_as_failed_and_a_retry_is_not_a_second_start(state: SweepState) -> None:
    stream, one = io.StringIO(), trial("t0000")
    with Progress(state, stream) as progress:
        start(progress, one)
        start(progress, one)
        progress.on_trial_error(iteration=0, trials=[], trial=one)
    started, failed = stream.getvalue().splitlines()
    assert "started" in started
    assert "t0000  failed at step 0  (1/4 done, …): its process" in failed


def test_trials_that_a_ctrl_c_takes_down_are_not_shown_as_ended(state: SweepState) -> None:
    stream, a, b = io.StringIO(), trial("t0000"), trial("t0001")
    with Progress(state, stream) as progress:
        for one in (a, b):
            start(progress, one)
            tell(progress, one, report(12))
        progress.stopping("Stopping.")
        progress.on_trial_error(iteration=0, trials=[], trial=a)
        complete(progress, b)
    assert stream.getvalue().splitlines()[-1] == "[   0:00] Stopping."
    assert state.ended == 0


def test_quiet_shows_nothing(state: SweepState) -> None:
    for stream in (io.StringIO(), Terminal()):
        with Progress(state, stream, view="quiet") as progress:
            progress.phase("loading model …")
            start(progress, trial("t0000"))
            progress.note("W&B is offline")
        assert stream.getvalue() == ""


def test_a_reader_that_is_gone_does_not_end_the_sweep(state: SweepState) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    one = trial("t0000")
    with Progress(state, Gone()) as progress:
        start(progress, one)
        tell(progress, one, report(12))
    assert state.trials["t0000"].step == 12


# On a terminal


def test_the_table_is_readable_at_80_columns(state: SweepState, clock: Clock) -> None:
    state.start("t0000", VALUES | {"lora.targets": "all_linear", "lora.alpha_value": 2.0})
    state.start("t0001", VALUES)
    clock.now += 754
    state.report("t0000", 48, {"accuracy": 0.712, "macro_f1": 0.7}, -0.25, seconds=754)
    state.end("t0000", State.COMPLETED, "")
    state.best = ("t0000", -0.25)
    shown = lines(state)
    assert max(map(len, shown)) <= 80
    assert shown[0].startswith("quick · 1/4 done · 1 running · 12:34 · ~")
    assert shown[1].split() == ["trial", "values", "step", "acc.", "F1", "obj.", "outcome", "time"]
    assert shown[2].split() == ["t0001", "rank=8", "lr=3e-4", "nf4", "0/48", "–", "–", "–", "running", "12:34"]
    assert shown[3].startswith("t0000* rank=8 lr=3e-4 nf4 all")
    assert shown[3].split()[-6:] == ["48/48", "0.712", "0.700", "-0.250", "completed", "12:34"]


def test_the_table_fits_the_terminal_with_running_trials_first_and_the_latest_to_end_next(
    state: SweepState, clock: Clock
) -> None:
    state.phase = "scoring"
    for i in range(30):
        state.start(f"t{i:04d}", VALUES)
        if i % 10:
            clock.now += 1
            state.end(f"t{i:04d}", State.OUT_OF_MEMORY, "")
    shown = lines(state, height=12)
    assert len(shown) == 12
    assert [line[:5] for line in shown[3:-1]] == [f"t{i:04d}" for i in (0, 10, 20, 29, 28, 27, 26, 25)]
    assert "no memory" in shown[-2]
    assert shown[-1] == "… and 22 more"


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, RuntimeError])
def test_the_terminal_is_left_as_it_was(state: SweepState, error: type[BaseException] | None, monkeypatch: Any) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream, stdout = Terminal(), sys.stdout
    before = set(threading.enumerate())
    try:
        with Progress(state, stream) as progress:
            start(progress, trial("t0000"))
            progress.note("W&B is offline [bold]")
            if error:
                raise error
    except (KeyboardInterrupt, RuntimeError):
        pass
    shown = stream.getvalue()
    assert "W&B is offline [bold]" in shown
    assert "t0000" in shown
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l") >= 0  # the cursor is back
    assert sys.stdout is stdout
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()
    progress.note("after")
    assert stream.getvalue().endswith("after\n")


def test_the_live_view_ends_with_the_experiment(state: SweepState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Progress(state, stream) as progress:
        TuneCallback(progress).on_experiment_end(trials=[])
        assert stream.getvalue().rfind("\x1b[?25h") > stream.getvalue().rfind("\x1b[?25l")


def test_several_threads_can_speak_while_the_live_view_draws(
    state: SweepState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Progress(state, stream) as progress:

        def speak(i: int) -> None:
            one = trial(f"t{i:04d}")
            start(progress, one)
            for step in range(1, 20):
                tell(progress, one, report(step, 1.0))
                progress.note(f"note {i}/{step}")
            complete(progress, one)

        threads = [threading.Thread(target=speak, args=(i,), daemon=True) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
    assert all(f"note {i}/{step}" in stream.getvalue() for i in range(4) for step in range(1, 20))
    assert state.ended == 4


def test_tune_can_pickle_it(state: SweepState) -> None:
    assert pickle.dumps(TuneCallback(Progress(state, io.StringIO())))


def drawn(state: SweepState, width: int, view: Any = table) -> str:
    console = Console(file=io.StringIO(), width=width, height=24)
    console.print(view(state, width, 24) if view is table else view(state, width))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_wide_terminal_shows_more_metrics_and_why_trials_ended(state: SweepState, clock: Clock) -> None:
    state.start("t0000", VALUES)
    state.report("t0000", 12, {"accuracy": 0.5, "macro_f1": 0.4, "log_loss": 1.25, "perplexity": 88.1}, 0.4)
    state.end("t0000", State.STOPPED_EARLY, "scheduler: not among the best")
    narrow, wide = drawn(state, 80), drawn(state, 160)
    assert max(map(len, narrow.splitlines())) <= 80
    assert "perplexity" not in narrow
    assert "1.25" not in narrow
    for shown in ("1.25", "88.1", "not among the best"):
        assert shown in wide


def test_a_running_trial_has_its_own_time_left_and_the_best_a_mark(state: SweepState, clock: Clock) -> None:
    for trial_id in ("t0000", "t0001"):
        state.start(trial_id, VALUES)
    clock.now += 30
    state.report("t0000", 12, {"accuracy": 0.5}, 0.4)
    assert state.trial_seconds_left("t0000") == 30 / 12 * 36
    assert state.trial_seconds_left("t0001") is None
    clock.now += 50
    assert state.trial_seconds_left("t0000") == 30 / 12 * 36 - 50
    assert "t0000*" not in drawn(state, 80), "none has completed"
    Progress(state, io.StringIO()).best(Row("trial", "t0000", "completed", 48, objective=0.4))
    assert "t0000*" in drawn(state, 80)
    assert "0:40" in drawn(state, 100)


def test_one_line_says_how_far_it_is_and_which_is_best(state: SweepState, clock: Clock) -> None:
    state.start("t0000", VALUES)
    clock.now += 30
    state.report("t0000", 12, {"accuracy": 0.5}, 0.412)
    assert drawn(state, 160, one_line).startswith("quick · 0/4 done · 1 running · 0:30 · ")
    assert "leads at its last rung: t0000 0.412" in drawn(state, 160, one_line)
    state.start("t0001", VALUES)
    state.report("t0001", 12, {"accuracy": 0.6}, 0.512)
    assert "leads at its last rung: t0001 0.512" in drawn(state, 160, one_line)
    state.end("t0001", State.DIVERGED, "")
    assert "leads at its last rung: t0000 0.412" in drawn(state, 160, one_line)
    state.best = ("t0002", 0.3)  # by the ranking: it ended before this process began
    assert "best t0002 0.300" in drawn(state, 160, one_line)
    assert "leads" not in drawn(state, 160, one_line)
    assert len(drawn(state, 40, one_line).splitlines()) == 1


@pytest.mark.parametrize(("view", "drawn_live"), [("auto", True), ("table", True), ("line", True), ("plain", False)])
def test_a_view_that_is_redrawn_needs_a_terminal(state: SweepState, view: str, drawn_live: bool, monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert (Progress(state, Terminal(), view)._live is not None) is drawn_live
    assert Progress(state, io.StringIO(), view)._live is None


def test_verbose_lines_hold_every_metric(state: SweepState) -> None:
    stream = io.StringIO()
    progress = Progress(state, stream, "verbose")
    progress.on_trial_start(0, [], trial("t0000"))
    progress.on_trial_result(0, [], trial("t0000"), report(12, metrics={"accuracy": 0.7, "log_loss": 1.5}))
    assert "log_loss 1.5" in stream.getvalue()


# Whether it learns


def test_a_rung_whose_predictions_are_one_class_is_marked_everywhere(state: SweepState) -> None:
    stream = io.StringIO()
    progress = Progress(state, stream)
    one = trial("t0000")
    start(progress, one)
    stuck = {"accuracy": 0.458, "macro_f1": 0.08, "classes_predicted": 1.0}
    tell(progress, one, report(12, metrics=stuck))
    assert "step 12/48  accuracy 0.458  F1 0.080  objective 0.250  still one class for all rows" in stream.getvalue()
    assert any("one class" in line for line in lines(state, 120))
    console = Console(file=io.StringIO(), width=100, color_system=None)
    console.print(one_line(state, 100))
    assert "leads at its last rung: t0000 0.250 (one class)" in console.file.getvalue()  # type: ignore[attr-defined]
    tell(progress, one, report(24, metrics=stuck | {"classes_predicted": 2.0}))
    assert "one class" not in stream.getvalue().splitlines()[-1]
    assert not any("one class" in line for line in lines(state, 120))


def test_a_task_without_labels_is_never_called_stuck(state: SweepState) -> None:
    stream = io.StringIO()
    progress = Progress(state, stream)
    start(progress, trial("t0000"))
    tell(progress, trial("t0000"), report(12, metrics={"completion_loss": 2.0}))
    assert "one class" not in stream.getvalue()


def test_the_objectives_own_metrics_are_shown_first_in_lines_and_in_the_table(clock: Clock) -> None:
    state = SweepState("quick", trials=4, max_steps=48, clock=clock)
    state.terms = ("log_loss", "perplexity")
    stream = io.StringIO()
    progress, one = Progress(state, stream), trial("t0000")
    start(progress, one)
    assert lines(state)[1].split()[:5] == ["trial", "values", "step", "loss", "ppl"]
    metrics = {"accuracy": 0.71, "macro_f1": 0.695, "weighted_f1": 0.7, "log_loss": 0.4567, "perplexity": 1234.5678}
    tell(progress, one, report(12, metrics=metrics))
    assert "step 12/48  log_loss 0.457  perplexity 1235  objective 0.250" in stream.getvalue()
    assert lines(state)[1].split()[3:6] == ["loss", "ppl", "obj."]
    assert lines(state, 120)[1].split()[3:8] == ["loss", "ppl", "acc.", "F1", "obj."]
    state.terms = ("weighted_f1",)
    assert "wtd F1" in lines(state)[1]
