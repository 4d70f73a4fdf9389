"""The baselines that a classification is compared with where the user asks for none, by the commands that users run."""

import csv
import re
from pathlib import Path
from typing import Any

import pytest

from analysis.folder import SweepFolder
from tests.conftest import write_rows

DEFAULT = ["frozen", "linear", "majority", "zero_shot"]


@pytest.fixture(scope="module")
def swept(lorasweep: Any, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """A sweep of two trials that hardly train, and what it printed."""
    command = lorasweep(tmp_path_factory.mktemp("default_baselines"))
    write_rows(command.cwd / "test.csv", 24, 9)
    settings = ["task=classification", "objective=single", "search.trials=2", "precision=fp32", "tracking=none"]
    settings += ["space.optim.lr.low=1e-6", "space.optim.lr.high=1e-5", "sweep.name=tiny", "scheduler=fifo"]
    done = command("run", *tiny("bert", *settings, f"data.test={command.cwd / 'test.csv'}"))
    assert done.returncode == 0, done.stdout + done.stderr
    return command, done.stdout


def test_they_are_rows_of_the_ranking_with_item_tables_and_survive_a_resume(swept: tuple[Any, str]) -> None:
    command, _ = swept
    folder = SweepFolder(command.cwd / "runs" / "tiny")
    with folder.leaderboard_file.open(newline="") as file:
        rows = {row["trial_id"]: row for row in csv.DictReader(file) if row["kind"] == "baseline"}
    assert sorted(rows) == DEFAULT
    assert {row["status"] for row in rows.values()} == {"completed"}
    for name in DEFAULT:
        items = folder.baseline(name).read_items("task", "validation", 0)
        hits = sum(said == label for said, label in zip(items["prediction"], items["label"], strict=True))
        assert float(rows[name]["accuracy"]) == pytest.approx(hits / len(items["label"]))
    folder.baseline("linear").status_file.unlink()  # a sweep that was cut off before it was scored
    resumed = command("resume", "runs/tiny")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "linear  scored" in resumed.stdout
    assert "frozen  scored" not in resumed.stdout


def test_what_a_user_reads_says_that_counting_words_was_not_beaten_and_what_to_change(swept: tuple[Any, str]) -> None:
    command, said = swept
    for text in (said, command("rank", "runs/tiny").stdout):
        text = " ".join(text.split())
        assert "No evidence that fine-tuning beats counting words: the best trial, " in text
        assert "the best of 4 baselines, the baseline linear," in text
        assert re.search(r"train longer \(train.max_steps=16\)|space.optim.lr.|training rows|larger model", text)


def test_the_best_of_them_is_scored_on_the_test_split(swept: tuple[Any, str]) -> None:
    command, _ = swept
    done = command("finalize", "runs/tiny", "--top", "1", "--seeds", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = SweepFolder(Path(command.cwd) / "runs" / "tiny")
    items = folder.final("linear").read_items("task", "test", 0)
    assert len(items["label"]) == 24
    assert items["prediction"] == items["label"], "the words tell the label"
    assert "below the baseline linear" in " ".join(done.stdout.split())
