"""A sweep of which nothing but model and data is named, from a file as spreadsheets write it."""

import csv
from pathlib import Path

from analysis.folder import SweepFolder
from tests.conftest import write_rows
from tests.sweeps.command_line import Lorasweep


def test_a_model_and_a_file_are_enough_and_resume_keeps_what_was_chosen(
    lorasweep: type[Lorasweep], tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    with write_rows(tmp_path / "plain.csv", 60, 0).open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    with (tmp_path / "tickets.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=";").writerows([("Kind", "What they wrote"), *((kind, text) for text, kind in rows)])
    run = lorasweep(tmp_path)
    short = ["train.max_steps=4", "train.rungs=[2,4]", "tracking=none", "space=learning_rate"]
    named = ["model=local", f"model.path={tiny_models['bert']}", "data=csv", "data.train=tickets.csv"]
    first = run("run", *named, *short, "search.trials=2")
    assert first.returncode == 0, first.stderr
    for said in ("is an encoder", "data.split.validation=0.2", 'data.text="What they wrote"\' data.label=Kind'):
        assert said in first.stdout
    (root,) = (tmp_path / "runs").iterdir()
    assert root.name.startswith("classification-")
    more = run("resume", str(root), "search.trials=3")
    assert more.returncode == 0, more.stderr
    folder = SweepFolder.open(root)
    assert len(folder.trials()) == 3
    with folder.leaderboard_file.open() as file:
        (items,) = {int(row["n_items"]) for row in csv.DictReader(file) if row["status"] == "completed"}
    assert 9 <= items <= 20  # a fifth of 60, equal rows together
