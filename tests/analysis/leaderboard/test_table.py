"""The leaderboard as text and as a Rich table."""

import io
from typing import Any

import pytest
from rich.console import Console

from analysis.folder import State
from analysis.leaderboard import leaderboard


@pytest.fixture
def full(sweep: Any) -> Any:
    """What the quickstart ends with, and every other outcome."""
    sweep.untuned(0.656)
    sweep.trial("t0000", 0.881)
    sweep.trial("t0001", 0.7, State.STOPPED_EARLY, reason="scheduler: not among the best at step 8", step=8)
    sweep.trial("t0002", 0.6, State.STOPPED_EARLY, reason="scheduler: not among the best at step 8", step=8)
    sweep.trial("t0003", None, State.DIVERGED, reason="the loss was nan at step 5", step=5)
    sweep.trial("t0004", None, State.OUT_OF_MEMORY, step=1)
    return sweep


def drawn(sweep: Any, width: int, by: tuple[str, ...] = ()) -> str:
    rows = leaderboard.build(sweep.folder)
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(leaderboard.render(rows, width, by))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def table_lines(text: str) -> list[str]:
    return text.split("\n\n")[0].rstrip("\n").split("\n")


def test_at_eighty_columns_every_row_has_status_score_quality_bias_and_what_was_searched(full: Any) -> None:
    text = drawn(full, 80)
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines())
    lines = [line.split() for line in table_lines(text)]
    heads = lines[1]
    assert heads == ["#", "trial", "status", "score", "acc", "F1", "ppl", "CrowS", "rank", "rule", "lr", "prec"]
    assert lines[3] == [
        "1",
        "t0000",
        "completed",
        "0.878",
        "0.881",
        "0.881",
        "31.19",
        "60.0",
        "8",
        "sqrt",
        "4.2e-4",
        "nf4",
    ]
    assert lines[4][:5] == ["2", "zero_shot", "completed", "0.653", "0.656"]
    assert lines[5][:4] == ["3", "t0001", "stopped", "early"]
    assert lines[8][:5] == ["6", "t0004", "out", "of", "memory"]
    assert "…" not in text  # nothing cut
    assert "8 more columns in leaderboard.csv" in text


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_the_table_keeps_to_the_width_and_drops_whole_columns(full: Any, width: int) -> None:
    text = drawn(full, width)
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    assert "…" not in text
    assert all(f"t000{i}" in text for i in range(5))


def test_a_wide_terminal_shows_everything(full: Any) -> None:
    text = drawn(full, 200)
    assert "more column" not in text
    for head in ("log loss", "label ppl", "bits/B", "±", "signed", "step", "items"):
        assert head in text


def test_reasons_stand_below_once_each(full: Any) -> None:
    below = drawn(full, 80).split("\n\n", 1)[1]
    assert "t0001, t0002: scheduler: not among the best at step 8" in below
    assert "t0003: the loss was nan at step 5" in below


def test_text_for_a_pipe_has_the_same_cells_and_nothing_to_interpret(full: Any) -> None:
    rows = leaderboard.build(full.folder)
    text = leaderboard.plain(rows, 80)
    assert text.isprintable() or set(text) - {"\n"} == set(filter(str.isprintable, text))
    drawn_cells = [line.split() for line in table_lines(drawn(full, 80)) if "─" not in line]
    assert [line.split() for line in table_lines(text)] == drawn_cells
    assert all(len(line) <= 80 for line in table_lines(text))


def test_numbers_are_aligned_on_the_right(full: Any) -> None:
    lines = table_lines(leaderboard.plain(leaderboard.build(full.folder), 80))
    end = lines[1].index("score") + len("score")
    assert [line[end - 5 : end] for line in lines[2:]] == ["0.878", "0.653", "0.699", "0.600", "    -", "    -"]


def test_the_metrics_ranked_by_are_dropped_last(full: Any) -> None:
    assert "bits/B" not in drawn(full, 60)
    assert "bits/B" in drawn(full, 60, by=("bits_per_byte",))


def test_keys_of_the_same_name_are_told_apart(make_sweep: Any) -> None:
    fake = make_sweep(space={"lora.rank": {}, "head.rank": {}})
    fake.trial("t0000", 0.5)
    lines = leaderboard.plain(leaderboard.build(fake.folder), 200).splitlines()
    assert lines[0].split() == ["lora", "head"]
    assert lines[1].split()[-4:-2] == ["rank", "rank"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(9.876543, "9.877"), (31.19, "31.19"), (123.456, "123.5"), (98765.4, "98765"), (3.2e8, "3.2e8"), (0.5, "0.500")],
)
def test_perplexities_have_four_significant_digits(sweep: Any, value: float, shown: str) -> None:
    sweep.trial("t0000", {"macro_f1": 0.5, "perplexity": value})
    cells = leaderboard.plain(leaderboard.build(sweep.folder), 200).splitlines()[2].split()
    assert cells[5] == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [("0.000423781", "4.2e-4"), ("0.05", "0.05"), ("0.0", "0"), ("true", "True"), ("12", "12"), ("null", "-")],
)
def test_settings_are_short(make_sweep: Any, value: str, shown: str) -> None:
    fake = make_sweep(space={"optim.lr": {}})
    fake.trial("t0000", 0.5).config_file.write_text(f"optim: {{lr: {value}}}\n")
    assert leaderboard.plain(leaderboard.build(fake.folder), 200).splitlines()[1].split()[-3] == shown


def test_a_reason_is_shown_as_it_stands_without_markup_or_escapes(sweep: Any) -> None:
    sweep.trial("t0000", None, State.FAILED, reason="bad [red]list[/] \x1b[31m here\nsecond")
    for text in (drawn(sweep, 80), leaderboard.plain(leaderboard.build(sweep.folder))):
        assert "t0000: bad [red]list[/] ␛[31m here second" in text
        assert "\x1b" not in text


def test_a_setting_is_shown_as_it_stands_without_markup(make_sweep: Any) -> None:
    fake = make_sweep(space={"lora.targets": {}})
    fake.trial("t0000", 0.5).config_file.write_text("lora: {targets: 'q[bold]k'}\n")
    assert "q[bold]k" in drawn(fake, 200)


def test_a_sweep_without_trials_says_so(sweep: Any) -> None:
    assert drawn(sweep, 80).strip() == "No trial has started."
    assert leaderboard.plain([]) == "No trial has started."


TERMS = ("bits_per_byte", "weighted_f1", "bias.crows_pairs.distance")


@pytest.fixture
def crowded(full: Any) -> Any:
    """With the metrics that have a column only where they are asked for."""
    full.trial("t0005", full.metrics(0.9) | {"weighted_f1": 0.91, "micro_f1": 0.9, "mcc": 0.8, "brier": 0.1})
    return full


def heads_of(sweep: Any, width: int, by: tuple[str, ...] = (), terms: tuple[str, ...] = ()) -> str:
    text = leaderboard.plain(leaderboard.build(sweep.folder), width, by, terms)
    return next(line for line in text.splitlines() if "score" in line)


@pytest.mark.parametrize("width", [60, 80, 100, 120, 250])
def test_the_objectives_metrics_stand_right_after_the_score_and_are_dropped_last(crowded: Any, width: int) -> None:
    heads = heads_of(crowded, width, terms=TERMS)
    after = heads[heads.index("score") :].split()
    assert after[1:5] == ["bits/B", "wtd", "F1", "bias"]
    assert heads.count("bits/B") == 1
    assert "F1" not in after[5:] or " lr" in heads  # nobody asked for it: it goes before what was searched
    assert " lr" in heads or width == 60


def test_what_ranks_stands_before_the_objective_and_is_never_dropped(crowded: Any) -> None:
    heads = heads_of(crowded, 80, by=("log_loss",), terms=TERMS)
    assert heads[heads.index("score") :].split()[1:4] == ["log", "loss", "bits/B"]
    assert "log loss" in heads_of(crowded, 40, by=("log_loss",), terms=TERMS)


def test_a_column_that_only_some_want_is_shown_where_it_is_asked_for_and_counted_where_not(crowded: Any) -> None:
    text = leaderboard.plain(leaderboard.build(crowded.folder), 250)
    assert "wtd F1" not in text
    assert "micro F1" not in text
    assert "2 more columns in leaderboard.csv" in text
    assert "wtd F1" in heads_of(crowded, 80, by=("weighted_f1",))
    assert "weighted_f1,balanced" in leaderboard.to_csv(leaderboard.build(crowded.folder)).replace("mcc", "balanced")
    assert '"micro_f1": 0.9' in leaderboard.to_json(leaderboard.build(crowded.folder))
