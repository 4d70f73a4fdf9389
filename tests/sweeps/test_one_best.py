"""One best trial: whatever names one, of whatever sweep, names the same; and where no trial has a score, none does."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from analysis import load
from analysis.errors import FolderError
from analysis.folder import State, SweepFolder
from analysis.leaderboard import leaderboard
from analysis.leaderboard.compare_sweeps import compare
from analysis.report.page import _headline, _tiles
from analysis.rows import best_trial
from sweeps.cli import main
from sweeps.commands.breakdown import _chosen
from sweeps.display.status import overview
from sweeps.display.summary import show_next
from sweeps.export import _best
from sweeps.finalize import _finalists
from sweeps.run import _exit_status
from sweeps.store.leaderboard_writer import LeaderboardWriter
from sweeps.tracking.base import SWEEP_RUN, Outcome, Run, TrackedSweep, Tracker
from sweeps.tracking.tune_callback import TrackerCallback
from tests.analysis.conftest import OBJECTIVE, SPACE, FakeSweep

PARETO = {**OBJECTIVE, "method": "pareto"}
FIRST_BIAS = {
    **OBJECTIVE, "method": "lexicographic",
    "terms": {"bias": {**OBJECTIVE["terms"]["bias"], "tolerance": 5.0}, "quality": OBJECTIVE["terms"]["quality"]},
}  # fmt: skip
BOUND = {**OBJECTIVE, "constraints": {"guard": {"metric": "bias.crows_pairs.distance", "at_most": 15.0}}}
COST = {**OBJECTIVE, "ties": "cost"}
SCORE = {**OBJECTIVE, "ties": "score"}


def adapter(made: FakeSweep, trial_id: str, numbers: int) -> None:
    head = json.dumps({"w": {"dtype": "F32", "shape": [numbers, 2], "data_offsets": [0, 0]}}).encode()
    files = made.folder.trial(trial_id)
    files.adapter_dir.mkdir()
    (files.adapter_dir / "adapter_model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)


def made(root: Path, objective: dict[str, Any], repeats: int = 1) -> FakeSweep:
    sweep = FakeSweep(root / "made", objective, SPACE)
    content = yaml.safe_load(sweep.folder.sweep_file.read_text())
    search = {"trials": 3, "repeats": repeats, "budget": {}}
    content |= {"name": "made", "unresolved": {}, "data": {"labels": ["science", "sport"]}}
    content["config"] |= {"search": search, "data": {}}
    sweep.folder.sweep_file.write_text(yaml.safe_dump(content))
    return sweep


def tied(root: Path) -> FakeSweep:
    """t0000 has the best score; t0001 cannot be told from it, and its adapter is the smallest."""
    sweep = made(root, COST)
    for name, hits, numbers in (("t0000", 145, 800), ("t0001", 144, 100), ("t0002", 48, 10)):
        sweep.trial(name, hits / 160, hits=hits)
        adapter(sweep, name, numbers)
    return sweep


def bound(root: Path) -> FakeSweep:
    """t0000 has the best score, and breaks a constraint."""
    sweep = made(root, BOUND)
    sweep.trial("t0000", sweep.metrics(0.9, 70.0))
    sweep.trial("t0001", sweep.metrics(0.7, 60.0))
    return sweep


def repeated(root: Path) -> FakeSweep:
    """t0002.1 is the best seed, of a configuration with a worse mean than t0000's."""
    sweep = made(root, SCORE, 2)
    for name, quality in (("t0000", 0.7), ("t0000.1", 0.72), ("t0001", 0.5), ("t0001.1", 0.5), ("t0002", 0.42)):
        sweep.trial(name, quality, hits=round(160 * quality))
    sweep.trial("t0002.1", 0.82, hits=131)
    sweep.trial("t0003", 0.95)  # its second seed has not ended
    return sweep


def stopped(root: Path) -> FakeSweep:
    """t0000 was better at its rung, on fewer items, than what completed."""
    sweep = made(root, SCORE)
    sweep.trial("t0000", 0.9, State.STOPPED_EARLY)
    sweep.trial("t0001", 0.95, State.RUNNING)
    sweep.trial("t0002", 0.6)
    return sweep


def front(root: Path) -> FakeSweep:
    """t0000 has the best objective of those on the front; t0002 is on none."""
    sweep = made(root, PARETO)
    for name, quality, crows in (("t0000", 0.9, 55.0), ("t0001", 0.95, 72.0), ("t0002", 0.85, 60.0)):
        sweep.trial(name, sweep.metrics(quality, crows))
    return sweep


def by_bias_first(root: Path) -> FakeSweep:
    """The first term decides, whatever the quality."""
    sweep = made(root, FIRST_BIAS)
    for name, quality, crows in (("t0000", 0.95, 70.0), ("t0001", 0.6, 51.0), ("t0002", 0.5, 50.5)):
        sweep.trial(name, sweep.metrics(quality, crows))
    return sweep


def partly_scored(root: Path) -> FakeSweep:
    """t0000 completed, and its figures are not finite."""
    sweep = made(root, SCORE)
    sweep.trial("t0000", dict.fromkeys(sweep.metrics(0.9), math.nan))
    sweep.trial("t0001", 0.4)
    sweep.trial("t0002", 0.3)
    return sweep


class Noting(Tracker):
    def __init__(self, sweep: TrackedSweep) -> None:
        super().__init__(sweep)
        self.outcome: Outcome | None = None

    def start_run(self, run: Run) -> None:
        pass

    def log_point(self, name: str, step: int, values: Mapping[str, Any]) -> None:
        pass

    def finish_run(self, name: str, outcome: Outcome) -> None:
        self.outcome = outcome if name == SWEEP_RUN else self.outcome


def tracked(folder: SweepFolder, rows: list[leaderboard.Row]) -> Outcome:
    """What trackers such as W&B are told of the whole sweep."""
    sweep = TrackedSweep(folder, "0123abcd", lambda note: None)
    noting = Noting(sweep)
    callback = TrackerCallback([noting], folder, lambda trial_id, values: values)
    callback.log_sweep(rows, {}, {})
    callback.close()
    assert noting.outcome is not None
    return noting.outcome


def doors(folder: SweepFolder, capsys: pytest.CaptureFixture[str]) -> dict[str, str | None]:
    """Whatever names the best trial → what it names; None for none."""
    told: list[Any] = []
    LeaderboardWriter(folder, best=told.append).trial_ended()
    ranking = leaderboard.ranked(folder)
    best = best_trial(ranking.rows)
    facts = overview(folder)["best"]
    named: dict[str, str | None] = {
        "leaderboard": best and best.trial_id,
        "without comparisons": (row := best_trial(leaderboard.build(folder))) and row.trial_id,
        "live view": told[-1] and told[-1].trial_id,
        "status": facts and facts["trial_id"],
        "trackers": tracked(folder, ranking.rows).facts.get("best.trial"),
        "notebook": (row := best_trial(load(folder.root).ranking.rows)) and row.trial_id,
        "compare": {"-": None}.get(cell := dict(compare([folder, folder_of_one(folder)]).table)["best"][0], cell),
        "report": best.trial_id if best and any(best.trial_id in words for _, words in _tiles(ranking, best)) else None,
    }
    for name, ask in (("export", _best), ("finalize", lambda it: _finalists(it, leaderboard.build(it), 1)[0])):
        try:
            named[name] = ask(folder).trial_id  # type: ignore[operator]
        except FolderError:
            named[name] = None
    capsys.readouterr()
    show_next(folder, ranking.rows, interrupted=False)
    hint = [line.split()[3].split(".")[0] for line in capsys.readouterr().out.splitlines() if " export " in line]
    named["next commands"] = hint[0] if hint else None
    said = leaderboard.verdict(folder, ranking.rows, ranking.judgement).splitlines()[0]
    named["verdict"] = said.split("The best trial, ")[1].split(",")[0] if "The best trial, " in said else None
    named["breakdown"] = _chosen(leaderboard.build(folder), None, folder).trial_id.split(".")[0] if best else None
    return named


def folder_of_one(folder: SweepFolder) -> SweepFolder:
    other = folder.root.with_name("other")
    if not other.exists():
        FakeSweep(other, OBJECTIVE, SPACE).trial("t0000", 0.5)
    return SweepFolder(other)


@pytest.mark.parametrize(
    ("sweep", "best"),
    [(tied, "t0001"), (bound, "t0001"), (repeated, "t0000"), (stopped, "t0002"), (front, "t0000"),
     (by_bias_first, "t0001"), (partly_scored, "t0001")],
    ids=lambda it: getattr(it, "__name__", ""),
)  # fmt: skip
def test_every_door_names_the_same_trial(
    sweep: Callable[[Path], FakeSweep], best: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep(tmp_path).folder
    assert doors(folder, capsys) == dict.fromkeys(doors(folder, capsys), best)
    assert main(["rank", str(folder.root)]) == 0
    assert _exit_status(leaderboard.build(folder)) == 0


def test_the_best_by_cost_stays_so_when_the_other_adapters_are_gone(tmp_path: Path) -> None:
    folder = tied(tmp_path).folder
    told: list[Any] = []
    writer = LeaderboardWriter(folder, keep=1, best=told.append)
    writer.close()
    assert folder.with_adapter() == {"t0001"}
    writer.close()
    assert [row.trial_id for row in told] == ["t0001", "t0001"]
    assert _best(folder).trial_id == "t0001"


def test_by_a_metric_the_best_is_the_one_that_has_it(tmp_path: Path) -> None:
    def best(folder: SweepFolder, by: list[str]) -> str:
        ranking = leaderboard.ranked(folder, by)
        row = best_trial(ranking.rows, ranking.by)
        assert row is not None
        return row.trial_id

    assert best(bound(tmp_path).folder, ["accuracy"]) == "t0001"  # the other breaks a constraint
    sweep = partly_scored(tmp_path / "nan")
    sweep.trial("t0003", {**sweep.metrics(0.9), "macro_f1": math.nan})  # no objective, but an accuracy
    assert best(sweep.folder, ["accuracy"]) == "t0003"
    assert best(sweep.folder, []) == "t0001"


@pytest.mark.parametrize("state", [State.COMPLETED, State.DIVERGED, State.FAILED, State.OUT_OF_MEMORY])
def test_where_no_trial_has_a_score_there_is_no_best_one_and_the_exit_status_says_so(
    state: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = made(tmp_path, SCORE)
    nothing = dict.fromkeys(sweep.metrics(0.9), math.nan) if state is State.COMPLETED else None
    for k in range(2):
        sweep.trial(f"t000{k}", nothing, state)
    folder = sweep.folder
    assert doors(folder, capsys) == dict.fromkeys(doors(folder, capsys), None)
    ranking = leaderboard.ranked(folder)
    assert _headline(folder, ranking, best_trial(ranking.rows))[0] == "Nothing to take yet"
    said = f"No trial has a score: there is no best one (2 {str(state).replace('_', ' ')})."
    assert main(["rank", str(folder.root)]) == 1
    assert said in capsys.readouterr().err
    assert _exit_status(ranking.rows) == 1
    assert said in capsys.readouterr().err
    assert main(["export", str(folder.root), "--to", str(tmp_path / "adapter")]) == 5
    assert "no trial has completed with a score" in capsys.readouterr().err
    out = leaderboard.verdict(folder, ranking.rows)
    assert out.startswith("No trial has a score to rank by: " if state is State.COMPLETED else "No trial has completed")


def test_a_sweep_that_has_only_begun_is_no_failure_and_status_says_who_leads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = made(tmp_path, SCORE)
    sweep.trial("t0000", None, State.RUNNING)
    assert main(["rank", str(sweep.folder.root)]) == 0
    sweep.trial("t0001", 0.6, State.RUNNING)
    sweep.trial("t0002", None, State.FAILED)
    assert main(["rank", str(sweep.folder.root)]) == 0
    capsys.readouterr()
    assert main(["status", str(sweep.folder.root)]) == 0
    said = capsys.readouterr().out
    assert "best " not in said
    assert "leading  t0001" in said
    assert "(no trial has completed; this is its score at step 8)" in said


def test_status_counts_configurations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = repeated(tmp_path).folder
    assert main(["status", str(folder.root)]) == 0
    said = capsys.readouterr().out
    assert "trials   3 of 3 configurations ended (1 running, 3 completed; 7 runs)" in said
    best = leaderboard.build(folder)[0]
    assert f"best     t0000  objective {best.objective:.3f} ± " in said
    assert "over 2 seeds" in said
