"""Final scores as read from a folder and told in a table and sentences."""

import math
import statistics
from typing import Any

import pytest
import yaml

from analysis.finals import read_finals, report
from analysis.folder import MetricsRow, State, Status, append_line


def final(sweep: Any, name: str, hits: int | None, validation: float = 0.8, state: State = State.COMPLETED) -> None:
    """A final with ``hits`` of 100 test items right; None: it was not scored on them."""
    files = sweep.folder.final(name)
    files.root.mkdir(parents=True)
    if "-seed" in name:
        files.append_metrics(MetricsRow(name, 24, 0, 1.0, True, 160, sweep.metrics(validation)))
    if hits is not None:
        files.append_metrics(MetricsRow(name, 24, 0, 1.0, True, 100, sweep.metrics(hits / 100, crows=55.0), "test"))
        labels = [("sport", "science")[i % 2] for i in range(100)]
        wrong = {"sport": "science", "science": "sport"}
        predicted = [label if i < hits else wrong[label] for i, label in enumerate(labels)]
        items = {"item_id": [f"test-{i}" for i in range(100)], "label": labels, "prediction": predicted}
        files.write_items("task", "test", 24, items)
    files.write_status(Status(state, "no room" if state is State.OUT_OF_MEMORY else "", 24))


@pytest.fixture
def finals(sweep: Any) -> Any:
    sweep.trial("t0000", 0.9, hits=144)
    sweep.trial("t0001", 0.85, hits=136)
    for seed, (first, second) in enumerate(zip((80, 84, 76), (60, 62, 64), strict=True), start=1):
        final(sweep, f"t0000-seed{seed}", second, validation=0.7 + seed / 100)
        final(sweep, f"t0001-seed{seed}", first)
    final(sweep, "few_shot@nf4", 50)
    line = {"look": 1, "time": "2026-05-01T10:00:00+00:00", "user": "ada@lab", "command": "lorasweep finalize runs/x"}
    append_line(sweep.folder.looks_file, line | {"event": "began", "finalists": ["t0000"]})
    append_line(sweep.folder.looks_file, {"look": 1, "event": "finished"})
    return sweep


def test_means_and_deviations_over_seeds_and_the_order_by_test_accuracy(finals: Any) -> None:
    read = read_finals(finals.folder)
    assert [finalist.trial_id for finalist in read.finalists] == ["t0001", "t0000"]
    first = read.finalists[0]
    assert first.mean("accuracy") == pytest.approx(0.80)
    assert first.sd("accuracy") == pytest.approx(statistics.stdev([0.80, 0.84, 0.76]))
    assert read.finalists[1].mean("accuracy", "validation") == pytest.approx(0.72)
    assert first.selected["accuracy"] == 0.85
    assert first.hits()["test-82"] == pytest.approx(1 / 3), "one of three seeds is right on it"
    assert [baseline.name for baseline in read.baselines] == ["few_shot@nf4"]


def test_the_report_shows_the_winners_curse_and_paired_intervals(finals: Any) -> None:
    text = report(read_finals(finals.folder))
    row = next(line for line in text.splitlines() if line.startswith("t0001"))
    assert row.split() == ["t0001", "3", "of", "3", "accuracy", "0.850", "0.800", "±", "0.000", "0.800", "±", "0.040"]
    assert (
        "t0001 had 85.0 % accuracy in the sweep that chose it, and has 80.0 % on the test split: 5.0 points less."
        in text
    )
    assert "t0001 is 30.0 points of accuracy above the baseline few_shot@nf4; paired 95 % interval [" in text
    assert "t0001 is 18.0 points of accuracy above t0000; paired 95 % interval [" in text
    assert "Test split looked at once, 2026-05-01T10:00:00+00:00 by ada@lab." in text


def test_a_metric_of_the_objective_is_in_the_final_table_whichever_it_is(finals: Any) -> None:
    for files in finals.folder.finals():
        more = finals.metrics(0.6) | {"weighted_f1": 0.5}
        files.append_metrics(MetricsRow(files.trial_id, 24, 0, 0.0, True, 100, more, "test"))
    assert "weighted_f1" not in report(read_finals(finals.folder))
    stored = yaml.safe_load(finals.folder.sweep_file.read_text())
    stored["config"]["objective"]["terms"]["quality"]["metric"] = "weighted_f1"
    finals.folder.sweep_file.write_text(yaml.safe_dump(stored))
    assert "weighted_f1" in report(read_finals(finals.folder))


def test_an_interval_with_zero_in_it_is_called_that(finals: Any) -> None:
    for seed in (1, 2, 3):
        files = finals.folder.final(f"t0000-seed{seed}")
        source = finals.folder.final(f"t0001-seed{seed}")
        items = source.read_items("task", "test", 24)
        files.write_items("task", "test", 24, items)
    assert "interval [0.0, 0.0] points on 100 items. It includes zero" in report(read_finals(finals.folder))


def test_a_second_look_is_told_with_who_and_when(finals: Any) -> None:
    line = {"look": 2, "time": "2026-05-02T09:00:00+00:00", "user": "bob@lab", "command": "…"}
    append_line(finals.folder.looks_file, line | {"event": "began", "finalists": ["t0001"]})
    read = read_finals(finals.folder)
    assert [look.finished for look in read.looks] == [True, False]
    assert "The test split was looked at 2 times (1: 2026-05-01T10:00:00+00:00 by ada@lab (t0000); 2:" in report(read)


def test_a_seed_without_a_test_score_is_left_out_and_named(finals: Any) -> None:
    final(finals, "t0001-seed4", None, state=State.OUT_OF_MEMORY)
    text = report(read_finals(finals.folder))
    assert "3 of 4" in text
    assert "t0001-seed4 is not in these figures: out of memory: no room." in text


def test_without_finals_there_is_nothing_to_say(sweep: Any) -> None:
    assert report(read_finals(sweep.folder)) == "There are no final scores."


def test_the_ranking_and_the_page_hold_the_final_scores_too(finals: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from analysis.report import write
    from sweeps.cli import main

    page = write(finals.folder).read_text()
    assert 'id="finals"' in page
    assert "No figure here was used to choose anything" in page
    assert main(["rank", str(finals.folder.root)]) == 0
    assert "Final scores (lorasweep finalize):" in capsys.readouterr().out


def test_where_an_interval_has_zero_it_is_said_what_the_items_and_more_seeds_could_show(finals: Any) -> None:
    for seed, hits in enumerate((78, 82, 77), start=1):  # t0000: a mean of 79.0 beside 80.0
        files = finals.folder.final(f"t0000-seed{seed}")
        files.append_metrics(MetricsRow(files.trial_id, 24, 0, 1.0, True, 100, finals.metrics(hits / 100), "test"))
        items = finals.folder.final("t0001-seed1").read_items("task", "test", 24)
        wrong = {"sport": "science", "science": "sport"}
        right = range(100 - hits, 100)  # others than those of t0001
        items["prediction"] = [it if i in right else wrong[it] for i, it in enumerate(items["label"])]
        files.write_items("task", "test", 24, items)
    said = report(read_finals(finals.folder)).splitlines()
    [at] = [i for i, line in enumerate(said) if "is 1.0 points of accuracy above t0000" in line]
    assert said[at].endswith("on 100 items. It includes zero: the difference may be chance.")
    assert said[at + 1].startswith("These 100 items could have shown a difference of 17.")
    assert "points (80 % power); the one seen would take about " in said[at + 1]
    # seeds: deviations .04 and .0265, pooled .0339; apart .01: an effect of .295, Cohen's n = 182
    assert said[at + 2] == (
        "Seeds of one configuration differ by 3.4 points (standard deviation): to tell t0001 from t0000, 1.0 points"
        " apart, would take about 182 seeds of each (--seeds 182)."
    )


def test_finalists_are_put_in_order_and_compared_in_what_ranks(make_sweep: Any) -> None:
    term = {"metric": "log_loss", "direction": "min", "target": None, "range": [0.0, 5.0], "weight": 1.0}
    sweep = make_sweep({"name": "single", "rho": 0.0, "terms": {"quality": term}})
    for trial, sure, hits in (("t0000", 0.95, 80), ("t0001", 0.7, 78)):
        sweep.trial(trial, 0.9, hits=144)
        final(sweep, f"{trial}-seed1", hits)
        files = sweep.folder.final(f"{trial}-seed1")
        items = files.read_items("task", "test", 24)
        said = [
            [math.log(sure if it == name else 1 - sure) for name in ("science", "sport")] for it in items["prediction"]
        ]
        files.write_items("task", "test", 24, items | {"logprobs": said})
        loss = -(hits * math.log(sure) + (100 - hits) * math.log(1 - sure)) / 100
        metrics = sweep.metrics(hits / 100) | {"log_loss": loss}
        files.append_metrics(MetricsRow(files.trial_id, 24, 0, 1.0, True, 100, metrics, "test"))
    read = read_finals(sweep.folder)
    assert [it.trial_id for it in read.finalists] == ["t0001", "t0000"], "t0000 is more accurate, and overconfident"
    text = report(read)
    assert "On the test split t0001 is 0.097 nats of log loss better than t0000; paired 95 % interval [" in text
    assert "On the test split t0001 is 2.0 points of accuracy below t0000; paired" in text
